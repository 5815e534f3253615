"""llama.cpp from Python: convert, quantize, inspect and measure GGUF files (serve.py serves them).

Programs and converter come from one pinned commit, built by `make setup` (pipeline/toolchain.py). Every file is written
under a temporary name and renamed when complete.
Built with a GPU, programs put as many layers on it as fit beside what is there (llama.cpp's own --fit; a fixed number
of layers would end with an error where they do not fit), and the rest runs on `threads`.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gguf import GGUFReader
from gguf.quants import dequantize as to_float32
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file

from lib.model.layout import CONVERT
from lib.pipeline import machine
from lib.pipeline.commands import environment, held
from lib.pipeline.machine import LOGITS_BYTES
from lib.pipeline.programs import toolchain


def convert(model_dir, out, outtype="bf16", header=None):
    """Write a transformers checkpoint folder as one GGUF file; returns its path.

    outtype: f32, f16 or bf16. header: what the file says of itself, from release.header.
    Raises ValueError with the converter's reason, e.g. an unknown tokenizer.
    """
    out, model_dir = Path(out), Path(model_dir).resolve()
    with _temporary(out) as part, tempfile.TemporaryDirectory() as scratch:
        about = Path(scratch, "header.json")
        about.write_text(json.dumps(header or {}), encoding="utf-8")
        script = [sys.executable, "-P", CONVERT, toolchain().converter, model_dir, "--metadata", about]
        _run([*script, "--outfile", part, "--outtype", outtype], f"converting {model_dir.name} to GGUF")
    return out


def convert_lora(adapter_dir, base_dir, out):
    """Write a PEFT LoRA adapter as a GGUF file in float32, for `serve.running(base, adapters=[out])`; returns its path.

    base_dir: folder with the base model's config.json. Raises ValueError with the converter's reason.
    """
    out, adapter_dir, base_dir = Path(out), Path(adapter_dir).resolve(), Path(base_dir).resolve()
    with _temporary(out) as part, tempfile.TemporaryDirectory() as scratch:
        given = _readable(adapter_dir, Path(scratch, out.stem))
        script = [sys.executable, "-P", CONVERT, toolchain().lora_converter]
        _run([*script, "--base", base_dir, "--outfile", part, given], f"converting adapter {adapter_dir.name}")
    return out


def _readable(adapter_dir, folder):
    """An adapter as the converter reads it, in a new folder, which names the file; returns the folder.

    llama.cpp multiplies every pair by lora_alpha / rank. Where PEFT has another factor for a layer (use_rslora,
    alpha_pattern), what is between the two goes into B.
    GPT-2 stores its weights input by output, and the converter turns them, the adapter's too; PEFT's, with
    fan_in_fan_out, is not stored so. Each pair is therefore turned beforehand: (BA)' = A'B'.
    The card goes along only where it names a base of the hub: a folder's path is nobody else's.
    """
    folder.mkdir()
    weights, card = adapter_dir / "adapter_model.safetensors", adapter_dir / "README.md"
    config = json.loads((adapter_dir / "adapter_config.json").read_text(encoding="utf-8"))
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    if card.exists() and not Path(config.get("base_model_name_or_path") or "").exists():
        (folder / card.name).symlink_to(card)
    turned, alphas = config.get("fan_in_fan_out"), config.get("alpha_pattern") or {}
    if not (turned or alphas or config.get("use_rslora")):
        (folder / weights.name).symlink_to(weights)
        return folder
    other, swapped = {".lora_A.": ".lora_B.", ".lora_B.": ".lora_A."}, {}
    for name, weight in load_file(weights).items():
        side = next(side for side in other if side in name)
        if side == ".lora_B.":
            layer, rank = name.partition(side)[0].removeprefix("base_model.model."), weight.shape[1]
            alpha = alphas.get(get_pattern_key(alphas.keys(), layer), config["lora_alpha"])
            weight = weight * (alpha / config["lora_alpha"] * (rank**0.5 if config.get("use_rslora") else 1))
        swapped[name.replace(side, other[side]) if turned else name] = weight.t().contiguous() if turned else weight
    save_file(swapped, folder / weights.name, metadata={"format": "pt"})
    return folder


def quantize(src, out, type, type_map=None, threads=1, importance=None):
    """Quantize a bf16/f16/f32 GGUF file to `type` (q4_0, q4_k_m, ...); returns out.

    importance: file from `importance`, which changes how weights are rounded: never for weights trained on a grid.
    type_map: {tensor name: ggml type} as from `type_map`, pins single tensors; tensors that llama.cpp never
    quantizes (norms, biases, routers) are ignored in it. "f32" writes the numbers of a quantized file out in full.
    """
    out, src = Path(out).resolve(), Path(src).resolve()
    with _temporary(out) as part, tempfile.TemporaryDirectory() as scratch:
        args = ["--allow-requantize"] if type == "f32" else []
        if importance:  # the file records where it lay: the same words wherever it is made
            Path(scratch, "importance.gguf").symlink_to(Path(importance).resolve())
            args += ["--imatrix", "importance.gguf"]
        if type_map:
            pins = Path(scratch, "types.txt")
            lines = [f"^{re.escape(name)}$={kind}\n" for name, kind in type_map.items()]
            pins.write_text("".join(lines), encoding="utf-8")
            args += ["--tensor-type-file", pins]
        args += [src, part, type.upper(), threads]
        _run([toolchain().quantize, *args], f"quantizing {src.name} to {type}", scratch)
    return out


def importance(src, texts, out, ctx=256, threads=1):
    """Write the importance matrix of a 16-bit file as a file (llama-imatrix); returns out.

    How large the inputs of each weight are on calibration texts: rounding then spares the weights that matter there.
    texts: rendered conversations of the train split, never of the test; marks of the chat template are read as such.
    threads: the matrix is the same with any number, to the byte.
    Raises ValueError where they are shorter than a chunk of ctx tokens.
    """
    out, src = Path(out).resolve(), Path(src).resolve()
    with _temporary(out) as part, tempfile.TemporaryDirectory() as scratch:
        text = Path(scratch, "calibration.txt")  # whose name the file records
        text.write_text("\n".join(texts), encoding="utf-8")
        args = ["-m", src, "-f", text.name, "-o", part, "-c", ctx, "-t", threads]
        args += ["--parse-special", "--no-ppl", "--offline"]
        _run([toolchain().imatrix, *args], f"importance matrix of {src.name}", scratch)
    return out


def type_map(src, type):
    """The type each tensor would get from `quantize(src, ..., type)`: {tensor name: ggml type, e.g. "q6_k"}."""
    text = _run([toolchain().quantize, "--dry-run", src, type.upper()], f"planning {type} for {Path(src).name}")
    line = re.compile(r"\[ *\d+/ *\d+\] +(\S+) +- \[[^]]*\], type = +(\w+), size = .*?(?:\((\w+)\))?$", re.MULTILINE)
    return {name: (target or kind).lower() for name, kind, target in line.findall(text)}


def planned(model_dir, type, outtype, folder):
    """The `type_map` of a transformers checkpoint folder, from a 16-bit file written into folder and removed."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as scratch:
        return type_map(convert(model_dir, Path(scratch) / "model.gguf", outtype), type)


