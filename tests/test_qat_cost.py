"""What makes exact QAT affordable, matrices kept until they change, changes no number that it should not."""

import pytest
import test_qat
import torch
from test_qat import TOKENS

from lib.model import layout
from lib.qat import grids, rounding

DOWN = "model.layers.0.mlp.down_proj.weight"


def lora_model():
    return test_qat.lora_model(test_qat.plain_model(head_dim=64))  # rows of 256 in every matrix


def k_types(model):
    """As llama.cpp plans Q4_K_M: Q4_K, some Q6_K, norms F32."""
    kinds = {name: "q4_k" if p.ndim == 2 else "f32" for name, p in rounding.base_parameters(model).items()}
    return kinds | {"model.embed_tokens.weight": "q6_k", DOWN: "q6_k"}


def prepared(model=None):
    model = (model or lora_model()).train()
    rounding.prepare(model, k_types(model))
    return model


def optimizer_of(model, learning_rate=1e-2):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], learning_rate, fused=True)


def train(model, steps, optimizer=None, micro_batches=1):
    optimizer = optimizer or optimizer_of(model)
    for _ in range(steps):
        for _ in range(micro_batches):
            model(TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def trainable(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def assert_equal_weights(one, other):
    one, other = trainable(one), trainable(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def searches(monkeypatch):
    """The type of every full search, in order."""
    seen = []
    real = grids.fake_quantize

    def counted(w, type):
        seen.append(type)
        return real(w, type)

    monkeypatch.setattr(grids, "fake_quantize", counted)
    return seen


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_recomputed_forward_sees_the_weights_of_the_first(reentrant):
    plain, checkpointed = prepared(), lora_model()
    checkpointed.enable_input_require_grads()
    checkpointed.gradient_checkpointing_enable({"use_reentrant": reentrant})
    checkpointed = prepared(checkpointed)
    assert_equal_weights(train(plain, 5), train(checkpointed, 5))


def test_a_matrix_is_searched_once_a_step_whatever_calls_for_it(searches):
    model = lora_model()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model = prepared(model)
    train(model, 3, micro_batches=4)
    assert searches.count("q4_k") == 3 * 6  # six matrices of one layer; the seventh is q6_k
    assert searches.count("q6_k") == 3 + 2  # the frozen embedding once as embedding and once as head
    searches.clear()
    with torch.no_grad():
        for _ in range(3):
            model.eval()(TOKENS)
    model.train()(TOKENS)
    assert len(searches) == 7  # the last step's update


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_an_evaluation_does_not_change_the_training(mode):
    alone, watched = prepared(), prepared()
    train(alone, 6)
    optimizer = optimizer_of(watched)
    for _ in range(6):
        with mode():
            watched.eval()(TOKENS)
        train(watched.train(), 1, optimizer)
    assert_equal_weights(alone, watched)


def test_an_update_that_torch_does_not_count_is_seen():
    model = prepared()
    before = model(TOKENS).logits
    for name, p in model.named_parameters():
        if "lora_B" in name:
            version = p._version
            p.data.mul_(2)
            assert p._version == version
    changed = model(TOKENS).logits
    assert not torch.equal(before, changed)
    rounding.prepare(model, k_types(model))
    assert torch.equal(model(TOKENS).logits, changed)


def test_a_model_in_bfloat16_computes_in_it_and_proves_the_values_of_the_file():
    model = lora_model().to(torch.bfloat16)
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data.float()  # as PEFT keeps adapters
    model = train(prepared(model), 3)
    types, found = k_types(model), rounding.fingerprints(model)
    merged = {site.name: site.saved() for site in rounding.sites(model)}
    for name, place in layout.of(model).items():
        assert found[place.tensors[0]] == grids.sha256(grids.fake_quantize(merged[name], types[name]))
