"""How fast is chapter 3's training at real size, and how much memory does it take beside what `make plan` says?

The train part of benchmarks.gpu. Weights are random, all else is chapter 3's: the recipe's adapter, TRL's trainer and
loss, dtypes, gradient checkpointing, the check whether packing is exact on this device. One row of 4,096 tokens a step:
eight conversations of 512, or where packing is not exact a single one. All tokens carry loss, so that every product
that the FLOPs count is computed.
"""

import functools
import itertools
import statistics
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
)
from trl import SFTConfig, SFTTrainer

from benchmarks.common import now
from lib.chat import packing
from lib.model import adapter, loading, shapes
from lib.pipeline import machine, recipe
from lib.plan import budget, fit, memory

GIB = memory.GIB
LENGTH, TINY_LENGTH, PACKED = 4096, 64, 8  # tokens a row; conversations in it
WARM_UP = 3  # steps that are not timed
SIZES = (8192, 16384)  # of the square matrices
PRODUCTS = "bf16 matrix products"
FIELDS = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "packing": True, "eval_strategy": "no",
          "save_strategy": "no", "logging_strategy": "no", "report_to": "none",
          "train_sampling_strategy": "random"}  # fmt: skip
WIDE = {"model": {"quantization": None}, "sft": {"optim": "adamw_torch_fused"}}  # the recipe's 8B is 4-bit, and paged
LLAMA = {"tokens_per_s": 12_000, "mfu": 48}
CASES = {  # name: (recipe, what differs from it, aims)
    "Llama-3.1-8B, LoRA": ("llama31_8b_t4", WIDE, LLAMA),
    "Llama-3.1-8B, LoRA, no gradient checkpointing": (
        "llama31_8b_t4", recipe.merge(WIDE, {"sft": {"gradient_checkpointing": False}}), LLAMA),
    "Llama-3.1-8B, QLoRA NF4": ("llama31_8b_t4", {}, {}),
    "gpt-oss-20b, LoRA with experts": ("gpt_oss_20b", {}, {"tokens_per_s": 10_000}),
}  # fmt: skip


def jobs(args, rows):
    """Jobs of the part: the device's matrix rate, every case, and the plan's errors over all of them."""
    found = [(PRODUCTS, functools.partial(matrix_rate, args))]
    found += [(name, functools.partial(train, name, args, rows)) for name in CASES]
    return [*found, ("memory planned against measured", functools.partial(planned, rows))]


def matrix_rate(args):
    """Yields the rate of large square matrix products in TFLOP/s: the best size's median of ten timings."""
    rates = {}
    for size in (128,) if args.tiny else SIZES:
        one, other = (torch.randn(size, size, device=args.device, dtype=torch.bfloat16) for _ in range(2))
        times = []
        for _ in range(13):
            start = now()[0]
            for _ in range(5):
                one @ other
            times.append((now()[0] - start) / 5)
        rates[size] = 2 * size**3 / statistics.median(times[3:]) / 1e12
    size = max(rates, key=rates.get)
    yield {"tflops": rates[size], "measured": f"{rates[size]:,.3g} TFLOP/s ({size} x {size})"}


def load(name, args):
    """(recipe, shape of the base, aims) of a case; the tiny ones are rehearsals, and nothing is aimed at there."""
    stem, changes, aims = CASES[name]
    fields = FIELDS | {"max_length": TINY_LENGTH if args.tiny else LENGTH, "max_steps": WARM_UP + args.steps}
    overrides = recipe.merge({"model": {"dtype": "bfloat16"}, "sft": fields}, changes)
    overrides = recipe.merge(overrides, recipe.parse_set(args.overrides))
    cfg = recipe.load(f"{stem}@rehearsal" if args.tiny else stem, overrides)
    return cfg, shapes.config(cfg.model["base"], cfg.model["twin"]), {} if args.tiny else aims


def attention(cfg, shape):
    """As loading.attention, for a shape that no download stands behind."""
    return packing.first_exact(cfg.model["attn_implementation"], shape, loading.device())


def adapted(cfg, shape):
    """A random model of that shape on the device, in the recipe's dtype and quantization, with its adapter."""
    torch.manual_seed(cfg.run["seed"])
    options = {"dtype": getattr(torch, loading.precision(cfg)), "attn_implementation": attention(cfg, shape)}
    with torch.device(loading.device()):
        model = AutoModelForCausalLM.from_config(shape, **options)
    if cfg.model["quantization"]:
        known = BitsAndBytesConfig(**{"bnb_4bit_compute_dtype": loading.precision(cfg), **cfg.model["quantization"]})
        options |= {"config": shape, "state_dict": model.state_dict(), "quantization_config": known}
        model = type(model).from_pretrained(None, **options)
    return get_peft_model(model, LoraConfig(**cfg.lora))


class Clock(TrainerCallback):
    """The time at which each step ended."""

    def __init__(self):
        self.ends = []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(now()[0])


