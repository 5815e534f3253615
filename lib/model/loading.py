"""Models and tokenizers in memory: the base, an adapter on it, and what the device decides about training."""

import importlib
import os
import sys
import tempfile
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from lib.chat import encoding
from lib.model import padding, saving, twin
from lib.pipeline import hub, ranks
from lib.pipeline.files import ROOT, cache_dir, rooted, sha256_json

CLINIC = "data/clinic.yaml"
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
        return _kept(cache_dir() / "nf4" / sha256_json(about)[:16], lambda folder: write_nf4(cfg, loaded, folder))


def _in_16_bits(cfg, progress=None):
    if cfg.model["base"] != "twin":
        return padded(rooted(cfg.model["base"]), cfg.model["revision"])
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
        saving.save(padding.grow(model, len(padding.pad(tokenizer))), tokenizer, scratch)

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
    Where the base has no pad token, lib/model/padding.py chooses one.
    """
    loaded = padding.pad(read_tokenizer(source(cfg, progress), cfg.model["revision"]))
    return encoding.prepare(loaded, cfg.chat["format"], cfg.chat["date"], cfg.chat["reasoning_effort"])


def read_tokenizer(path, revision=None):
    """A tokenizer that reads text as llama.cpp and SentencePiece itself do.

    After a control token, "<s>" before a prompt say, Llama-2's puts a blank before the text. transformers' class leaves
    it out unless told to be `legacy`, and does not remember having been told when it is saved.
    """
    with hub.asked(path, revision):
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


def unquantized(cfg):
    """The base in model.dtype, whatever quantization the recipe loads it with: what 4 bits are compared with."""
    return _load(_in_16_bits(cfg), cfg, None)


def config(cfg):
    """The transformers config of the base before the recipe's quantization."""
    return AutoConfig.from_pretrained(_in_16_bits(cfg), revision=cfg.model["revision"])


def saved(cfg, folder):
    """A merged model that `merge` wrote, computed in the recipe's dtype.

    Where it is larger than what is free on the GPU, its last layers stay in main memory and travel there when they are
    needed: slow, and as exact. (A T4 trains 8 billion parameters in 4 bits and cannot hold them in 16.)
    """
    size = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))  # bfloat16
    size = size * getattr(torch, precision(cfg)).itemsize // 2
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None
    return _load(folder, cfg, None, revision=None, **_placement(size, free))


def _placement(size, free):
    """from_pretrained's device_map for weights of `size` bytes where `free` are left on a GPU; {} where they fit."""
    if free is None or size < KEPT_FREE * free:
        return {}
    return {"device_map": "auto", "max_memory": {torch.cuda.current_device(): int(KEPT_FREE * free), "cpu": size}}


def _load(path, cfg, quantization, **changes):
    if "unsloth" in sys.modules and backend(cfg)[0] == "unsloth":  # `trainable` has rewritten transformers' classes
        model = _by_unsloth(path, cfg, bool(quantization), changes.get("revision", cfg.model["revision"]))
        return importlib.import_module("unsloth").FastLanguageModel.for_inference(model)
    options = {"revision": cfg.model["revision"], "attn_implementation": cfg.model["attn_implementation"]} | changes
    if quantization:  # an explicit None would erase what a 4-bit checkpoint says of itself
        options["quantization_config"] = quantization
    with hub.asked(path, options["revision"]):
        model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, precision(cfg)), **options)
    model.generation_config.update(temperature=None, top_p=None, top_k=None)  # decoding is the recipe's to choose
    placed = getattr(model, "is_quantized", False) or "device_map" in options
    return model.eval() if placed else model.eval().to(device())


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
    model = PeftModel.from_pretrained(model, folder, is_trainable=trainable).eval()
    with safe_open(Path(folder, "adapter_model.safetensors"), "pt") as file:
        places = get_peft_model_state_dict(model, save_embedding_layers=False)
        unknown = {name for name in set(file.keys()) ^ set(places) if ".lora_" in name}
    if unknown:
        raise ValueError(
            f"{len(unknown)} tensors of the adapter in {folder} are not where PEFT looks for them, {min(unknown)} for "
            "one: train it again, with model.backend=transformers"
        )
    return model


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
    elif unlike := _not_unsloths(cfg):
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


