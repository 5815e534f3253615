"""Models and tokenizers in memory: the base, an adapter on it, and what the device decides about training."""

import functools
import os
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from lib.chat import encoding, packing
from lib.model import offload, padding, saving, tokens, twin
from lib.pipeline import hub, machine, ranks
from lib.pipeline.files import ROOT, cache_dir, kept_folder, rooted, sha256_json

CLINIC = "data/clinic.yaml"
OURS = {"trust_remote_code": False}  # no code that a model's folder brings is run, and nobody is asked whether to
STRAY = "{} holds an adapter_config.json: its adapter would go onto the base unasked. Merge it first, or take it out"
KEPT_FREE = 0.8  # share of the free memory of a GPU that weights may take; the rest is for computing


def source(cfg, progress=None):
    """What from_pretrained loads the base from: a hub id, a folder, or the tiny base model, built when missing.

    With model.checkpoint_4bit a folder with the base in 4 bits.
    """
    with ranks.first(), hub.asked(cfg.model["base"], cfg.model["revision"]):
        base = _in_16_bits(cfg, progress)
        if not cfg.model["checkpoint_4bit"]:
            return base
        about = [str(base), _version(base, cfg.model["revision"]), cfg.model["quantization"], precision(cfg)]
        loaded = padding.pad(read_tokenizer(base, cfg.model["revision"]))
        folder = cache_dir() / "nf4" / sha256_json(about)[:16]
        return str(kept_folder(folder, lambda scratch: write_nf4(cfg, loaded, scratch)))


def _in_16_bits(cfg, progress=None):
    if cfg.model["base"] != "twin":
        if Path(rooted(cfg.model["base"]), "adapter_config.json").exists():
            raise ValueError(STRAY.format(cfg.model["base"]))
        return padded(rooted(cfg.model["base"]), cfg.model["revision"])
    cfg.reads.add(CLINIC)
    return padded(twin.build(cfg.model["twin"], ROOT / CLINIC, cfg.run["seed"], progress))


def padded(base, revision=None):
    """What to load instead of a base: itself, or a folder with a copy that has one token and one row more, to pad with.

    base: hub id or folder. The copy is made where no token of the vocabulary will do, and is kept by content. With it
    adapter, merged model and GGUF file name one base of one size; PEFT would otherwise put the whole embedding into
    every adapter, which llama.cpp's converter then refuses.
    """
    tokenizer = _read_tokenizer(base, revision)
    if padding.choose(tokenizer) in tokenizer.get_vocab():
        return base
    tokenizer = tokens.with_rows(tokenizer, _rows(base, revision) or len(tokenizer))
    folder = cache_dir() / "padded" / sha256_json([str(base), _version(base, revision), padding.ADDED])[:16]

    def write(scratch):
        model = AutoModelForCausalLM.from_pretrained(base, revision=revision, dtype="auto", **OURS)
        saving.save(padding.grow(model, len(padding.pad(tokenizer))), tokenizer, scratch)

    return str(kept_folder(folder, write))


def _version(base, revision):
    """What tells one content of a base from another: the hub's commit, or the folder's files, sizes and times."""
    if not os.path.isdir(base):
        return AutoConfig.from_pretrained(base, revision=revision, **OURS)._commit_hash or revision
    return sorted((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in os.scandir(base) if f.is_file())


def tokenizer(cfg, progress=None):
    """The base model's tokenizer, with a pad token that is not the end token (else the end would never be trained).

    progress: called with (steps, total) while a tiny base model is pretrained, the first time it is asked for.
    Where the base has no pad token, lib/model/padding.py chooses one.
    """
    loaded = padding.pad(read_tokenizer(source(cfg, progress), cfg.model["revision"]))
    return encoding.prepare(loaded, cfg.chat["format"], cfg.chat["date"], cfg.chat["reasoning_effort"])


def read_tokenizer(path, revision=None):
    """A tokenizer that reads text as llama.cpp and SentencePiece itself do, without tokens that the model cannot read.

    After a control token, "<s>" before a prompt say, Llama-2's puts a blank before the text. transformers' class leaves
    it out unless told to be `legacy`, and does not remember having been told when it is saved.
    """
    loaded, rows = _read_tokenizer(path, revision), _rows(path, revision)
    return tokens.with_rows(loaded, rows) if rows else loaded


def _read_tokenizer(path, revision):
    with hub.asked(path, revision):
        loaded = AutoTokenizer.from_pretrained(path, revision=revision, **OURS)
    if getattr(loaded, "legacy", None) is False:
        loaded = AutoTokenizer.from_pretrained(path, revision=revision, legacy=True, **OURS)
        loaded.init_kwargs["legacy"] = True
    return tokens.one_template(loaded, path)


def _rows(path, revision):
    """Rows of the embedding, as config.json says; None for a folder that holds a tokenizer alone."""
    if os.path.isdir(path) and not Path(path, "config.json").exists():
        return None
    with hub.asked(path, revision):
        return AutoConfig.from_pretrained(path, revision=revision, **OURS).get_text_config().vocab_size


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


def unquantized(cfg):
    """The base in model.dtype, whatever quantization the recipe loads it with: what 4 bits are compared with."""
    return _load(_in_16_bits(cfg), cfg, None)


def config(cfg):
    """The transformers config of the base before the recipe's quantization."""
    return AutoConfig.from_pretrained(_in_16_bits(cfg), revision=cfg.model["revision"], **OURS)


def saved(cfg, folder):
    """A merged model that `merge` wrote, computed in the recipe's dtype.

    Where it is larger than what is free on the GPU, its last layers stay in main memory and travel there when they are
    needed: slow, and as exact. (A T4 trains 8 billion parameters in 4 bits and cannot hold them in 16.)
    """
    size = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))  # bfloat16
    size = size * getattr(torch, precision(cfg)).itemsize // 2
    machine.release()  # what the caller has just given up counts as free only then
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None
    return _load(folder, cfg, None, revision=None, **_placement(size, free))