def trainer_for(cfg, shape, folder):
    """(chapter 3's trainer over random rows, why it packs or does not)."""
    gate = packing.exact(shape, attention(cfg, shape), loading.device())
    changes, why = packing.fields(cfg.sft, gate)
    stage = SimpleNamespace(dir=folder, headless=True)
    settings = cfg.sft | changes | loading.device_fields(cfg, stage)
    rows, length, packed = settings["max_steps"] * rows_a_step(settings), settings["max_length"], settings["packing"]
    documents = (rows * PACKED, length // PACKED) if packed else (rows, length)
    ids = torch.randint(2, shape.vocab_size, documents).tolist()
    data = Dataset.from_dict({"input_ids": ids, "labels": ids})
    words = Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<eos>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    model = adapted(cfg, shape)
    with adapter.in_float32(model):
        trainer = SFTTrainer(model, SFTConfig(**settings), None, data, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    return trainer, why


def rows_a_step(fields):
    return fields["per_device_train_batch_size"] * fields["gradient_accumulation_steps"]


def train(name, args, rows):
    """Yields speed, MFU and peak memory of a case, then what the plan says of its memory."""
    disable_progress_bars()
    cfg, shape, aims = load(name, args)
    rate = next((row.get("tflops") for row in rows if row["what"] == PRODUCTS), None)
    with tempfile.TemporaryDirectory() as folder:
        trainer, why = trainer_for(cfg, shape, Path(folder))
        found = measure(trainer, shape, cfg.sft["max_length"])
        del trainer
    found["mfu"] = 100 * found["tflops"] / rate if rate else None
    text = f"{found['tokens_per_s']:,.0f} tokens/s, {found['step_s']:.3f} s a step of {found['tokens']:,} tokens"
    texts = {"tokens_per_s": ">= {:,} tokens/s", "mfu": ">= {} % MFU"}
    reached = all((found[key] or 0) >= value for key, value in aims.items()) if aims else None
    aim = ", ".join(texts[key].format(value) for key, value in aims.items())
    yield found | {"measured": text, "packing": why, "aim": aim, "reached": reached}
    yield plan_of(cfg, shape, found["peak_gib"])


def measure(trainer, shape, length):
    """Trains, and returns {"tokens": a step, "step_s": median, "steps_s", "tokens_per_s", "tflops", "peak_gib",
    "reserved_gib"}; the last two are None on a CPU."""
    cuda, clock = torch.cuda.is_available(), Clock()
    batch = next(iter(trainer.get_train_dataloader()))
    tokens = batch["input_ids"].numel() * trainer.args.gradient_accumulation_steps
    document = length // PACKED if trainer.args.packing else length
    trainer.add_callback(clock)
    if cuda:
        machine.release()  # what loading in 16 bits has left behind is not training's
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    steps = [end - start for start, end in itertools.pairwise(clock.ends[WARM_UP - 1 :])]
    step = statistics.median(steps)
    peaks = [torch.cuda.max_memory_allocated() / GIB, torch.cuda.max_memory_reserved() / GIB] if cuda else [None, None]
    found = {"tokens": tokens, "step_s": step, "steps_s": steps, "tokens_per_s": tokens / step}
    found["tflops"] = tokens / step * flops_per_token(trainer.model, shape, document) / 1e12
    return found | dict(zip(("peak_gib", "reserved_gib"), peaks, strict=True))


def flops_per_token(model, shape, document):
    """6 a trained and 4 a frozen parameter that a token passes through, and attention; recomputation has no credit.

    document: tokens of a conversation, half of which stand before the mean token, or a layer's window of them.
    """
    experts = getattr(shape, "num_local_experts", None) or 1
    share = (getattr(shape, "num_experts_per_tok", None) or 1) / experts
    trained = sum(
        p.numel() * (share if ".experts." in name else 1) for name, p in model.named_parameters() if p.requires_grad
    )
    frozen = shapes.active(shape, shapes.parts(shapes.model(shape)))
    kinds = getattr(shape, "layer_types", None) or ["full_attention"]
    windows = [shape.sliding_window if kind == "sliding_attention" else document for kind in kinds]
    context = statistics.mean(min(document / 2, window) for window in windows)
    return budget.flops_per_token(trained, frozen, shape, context)


def plan_of(cfg, shape, peak_gib):
    """What lib.plan predicts for the recipe's training, and its error in percent of the measured peak."""
    recent = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
    gpu, assumed = {"flash": recent, "bf16": recent}, budget.load()
    parts = memory.memory(fit.on(cfg.sections(), gpu), shape, gpu, assumed, phases=("training",))["training"]
    found = {"plan_gib": sum(parts.values()) / GIB, "plan_needed_gib": memory.needed(parts, assumed) / GIB}
    found["plan_parts_gib"] = {name: size / GIB for name, size in parts.items()}
    return found | {"plan_error": 100 * (found["plan_gib"] / peak_gib - 1) if peak_gib else None}


def planned(rows):
    """Yields the plan's mean error over the cases, and its largest under-prediction."""
    errors = [row["plan_error"] for row in rows if row["what"] in CASES and row.get("plan_error") is not None]
    if not errors:
        yield {"measured": "no peak of a GPU's memory to compare with"}
        return
    mean, low = statistics.mean(map(abs, errors)), -min(0, *errors)
    text = f"{len(errors)} of {len(CASES)} cases: mean error {mean:.1f} %, largest under-prediction {low:.1f} %"
    reached = mean <= 5 and low <= 5 and len(errors) == len(CASES)
    yield {"measured": text, "aim": "mean <= 5 %, none under by more than 5 %", "reached": reached}
