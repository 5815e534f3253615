"""Models and tokenizers: the base, an adapter on it, the merge, and what the device decides about training."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from lib import chat, padding, twin
from lib.files import ROOT, cache_dir, sha256_json

CLINIC = "data/clinic.yaml"


def source(cfg, progress=None):
    """What from_pretrained loads the base from: a hub id, a folder, or the tiny base model, built when missing.

    With model.checkpoint_4bit a folder with the base in 4 bits.
    """
    base = _in_16_bits(cfg, progress)
    if not cfg.model["checkpoint_4bit"]:
        return base
    about = [str(base), _version(base, cfg.model["revision"]), cfg.model["quantization"], precision(cfg)]
    loaded = padding.pad(read_tokenizer(base, cfg.model["revision"]))
    return _kept(cache_dir() / "nf4" / sha256_json(about)[:16], lambda folder: write_nf4(cfg, loaded, folder))


def _in_16_bits(cfg, progress=None):
    if cfg.model["base"] != "twin":
        return padded(cfg.model["base"], cfg.model["revision"])
    cfg.reads.add(CLINIC)
    return padded(twin.build(cfg.model["twin"], ROOT / CLINIC, cfg.run["seed"], progress))


def padded(base, revision=None):
    """What to load instead of a base: itself, or a folder with a copy that has one token and one row more, to pad with.

    base: hub id or folder. The copy is made where no token of the vocabulary will do, and is kept by content. With it
    adapter, merged model and GGUF file name one base of one size; PEFT would otherwise put the whole embedding into
    every adapter, which llama.cpp's converter then refuses.
    """
    tokenizer = read_tokenizer(base, revision)
    if padding.choose(tokenizer) in tokenizer.get_vocab():
        return base
    folder = cache_dir() / "padded" / sha256_json([str(base), _version(base, revision), padding.ADDED])[:16]

    def write(scratch):
        model = AutoModelForCausalLM.from_pretrained(base, revision=revision, dtype="auto")
        save(padding.grow(model, len(padding.pad(tokenizer))), tokenizer, scratch)

    return _kept(folder, write)


def _kept(folder, write):
    """The folder of the cache as text, written whole by write(path) where it is missing."""
    if folder.exists():
        return str(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as scratch:
        write(Path(scratch) / "base")
        try:
            os.replace(Path(scratch) / "base", folder)
        except OSError:  # another process finished the same copy first
            if not folder.exists():
                raise
    return str(folder)


def _version(base, revision):
    """What tells one content of a base from another: the hub's commit, or the folder's files, sizes and times."""
    if not os.path.isdir(base):
        return AutoConfig.from_pretrained(base, revision=revision)._commit_hash or revision
    return sorted((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in os.scandir(base) if f.is_file())


def tokenizer(cfg, progress=None):
    """The base model's tokenizer, with a pad token that is not the end token (else the end would never be trained).

    progress: called with (steps, total) while a tiny base model is pretrained, the first time it is asked for.
    Where the base has no pad token, lib/padding.py chooses one.
    """
    loaded = padding.pad(read_tokenizer(source(cfg, progress), cfg.model["revision"]))
    return chat.prepare(loaded, cfg.chat["format"], cfg.chat["date"], cfg.chat["reasoning_effort"])


def read_tokenizer(path, revision=None):
    """A tokenizer that reads text as llama.cpp and SentencePiece itself do.

    After a control token, "<s>" before a prompt say, Llama-2's puts a blank before the text. transformers' class leaves
    it out unless told to be `legacy`, and does not remember having been told when it is saved.
    """
    loaded = AutoTokenizer.from_pretrained(path, revision=revision)
    if getattr(loaded, "legacy", None) is False:
        loaded = AutoTokenizer.from_pretrained(path, revision=revision, legacy=True)
        loaded.init_kwargs["legacy"] = True
    return loaded


def base(cfg):
    """The base model in evaluation mode, on the device there is, in the recipe's dtype and quantization.

    A base that was saved in 4 bits (`write_nf4`) stays as it was saved.
    """
    return _quantized(cfg, source(cfg))


def _quantized(cfg, path):
    quantization = cfg.model["quantization"]
    if quantization:  # 4-bit weights compute in the recipe's dtype unless it says otherwise
        quantization = BitsAndBytesConfig(**{"bnb_4bit_compute_dtype": precision(cfg), **quantization})
    return _load(path, cfg, quantization or None)


def saved(cfg, folder):
    """A merged model that `merge` wrote, computed in the recipe's dtype."""
    return _load(folder, cfg, None, revision=None)


