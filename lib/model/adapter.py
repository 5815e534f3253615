"""The adapter of chapter 3: put on the base, trained in float32, saved and given back."""

from peft import get_peft_model
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from lib.model import layout, loading, saving
from lib.pipeline import ranks


def trainable(cfg, lora):
    """The base with a fresh adapter to train. lora: peft.LoraConfig(**cfg.lora).

    Raises ValueError, before anything is trained, where this family's file has no grid that chapter 4 could train on,
    or no form at all, its tokenizer's included.
    """
    config, tokenizer = loading.config(cfg), loading.tokenizer(cfg)
    with ranks.first():  # the others find the answers in the cache
        layout.check(config, bool(cfg.sections(["qat"])["qat"]))
        layout.check_tokenizer(tokenizer, config)
    return get_peft_model(loading.base(cfg), lora)


def trained(cfg, model, folder, trainer=None):
    """Save the adapter that was trained, in PEFT's format, and return the model ready to be measured and merged.

    trainer: as for save_adapter; where it spread the weights, the base is loaded again, with the saved adapter on it.
    """
    saving.save_adapter(model, folder, trainer)
    if not saving.sharded(trainer):
        return model.eval()
    unset_hf_deepspeed_config()  # else ZeRO-3 spreads what is loaded next as well
    return loading.adapted(loading.base(cfg), folder)


def in_float32(model):
    """The model with all that is trained in float32; call it between making a trainer and training.

    TRL casts adapters over a 4-bit base to bfloat16: an old GPU's gradient scaler stops at them, and elsewhere updates
    smaller than 1/256 of a weight are rounded away.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model
