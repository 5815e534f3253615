"""Where each parameter of a model stands in its GGUF file, and how its rows lie there: llama.cpp's converter is asked.

The converter renames every tensor; it turns some (GPT-2), permutes rows (Llama's rotary pairs), splits (gpt-oss's gate
and up), stacks experts, and adds 1 to Gemma's norms. Quantization works along the file's rows, so training on its grid
needs the same order. A small model of the same configuration is converted whose weights are their own addresses: where
each number lands says what was done to it, for every family that the converter knows. Chapter 5 proves the result.
"""

import contextlib
import copy
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from lib.model import addresses, offload, saving, shapes
from lib.pipeline.commands import environment, held
from lib.pipeline.files import ROOT, cache_dir, read_json, sha256_file, sha256_json, write_json, write_own
from lib.pipeline.programs import toolchain

CONVERT, PROBE = (ROOT / "lib" / "model" / f"gguf_{name}.py" for name in ("convert", "probe"))
MADE_BY = [ROOT / "lib" / "model" / f"{name}.py" for name in ("layout", "addresses", "gguf_probe")]
PRIMES = (11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71)
SIZES = (  # fields of a config that are made small, one prime each: those of a line are one size
    ("num_local_experts", "num_experts", "n_routed_experts"),
    ("head_dim",),
    ("hidden_size", "n_embd", "d_model"),
    ("intermediate_size", "n_inner", "ffn_hidden_size"),
    ("moe_intermediate_size",),
    ("shared_expert_intermediate_size",),
    ("vocab_size",),
)


@dataclass(frozen=True)
class Layout:
    """One parameter in the file.

    tensors: their names there. forms: how each is read out of the parameter. row: the dimension of the parameter that
    the file's rows run along, in its order; None where they run otherwise, which no block type can follow.
    """

    tensors: tuple[str, ...]
    forms: tuple[addresses.Form, ...]
    row: int | None

    def rows(self, weight):
        """The weight with the rows of the file last, in any order: quantization works along them. Its own inverse."""
        return weight if self.row is None else weight.transpose(self.row, -1)

    def parts(self, weight):
        """Tuple of these tensors, from the weight."""
        return tuple(form.read(weight) for form in self.forms)


def plain_name(name):
    """A PEFT parameter's name in the merged model: without base_model.model. and .base_layer."""
    return re.sub(r"\.base_layer(?=\.)", "", name.removeprefix("base_model.model."))


def of(model):
    """{parameter name in the merged model: Layout} of a transformers or PEFT model; adapters left out.

    Raises ValueError for an architecture that the converter does not know, and for a parameter that has no place of its
    own in the file.
    """
    places, found = _probed(model.config), {}
    for name, weight in offload.parameters(model).items():
        if ".lora_" not in name:
            plain = plain_name(name)
            try:
                found[plain] = _layout(places.get(plain, {}), weight.shape)
            except ValueError as error:
                raise ValueError(
                    f"{plain} {tuple(weight.shape)} of {model.config.model_type} {error}: training on a file's grid is "
                    "not possible for this family; set qat: null"
                ) from None
    return found


def check(config, trained):
    """Raise ValueError where a configuration has no GGUF form or, if `trained` on a file's grid, a parameter no place.

    Nothing is loaded: the sizes are enough. FileNotFoundError where llama.cpp is not built.
    """
    of(shapes.model(config)) if trained else _probed(config)


def check_tokenizer(tokenizer, config):
    """Raise ValueError where llama.cpp's converter refuses a tokenizer, which no small model tells; kept by content.

    config: of the base that it belongs to.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder, model = Path(scratch, "tokenizer"), shapes.model(config)
        about = copy.deepcopy(model.config)
        about.architectures = [type(model).__name__]
        about.__dict__.pop("quantization_config", None)
        about.save_pretrained(folder)
        saving.save_tokenizer(tokenizer, folder)
        files = {path.name: sha256_file(path) for path in folder.iterdir()}
        key = sha256_json([files, toolchain().home.name, version("transformers"), sha256_file(CONVERT)])
        kept = cache_dir() / "tokenizers" / f"{key[:16]}.json"
        if kept.exists():
            return
        args = [toolchain().converter, folder, "--vocab-only", "--outtype", "bf16", "--outfile", folder / "vocab.gguf"]
        if reason := _refused(CONVERT, *args):
            raise ValueError(
                f"the tokenizer {tokenizer.name_or_path!r} can be trained but not exported: "
                + reason.replace(f"{folder}/", "")
            )
    write_json(kept, files)


def _layout(tensors, shape):
    if not tensors:
        raise ValueError("has no place in a GGUF file")
    forms = [addresses.Form.scaled(place, tuple(shape)) for place in tensors.values()]
    rows = {form.row() for form in forms}
    return Layout(tuple(tensors), tuple(forms), rows.pop() if len(rows) == 1 else None)


def _probed(config):
    """{parameter name: {tensor: what addresses.place found}} of a configuration's small model, kept by content."""
    small = shrunk(config)
    arranged = {name: value for name, value in small.to_dict().items() if name != "_name_or_path"}  # of any folder
    about = [arranged, toolchain().home.name, version("transformers"), *map(sha256_file, MADE_BY)]
    file = cache_dir() / "layout" / f"{sha256_json(about)[:16]}.json"
    if not file.exists():  # with several ranks each makes its own: one that waited for another could wait for ever
        write_own(file, json.dumps(_convert(small)))
    return read_json(file)


