"""Quantization-aware training on the grid of the exported file: the forward pass uses Q(bf16(W + BA)).

The usual way trains Q(W) x + BA x, while the file holds Q(W + BA); and BF16 is what a merge saves before llama.cpp
quantizes it. Both roundings are inside the forward pass here, so the exported file holds exactly the trained numbers.
Gradients are straight-through (Bengio et al. 2013, arXiv:1308.3432): those of the same model without rounding.
"""

import contextlib

import torch
from peft.tuners.lora import Embedding, LoraLayer, ParamWrapper
from torch.nn import functional as F

from lib.qat import grids, layout
from lib.qat.layout import plain_name
from lib.qat.rounder import Rounder

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
            raise ValueError(
                f"{name} becomes {place.tensors} of different types {sorted(kinds)}: choose another scheme"
            )
        found[name] = kinds.pop()
    return found


def prepare(model, types, refresh_every=1):
    """Make a model compute with fake-quantized weights until `strip`; returns its `coverage`.

    model: a LoRA model (peft), or a plain one, whose trainable weights then get the straight-through gradient.
    types: {parameter name of the merged model: GGUF type}, as `type_of` gives them; what is "f32" there is
        rounded to bfloat16, as the export does.
    refresh_every: optimizer steps between full searches for the scales of 256-weight types, in modules that are in
        training mode; evaluation is always exact. Above 1, a resumed run repeats the uninterrupted one only when its
        checkpoint was saved after a multiple of refresh_every steps: the search starts afresh there.
    Every rounded matrix is kept until it changes: memory for one more copy of the weights in the compute dtype.
    Raises ValueError when a name is not in the model or has rows that its type cannot hold, for adapters whose merge is
    not bf16(W + BA): dropout, DoRA, several adapters, 4-bit bases, and for refresh_every below 1.
    """
    if refresh_every < 1:
        raise ValueError(f"refresh_every is {refresh_every}, expected 1 or more: 1 searches at every optimizer step")
    parameters = base_parameters(model)
    _refuse_unknown(types, parameters)
    strip(model)
    places = layout.of(model)
    kinds = {name: "bf16" if kind == KEPT else kind for name, kind in types.items()}
    of_weight = {id(parameters[name]): name for name in types}  # finds a tied head as well
    adapted = {id(_target(m)): m for m in model.modules() if isinstance(m, LoraLayer)}
    sites = []
    for module in [m for m in model.modules() if not isinstance(m, LoraLayer)]:
        for own, weight in module.named_parameters(recurse=False):
            if id(weight) in of_weight:
                name = of_weight[id(weight)]
                site = _site(adapted.get(id(weight), module), module, own, name, kinds[name], places[name])
                site.rounder = Rounder(site.type, refresh_every)
                sites.append(site)
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
    if any(parameters[name].is_meta for name in types):
        raise ValueError("parts of the model are not on the GPU, which is too small to hold it: use a larger one")
    for name, kind in types.items():
        parameters[name].copy_(fake_quantize(parameters[name], kind, places[name]))
    return model


def fake_quantize(weight, kind, place):
    """grids.fake_quantize along the rows that a parameter has in its file; float32, in the model's own layout."""
    return place.rows(grids.fake_quantize(place.rows(weight), kind))


@torch.no_grad()
def fingerprints(model, types=None):
    """{tensor name in the file: sha256 of its values there (see grids.sha256)}, of every tensor that the export holds.

    model: a prepared one, whose rounded weights are searched afresh from float32, whatever scales training reuses and
    whatever dtype it computes in; or a plain one, merged and read back, whose file will hold `types`.
    """
    prepared, parameters, found = {site.name: site for site in sites(model)}, base_parameters(model), {}
    for name, place in layout.of(model).items():
        site = prepared.get(name)
        kind = site.type if site else (types or {}).get(name, KEPT)
        values = fake_quantize(site.saved() if site else parameters[name].to(torch.bfloat16), kind, place)
        found |= {tensor: grids.sha256(part) for tensor, part in zip(place.tensors, place.parts(values), strict=True)}
    return found


