"""What exact QAT costs in a training step, and what its export costs beside llama.cpp's own commands.

python -m benchmarks.qat [--threads 2] [--part grids] [--part steps] [--part export]

grids: weights rounded a second, by path. steps: a Llama of 31 million random weights, LoRA on every matrix; the arms
take turns within every round, in one process. export: a Qwen3 of half a billion random bfloat16 weights, converted and
quantized by lib.export.gguf and by the bare commands in turn. Results go to outputs/bench/qat.json, a part at a time.
"""

import argparse
import functools
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from benchmarks import ggml
from benchmarks.common import children_s, keep
from benchmarks.gpu_qat import typical
from lib.dataset import clinic, textbook
from lib.export import gguf
from lib.model import twin
from lib.pipeline import machine, programs
from lib.pipeline.files import ROOT
from lib.qat import compiled, grids, rounding

STEP_SHAPE = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8,
              "num_key_value_heads": 4, "vocab_size": 8192}  # fmt: skip
EXPORT_SHAPE = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 30, "num_attention_heads": 16,
                "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 32768,
                "tie_word_embeddings": True}  # fmt: skip
ARMS = {"plain LoRA": None, "q4_0": "q4_0", "q4_k_m": "q4_k_m"}  # the type of file whose grid is trained on
TYPES = ["q4_0", "q4_k_m", "q5_k_m", "q8_0"]


def seconds(function, *args):
    """How long one call takes: (wall seconds, CPU seconds of the programs that it ran)."""
    start, cpu = time.perf_counter(), children_s()
    function(*args)
    return time.perf_counter() - start, children_s() - cpu


@functools.cache
def tokenizer():
    return twin.train_tokenizer(
        twin.FAMILIES["qwen3"], textbook.paragraphs(clinic.load(ROOT / "data/clinic.yaml"), 0), 4096
    )


