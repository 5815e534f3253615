"""Quantization-aware training on the grid of the exported file: the forward pass uses Q(bf16(W + BA)).

The usual way trains Q(W) x + BA x, while the file holds Q(W + BA); and BF16 is what a merge saves before llama.cpp
quantizes it. Both roundings are inside the forward pass here, so the exported file holds exactly the trained numbers.
Gradients are straight-through (Bengio et al. 2013, arXiv:1308.3432): those of the same model without rounding.
"""

import torch
from peft.tuners.lora import LoraLayer
from torch.nn import functional as F

from lib import grids

KEPT = "f32"  # llama.cpp's type for what it does not quantize: norms, biases, routers


def plain_name(name):
    """A PEFT parameter's name in the merged model: without base_model.model. and .base_layer."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def base_parameters(model):
    """{name in the merged model: parameter}, adapter parameters left out, tied parameters once."""
    return {plain_name(name): p for name, p in model.named_parameters() if ".lora_" not in name}


def prepare(model, types):
    """Make a model compute with fake-quantized weights until `strip`; returns its `coverage`.

    model: a LoRA model (peft), or a plain one, whose trainable weights then get the straight-through gradient.
    types: {parameter name of the merged model: GGUF type}, as llama.cpp's dry run gives them; "f32" is left alone.
    Raises ValueError when a name is not in the model, is no Linear or Embedding weight, or has rows that its type
    cannot hold, and for adapters whose merge is not bf16(W + BA): dropout, DoRA, several adapters, 4-bit bases.
    """
    parameters = base_parameters(model)
    _refuse_unknown(types, parameters)
    types = {name: type for name, type in types.items() if type != KEPT}
    of_weight = {id(parameters[name]): (name, type) for name, type in types.items()}  # finds a tied head as well
    adapted = {id(m.base_layer): m for m in model.modules() if isinstance(m, LoraLayer)}
    sites = [
        _site(adapted.get(id(module), module), module, *of_weight[id(module.weight)])
        for module in model.modules()
        if not isinstance(module, LoraLayer) and id(getattr(module, "weight", None)) in of_weight
    ]
    _refuse_unknown(types, {site.name for site in sites}, "is the weight of no module")
    _refuse_tied_adapters(sites)
    strip(model)
    for site in sites:
        site.module.fake_quantized, site.module.forward = site, site.forward
    return coverage(model)


def strip(model):
    """Undo `prepare`: the model computes with its own weights again, adapter and all."""
    for module in model.modules():
        if "fake_quantized" in module.__dict__:
            del module.fake_quantized, module.forward


def coverage(model):
    """Which parameters of the merged model are fake-quantized now.

    Returns {"parameters": count, "fake_quantized": count, "share": of parameters, "types": {GGUF type: parameters},
    "skipped": names of the tensors that keep their precision, in training and in the file}.
    """
    types = {m.fake_quantized.name: m.fake_quantized.type for m in model.modules() if "fake_quantized" in m.__dict__}
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
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            merged[plain_name(f"{name}.base_layer.weight")] = _merged(module).to(torch.bfloat16)
    return merged


def quantize_weights(weights, types):
    """Post-training quantization of a state dict: float32 tensors with the values that the quantized file holds.

    weights: {parameter name: tensor} as exported, so bfloat16 for a bf16 export. types: as for `prepare`.
    A tied head that the dict holds beside its embedding (same storage) follows the embedding.
    """
    _refuse_unknown(types, weights)
    tied = {weights[name].data_ptr(): type for name, type in types.items()}
    kinds = {name: types.get(name, tied.get(w.data_ptr(), KEPT)) for name, w in weights.items()}
    return {name: grids.fake_quantize(w, kinds[name]) for name, w in weights.items()}


@torch.no_grad()
def quantize_model(model, types):
    """Post-training quantization of a plain model in place; types as for `prepare`. Returns the model."""
    parameters = base_parameters(model)
    _refuse_unknown(types, parameters)
    for name, type in types.items():
        parameters[name].copy_(grids.fake_quantize(parameters[name], type))
    return model


def fingerprints(model):
    """{name: {"type", "sha256"}} of the rounded weights that a prepared model computes with now (see grids.sha256)."""
    sites = [m.fake_quantized for m in model.modules() if "fake_quantized" in m.__dict__]
    return {site.name: {"type": site.type, "sha256": grids.sha256(site.value())} for site in sites}


class _Site:
    """One module whose weight is fake-quantized: an nn.Linear or nn.Embedding without adapter."""

    def __init__(self, module, name, type):
        self.module, self.name, self.type, self.constant = module, name, type, None

    def value(self):
        """The rounded weight; computed once while the weight is frozen, with gradient while it is trained."""
        weight = self.module.weight
        if weight.requires_grad:
            return grids.ste(weight, self.type)
        version = (weight.data_ptr(), weight._version)
        if self.constant is None or self.constant[0] != version:
            self.constant = version, grids.fake_quantize(weight.to(torch.bfloat16), self.type).to(weight.dtype)
        return self.constant[1]

    def forward(self, x):
        if isinstance(self.module, torch.nn.Embedding):
            return F.embedding(x, self.value(), self.module.padding_idx)
        return F.linear(x, self.value(), self.module.bias)


class _LoraSite(_Site):
    """A LoRA layer over an nn.Linear: y = Q(bf16(W + BA)) x, with the gradient of (W + BA) x for A, B and x."""

    @torch.no_grad()
    def value(self):
        with torch.autocast(self.module.base_layer.weight.device.type, enabled=False):
            return grids.fake_quantize(_merged(self.module).to(torch.bfloat16), self.type)

    def forward(self, x, *args, **kwargs):
        layer = self.module
        if layer.disable_adapters:
            return type(layer).forward(layer, x, *args, **kwargs)
        y = F.linear(x, self.value().to(x.dtype), layer.base_layer.bias)
        if not torch.is_grad_enabled():
            return y
        # The adapter's own product adds exactly 0 to y and carries the gradient to A and B at the price of plain LoRA.
        # x takes its gradient from the rounded weight alone.
        (name,) = layer.active_adapters
        a, b = layer.lora_A[name], layer.lora_B[name]
        product = b(a(x.detach().to(a.weight.dtype))) * layer.scaling[name]
        return y + (product - product.detach()).to(y.dtype)


def _merged(layer):
    """W + BA of a LoRA layer in float32, (out, in), as PEFT's merge of a float32 model computes it."""
    (name,) = layer.active_adapters
    return layer.base_layer.weight.float() + layer.get_delta_weight(name).float()


