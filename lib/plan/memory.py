"""GPU memory of a recipe by part, before anything is downloaded: training, evaluation, merge and generation.

Parameters are counted on the meta device (lib/model/shapes.py), activations on the step itself, run without data
(lib/plan/trace.py); only what no run can show without a GPU is assumed, in params/prices.yaml under `margins`.
"""

import functools
import json

import torch

from lib.chat import packing
from lib.model import shapes, unsloth
from lib.model.loading import KEPT_FREE
from lib.pipeline.schema import nearest
from lib.plan import trace

GIB = 2**30
NF4_BYTES = 0.5 + 4 / 64  # a weight, and a float32 scale for each block of 64
NF4_DOUBLE_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # the scales in 8 bits, with a float32 scale for each 256 of them
SEARCH_BYTES = 16  # a weight of the largest matrix while its rounding is computed: float32 W, BA, their sum, the result
STATE_BYTES = {  # a trained float32 number, of the optimizer's memory; by transformers' names, the default for the rest
    "sgd": 0, "adafactor": 0.1, "lion_32bit": 4, "lion_8bit": 1.02, "paged_lion_8bit": 1.02, "paged_lion_32bit": 4,
    "adamw_8bit": 2.04, "adamw_bnb_8bit": 2.04, "paged_adamw_8bit": 2.04, "paged_adamw": 8, "paged_adamw_32bit": 8,
}  # fmt: skip
PHASES = ("training", "evaluation", "merge", "generation")
COUNTED = ("parts", "adapter", "adapted experts", "largest", "largest linear", "whole")
OWN_QAT = ("scheme", "seeds", "distill")


def settings(sections, stage="sft"):
    """The trl.SFTConfig fields of a stage, sft or qat, with TRL's defaults where the recipe has none."""
    own = sections["sft"] | ((sections["qat"] or {}) if stage == "qat" else {})
    found = unsloth.defaults() | {key: value for key, value in own.items() if key not in OWN_QAT}
    found["loss_type"] = found["loss_type"] or "chunked_nll"
    if stage == "qat":  # as chapter 4 sets it: the default loss reads the head's weights past their rounding
        found["loss_type"] = "distill" if sections["qat"]["distill"] else "nll"
    return found


def state_bytes(optim, dtype):
    """Bytes of optimizer state a trained parameter. AdamW of torch keeps two numbers in the parameter's own dtype."""
    return STATE_BYTES.get(str(optim), 2 * dtype.itemsize)


@functools.cache
def _counted(shape_key, lora_key, dtype):
    """What `counted` gives, as a tuple, on the meta device."""
    model = shapes.model(_shape(shape_key), dtype)
    parts = shapes.parts(model)
    largest, linear = max(p.numel() for p in model.parameters()), [m.weight for m in shapes.matrices(model).values()]
    whole = all(weight.shape[-1] % 256 == 0 for weight in linear)
    lora = json.loads(lora_key)
    adapter = [p for p in shapes.adapted(model, lora).named_parameters() if p[1].requires_grad] if lora else []
    experts = sum(p.numel() for name, p in adapter if ".experts." in name)
    return parts, sum(p.numel() for _, p in adapter), experts, largest, max(w.numel() for w in linear), whole


def _shape(key):
    from transformers import AutoConfig

    return AutoConfig.for_model(**json.loads(key))


def key(shape):
    """A config as text, which caches can hold."""
    return json.dumps(shape.to_dict(), sort_keys=True, default=str)


def counted(sections, shape):
    """{"parts": of the base, "adapter": parameters, "adapted experts": of these, "largest": matrix, "largest linear":
    of those that 4 bits store, "whole"}.

    whole: whether 256 divides the rows of every matrix.
    """
    found = _counted(key(shape), json.dumps(sections["lora"]), dtype(sections))
    return dict(zip(COUNTED, found, strict=True))


def dtype(sections):
    """torch's dtype of model.dtype."""
    return getattr(torch, sections["model"]["dtype"])


def weights(sections, shape):
    """Bytes of the base as it is trained: {"weights": in 16 or 32 bits, "4-bit weights": NF4 with its scales}."""
    parts, quantization = counted(sections, shape)["parts"], sections["model"]["quantization"]
    total, wide = sum(parts.values()), dtype(sections).itemsize
    if not quantization or not quantization.get("load_in_4bit"):
        byte = 1 if quantization and quantization.get("load_in_8bit") else wide
        return {"weights": parts["matrices"] * byte + (total - parts["matrices"]) * wide}
    small = NF4_DOUBLE_BYTES if quantization.get("bnb_4bit_use_double_quant") else NF4_BYTES
    return {"weights": (total - parts["matrices"]) * wide, "4-bit weights": int(parts["matrices"] * small)}


@functools.cache
def is_packed(shape_key, attention):
    """Whether chapter 3's check lets documents share a row; flash attention is taken to pass."""
    return attention not in ("eager", "sdpa") or packing.exact(_shape(shape_key), attention)["exact"]


@functools.cache
def _peak(shape_key, dtype, lora_key, attention, **about):
    return trace.peak(_shape(shape_key), dtype, json.loads(lora_key), attention, **about)