def _placement(size, free):
    """from_pretrained's device_map for weights of `size` bytes where `free` are left on a GPU; {} where they fit."""
    if free is None or size < KEPT_FREE * free:
        return {}
    return {"device_map": "auto", "max_memory": {torch.cuda.current_device(): int(KEPT_FREE * free), "cpu": size}}


def _load(path, cfg, quantization, **changes):
    options = {"revision": cfg.model["revision"], "attn_implementation": attention(cfg)} | OURS | changes
    if quantization:  # an explicit None would erase what a 4-bit checkpoint says of itself
        options["quantization_config"] = quantization
    with hub.asked(path, options["revision"]):
        model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, precision(cfg)), **options)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(STRAY.format(path))
    model.generation_config.update(temperature=None, top_p=None, top_k=None)  # decoding is the recipe's to choose
    placed = getattr(model, "is_quantized", False) or "device_map" in options
    return offload.laid_out_once(model.eval()) if placed else model.eval().to(device())


def attention(cfg):
    """Name of the attention that every model of the recipe computes with on this device."""
    named = cfg.model["attn_implementation"]
    return named if isinstance(named, str) else _attention(str(_in_16_bits(cfg)), cfg.model["revision"], tuple(named))


@functools.cache
def _attention(path, revision, names):
    return packing.first_exact(names, AutoConfig.from_pretrained(path, revision=revision, **OURS), device())


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
    """The base with a saved LoRA adapter on it.

    Raises ValueError when a tensor of the adapter finds no place, or a place no tensor: PEFT only warns.
    """
    model = PeftModel.from_pretrained(model, folder, is_trainable=trainable, **OURS).eval()
    with safe_open(Path(folder, "adapter_model.safetensors"), "pt") as file:
        places = get_peft_model_state_dict(model, save_embedding_layers=False)
        unknown = {name for name in set(file.keys()) ^ set(places) if ".lora_" in name}
    if unknown:
        raise ValueError(
            f"{len(unknown)} tensors of the adapter in {folder} are not where PEFT looks for them, {min(unknown)} for "
            "one: train it again, with model.backend=transformers"
        )
    return model


@ranks.led
def write_base(cfg, tokenizer, folder):
    """Save the untouched base in bfloat16, dequantized where it is loaded in 4 bits; returns the folder."""
    model = base(cfg)
    return saving.save(model, tokenizer, folder, model)


@ranks.led
def write_nf4(cfg, tokenizer, folder):
    """Save the base as the 4-bit checkpoint that model.quantization describes; returns the folder.

    Loaded again, it computes what the base in 4 bits computes, bit for bit. Raises ValueError where the recipe loads
    the base in 16 bits.
    """
    model = _quantized(cfg, _in_16_bits(cfg))
    if not getattr(model, "is_loaded_in_4bit", False):
        raise ValueError(
            f"recipe {cfg.name} loads its base unquantized (model.quantization is {cfg.model['quantization']}): set "
            "{load_in_4bit: true, bnb_4bit_quant_type: nf4, bnb_4bit_use_double_quant: true} there"
        )
    return saving.save(model, tokenizer, folder)


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
        "assistant_only_loss": False,  # the labels of lib.chat.encoding's rows already say which tokens carry loss
        "disable_tqdm": stage.headless,  # a bar redrawn in a saved notebook is a thousand lines
        **({} if cuda else {"loss_type": "nll"}),  # lib.model.head's: main memory holds the logits, time is short
    }
