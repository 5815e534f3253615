"""The adapter of chapter 3: put on the base, trained in float32, saved and given back."""

from peft import get_peft_model
from peft.tuners.lora import LoraLayer
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from lib.model import layout, loading, saving, unsloth


def trainable(cfg, lora):
    """The base with a fresh adapter to train, by the recipe's backend; prints which one that is, and why.

    lora: peft.LoraConfig(**cfg.lora). Unsloth rewrites transformers' classes for the whole process, so from here on
    `base` and `saved` load through it too; measure packing before. Raises ValueError, before anything is trained, where
    this family's file has no grid that chapter 4 could train on, or no form at all.
    """
    name, why = unsloth.backend(cfg)
    print(f"trained with {name}: {why}")
    layout.check(loading.config(cfg), bool(cfg.sections(["qat"])["qat"]))
    if name == "transformers":
        return get_peft_model(loading.base(cfg), lora)
    quantized, revision = bool(cfg.model["quantization"]), cfg.model["revision"]
    return unsloth.adapt(unsloth.load(loading.source(cfg), cfg, loading.precision(cfg), quantized, revision), cfg, lora)


def trained(cfg, model, folder, trainer=None):
    """Save the adapter that was trained, in PEFT's format, and return the model ready to be measured and merged.

    trainer: as for save_adapter; where it spread the weights, the base is loaded again, with the saved adapter on it.
    Raises ValueError when it holds no LoRA layer of PEFT's: it could not be merged or loaded in chapter 4.
    """
    saving.save_adapter(model, folder, trainer)
    if not any(isinstance(module, LoraLayer) for module in model.modules()):
        raise ValueError("the trained model has no adapter of PEFT's: train with model.backend=transformers")
    if unsloth.backend(cfg)[0] == "unsloth":  # its forward gives no logits in training mode
        unsloth.answering(model)
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