def activations(sections, shape, gpu, fields, rows, length, backward):
    """Peak bytes of a step above weights and gradients, with everything that lives only during the step."""
    attention = sections["model"]["attn_implementation"]
    attention = attention if isinstance(attention, str) else attention[-1]  # what runs where no faster one does
    packed = bool(fields["packing"]) and is_packed(key(shape), attention)
    if attention == "sdpa" and not gpu["flash"] and not packed:
        attention = "eager"  # without a mask, grouped key heads leave torch only the kernel that writes all scores
    peak = _peak(
        key(shape),
        dtype(sections),
        json.dumps(sections["lora"]),
        attention,
        rows=rows,
        length=length,
        packed=packed,
        kind=fields["loss_type"],
        checkpointing=bool(fields["gradient_checkpointing"]),
        backward=backward,
    )
    dequantized = counted(sections, shape)["largest linear"] if sections["model"]["quantization"] else 0
    return peak + dequantized * dtype(sections).itemsize  # 4-bit weights are there in full for each product


def memory(sections, shape, gpu, assumed, stage="sft", phases=PHASES):
    """{"training", "evaluation", "merge", "generation": {part: bytes}} that torch allocates at the peak of each phase.

    sections: of a recipe (Recipe.sections()). shape: a transformers config (shapes.config). gpu: an entry of gpus in
    params/prices.yaml. assumed: that file. stage: sft, or qat for chapter 4's arms. Evaluation is left out where the
    recipe does not evaluate while it trains. phases: those to plan. Counted is one whole model, and a teacher where the
    recipe distils: chapters 3 and 4 give up each model before they load the next.
    """
    fields, base, counts = settings(sections, stage), weights(sections, shape), counted(sections, shape)
    wide, total = dtype(sections).itemsize, sum(counts["parts"].values())
    trained, width = (counts["adapter"], 4) if sections["lora"] else (total, wide)
    states = int(trained * state_bytes(fields["optim"], torch.float32 if width == 4 else torch.bfloat16))
    held = base | {"adapter": counts["adapter"] * width, "optimizer": states}
    kernels = {"kernels": int(assumed["margins"]["kernels_gib"] * GIB)}
    if stage == "qat":
        held |= rounding(sections, shape) | ({"teacher": total * wide} if sections["qat"]["distill"] else {})
    length, found = fields["max_length"], {}
    if "training" in phases:
        rows = fields["per_device_train_batch_size"]
        step = activations(sections, shape, gpu, fields, rows, length, True)
        found["training"] = held | {"gradients": trained * width, "activations and logits": step}
    if "evaluation" in phases and fields["eval_strategy"] not in ("no", None):
        rows = fields["per_device_eval_batch_size"]
        forward = activations(sections, shape, gpu, fields, rows, length, False)
        found["evaluation"] = held | {"activations and logits": forward}
    if "merge" in phases:
        found["merge"] = held | {"one matrix's sum": 14 * counts["largest"]}  # W, BA, their sum, and it in bfloat16
    if "generation" in phases:
        kept = {"merged weights": total * wide}  # the notebook has freed the trainer, a merge what it merged
        if sections["model"]["quantization"] and total * wide >= KEPT_FREE * gpu["memory_gib"] * GIB:
            kept = base | {"adapter": counts["adapter"] * width}  # what answers then, as in chapter 3
        found["generation"] = kept | answering(sections, shape, gpu, assumed, fields)
    return {phase: parts | kernels for phase, parts in found.items()}


def answering(sections, shape, gpu, assumed, fields):
    """What a batch of chat.batch_size answers takes beside the weights."""
    prompt, batch = assumed["lengths"]["prompt"], sections["chat"]["batch_size"]
    alone = fields | {"loss_type": "chunked_nll", "packing": False}
    forward = activations(sections, shape, gpu, alone, batch, prompt, False)
    cache = batch * cached(shape, dtype(sections), prompt + sections["chat"]["max_new_tokens"])
    return {"keys and values": cache, "prompts' activations": forward}


def rounding(sections, shape):
    """Bytes of training on a grid: lib.qat.sites keeps every rounded matrix and a copy of its factors."""
    counts = counted(sections, shape)
    found = {"rounded weights": sum(counts["parts"].values()) * dtype(sections).itemsize}
    return found | {
        "copies of the adapter": 4 * counts["adapter"],
        "rounding one matrix": SEARCH_BYTES * counts["largest"],
    }


def cached(shape, dtype, tokens):
    """Bytes of keys and values of one row of tokens in all layers; a sliding window is all that its layers keep."""
    heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    size = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    kinds = getattr(shape, "layer_types", None) or shape.num_hidden_layers * ["full_attention"]
    kept = sum(min(tokens, shape.sliding_window) if kind == "sliding_attention" else tokens for kind in kinds)
    return 2 * heads * size * dtype.itemsize * kept


def needed(parts, assumed):
    """Bytes of the GPU that a phase takes: its parts, what the allocator holds beyond them, and the CUDA context."""
    margins = assumed["margins"]
    return int(sum(parts.values()) * (1 + margins["reserve"]) + margins["context_gib"] * GIB)


def gpu_name(name, assumed):
    """The name as params/prices.yaml writes it, for a name in any case. Raises ValueError with the nearest name."""
    found = {known.casefold(): known for known in assumed["gpus"]}
    if name.casefold() not in found:
        raise ValueError(f"no GPU {name!r} in params/prices.yaml{nearest(name, list(found.values()))}")
    return found[name.casefold()]


def gpu(name, assumed):
    """An entry of params/prices.yaml, as `gpu_name` finds it."""
    return assumed["gpus"][gpu_name(name, assumed)]
