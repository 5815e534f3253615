"""The places of a model where a weight is rounded: how a module is made to read Q(bf16(W + BA)) instead of its own.

A site is one weight. Its rounded values are kept until the weight changes: memory for one more copy of the weights.
"""

import contextlib

import torch
from peft.tuners.lora import Embedding, ParamWrapper
from torch.nn import functional as F

from lib.qat import grids


class Kept:
    """The rounded values of one matrix while it is trained, computed when the matrix has changed and kept until then.

    A change is found by comparing values, because tensors do not tell: torch's fused AdamW leaves `_version` as it was.
    """

    def __init__(self, type):
        self.type, self.source, self.values = type, None, None

    def __call__(self, source, weights, dtype):
        """The values in dtype, without gradient.

        source: (tag, tensors) that determine the matrix; tags are compared by ==, tensors by value and device.
        weights: function that computes the matrix as it is saved, (rows, cols).
        """
        changed = not self._unchanged(source)
        if changed:
            tag, tensors = source
            self.source = tag, [t.detach().clone() for t in tensors]
        if changed or self.values.dtype != dtype:
            with torch.inference_mode(False), torch.no_grad():  # what evaluation computes, training may meet again
                self.values = grids.fake_quantize(weights(), self.type).to(dtype)
        return self.values

    def _unchanged(self, source):
        """Whether the matrix is made of the same values as at the last call."""
        if self.source is None or self.source[0] != source[0]:
            return False
        pairs = list(zip(self.source[1], source[1], strict=True))
        return all(old.device == new.device and torch.equal(old, new) for old, new in pairs)


class Site:
    """One weight that is fake-quantized, of a module without adapter: the module reads Q(bf16(W)) in its stead."""

    def __init__(self, module, owner, own, name, type, place):
        self.module, self.owner, self.own, self.name, self.type, self.place = module, owner, own, name, type, place
        self.kept = Kept(type)

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
        """(tag, tensors) that determine the weight: see Kept."""
        weight = self.weight
        return (None, [self.saved()]) if weight.requires_grad else (_tag(weight), [])

    def rounded(self):
        """The rounded weight in its own dtype, without gradient."""
        return self.place.rows(self.kept(self.made_of(), lambda: self.place.rows(self.saved()), self.weight.dtype))

    def value(self):
        """The rounded weight as the forward pass reads it, with the straight-through gradient where it is trained."""
        rounded = self.rounded()
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


class LoraSite(Site):
    """A LoRA layer: y = Q(bf16(W + BA)) x, with the gradient of (W + BA) x for A, B and x."""

    @torch.no_grad()
    def saved(self):
        with torch.autocast(self.weight.device.type, enabled=False):
            return _merged(self.module).to(torch.bfloat16)

    def made_of(self):
        (name,) = self.module.active_adapters
        return (name, self.module.scaling[name], *_tag(self.weight)), list(_factors(self.module))

    def value(self):
        return self.rounded()

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


class ParameterSite(LoraSite):
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


def target(layer):
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
        return target(layer).float() + torch.einsum(turned, b.float(), a.float()) * layer.scaling[name]
    return target(layer).float() + layer.get_delta_weight(name).float()


def site_of(module, owner, own, name, type, place):
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
        return Site(owner, owner, own, name, type, place)
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
    kind = ParameterSite if isinstance(module, ParamWrapper) else LoraSite
    return kind(module, owner, own, name, type, place)
