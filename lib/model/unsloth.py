"""Unsloth, which may train the adapter of chapter 3 on one GPU; chapter 4 never takes it.

Written against its signatures of 2026 and never run: where this project is tested there is no GPU. It is kept
because its kernels are made for one small GPU, and because what it saves is PEFT's own format.
"""

import dataclasses
import functools
import importlib
import os
import sys

import torch


def backend(cfg):
    """What trains this recipe's adapter in chapter 3, ("unsloth" or "transformers", the reason in words).

    Raises ValueError where the recipe asks for Unsloth and it cannot be had. Chapter 4 always takes transformers: its
    rounding replaces the weights that a module's forward reads, and Unsloth's kernels read past the module.
    """
    wanted, why = cfg.model["backend"], None
    if wanted == "transformers":
        return wanted, "model.backend says so"
    if not torch.cuda.is_available():
        why = "there is no CUDA or ROCm GPU"
    elif int(os.environ.get("WORLD_SIZE", 1)) > 1:
        why = "this run has several processes, and it serves one GPU"
    elif unlike := _unlike(cfg):
        why = unlike
    else:
        try:
            importlib.import_module("unsloth")
        except Exception as error:  # it raises whatever its checks of driver, triton and versions raise
            why = f"`import unsloth` fails: {type(error).__name__}: {error}"
    if why is None:
        return "unsloth", f"model.backend is {wanted}, there is a GPU, and the package imports"
    if wanted == "unsloth":
        raise ValueError(
            f"model.backend is unsloth, but {why}: install requirements-gpu.txt on a machine with a GPU, or set "
            "model.backend to transformers"
        )
    return "transformers", f"model.backend is auto, and {why}"


@functools.cache
def defaults():
    """{field: default} of trl.SFTConfig as TRL has them. Ask before Unsloth is imported, which puts others there."""
    from trl import SFTConfig

    return {f.name: f.default for f in dataclasses.fields(SFTConfig) if f.default is not dataclasses.MISSING}


def _unlike(cfg):
    """Why Unsloth would train over another quantized base than the recipe's; None where it would not."""
    fixed = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    if cfg.model["quantization"] in (None, {}, fixed):
        return None
    return f"its quantization is {fixed}, not this recipe's {cfg.model['quantization']}"


def active(cfg):
    """Whether `load` has rewritten transformers' classes in this process, so that loading must go through it."""
    return "unsloth" in sys.modules and backend(cfg)[0] == "unsloth"


def load(path, cfg, dtype, quantized, revision):
    """The base or a merged model by Unsloth's loader. dtype: its name. quantized: in 4 bits, else in 16."""
    model, _ = _fast().from_pretrained(
        model_name=str(path),
        revision=revision,
        trust_remote_code=False,
        use_exact_model_name=True,  # else it loads a 4-bit copy of its own from the hub
        max_seq_length=cfg.sft["max_length"] + cfg.chat["max_new_tokens"],
        dtype=getattr(torch, dtype),
        load_in_4bit=quantized,
        load_in_16bit=not quantized,
        use_gradient_checkpointing=_checkpointing(cfg),
        fix_tokenizer=False,  # the tokenizer is ours
        random_state=cfg.run["seed"],
    )
    return model


def adapt(model, cfg, lora):
    """A model of `load` with a fresh adapter to train. lora: peft.LoraConfig(**cfg.lora)."""
    values = {key: getattr(lora, key) for key in cfg.lora if key != "task_type"}  # that one it sets itself
    values |= {key: sorted(value) for key, value in values.items() if isinstance(value, set)}
    values |= {"use_gradient_checkpointing": _checkpointing(cfg), "random_state": cfg.run["seed"]}
    return _fast().get_peft_model(model, **values)


def answering(model):
    """The model switched to inference, where its forward gives logits."""
    return _fast().for_inference(model)


def _fast():
    return importlib.import_module("unsloth").FastLanguageModel


def _checkpointing(cfg):
    return "unsloth" if cfg.sft.get("gradient_checkpointing", True) else False
