"""Are the grids on CUDA those of the CPU, and what does exact QAT cost there? Two parts of benchmarks.gpu.

Weights are random, in bfloat16 (on a CPU float32), adapters in float32, LoRA of rank 16 on every matrix; embedding and
head are q6_k.
"""

import functools
import statistics
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from lib.qat import grids, rounding

SHAPES = {
    "tiny": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 4, "vocab_size": 1024, "tie_word_embeddings": True},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False},
}  # fmt: skip
PLAIN = "plain LoRA"
ARMS = {PLAIN: None, "q4_0": "q4_0", "q4_k": "q4_k"}  # type of the matrices


def typical(times):
    """Median seconds of the steps but for the first, which warms up."""
    return round(statistics.median(times[1:]), 4)


def weights(rows):
    """Weights that press on every branch of the grids: {family: (rows, 1024) float32}."""
    draw = torch.Generator().manual_seed(0)
    normal, other = (torch.randn(rows, 1024, generator=draw) for _ in range(2))
    sizes = 10.0 ** -torch.linspace(1, 44, rows)[:, None]
    return {
        "gaussian": (normal * 0.02).bfloat16().float(),
        "heavy tails": normal * torch.exp(2 * other),
        "groups of unlike size": normal * torch.exp(3 * other[:, ::32]).repeat_interleave(32, 1),
        "far from zero": normal * 0.01 + 1,
        "constant": torch.linspace(-3, 3, rows)[:, None].expand(rows, 1024).contiguous(),
        "mostly zero": normal * (other > 2),
        "from 1e-1 down to 1e-44": normal * sizes,
        "huge": normal * 1e4,
        "halves, where rounding ties": (normal * 64).round() / 2,
    }


def differing(one, other):
    """Number of values that differ; not-a-number equals itself."""
    return int((~((one == other) | (one.isnan() & other.isnan()))).sum())


def exactness(args, rows):
    """Jobs of the part: values and scales of every type, on the device and on the CPU. rows: of the table, unused."""
    families = weights(64)
    return [(type, functools.partial(compare, type, families, args.device)) for type in grids.GRIDS]


def compare(type, families, device):
    """Yields how many values of a type differ between the device and the CPU."""
    counts = {}
    for family, w in families.items():
        there, whole = w.to(device), grids.fake_quantize(w, type)
        found_there = grids.by_torch(there.view(-1, grids.GRIDS[type][0]), type)
        counts[family] = differing(found_there.cpu().view(w.shape), whole)
    values, wrong = sum(w.numel() for w in families.values()), {f: count for f, count in counts.items() if count}
    text = (
        f"{sum(wrong.values()):,} of {values:,} values differ from the CPU's{': ' if wrong else ''}{', '.join(wrong)}"
    )
    yield {"values": values, "differing": wrong, "measured": text, "aim": "0", "reached": not wrong}


def lora_model(shape, scheme, device, checkpointing):
    """A random Llama with LoRA, prepared for scheme = type of the matrices, or None."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32 if device == "cpu" else torch.bfloat16)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(LlamaConfig(**SHAPES[shape]))
    finally:
        torch.set_default_dtype(torch.float32)
    lora = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
    model = get_peft_model(model, lora).train()
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if scheme:
        outer = ("embed_tokens.weight", "lm_head.weight")
        matrices = [name for name, p in rounding.base_parameters(model).items() if p.ndim == 2]
        rounding.prepare(model, {name: "q6_k" if name.endswith(outer) else scheme for name in matrices})
    return model


def timed_steps(model, tokens, steps):
    """Seconds of every optimizer step, and the peak of the memory that torch held, in GiB (None on a CPU)."""
    cuda = tokens.device.type == "cuda"
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4, fused=True)
    times = []
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(steps):
        start = time.perf_counter()
        model(tokens, labels=tokens, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return times, round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else None


def cost(args, rows):
    """Jobs of the part: every arm on every shape, one after another, each alone on the device. rows: of the table."""
    return [
        (f"{shape}, {arm}", functools.partial(step, shape, arm, args, rows)) for shape in args.shape for arm in ARMS
    ]


def step(shape, arm, args, rows):
    """Yields step time and memory of an arm, and the ratio to plain LoRA where that has been measured."""
    scheme = ARMS[arm]
    model = lora_model(shape, scheme, args.device, args.checkpointing)
    tokens = torch.randint(0, SHAPES[shape]["vocab_size"], (args.rows, args.length), device=args.device)
    times, peak = timed_steps(model, tokens, args.steps + 1)
    found = {"step_s": typical(times), "peak_gib": peak, "parameters": model.num_parameters()}
    text = f"{found['step_s']:.3f} s a step of {tokens.numel():,} tokens"
    plain = next((row.get("step_s") for row in rows if row["what"] == f"{shape}, {PLAIN}"), None)
    if scheme and plain:
        found["ratio"] = round(found["step_s"] / plain, 2)
        text += f", {found['ratio']:.2f} x plain LoRA"
    yield found | {"measured": text}