def shrunk(config):
    """The config of a small model with the same arrangement: layers, heads and ratios stay, each size is a prime's.

    The primes divide none of the numbers that stay, so that in the small model's file each number tells what it is.
    """
    small = copy.deepcopy(config)
    named = {name for names in SIZES for name in names}
    kept = [v for name, v in small.to_dict().items() if type(v) is int and 1 < v < 4096 and name not in named]
    primes = iter(p for p in PRIMES if all(v % p for v in kept))
    heads = getattr(small, "num_attention_heads", 1)
    for names in SIZES:
        prime = next(primes)
        for name in names:
            if not getattr(small, name, None) and name != "head_dim":
                continue
            if name == "head_dim" and hasattr(small, name):
                small.head_dim = 2 * prime
            elif name != "head_dim":
                setattr(small, name, prime * (2 * heads if name in ("hidden_size", "n_embd", "d_model") else 1))
    if getattr(small, "mamba_d_head", None) and not getattr(small, "mamba_d_ssm", None):  # of Granite 4: a quotient
        small.mamba_d_head = small.mamba_expand * small.hidden_size // small.mamba_n_heads
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "quantization_config"):
        setattr(small, name, None)
    rotary = getattr(small, "rope_parameters", None)
    if rotary and "rope_type" in rotary:  # long-context factors have the length of a true head
        kept = {name: rotary[name] for name in ("rope_theta", "partial_rotary_factor") if name in rotary}
        small.rope_parameters = kept | {"rope_type": "default"}
    return small


@contextlib.contextmanager
def _no_bars():
    """Saving draws one, in whichever notebook asks first."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _convert(small):
    with tempfile.TemporaryDirectory() as scratch:
        try:
            small.save_pretrained(scratch)  # it checks the sizes
            with torch.random.fork_rng(devices=[]):
                model = AutoModelForCausalLM.from_config(small, dtype=torch.float32, trust_remote_code=False)
        except Exception as error:  # whatever an architecture asserts of its sizes
            raise ValueError(f"no small model of model_type {small.model_type!r} can be built: {error}") from error
        for buffer in model.buffers():
            buffer.data = torch.full_like(buffer, -1)
        names = [name for name, _ in model.named_parameters()]
        model.should_save_on_this_rank = lambda is_main_process: True  # transformers saves on rank 0 alone
        folders = [Path(scratch, half) for half in ("high", "low")]
        for half, folder in enumerate(folders):
            for number, parameter in enumerate(model.parameters()):
                parameter.data = addresses.written(number, parameter.shape)[half]
            with _no_bars():
                model.save_pretrained(folder)
            words = {"vocab": dict.fromkeys(map(str, range(small.vocab_size)))}
            write_own(folder / "tokenizer.json", json.dumps({"model": words, "added_tokens": []}))
        if reason := _refused(PROBE, toolchain().converter, scratch, *folders):
            raise ValueError(
                f"llama.cpp's converter has no GGUF form for model_type {small.model_type!r}: {reason}. Train and "
                "evaluate such a model elsewhere, or choose another model.base"
            )
        high, low = (np.load(Path(scratch, f"{half}.npz")) for half in (0, 1))
        shapes = [tuple(p.shape) for p in model.parameters()]
        return addresses.places(names, shapes, {tensor: (high[tensor], low[tensor]) for tensor in low.files})


def _refused(script, *args):
    """Run a script of ours around llama.cpp's converter: the last line of its refusal, None where it went well."""
    command, text = held(sys.executable, "-P", script, *args), {"encoding": "utf-8", "errors": "replace"}
    result = subprocess.run(command, capture_output=True, env=environment(), **text)
    if result.returncode < 0:
        raise RuntimeError(f"llama.cpp's converter died of signal {-result.returncode}:\n{result.stderr[-2000:]}")
    return (result.stderr.strip().splitlines() or ["it gave no reason"])[-1] if result.returncode else None
