"""Quantization-aware training on the grid of the exported file: the forward pass uses Q(bf16(W + BA)).

The usual way trains Q(W) x + BA x, while the file holds Q(W + BA); and BF16 is what a merge saves before llama.cpp
quantizes it. Both roundings are inside the forward pass here, so the exported file holds exactly the trained numbers.
Gradients are straight-through (Bengio et al. 2013, arXiv:1308.3432): those of the same model without rounding.
"""

import contextlib

import torch
from peft.tuners.lora import Embedding, LoraLayer, ParamWrapper
from torch.nn import functional as F

from lib import grids, layout
from lib.layout import plain_name

KEPT = "f32"  # llama.cpp's type for what it does not quantize: norms, biases, routers


def base_parameters(model):
    """{name in the merged model: parameter}, adapter parameters left out, tied parameters once."""
    return {plain_name(name): p for name, p in model.named_parameters() if ".lora_" not in name}


def type_of(model, plan):
    """{parameter name: GGUF type} of a model, from the plan of its file, {tensor name: type} (see gguf.type_map).

    Raises ValueError when one parameter becomes tensors of different types.
    """
    found = {}
    for name, place in layout.of(model).items():
        kinds = {plan[tensor] for tensor in place.tensors}
        if len(kinds) > 1:
            raise ValueError(f"{name} becomes {place.tensors} of different types {sorted(kinds)}: choose another scheme")
        found[name] = kinds.pop()
    return found


def prepare(model, types, refresh_every=1):
    """Make a model compute with fake-quantized weights until `strip`; returns its `coverage`.

    model: a LoRA model (peft), or a plain one, whose trainable weights then get the straight-through gradient.
        Frozen parameters that the file keeps in full precision are rounded to bfloat16, as the export does.
    types: {parameter name of the merged model: GGUF type}, as `type_of` gives them; "f32" is left alone.
    refresh_every: of K-quants, search scales anew only after so many changes of the weights while training.
    Raises ValueError when a name is not in the model or has rows that its type cannot hold, and for adapters whose
    merge is not bf16(W + BA): dropout, DoRA, several adapters, 4-bit bases.
    """
    parameters = base_parameters(model)
    _refuse_unknown(types, parameters)
    strip(model)
    places = layout.of(model)
    of_weight = {id(parameters[name]): name for name, kind in types.items() if kind != KEPT}  # finds a tied head too
    adapted = {id(_target(m)): m for m in model.modules() if isinstance(m, LoraLayer)}
    sites = []
    for module in [m for m in model.modules() if not isinstance(m, LoraLayer)]:
        for own, weight in module.named_parameters(recurse=False):
            if id(weight) in of_weight:
                name = of_weight[id(weight)]
                site = _site(adapted.get(id(weight), module), module, own, name, types[name], places[name])
                site.refresh_every = refresh_every
                sites.append(site)
    _refuse_unknown({name for name, kind in types.items() if kind != KEPT}, {s.name for s in sites}, "was not found")
    _refuse_tied_adapters(sites)
    with torch.no_grad():
        for name, parameter in parameters.items():
            if types.get(name, KEPT) == KEPT and not parameter.requires_grad:
                parameter.copy_(parameter.to(torch.bfloat16))
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
    types = {site.name: site.type for site in sites(model)}
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
def merged_bf16(model):
    """The weights that a merge exports: {parameter name: bfloat16 tensor}, bf16(W + BA) summed in float32.

    Call it on the device that trained: a matrix product on another device can differ in its last bit.
    """
    merged = {name: p.to(torch.bfloat16) for name, p in base_parameters(model).items()}
    names = {id(p): name for name, p in base_parameters(model).items()}
    for module in model.modules():
        if isinstance(module, LoraLayer):
            merged[names[id(_target(module))]] = _merged(module).to(torch.bfloat16)
    return merged


