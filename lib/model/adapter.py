"""The adapter of chapter 3: put on the base, trained in float32, saved and given back."""

import contextlib

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


@contextlib.contextmanager
def in_float32(model):
    """Make a trainer of the model within: afterwards what is trained is in float32, with the numbers of before.

    TRL casts adapters over a 4-bit base to bfloat16: what was learnt before is rounded, DPO's policy begins elsewhere
    than its reference, an old GPU's gradient scaler stops, and elsewhere updates smaller than 1/256 of a weight are
    rounded away.
    """
    given = {name: p.detach().float() for name, p in model.named_parameters() if p.requires_grad}
    yield
    for name, parameter in model.named_parameters():
        if name in given:
            parameter.data = given[name].to(parameter.device)
