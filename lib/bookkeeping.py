"""A trainer's steps without walks over all modules that bring nothing new: a few percent of a small model's time."""


def lighten(trainer):
    """The trainer, which then counts parameters once and switches to training mode only where it is not in it yet.

    transformers.Trainer does both in every step, through hundreds of modules. Weights, losses and logs stay the same,
    bit for bit. Call it after the trainer is made and before it trains.
    """
    model = trainer.model
    parameters, switch = model.num_parameters(exclude_embeddings=True), model.train
    trainer.floating_point_ops = lambda inputs: 6 * inputs["input_ids"].numel() * parameters
    model.train = lambda mode=True: model if model.training == mode else switch(mode)
    return trainer