def _not_unsloths(cfg):
    """Why Unsloth would train over another quantized base than the recipe's; None where it would not."""
    fixed = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    if cfg.model["quantization"] in (None, {}, fixed):
        return None
    return f"its quantization is {fixed}, not this recipe's {cfg.model['quantization']}"


def trainable(cfg, lora):
    """The base with a fresh adapter to train, by the recipe's backend; prints which one that is, and why.

    lora: peft.LoraConfig(**cfg.lora). The Unsloth path is written against the signatures of 2026 and has never run:
    where this project is tested there is no GPU. It rewrites transformers' classes for the whole process, so from here
    on `base` and `saved` load through it too; measure packing before.
    """
    name, why = backend(cfg)
    print(f"trained with {name}: {why}")
    if name == "transformers":
        return get_peft_model(base(cfg), lora)
    model = _by_unsloth(source(cfg), cfg, bool(cfg.model["quantization"]), cfg.model["revision"])
    values = {key: getattr(lora, key) for key in cfg.lora if key != "task_type"}  # that one it sets itself
    values |= {key: sorted(value) for key, value in values.items() if isinstance(value, set)}
    values |= {"use_gradient_checkpointing": _checkpointing(cfg), "random_state": cfg.run["seed"]}
    return importlib.import_module("unsloth").FastLanguageModel.get_peft_model(model, **values)


def trained(cfg, model, folder, trainer=None):
    """Save the adapter that was trained, in PEFT's format, and return the model ready to be measured and merged.

    trainer: as for save_adapter; where it spread the weights, the base is loaded again, with the saved adapter on it.
    Raises ValueError when it holds no LoRA layer of PEFT's: it could not be merged or loaded in chapter 4.
    """
    saving.save_adapter(model, folder, trainer)
    if not any(isinstance(module, LoraLayer) for module in model.modules()):
        raise ValueError("the trained model has no adapter of PEFT's: train with model.backend=transformers")
    if backend(cfg)[0] == "unsloth":  # its forward gives no logits in training mode
        importlib.import_module("unsloth").FastLanguageModel.for_inference(model)
    if not saving.sharded(trainer):
        return model.eval()
    unset_hf_deepspeed_config()  # else ZeRO-3 spreads what is loaded next as well
    return adapted(base(cfg), folder)


def _by_unsloth(path, cfg, quantized, revision):
    model, _ = importlib.import_module("unsloth").FastLanguageModel.from_pretrained(
        model_name=str(path),
        revision=revision,
        use_exact_model_name=True,  # else it loads a 4-bit copy of its own from the hub
        max_seq_length=cfg.sft["max_length"] + cfg.chat["max_new_tokens"],
        dtype=getattr(torch, precision(cfg)),
        load_in_4bit=quantized,
        load_in_16bit=not quantized,
        use_gradient_checkpointing=_checkpointing(cfg),
        fix_tokenizer=False,  # the tokenizer is ours
        random_state=cfg.run["seed"],
    )
    return model


def _checkpointing(cfg):
    return "unsloth" if cfg.sft.get("gradient_checkpointing", True) else False


@ranks.led
def write_base(cfg, tokenizer, folder):
    """Save the untouched base in bfloat16, dequantized where it is loaded in 4 bits; returns the folder."""
    model = base(cfg)
    return saving.write(model, tokenizer, folder, model)


@ranks.led
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
    return saving.save(model, tokenizer, folder)


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
        "assistant_only_loss": False,  # the labels of lib.chat.encoding's rows already say which tokens carry loss
        "disable_tqdm": stage.headless,  # a bar redrawn in a saved notebook is a thousand lines
    }
