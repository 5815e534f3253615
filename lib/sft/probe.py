"""Two training steps at the longest rows, measured before the real ones: what a plan could only estimate."""

import copy
import time

import torch

from lib.model import saving
from lib.pipeline.machine import peak_bytes, random_state

STEPS = 2  # the second one has the optimizer's states in memory


def longest(trainer):
    """The batch that the trainer's collator makes of the longest training rows, on the trainer's device."""
    data = trainer.train_dataset
    lengths = [len(ids) for ids in data["input_ids"]]
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])[: trainer.args.per_device_train_batch_size]
    batch = trainer.data_collator([data[row] for row in order])
    return {name: value.to(trainer.args.device) for name, value in batch.items() if torch.is_tensor(value)}


def probe(trainer):
    """Measure STEPS optimizer steps at the longest rows and leave model, trainer and random numbers as they were.

    trainer: a trl.SFTTrainer before train().
    Returns {"tokens": of the batch, "peak_bytes", "seconds_per_step": of the last step, forward to update}. On a GPU
    the peak is what torch allocated there; on a CPU it is the process's largest resident size, everything else in it
    included.
    None under FSDP and ZeRO-3, which spread the weights when training begins: whole ones would tell nothing.
    """
    if saving.sharded(trainer):
        return None
    model, args = trainer.model, trainer.args
    batch = longest(trainer)
    trained = [p for p in model.parameters() if p.requires_grad]
    kept = [p.detach().cpu().clone() for p in trained]
    mode, counted = model.training, copy.deepcopy({name: trainer.__dict__.get(name) for name in _COUNTERS})
    with random_state():
        try:
            model.train()
            if args.gradient_checkpointing:  # and stays so: train() asks for it again
                model.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            seconds = _steps(trainer, trained, batch)
            peak = peak_bytes()
        finally:
            with torch.no_grad():
                for p, before in zip(trained, kept, strict=True):
                    p.copy_(before)
                    p.grad = None
            model.train(mode)
            trainer.__dict__.update({name: value for name, value in counted.items() if value is not None})
    return {"tokens": batch["input_ids"].numel(), "peak_bytes": peak, "seconds_per_step": round(seconds, 4)}


_COUNTERS = ("_metrics", "_total_train_tokens")  # of TRL's trainers, which compute_loss adds to


def _steps(trainer, trained, batch):
    """Seconds of the last of STEPS steps with an optimizer of the trainer's kind; gradients are kept between two."""
    kind, options = trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
    optimizer = kind(trained, **options)
    for _ in range(STEPS):
        begin = time.perf_counter()
        with trainer.accelerator.autocast():
            loss = trainer.compute_loss(trainer.model, dict(batch))
        loss.backward()
        optimizer.step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return time.perf_counter() - begin
