"""A merged model written tensor by tensor: beside the model of training, one matrix in float32 and one file's share.

A whole model in float32 takes four bytes a parameter, six times what QLoRA trained in. Each sum W + BA is PEFT's own
merge of that layer, on the layer's device: a matrix product elsewhere may differ in its last bit.
"""

import contextlib
import copy
import json
from pathlib import Path

import torch
from peft.tuners.lora import Linear, LoraLayer, ParamWrapper
from safetensors.torch import save_file
from transformers.core_model_loading import revert_weight_conversion
from transformers.integrations.bitsandbytes import dequantize_bnb_weight
from transformers.modeling_utils import remove_tied_weights_from_state_dict

SHARD_BYTES = 2**30  # of a file; as many are held in memory until it is written


def write(model, folder):
    """Write a PEFT model merged, or a plain one as it is, in bfloat16: config, generation config and safetensors.

    model: is consumed: its weights are given back, whoever still refers to it. What is in 4 or 8 bits is dequantized.
    """
    layers = {}  # by the parameter that they adapt, in the order in which PEFT merges them
    for layer in [m for m in model.modules() if isinstance(m, LoraLayer)]:
        for own in _adapted(layer):
            layers.setdefault(id(layer.get_base_layer()._parameters[own]), []).append((layer, own))
    model = model.unload() if hasattr(model, "peft_config") else model
    with torch.no_grad():
        folder = Path(folder)
        _write_configs(model, folder)
        _write_shards(_tensors(model, layers), folder)
        for parameter in model.parameters():
            parameter.data = parameter.data.new_empty(0)


def _adapted(layer):
    """Names of the parameters of a LoRA layer's base layer that its merge changes."""
    if isinstance(layer, ParamWrapper):
        return [layer.parameter_name]
    return ["weight", "bias"] if any(layer.lora_bias.values()) else ["weight"]


def _tensors(model, layers):
    """Yield (name in the checkpoint, tensor on the CPU) of everything that save_pretrained would write."""
    held = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    names = {name: held[name] for name in model.state_dict() if name in held}  # not what explains 4-bit weights
    names = remove_tied_weights_from_state_dict({n: t for n, t in names.items() if n not in _unsaved(model)}, model)
    if getattr(model, "is_quantized", False):
        model._weight_conversions = None  # those of a 4-bit checkpoint
    for name in names:
        weight = held[name]
        owner = model.get_submodule(name.rpartition(".")[0])
        total = _full(weight, owner, model.config.dtype)
        for layer, own in layers.get(id(weight), ()):
            total = _sum(layer, own, total, model.config.dtype)
        total = (total.to(torch.bfloat16) if total.is_floating_point() else total).cpu()
        for saved, part in revert_weight_conversion(model, {name: total}).items():
            yield saved, part.contiguous()


def _unsaved(model):
    return model._keys_to_ignore_on_save or ()


def _full(weight, owner, dtype):
    """A weight as it is, or dequantized to the dtype that the model was loaded in."""
    quantized = type(weight).__name__ in ("Params4bit", "Int8Params")
    return dequantize_bnb_weight(weight, getattr(owner, "state", None)).to(dtype) if quantized else weight.data


def _sum(layer, own, total, dtype):
    """W + BA in float32, of one parameter of a LoRA layer's base layer, whose W so far is `total`."""
    owner = layer.get_base_layer()
    before = dict(owner._parameters)
    for name in layer.adapter_layer_names:
        with contextlib.suppress(AttributeError):  # a layer may lack some
            getattr(layer, name).float()
    try:
        for name in _adapted(layer):
            full = total if name == own else _full(before[name], owner, dtype)
            owner._parameters[name] = torch.nn.Parameter(full.to(torch.float32, copy=True), requires_grad=False)
        four_bit = type(before[own]).__name__ in ("Params4bit", "Int8Params")  # PEFT would round the sum again
        Linear.merge(layer) if four_bit else layer.merge()
        return owner._parameters[own].data
    finally:
        owner._parameters.update(before)
        layer.merged_adapters.clear()


def _write_configs(model, folder):
    folder.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(model.config)
    config.dtype, config.architectures = torch.bfloat16, [type(model).__name__]
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    if config.tie_word_embeddings and ends[1] is not None and ends[0].weight is not ends[1].weight:
        config.tie_word_embeddings = False  # one of them was trained apart
    for name in ("quantization_config", "_pre_quantization_dtype"):
        config.__dict__.pop(name, None)
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)


def _write_shards(tensors, folder):
    """Write (name, tensor) pairs as model.safetensors or, above SHARD_BYTES, as numbered files with an index."""
    for stale in [*folder.glob("model*.safetensors"), folder / "model.safetensors.index.json"]:
        stale.unlink(missing_ok=True)  # loading would prefer one whole file over an index
    shards, shard = [], {}
    for name, tensor in tensors:
        if shard and sum(t.nbytes for t in (*shard.values(), tensor)) > SHARD_BYTES:
            shards.append(_write_shard(shard, folder, len(shards)))
            shard = {}
        shard[name] = tensor
    shards.append(_write_shard(shard, folder, len(shards)))
    if len(shards) == 1:
        shards[0][0].replace(folder / "model.safetensors")
        return
    where = {}
    for number, (part, names, _) in enumerate(shards, 1):
        part.replace(folder / f"model-{number:05}-of-{len(shards):05}.safetensors")
        where |= dict.fromkeys(names, f"model-{number:05}-of-{len(shards):05}.safetensors")
    index = {"metadata": {"total_size": sum(size for _, _, size in shards)}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True), encoding="utf-8")


def _write_shard(shard, folder, number):
    part = folder / f"model.part-{number}.safetensors"
    save_file(shard, part, metadata={"format": "pt"})
    return part, list(shard), sum(tensor.nbytes for tensor in shard.values())
