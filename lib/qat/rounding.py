"""Quantization-aware training on the grid of the exported file: the forward pass uses Q(bf16(W + BA)).

The usual way trains Q(W) x + BA x, while the file holds Q(W + BA); and BF16 is what a merge saves before llama.cpp
quantizes it. Both roundings are inside the forward pass here, so the exported file holds exactly the trained numbers.
Gradients are straight-through (Bengio et al. 2013, arXiv:1308.3432): those of the same model without rounding.
"""

import torch
from peft.tuners.lora import LoraLayer

from lib.model import layout, offload
from lib.model.layout import plain_name
from lib.qat import grids
from lib.qat.sites import LoraSite, site_of, target

KEPT = "f32"  # llama.cpp's type for what it does not quantize: norms, biases, routers


def base_parameters(model):
    """{name in the merged model: parameter, wherever its numbers are}, adapters left out, tied parameters once."""
    return {plain_name(name): p for name, p in offload.parameters(model).items() if ".lora_" not in name}


def type_of(model, plan):
    """{parameter name: GGUF type} of a model, from the plan of its file, {tensor name: type} (see gguf.type_map).

    Raises ValueError when one parameter becomes tensors of different types.
    """
    found = {}
    for name, place in layout.of(model).items():
        kinds = {plan[tensor] for tensor in place.tensors}
        if len(kinds) > 1:
            raise ValueError(
                f"{name} becomes {place.tensors} of different types {sorted(kinds)}: choose another scheme"
            )
        found[name] = kinds.pop()
    return found


def prepare(model, types):
    """Make a model compute with fake-quantized weights until `strip`; returns its `coverage`.

    model: a LoRA model (peft), or a plain one, whose trainable weights then get the straight-through gradient.
    types: {parameter name of the merged model: GGUF type}, as `type_of` gives them; what is "f32" there is
        rounded to bfloat16, as the export does.
    Every rounded matrix is kept until it changes: memory for one more copy of the weights in the compute dtype.
    Raises ValueError when a name is not in the model or has rows that its type cannot hold, for adapters whose merge is
    not bf16(W + BA): dropout, DoRA, several adapters, 4-bit bases.
    """
    parameters = base_parameters(model)
    _refuse_unknown(types, parameters)
    strip(model)
    places = layout.of(model)
    kinds = {name: "bf16" if kind == KEPT else kind for name, kind in types.items()}
    of_weight = {id(parameters[name]): name for name in types}  # finds a tied head as well
    adapted = {id(target(m)): m for m in model.modules() if isinstance(m, LoraLayer)}
    sites = []
    for module in [m for m in model.modules() if not isinstance(m, LoraLayer)]:
        for own, weight in module.named_parameters(recurse=False):
            if id(weight) in of_weight:
                name = of_weight[id(weight)]
                sites.append(site_of(adapted.get(id(weight), module), module, own, name, kinds[name], places[name]))
    _refuse_tied_adapters(sites)
    for site in sites:
        site.patch()
    return coverage(model)


def strip(model):
    """Undo `prepare`: the model computes with its own weights again, adapter and all."""
    for module in model.modules():
        if module.__dict__.pop("fake_quantized", None):
            del module.forward


def sites(model):
    """The fake-quantized weights of a prepared model, in the order of its modules."""
    return [site for module in model.modules() for site in module.__dict__.get("fake_quantized", ())]


def coverage(model):
    """Which parameters of the merged model are fake-quantized now.

    Returns {"parameters": count, "fake_quantized": count, "share": of parameters, "types": {GGUF type: parameters},
    "skipped": names of the tensors that keep their precision, in training and in the file}.
    """
    types = {site.name: site.type for site in sites(model) if site.type != "bf16"}
    sizes = {name: p.numel() for name, p in base_parameters(model).items()}
    of_type = {type: sum(sizes[n] for n in types if types[n] == type) for type in sorted(set(types.values()))}
    total, rounded = sum(sizes.values()), sum(of_type.values())
    skipped = [name for name in sizes if name not in types]
    return {
        "parameters": total,
        "fake_quantized": rounded,
        "share": rounded / total,
        "types": of_type,
        "skipped": skipped,
    }


def without_dropout(model):
    """Switch off the dropout of all adapters: one rounded matrix cannot be dropped out on A's input only."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for adapter in module.lora_dropout:
                module.lora_dropout[adapter] = torch.nn.Identity()
    return model


@torch.no_grad()
def quantize_model(model, types):
    """Post-training quantization of a plain model in place; types as for `prepare`. Returns the model."""
    parameters, places = base_parameters(model), layout.of(model)
    _refuse_unknown(types, parameters)
    for name, kind in types.items():
        parameters[name].copy_(fake_quantize(parameters[name], kind, places[name]))
    return model


@torch.no_grad()
def read_file(model, tensors):
    """Give a plain model the numbers of a quantized GGUF file, in place; returns the model.

    tensors: (tensor name, float32 array) of the tensors to read, as gguf.dequantize yields them. Where a number belongs
    is found by sending the numbers of all places through the parameter's layout.
    """
    parameters, found = base_parameters(model), layout.of(model)
    owners = {tensor: (name, part) for name, place in found.items() for part, tensor in enumerate(place.tensors)}
    for tensor, values in tensors:
        name, part = owners[tensor]
        flat = parameters[name].flatten()
        places = torch.arange(len(flat), device=flat.device).view(parameters[name].shape)
        flat[found[name].parts(places)[part].flatten()] = torch.from_numpy(values).flatten().to(flat)
        parameters[name].copy_(flat.view(places.shape))
    return model


def fake_quantize(weight, kind, place):
    """grids.fake_quantize along the rows that a parameter has in its file; float32, in the model's own layout."""
    return place.rows(grids.fake_quantize(place.rows(weight), kind))


@torch.no_grad()
def fingerprints(model, types=None):
    """{tensor name in the file: sha256 of its values there (see grids.sha256)}, of every tensor that the export holds.

    model: a prepared one, whose rounded weights are computed afresh in float32, whatever dtype it computes in; or a
    plain one, merged and read back, whose file will hold `types`.
    """
    prepared, parameters, found = {site.name: site for site in sites(model)}, base_parameters(model), {}
    for name, place in layout.of(model).items():
        site = prepared.get(name)
        kind = site.type if site else (types or {}).get(name, KEPT)
        values = fake_quantize(site.saved() if site else parameters[name].to(torch.bfloat16), kind, place)
        found |= {tensor: grids.sha256(part) for tensor, part in zip(place.tensors, place.parts(values), strict=True)}
    return found


def _refuse_tied_adapters(sites):
    tied = {s.name for s in sites if isinstance(s, LoraSite) and sum(s.name == other.name for other in sites) > 1}
    if tied:
        raise ValueError(f"{tied} is shared with another module, adapt neither: a merge would change both")


def _refuse_unknown(names, known, reason="is not in the model"):
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ValueError(
            f"{unknown[0]} ({len(unknown)} of {len(names)} names) {reason}: take the names from qat.type_of"
        )