def _load(path, cfg, quantization, **changes):
    options = {"revision": cfg.model["revision"], "attn_implementation": cfg.model["attn_implementation"]} | changes
    if quantization:  # an explicit None would erase what a 4-bit checkpoint says of itself
        options["quantization_config"] = quantization
    model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, precision(cfg)), **options)
    model.generation_config.update(temperature=None, top_p=None, top_k=None)  # decoding is the recipe's to choose
    return model.eval() if getattr(model, "is_quantized", False) else model.eval().to(device())


def device():
    return "cuda" if torch.cuda.is_available() else "cpu"


def precision(cfg):
    """Name of the dtype that the model computes in: the recipe's model.dtype, or for "auto" the device's best.

    bfloat16 where a GPU has it in hardware, float16 on older ones (a T4 has bfloat16 only by slow emulation), float32
    on a CPU.
    """
    if cfg.model["dtype"] != "auto":
        return cfg.model["dtype"]
    if not torch.cuda.is_available():
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


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
    return save(merged, tokenizer, folder)


def write_base(cfg, tokenizer, folder):
    """Save the untouched base in bfloat16, dequantized where it is loaded in 4 bits; returns the folder."""
    model = base(cfg)
    if getattr(model, "is_quantized", False):
        model = _dequantized(model)
    return save(model.to(torch.bfloat16), tokenizer, folder)


def write_nf4(cfg, tokenizer, folder):
    """Save the base as the 4-bit checkpoint that model.quantization describes; returns the folder.

    It needs a quarter of the disk and of the download, and model.base may name it; loaded again, it computes what the
    base in 4 bits computes, bit for bit. Raises ValueError where the recipe loads the base in 16 bits.
    """
    model = _quantized(cfg, _in_16_bits(cfg))
    if not getattr(model, "is_loaded_in_4bit", False):
        raise ValueError(
            f"recipe {cfg.name} loads its base unquantized (model.quantization is {cfg.model['quantization']}): set "
            "{load_in_4bit: true, bnb_4bit_quant_type: nf4, bnb_4bit_use_double_quant: true} there"
        )
    return save(model, tokenizer, folder)


def save(model, tokenizer, folder):
    """Save a model and its tokenizer with one pad token and one vocabulary; returns the folder.

    Raises ValueError where the model lacks rows for the tokenizer's tokens.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens and the model's embedding {rows} rows: load both through "
            "lib.models, which adds the rows that are missing"
        )
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    if getattr(model.config, "output_router_logits", False):  # TRL's, for training: it stops decoding with a cache
        model.config.output_router_logits = False
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


def _dequantized(model):
    """A 4-bit model with its weights in 16 or 32 bits, and free to change dtype and to be saved so."""
    model.dequantize()
    model.is_loaded_in_4bit = model.is_quantized = False
    model._weight_conversions = None  # of a 4-bit checkpoint: saving would undo them, which transformers cannot
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


def in_float32(model):
    """The model with all that is trained in float32; call it between making a trainer and training.

    TRL casts adapters over a 4-bit base to bfloat16: an old GPU's gradient scaler stops at them, and elsewhere updates
    smaller than 1/256 of a weight are rounded away.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def device_fields(cfg, stage, folder="checkpoints"):
    """The trl.SFTConfig fields that follow from the device and the run and are not a recipe's to set."""
    cuda, dtype = torch.cuda.is_available(), precision(cfg)
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