def grids_part(weights, threads):
    """Million weights a second, best of three: of torch, of ggml and of compiled.c where they compute a type."""
    blocks = (torch.randn(weights // 256, 256) * 0.02).contiguous()
    arms = {"torch": lambda type: grids.by_torch(blocks.view(-1, grids.GRIDS[type][0]), type)}
    c_arms = {"ggml": lambda type: ggml.fake_quantize(blocks, type, grids.CPU_CHUNK)}
    own = {"compiled.c": lambda type: compiled.fake_quantize(blocks, type, grids.CPU_CHUNK)}
    found = {}
    for type in ("q4_0", "q8_0", *ggml.TYPES):
        found[type] = {}
        for count in sorted({1, threads}):
            torch.set_num_threads(count)
            known = arms | (c_arms if type in ggml.TYPES else {}) | (own if type in compiled.TYPES else {})
            for name, arm in known.items():
                best = min(seconds(arm, type)[0] for _ in range(3))
                found[type][f"{name}, {count} threads"] = round(blocks.numel() / best / 1e6, 1)
        print(type, found[type], flush=True)
    return found


def types_of(model, scheme, folder):
    """{parameter name: GGUF type} as llama.cpp plans `scheme`, from a converted copy of the model in folder."""
    full = folder / "full.gguf"
    if not full.exists():
        model.save_pretrained(folder / "model")
        tokenizer().save_pretrained(folder / "model")
        gguf.convert(folder / "model", full)
    plan = gguf.type_map(full, scheme)
    return rounding.type_of(model, plan)


def arm(scheme, folder):
    """A model of STEP_SHAPE with LoRA, prepared for scheme = file type or None, and its optimizer."""
    torch.manual_seed(0)
    plain = LlamaForCausalLM(LlamaConfig(**STEP_SHAPE, tie_word_embeddings=True))
    types = types_of(plain, scheme, folder) if scheme else {}
    model = get_peft_model(plain, LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear"))
    if scheme:
        rounding.prepare(model, types)
    trained = [p for p in model.parameters() if p.requires_grad]
    return model.train(), torch.optim.AdamW(trained, 1e-4, fused=True)


def one_step(model, optimizer, tokens):
    model(tokens, labels=tokens, use_cache=False).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def steps_part(rounds, rows, length, threads):
    """Median seconds of a step of every arm."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    tokens = torch.randint(0, 4096, (rows, length), generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as scratch:
        arms = {name: arm(scheme, Path(scratch)) for name, scheme in ARMS.items()}
    times = {name: [] for name in ARMS}
    for done in range(rounds + 1):
        for name, (model, optimizer) in arms.items():
            times[name].append(seconds(one_step, model, optimizer, tokens)[0])
        print(f"round {done} of {rounds}", {name: round(t[-1], 2) for name, t in times.items()}, flush=True)
    found = {name: {"step_s": typical(times[name])} for name in ARMS}
    for row in found.values():
        row["ratio"] = round(row["step_s"] / found["plain LoRA"]["step_s"], 2)
    model = arms["plain LoRA"][0]
    size = {"parameters": model.num_parameters(), "tokens_a_step": rows * length, "threads": threads, "rounds": rounds}
    return size | {"arms": found}


def bare_converter(folder):
    """A copy of llama.cpp's converter that takes an unknown tokenizer for Qwen's, as its authors ask users to add."""
    home = programs.toolchain().converter.parent
    for name in ("conversion", "gguf-py"):
        shutil.copytree(home / name, folder / name)
    shutil.copy(home / "convert_hf_to_gguf.py", folder)
    base = folder / "conversion" / "base.py"
    text, refusal = base.read_text(encoding="utf-8"), 'raise NotImplementedError("BPE pre-tokenizer was not recognized'
    line = next(line for line in text.splitlines() if refusal in line)
    base.write_text(text.replace(line, line.partition("raise")[0] + 'res = "qwen2"'), encoding="utf-8")
    return folder / "convert_hf_to_gguf.py"


def run_bare(*args):
    subprocess.run([str(a) for a in args], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def export_part(rounds, threads):
    """Seconds of conversion and quantizations: the best of `rounds` for each command, ours and the bare one in turn."""
    tools = programs.toolchain()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(Qwen3Config(**EXPORT_SHAPE)).to(torch.bfloat16)
        model.save_pretrained(scratch / "model")
        tokenizer().save_pretrained(scratch / "model")
        parameters = model.num_parameters()
        del model
        converter, full = bare_converter(scratch), scratch / "full.gguf"
        convert = [
            sys.executable,
            converter,
            scratch / "model",
            "--outfile",
            scratch / "bare.gguf",
            "--outtype",
            "bf16",
        ]
        pairs = {"convert": (lambda: gguf.convert(scratch / "model", full), lambda: run_bare(*convert))}
        for type in TYPES:
            ours, bare = scratch / f"ours-{type}.gguf", scratch / f"bare-{type}.gguf"
            pairs[type] = (
                lambda type=type, ours=ours: gguf.quantize(full, ours, type, threads=threads),
                lambda type=type, bare=bare: run_bare(tools.quantize, full, bare, type.upper(), threads),
            )
        rows = {name: compare(name, *pair, rounds) for name, pair in pairs.items()}
        same = all(
            (scratch / f"ours-{t}.gguf").read_bytes() == (scratch / f"bare-{t}.gguf").read_bytes() for t in TYPES
        )
    totals = {key: round(sum(row[key] for row in rows.values()), 1) for key in next(iter(rows.values()))}
    return {"parameters": parameters, "threads": threads, "rounds": rounds, "same_bytes": same, "commands": rows,
            "total": totals, "ratio": round(totals["ours_s"] / totals["bare_s"], 3),
            "cpu_ratio": round(totals["ours_cpu_s"] / totals["bare_cpu_s"], 3)}  # fmt: skip


def compare(name, ours, bare, rounds):
    """Best wall and CPU seconds of two calls; which goes first changes with every round."""
    found = {"ours": [], "bare": []}
    for done in range(rounds):
        order = [("ours", ours), ("bare", bare)]
        for arm, call in order if done % 2 == 0 else reversed(order):
            found[arm].append(seconds(call))
    best = {}
    for arm, times in found.items():
        best |= {f"{arm}_s": round(min(t[0] for t in times), 2), f"{arm}_cpu_s": round(min(t[1] for t in times), 2)}
    print(name, best, flush=True)
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--part", action="append", choices=("grids", "steps", "export"), help="default: all three")
    parser.add_argument("--weights", type=int, default=2**22, help="grids: weights to round")
    parser.add_argument("--rounds", type=int, default=50, help="steps: timed, after one that warms up")
    parser.add_argument("--rows", type=int, default=4, help="steps: rows of --length tokens")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--export-rounds", type=int, default=3)
    args = parser.parse_args()
    machine.quiet()
    parts = {"grids": lambda: grids_part(args.weights, args.threads),
             "steps": lambda: steps_part(args.rounds, args.rows, args.length, args.threads),
             "export": lambda: export_part(args.export_rounds, args.threads)}  # fmt: skip
    for name in args.part or parts:
        found = parts[name]()
        print(name, json.dumps(found), flush=True)
        keep("qat", {name: found}, beside=True)


if __name__ == "__main__":
    sys.exit(main())