class _Site:
    """One weight that is fake-quantized, of a module without adapter: the module reads Q(bf16(W)) in its stead."""

    def __init__(self, module, owner, own, name, type, place):
        self.module, self.owner, self.own, self.name, self.type, self.place = module, owner, own, name, type, place

    def patch(self):
        """Route the module's forward through `forward`; `strip` undoes it. Several sites of a module nest."""
        self.inner = self.module.forward
        self.module.__dict__.setdefault("fake_quantized", []).append(self)
        self.module.forward = self.forward

    @property
    def weight(self):
        return self.owner._parameters[self.own]

    def saved(self):
        """The weight as it is exported."""
        return self.weight.detach().to(torch.bfloat16)

    def made_of(self):
        """(tag, tensors) that determine the weight: see Rounder."""
        weight = self.weight
        return (None, [self.saved()]) if weight.requires_grad else (_tag(weight), [])

    def value(self):
        """The rounded weight in its own dtype, with the straight-through gradient where it is trained."""
        rows = self.rounder(
            self.made_of(), lambda: self.place.rows(self.saved()), self.weight.dtype, self.owner.training
        )
        rounded = self.place.rows(rows)
        return grids.straight_through(self.weight, rounded) if self.weight.requires_grad else rounded

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
    def saved(self):
        with torch.autocast(self.weight.device.type, enabled=False):
            return _merged(self.module).to(torch.bfloat16)

    def made_of(self):
        (name,) = self.module.active_adapters
        return (name, self.module.scaling[name], *_tag(self.weight)), list(_factors(self.module))

    def value(self):
        rows = self.rounder(
            self.made_of(), lambda: self.place.rows(self.saved()), self.weight.dtype, self.module.training
        )
        return self.place.rows(rows)

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
        a, b = _factors(layer)
        if isinstance(layer, Embedding):
            product = F.embedding(x, a.t()) @ b.t()
        else:
            product = F.linear(F.linear(x.detach().to(a.dtype), a), b)
        product = product * layer.scaling[name]
        return y + (product - product.detach()).to(y.dtype)


class _ParameterSite(_LoraSite):
    """A LoRA adapter on a parameter of its own, as of stacked experts: the module inside reads Q(bf16(W + BA))."""

    def value(self):
        rounded = super().value()
        if not torch.is_grad_enabled():
            return rounded
        with torch.autocast(self.weight.device.type, enabled=False):
            return grids.straight_through(_merged(self.module).to(rounded.dtype), rounded)

    def forward(self, *args, **kwargs):
        if self.module.disable_adapters:
            return self.inner(*args, **kwargs)
        with self.shown():
            return self.module.base_layer(*args, **kwargs)


def _tag(weight):
    return weight.data_ptr(), weight._version, weight.device


def _factors(layer):
    """(A, B) of a LoRA layer's active adapter."""
    (name,) = layer.active_adapters
    if isinstance(layer, Embedding):
        return layer.lora_embedding_A[name], layer.lora_embedding_B[name]
    return layer.lora_A[name].weight, layer.lora_B[name].weight


def _target(layer):
    """The parameter that a LoRA layer adapts."""
    owner = layer.get_base_layer()
    return owner._parameters[layer.parameter_name if isinstance(layer, ParamWrapper) else "weight"]


def _merged(layer):
    """W + BA of a LoRA layer in float32 and W's shape, as PEFT's merge of a float32 model computes it."""
    (name,) = layer.active_adapters
    if isinstance(layer, ParamWrapper) and layer.num_experts > 1:
        a, b = _factors(layer)
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
    rows = place.rows(weight)
    if grids.fallback(type, rows.shape[-1]) != type.lower():
        grids.fake_quantize(rows[..., :1, :], type)  # raises, and names the type that llama.cpp would take
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
