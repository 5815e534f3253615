"""Models and tokenizers: the base, an adapter on it, the merge, and what the device decides about training."""

import json
import shutil
import tempfile
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from lib import chat, twin
from lib.files import ROOT

CLINIC = "data/clinic.yaml"


def source(cfg, progress=None):
    """What from_pretrained loads the base from: a hub id, a folder, or the tiny base model, built when missing."""
    if cfg.model["base"] != "twin":
        return cfg.model["base"]
    cfg.reads.add(CLINIC)
    return twin.build(cfg.model["twin"], ROOT / CLINIC, cfg.run["seed"], progress)


def tokenizer(cfg, progress=None):
    """The base model's tokenizer, with a pad token that is not the end token (else the end would never be trained).

    progress: called with (steps, total) while a tiny base model is pretrained, the first time it is asked for.
    Raises ValueError when the tokenizer has none.
    """
    loaded = AutoTokenizer.from_pretrained(source(cfg, progress), revision=cfg.model["revision"])
    if loaded.pad_token_id is None or loaded.pad_token_id == loaded.eos_token_id:
        raise ValueError(
            f"{cfg.model['base']}: pad token {loaded.pad_token!r} must exist and differ from the end token "
            f"{loaded.eos_token!r}: padding is masked out of the loss, and the end token must not be"
        )
    return chat.prepare(loaded, cfg.chat["format"], cfg.chat["date"], cfg.chat["reasoning_effort"])


def base(cfg):
    """The base model in evaluation mode, on the device there is, in the recipe's dtype and quantization."""
    quantization = cfg.model["quantization"]
    return _load(source(cfg), cfg, BitsAndBytesConfig(**quantization) if quantization else None)


def saved(cfg, folder):
    """A merged model that `merge` wrote, computed in the recipe's dtype."""
    return _load(folder, cfg, None, revision=None)


def _load(path, cfg, quantization, **changes):
    options = {"revision": cfg.model["revision"], "attn_implementation": cfg.model["attn_implementation"]} | changes
    dtype = getattr(torch, cfg.model["dtype"])
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, quantization_config=quantization, **options)
    model.generation_config.update(temperature=None, top_p=None, top_k=None)  # decoding is the recipe's to choose
    return model.eval() if quantization else model.eval().to(device())


def device():
    return "cuda" if torch.cuda.is_available() else "cpu"


def adapted(model, folder, trainable=False):
    """The base with a saved LoRA adapter on it."""
    return PeftModel.from_pretrained(model, folder, is_trainable=trainable).eval()


def merge(peft_model, tokenizer, folder):
    """Merge an adapter into what it was trained on and save bfloat16 safetensors with the tokenizer.

    The sum W + BA is taken in float32 and rounded once, to bfloat16: the rounding that QAT has inside its forward.
    A 4-bit base is dequantized first, because the adapter was trained on the dequantized weights.
    peft_model: is consumed. Returns the folder.
    """
    if getattr(peft_model.get_base_model(), "is_quantized", False):
        with tempfile.TemporaryDirectory() as adapter:  # PEFT's layers over 4 bits can only merge into 4 bits again
            peft_model.save_pretrained(adapter)
            peft_model = PeftModel.from_pretrained(_dequantized(peft_model.unload()), adapter)
    merged = peft_model.float().merge_and_unload().to(torch.bfloat16)
    merged.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


def write_base(cfg, tokenizer, folder):
    """Save the untouched base in bfloat16, dequantized where it is loaded in 4 bits; returns the folder."""
    model = base(cfg)
    if getattr(model, "is_quantized", False):
        model = _dequantized(model)
    model.to(torch.bfloat16).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


def _dequantized(model):
    """A 4-bit model with its weights in 16 or 32 bits, and free to change dtype and to be saved so."""
    model.dequantize()
    model.is_loaded_in_4bit = model.is_quantized = False
    return model


def save_tokenizer(tokenizer, folder):
    """Save a tokenizer, SentencePiece's own file included.

    transformers leaves tokenizer.model out, and llama.cpp's converter then takes every merge for equally likely: the
    served model would read other tokens than the trained one.
    """
    tokenizer.save_pretrained(folder)
    sentencepiece = getattr(tokenizer, "vocab_file", None)
    if sentencepiece and json.loads(tokenizer.backend_tokenizer.to_str())["model"].get("byte_fallback"):
        shutil.copy(sentencepiece, Path(folder, "tokenizer.model"))


def device_fields(cfg, stage, folder="checkpoints"):
    """The trl.SFTConfig fields that follow from the device and the run and are not a recipe's to set."""
    cuda, dtype = torch.cuda.is_available(), cfg.model["dtype"]
    return {
        "output_dir": str(stage.dir / folder),
        "use_cpu": not cuda,
        "bf16": dtype == "bfloat16",
        "fp16": dtype == "float16",
        "seed": cfg.run["seed"],
        "data_seed": cfg.run["seed"],
        "assistant_only_loss": False,  # the labels of lib.chat's rows already say which tokens carry loss
        "disable_tqdm": stage.headless,  # a bar redrawn in a saved notebook is a thousand lines
    }