def _site(module, base, name, type):
    """The site of a weight, or ValueError saying why Q(bf16(W + BA)) is not what the export would hold.

    module: the LoRA layer or, without adapter, base itself. base: the module that owns the weight.
    """
    if grids.fallback(type, base.weight.shape[-1]) != type.lower():
        grids.fake_quantize(base.weight[:1], type)  # raises, and names the type that llama.cpp would take
    if base.__class__.forward not in (torch.nn.Linear.forward, torch.nn.Embedding.forward):
        raise ValueError(
            f"{name} belongs to a {base.__class__.__name__}: QAT covers nn.Linear and nn.Embedding in 16 or 32 bits"
        )
    if module is base:
        return _Site(base, name, type)
    dropout = [d.p for d in module.lora_dropout.values() if isinstance(d, torch.nn.Dropout) and d.p > 0]
    for wrong, found, remedy in (
        (isinstance(base, torch.nn.Embedding), "adapts an embedding", "leave it out of lora.target_modules"),
        (len(module.active_adapters) != 1, f"has adapters {module.active_adapters} active", "activate exactly one"),
        (bool(dropout), f"has dropout {dropout[:1]}", "set lora.lora_dropout to 0, or call qat.without_dropout"),
        (bool(module.lora_variant), "has a LoRA variant such as DoRA", "use plain LoRA"),
        (any(module.lora_bias.values()), "trains a bias in B", "set lora.lora_bias to false"),
        (module.merged, "is merged", "unmerge the adapter first"),
    ):
        if wrong:
            raise ValueError(f"QAT computes with bf16(W + BA), but the layer of {name} {found}: {remedy}")
    return _LoraSite(module, name, type)


def _refuse_tied_adapters(sites):
    tied = {s.name for s in sites if isinstance(s, _LoraSite) and sum(s.name == other.name for other in sites) > 1}
    if tied:
        raise ValueError(f"{tied} is shared with another module, adapt neither: a merge would change both")


def _refuse_unknown(types, known, reason="is not in the model"):
    unknown = sorted(set(types) - set(known))
    if unknown:
        raise ValueError(
            f"{unknown[0]} ({len(unknown)} of {len(types)} names) {reason}: take the names from gguf.hf_names"
        )
