"""Unsloth, which may train the adapter of chapter 3 on one GPU, in a process of its own (lib/sft/child.py).

It rewrites classes of transformers, PEFT and TRL wherever it is imported: no notebook imports it. Chapter 4 never takes
it: its kernels read past the rounded weights that a module's forward reads.
"""

import dataclasses
import functools
import importlib
import os
import subprocess
import sys

import torch

from lib.pipeline.commands import held


def backend(cfg):
    """What trains this recipe's adapter in chapter 3, ("unsloth" or "transformers", the reason in words).

    Raises ValueError where the recipe asks for Unsloth and it cannot be had.
    """
    wanted = cfg.model["backend"]
    if wanted == "transformers":
        return wanted, "model.backend says so"
    if not torch.cuda.is_available():
        why = "there is no CUDA or ROCm GPU"
    elif "WORLD_SIZE" in os.environ:
        why = "a launcher started this run, and it serves one process on one GPU"
    else:
        why = _unlike(cfg) or _broken()
    if not why:
        return "unsloth", f"model.backend is {wanted}, there is a GPU, and the package imports"
    if wanted == "unsloth":
        raise ValueError(
            f"model.backend is unsloth, but {why}: install requirements-gpu.txt on a machine with a GPU, or set "
            "model.backend to transformers"
        )
    return "transformers", f"model.backend is auto, and {why}"


@functools.cache
def defaults():
    """{field: default} of trl.SFTConfig as TRL has them; Unsloth has others where a field is left out."""
    from trl import SFTConfig

    return {f.name: f.default for f in dataclasses.fields(SFTConfig) if f.default is not dataclasses.MISSING}


def _unlike(cfg):
    """Why Unsloth would train over another quantized base than the recipe's; None where it would not."""
    fixed = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    if cfg.model["quantization"] in (None, {}, fixed):
        return None
    return f"its quantization is {fixed}, not this recipe's {cfg.model['quantization']}"


def _broken():
    """Why it cannot be imported here, as another process finds; None where it can."""
    tried = subprocess.run(held(sys.executable, "-c", "import unsloth"), capture_output=True, text=True)
    if not tried.returncode:
        return None
    return f"`import unsloth` fails: {(tried.stderr.strip().splitlines() or ['it gave no reason'])[-1]}"


def trainable(cfg, path, dtype, revision):
    """The base of `path` with a fresh adapter to train, by Unsloth's loader. dtype: torch's.

    Import it before anything else: what is imported earlier keeps its own classes.
    """
    fast = importlib.import_module("unsloth").FastLanguageModel
    quantized = bool(cfg.model["quantization"])
    common = {
        "use_gradient_checkpointing": "unsloth" if cfg.sft.get("gradient_checkpointing", True) else False,
        "random_state": cfg.run["seed"],
    }
    model, _ = fast.from_pretrained(
        model_name=str(path),
        revision=revision,
        trust_remote_code=False,
        use_exact_model_name=True,  # else it loads a 4-bit copy of its own from the hub
        max_seq_length=cfg.sft["max_length"],
        dtype=dtype,
        load_in_4bit=quantized,
        load_in_16bit=not quantized,
        fix_tokenizer=False,  # the tokenizer is ours
        **common,
    )
    lora = {name: value for name, value in cfg.lora.items() if name != "task_type"}  # that one it sets itself
    return fast.get_peft_model(model, **lora | common)