@torch.no_grad()
def quantize_model(model, types):
    """Post-training quantization of a plain model in place; types as for `prepare`. Returns the model."""
    parameters, places = base_parameters(model), layout.of(model)
    _refuse_unknown(types, parameters)
    for name, kind in types.items():
        parameters[name].copy_(fake_quantize(parameters[name], kind, places[name]))
    return model


def fake_quantize(weight, kind, place):
    """grids.fake_quantize along the rows that a parameter has in its file; float32, in the model's own layout."""
    return place.to_model([grids.fake_quantize(part, kind) for part in place.to_file(weight)])


@torch.no_grad()
def fingerprints(model, types=None):
    """{tensor name in the file: sha256 of its values there (see grids.sha256)} of what the model computes with.

    A prepared model is hashed as it is, with the rounded weights of its next forward pass; a plain one, merged and read
    back, as the file of `types` will hold it. Equal to the hash of the dequantized file, tensor by tensor.
    """
    values = {site.name: site.value for site in sites(model)}
    found = {}
    for name, place in layout.of(model).items():
        weight = base_parameters(model)[name] if name not in values else None
        if name in values:
            value = values[name]()
        else:
            value = fake_quantize(weight.to(torch.bfloat16), (types or {}).get(name, KEPT), place)
        found |= {tensor: grids.sha256(part) for tensor, part in zip(place.tensors, place.to_file(value), strict=True)}
    return found


class _Site:
    """One weight that is fake-quantized, of a module without adapter: the module reads Q(bf16(W)) in its stead."""

    def __init__(self, module, owner, own, name, type, place):
        self.module, self.owner, self.own, self.name, self.type, self.place = module, owner, own, name, type, place
        self.refresh_every, self.kept = 1, None

    def patch(self):
        """Route the module's forward through `forward`; `strip` undoes it. Several sites of a module nest."""
        self.inner = self.module.forward
        self.module.__dict__.setdefault("fake_quantized", []).append(self)
        self.module.forward = self.forward

    @property
    def weight(self):
        return self.owner._parameters[self.own]

    def rounded(self, weight):
        """Q(bf16(weight)) in the dtype of the matmul."""
        return fake_quantize(weight.to(torch.bfloat16), self.type, self.place).to(self.weight.dtype)

    def value(self):
        """The rounded weight; computed once while the weight is frozen, with gradient while it is trained."""
        weight = self.weight
        if weight.requires_grad and torch.is_grad_enabled():
            return grids.replace(weight, self.rounded(weight.detach()))
        version = (weight.data_ptr(), weight._version)
        if self.kept is None or self.kept[0] != version:
            self.kept = version, self.rounded(weight.detach())
        return self.kept[1]

    @contextlib.contextmanager
    def shown(self):
        """While it lasts, the owner of the weight reads the rounded one: an instance's own attribute comes first."""
        self.owner.__dict__[self.own] = self.value()
        try:
            yield
        finally:
            del self.owner.__dict__[self.own]

    def forward(self, *args, **kwargs):
        with self.shown():
            return self.inner(*args, **kwargs)


class _LoraSite(_Site):
    """A LoRA layer: y = Q(bf16(W + BA)) x, with the gradient of (W + BA) x for A, B and x."""

    @torch.no_grad()
    def value(self):
        with torch.autocast(self.weight.device.type, enabled=False):
            return self.rounded(_merged(self.module))

    def forward(self, x, *args, **kwargs):
        layer = self.module
        if layer.disable_adapters:
            return self.inner(x, *args, **kwargs)
        with self.shown():
            y = layer.base_layer(x, *args, **kwargs)
        if not torch.is_grad_enabled():
            return y
        # The adapter's own product adds exactly 0 to y and carries the gradient to A and B at the price of plain LoRA.
        # x takes its gradient from the rounded weight alone.
        (name,) = layer.active_adapters
        if isinstance(layer, Embedding):
            product = F.embedding(x, layer.lora_embedding_A[name].t()) @ layer.lora_embedding_B[name].t()
        else:
            a, b = layer.lora_A[name], layer.lora_B[name]
            product = b(a(x.detach().to(a.weight.dtype)))
        product = product * layer.scaling[name]
        return y + (product - product.detach()).to(y.dtype)


