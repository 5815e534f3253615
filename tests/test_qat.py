"""The forward pass computes with the numbers of the exported file, and trains A and B as plain LoRA would."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_qwen import tiny_config
from transformers import Qwen3ForCausalLM

from lib.model import layout
from lib.qat import grids, rounding

SIZES = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 96, "num_hidden_layers": 1, "head_dim": 32}
LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": False}
TOKENS = torch.arange(32).view(2, 16)


def plain_model(**changes):
    torch.manual_seed(0)
    return Qwen3ForCausalLM(tiny_config(**SIZES | changes)).eval()


def lora_model(model=None, **changes):
    model = model or plain_model()
    torch.manual_seed(1)
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **LORA | changes))


def q4_types(model):
    """As llama.cpp plans Q4_0: matrices q4_0, the tied embedding q6_k, norms f32."""
    kinds = {name: "q4_0" if p.ndim == 2 else "f32" for name, p in rounding.base_parameters(model).items()}
    return kinds | {"model.embed_tokens.weight": "q6_k"}


def step(model, learning_rate=0.05):
    trainable = [p for p in model.parameters() if p.requires_grad]
    model(TOKENS, labels=TOKENS).loss.backward()
    torch.optim.SGD(trainable, learning_rate).step()
    gradients = [p.grad.clone() for p in trainable]
    model.zero_grad()
    return gradients


def served(exported, types):
    """A fresh model with exported weights, rounded to the types of the file."""
    model = plain_model()
    model.load_state_dict({name: p.float() for name, p in exported.items()}, strict=False)  # the head is tied
    return rounding.quantize_model(model, types)


@pytest.fixture
def used_weights(monkeypatch):
    """Every weight that a prepared model multiplies with, in order."""
    seen = []
    for function in ("linear", "embedding"):
        real = getattr(torch.nn.functional, function)

        def spy(*args, real=real, function=function):
            seen.append(args[1])
            return real(*args)

        monkeypatch.setattr(torch.nn.functional, function, spy)
    return seen


def test_the_weights_of_the_forward_pass_are_those_of_the_export(used_weights):
    model = lora_model()
    types = q4_types(model)
    rounding.prepare(model, types)
    step(model)
    used_weights.clear()
    with torch.no_grad():
        logits = model(TOKENS).logits
    used = list(used_weights)
    rounding.strip(model)
    merged = model.merge_and_unload().to(torch.bfloat16)  # PEFT's own merge, as saving.merge saves it
    exported = {name: p for name, p in merged.named_parameters() if types[name] != "f32"}
    expected = [grids.fake_quantize(p, types[name]) for name, p in exported.items()]
    assert len(used) == len(expected) + 1  # the tied embedding is used twice
    assert torch.equal(used[0], used[-1])
    assert all(torch.equal(u, e) for u, e in zip(used, expected, strict=False))
    assert torch.equal(served(dict(merged.named_parameters()), types)(TOKENS).logits, logits)


def test_gradients_are_those_of_a_dense_straight_through_weight():
    model = lora_model()
    layer = model.base_model.model.model.layers[0].mlp.down_proj
    rounding.prepare(model, {"model.layers.0.mlp.down_proj.weight": "q4_0"})
    x = torch.randn(3, 512, requires_grad=True)
    wanted = torch.randn(3, 256)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    ours = torch.autograd.grad((layer(x) * wanted).sum(), (a, b, x))
    dense = layer.base_layer.weight + (b @ a) * layer.scaling["default"]
    dense = grids.straight_through(dense, grids.fake_quantize(dense.to(torch.bfloat16), "q4_0"))
    theirs = torch.autograd.grad((x @ dense.T * wanted).sum(), (a, b, x))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        assert one.abs().sum() > 0


def test_strip_restores_the_model_and_preparing_twice_is_preparing_once():
    model = lora_model()
    before = model(TOKENS).logits
    rounding.prepare(model, q4_types(model))
    rounded = model(TOKENS).logits
    rounding.prepare(model, q4_types(model))
    assert torch.equal(model(TOKENS).logits, rounded)
    assert not torch.equal(rounded, before)
    rounding.strip(model)
    rounding.strip(model)
    assert torch.equal(model(TOKENS).logits, before)
    assert rounding.coverage(model)["share"] == 0


def test_a_disabled_adapter_shows_the_base_model():
    model = lora_model()
    rounding.prepare(model, {"model.layers.0.mlp.down_proj.weight": "q4_0"})
    with model.disable_adapter():
        assert torch.equal(model(TOKENS).logits, plain_model()(TOKENS).logits)


def test_coverage_counts_parameters_and_names_what_is_skipped():
    model = lora_model()
    found = rounding.prepare(model, {"model.layers.0.mlp.up_proj.weight": "q4_0", "model.embed_tokens.weight": "q6_k"})
    attention, mlp, norms = 2 * 128 * 256 + 2 * 64 * 256, 3 * 512 * 256, 3 * 256 + 2 * 32
    assert found["parameters"] == 96 * 256 + attention + mlp + norms
    assert found["types"] == {"q4_0": 512 * 256, "q6_k": 96 * 256}
    assert found["fake_quantized"] == 608 * 256
    assert found["share"] == pytest.approx(608 * 256 / found["parameters"])
    assert "model.layers.0.mlp.gate_proj.weight" in found["skipped"]
    assert "model.embed_tokens.weight" not in found["skipped"]


def test_the_numbers_of_a_file_are_put_back_where_they_belong():
    types = q4_types(plain_model())
    wanted = rounding.quantize_model(plain_model(), types)
    held = dict(wanted.named_parameters())
    tensors = [
        (tensor, part.detach().float().contiguous().numpy())
        for name, place in layout.of(wanted).items()
        if types[name] != "f32"
        for tensor, part in zip(place.tensors, place.parts(held[name]), strict=True)
    ]
    read = rounding.read_file(plain_model(), tensors)
    assert len(tensors) == 8 and all(torch.equal(p, held[name]) for name, p in read.named_parameters())


UP = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    "make, types, message",
    [
        (lambda: lora_model(lora_dropout=0.05), {UP: "q4_0"}, r"up_proj.weight has dropout \[0.05\].*without_dropout"),
        (lambda: lora_model(use_dora=True), {UP: "q4_0"}, "DoRA"),
        (lambda: lora_model(lora_bias=True, init_lora_weights=True), {UP: "q4_0"}, "bias in B"),
        (lambda: lora_model(target_modules=["embed_tokens"]), {"model.embed_tokens.weight": "q4_0"}, "adapt neither"),
        (lambda: lora_model(target_modules=["lm_head"]), {"model.embed_tokens.weight": "q4_0"}, "adapt neither"),
        (lora_model, {"model.layers.9.mlp.up_proj.weight": "q4_0"}, "layers.9.*not in the model"),
        (lambda: lora_model(plain_model(hidden_size=192)), {UP: "q4_k"}, "192 weights .* as q5_0"),
    ],
)
def test_what_could_not_be_exported_as_trained_is_refused(make, types, message):
    with pytest.raises(ValueError, match=message):
        rounding.prepare(make(), types)


def test_without_dropout():
    model = rounding.without_dropout(lora_model(lora_dropout=0.05)).train()
    rounding.prepare(model, {UP: "q4_0"})
    assert torch.equal(model(TOKENS).logits, model(TOKENS).logits)
