"""Where each parameter of a model stands in its GGUF file, and how its rows lie there.

The converter renames every tensor and reorders some: Llama's query and key rows (rotary positions pair others), GPT-2's
Conv1D (stored input by output) and gpt-oss's experts (the same, with gate and up columns interleaved).
Quantization works along the file's rows, so training on its grid needs the same order.
Source: conversion/*.py of llama.cpp (LlamaModel.permute, GPT2Model and GptOssModel.modify_tensors).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import gguf

ARCHITECTURES = {"gpt_oss": "gpt-oss"}  # transformers' model_type where the GGUF architecture is spelt otherwise


@dataclass(frozen=True)
class Layout:
    """One parameter in the file.

    tensors: their names there. parts: weight -> tuple of these tensors. transposed: the file's rows run along the
    parameter's last dimension but one.
    """

    tensors: tuple[str, ...]
    parts: Callable = lambda weight: (weight,)
    transposed: bool = False

    def rows(self, weight):
        """The weight with the rows of the file last, in any order: quantization works along them. Its own inverse."""
        return weight.transpose(-1, -2) if self.transposed else weight


def plain_name(name):
    """A PEFT parameter's name in the merged model: without base_model.model. and .base_layer."""
    return re.sub(r"\.base_layer(?=\.)", "", name.removeprefix("base_model.model."))


def of(model):
    """{parameter name in the merged model: Layout} of a transformers or PEFT model; adapters left out.

    Raises ValueError for an architecture that GGUF does not know, and for a parameter that has no place in its file.
    """
    config = model.config
    wanted = ARCHITECTURES.get(config.model_type, config.model_type)
    known = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    if wanted not in known:
        raise ValueError(
            f"model_type {config.model_type!r} has no GGUF architecture of that name; known: {sorted(known)}"
        )
    names = gguf.get_tensor_name_map(known[wanted], config.num_hidden_layers)
    found = {}
    for name, weight in model.named_parameters():
        if ".lora_" not in name:
            plain = plain_name(name)
            found[plain] = _layout(plain, weight, config, lambda key: names.get_name(key, (".weight", ".bias")))
    return found


def _layout(name, weight, config, find):
    rule = _experts if config.model_type == "gpt_oss" and ".experts." in name else None
    if config.model_type == "gpt2" and re.search(r"\.c_(attn|proj|fc)\.weight$", name):
        rule = _transposed
    if config.model_type in ("llama", "mistral") and (part := re.search(r"\.([qk])_proj\.(weight|bias)$", name)):
        heads = config.num_attention_heads if part[1] == "q" else config.num_key_value_heads
        rule = lambda keys, find: _rotary(keys, find, heads)  # noqa: E731
    key = f"{name}.weight" if name.endswith(".sinks") else name
    layout = (rule or _same)(key, find)
    if None in layout.tensors:
        raise ValueError(f"{name} {tuple(weight.shape)} has no place in a GGUF file of {config.model_type}")
    return layout


def _same(name, find):
    return Layout((find(name),))


def _transposed(name, find):
    return Layout((find(name),), lambda weight: (weight.t(),), transposed=True)


def _rotary(name, find, heads):
    def paired(weight):
        pairs = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
        return (pairs.transpose(1, 2).reshape(weight.shape),)

    return Layout((find(name),), paired)


def _experts(name, find):
    """gpt-oss: [experts, in, out], gate and up in turn along out; in the file [experts, out, in], gate and up apart."""
    matrix = not name.endswith("_bias")
    name = re.sub(r"_proj(_bias)?$", "_proj.weight" if matrix else "_proj.bias", name)
    turn = (lambda weight: weight.transpose(-1, -2)) if matrix else (lambda weight: weight)
    if ".gate_up_proj." not in name:
        return Layout((find(name),), lambda weight: (turn(weight),), matrix)
    tensors = tuple(find(name.replace("gate_up_proj", part)) for part in ("gate_proj", "up_proj"))
    return Layout(tensors, lambda weight: (turn(weight)[:, ::2], turn(weight)[:, 1::2]), matrix)