def tensor_types(file):
    """The types that a GGUF file holds: {tensor name: ggml type in lower case}."""
    return {tensor.name: tensor.tensor_type.name.lower() for tensor in GGUFReader(file).tensors}


def imatrix(file):
    """Whether an importance matrix was used to quantize a file, as its header says."""
    return any(key.startswith("quantize.imatrix") for key in GGUFReader(file).fields)


def dequantize(file, kept=True):
    """Yield (tensor name, float32 array of shape (rows, cols)) exactly as llama.cpp reads the file's numbers.

    kept: False leaves out the tensors that are not quantized, which are in float32. Always left out are tables of
    rotary factors, which the converter computes from the configuration: no weights.
    """
    for tensor in GGUFReader(file).tensors:
        computed = tensor.name.startswith(("rope_freqs.", "rope_factors_"))
        if computed or (tensor.tensor_type.name == "F32" and not kept):
            continue
        shape = tuple(int(size) for size in reversed(tensor.shape))  # GGUF lists the fastest dimension first
        yield tensor.name, to_float32(tensor.data, tensor.tensor_type).astype("float32", copy=False).reshape(shape)


def perplexity(file, text_path, ctx=256, threads=1, save=None, against=None):
    """How a file reads a text (llama-perplexity): {"ppl", "stderr", "chunks", "ctx", "seconds"}.

    The text is cut into chunks of ctx tokens; the second half of each is scored. Chat marks in the text are read as
    plain characters, so give it running text. Raises ValueError when the text is shorter than two chunks, or compares
    fewer than a hundred tokens.
    save: path for the probabilities of every token, with which other files are compared; at most LOGITS_BYTES of text
        are read then. against: such a path, of the same text and ctx; adds "kld" and "kld_stderr", the mean
        Kullback-Leibler divergence (nats a token) of this file from that one, and "same_top" and "same_top_stderr", the
        share of tokens for which both find the same next token likeliest.
    """
    start = time.monotonic()
    args = ["-m", file, "-f", text_path, "-c", ctx, "-t", threads, "-tb", threads, "--no-warmup", "--offline"]
    if save:
        row = 2 * (_vocab_size(file) + 8) * (ctx // 2)  # two bytes a probability, of half of each chunk
        args += ["--kl-divergence-base", save, "--chunks", max(2, LOGITS_BYTES // row)]
    if against:
        args += ["--kl-divergence-base", against, "--kl-divergence"]
    text = _run([toolchain().perplexity, *args], f"perplexity of {Path(file).name}")
    final = re.search(r"Final estimate: PPL = (\S+) \+/- (\S+)|Mean PPL\(Q\) +: +(\S+) ± +(\S+)", text)
    if final is None:  # it exits with 0 all the same
        needs = f"it needs {2 * ctx} tokens or more{', 100 of them in second halves' if against else ''}"
        raise ValueError(f"no perplexity for {file} on {text_path}, {needs}:\n{_last(text)}")
    ppl, stderr = (float(found) for found in final.groups() if found)
    found = {"ppl": ppl, "stderr": stderr, "ctx": ctx, "seconds": time.monotonic() - start}
    if not against:
        return found | {"chunks": int(re.search(r"over (\d+) chunks", text)[1])}
    kld, kld_stderr = map(float, re.search(r"Mean +KLD: +(\S+) ± +(\S+)", text).groups())
    top, top_stderr = map(float, re.search(r"Same top p: +(\S+) ± +(\S+) %", text).groups())
    found |= {"kld": kld, "kld_stderr": kld_stderr, "same_top": top / 100, "same_top_stderr": top_stderr / 100}
    return found | {"chunks": int(re.findall(r"^ *(\d+) +\S+ ±", text, re.MULTILINE)[-1])}


def _vocab_size(file):
    return next(int(t.shape[1]) for t in GGUFReader(file).tensors if t.name == "token_embd.weight")


def _run(args, what, cwd=None):
    """Run one program and return its output. Raises ValueError when it refuses, RuntimeError when it crashes."""
    machine.release()
    args = [str(arg) for arg in args]
    text = {"encoding": "utf-8", "errors": "replace"}
    sinks = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    result = subprocess.run(held(*args), env=environment(), cwd=cwd, **sinks, **text)
    if result.returncode < 0:
        raise RuntimeError(f"{what}: {Path(args[0]).name} died of signal {-result.returncode}:\n{_last(result.stdout)}")
    if result.returncode > 0:
        raise ValueError(f"{what} failed:\n{_last(result.stdout)}")
    return result.stdout


def _last(text, lines=15):
    return "\n".join(text.splitlines()[-lines:])


@contextlib.contextmanager
def _temporary(out):
    """Yield a temporary name beside out; rename it to out when the block ends well, else remove it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f"{out.stem}.part-{os.getpid()}.gguf")
    try:
        yield part
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