class _ParameterSite(_LoraSite):
    """A LoRA adapter on a parameter of its own, as of stacked experts: the module inside reads Q(bf16(W + BA))."""

    def value(self):
        with torch.autocast(self.weight.device.type, enabled=False):
            merged = _merged(self.module)
            return grids.replace(merged, self.rounded(merged.detach()))

    def forward(self, *args, **kwargs):
        if self.module.disable_adapters:
            return self.inner(*args, **kwargs)
        with self.shown():
            return self.module.base_layer(*args, **kwargs)


def _target(layer):
    """The parameter that a LoRA layer adapts."""
    owner = layer.get_base_layer()
    return owner._parameters[layer.parameter_name if isinstance(layer, ParamWrapper) else "weight"]


def _merged(layer):
    """W + BA of a LoRA layer in float32 and W's shape, as PEFT's merge of a float32 model computes it."""
    (name,) = layer.active_adapters
    if isinstance(layer, ParamWrapper) and layer.num_experts > 1:
        a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
        a, b = a.reshape(layer.num_experts, -1, a.shape[-1]), b.reshape(b.shape[0], -1, layer.num_experts)
        turned = "o r e, e r i -> e o i" if layer._did_swap_in_out_features else "o r e, e r i -> e i o"
        return _target(layer).float() + torch.einsum(turned, b.float(), a.float()) * layer.scaling[name]
    return _target(layer).float() + layer.get_delta_weight(name).float()


def _site(module, owner, own, name, type, place):
    """The site of a weight, or ValueError saying why Q(bf16(W + BA)) is not what the export would hold.

    module: the LoRA layer or, without adapter, the owner itself. owner: the module that has the parameter, under `own`.
    """
    weight = owner._parameters[own]
    if not weight.is_floating_point() or weight.dtype.itemsize < 2:
        raise ValueError(f"{name} is stored as {weight.dtype}: QAT needs the base in 16 or 32 bits, not quantized")
    for part in place.to_file(weight):
        if grids.fallback(type, part.shape[-1]) != type.lower():
            grids.fake_quantize(part[..., :1, :], type)  # raises, and names the type that llama.cpp would take
    if module is owner:
        return _Site(owner, owner, own, name, type, place)
    dropout = [d.p for d in module.lora_dropout.values() if isinstance(d, torch.nn.Dropout) and d.p > 0]
    for wrong, found, remedy in (
        (len(module.active_adapters) != 1, f"has adapters {module.active_adapters} active", "activate exactly one"),
        (bool(dropout), f"has dropout {dropout[:1]}", "set lora.lora_dropout to 0, or call qat.without_dropout"),
        (bool(module.lora_variant), "has a LoRA variant such as DoRA", "use plain LoRA"),
        (any(module.lora_bias.values()), "trains a bias in B", "set lora.lora_bias to false"),
        (module.merged, "is merged", "unmerge the adapter first"),
    ):
        if wrong:
            raise ValueError(f"QAT computes with bf16(W + BA), but the layer of {name} {found}: {remedy}")
    kind = _ParameterSite if isinstance(module, ParamWrapper) else _LoraSite
    return kind(module, owner, own, name, type, place)


def _refuse_tied_adapters(sites):
    tied = {s.name for s in sites if isinstance(s, _LoraSite) and sum(s.name == other.name for other in sites) > 1}
    if tied:
        raise ValueError(f"{tied} is shared with another module, adapt neither: a merge would change both")


def _refuse_unknown(names, known, reason="is not in the model"):
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ValueError(
            f"{unknown[0]} ({len(unknown)} of {len(names)} names) {reason}: take the names from qat.type_of"
        )
