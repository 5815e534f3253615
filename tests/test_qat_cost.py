"""What makes exact QAT affordable, kept matrices and reused scales, changes no number that it should not."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM

from lib.qat import grids, kgrids, layout, rounding

SIZES = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 96, "num_hidden_layers": 1, "head_dim": 64}
TOKENS = torch.arange(32).view(2, 16)
DOWN = "model.layers.0.mlp.down_proj.weight"


def plain_model():
    torch.manual_seed(0)
    config = Qwen3Config(num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True, **SIZES)
    return Qwen3ForCausalLM(config)


def lora_model():
    torch.manual_seed(1)
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(plain_model(), lora)


def k_types(model):
    """As llama.cpp plans Q4_K_M: Q4_K, some Q6_K, norms F32."""
    kinds = {name: "q4_k" if p.ndim == 2 else "f32" for name, p in rounding.base_parameters(model).items()}
    return kinds | {"model.embed_tokens.weight": "q6_k", DOWN: "q6_k"}


def prepared(refresh_every=1, model=None):
    model = (model or lora_model()).train()
    rounding.prepare(model, k_types(model), refresh_every)
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
    for real in (grids.fit, grids.fake_quantize):

        def counted(w, type, *scales, real=real):
            if scales in ((), (None,)):
                seen.append(type)
            return real(w, type, *scales)

        monkeypatch.setattr(grids, real.__name__, counted)
    return seen


@pytest.fixture
def down_weights(monkeypatch):
    """(rounded, saved) weights of the down projection in every forward pass."""
    seen, real = [], rounding._LoraSite.value

    def spy(site):
        rounded = real(site)
        if site.name == DOWN:
            seen.append((rounded, site.saved()))
        return rounded

    monkeypatch.setattr(rounding._LoraSite, "value", spy)
    return seen


def test_the_scales_of_training_are_those_of_every_third_step(down_weights):
    train(prepared(3), 7)
    rounded, saved = zip(*down_weights, strict=True)
    assert len(rounded) == 7
    for step in range(7):
        whole = grids.fit(saved[step // 3 * 3], "q6_k")
        blocks = saved[step].float().view(-1, 256)
        assert torch.equal(rounded[step].view(-1, 256), kgrids.round_to(blocks, *whole, "q6_k"))
        exact = grids.fake_quantize(saved[step], "q6_k")
        assert torch.equal(rounded[step], exact) == (step % 3 == 0)


def test_what_is_exported_after_reusing_scales_is_exact():
    model = train(prepared(25), 30)
    found = rounding.fingerprints(model)  # while it is in training mode
    with torch.no_grad():
        logits = model.eval()(TOKENS).logits
    rounding.strip(model)
    merged = dict(model.merge_and_unload().to(torch.bfloat16).named_parameters())
    types = k_types(model)
    values = {layout.of(model)[name].tensors[0]: grids.fake_quantize(p, types[name]) for name, p in merged.items()}
    assert found == {tensor: grids.sha256(value) for tensor, value in values.items()}
    served = plain_model().eval()
    served.load_state_dict({name: p.float() for name, p in merged.items()}, strict=False)
    assert torch.equal(rounding.quantize_model(served, types)(TOKENS).logits, logits)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("refresh_every", [1, 2])
def test_a_recomputed_forward_sees_the_weights_of_the_first(refresh_every, reentrant):
    plain, checkpointed = prepared(refresh_every), lora_model()
    checkpointed.enable_input_require_grads()
    checkpointed.gradient_checkpointing_enable({"use_reentrant": reentrant})
    checkpointed = prepared(refresh_every, checkpointed)
    assert_equal_weights(train(plain, 5), train(checkpointed, 5))


def test_a_matrix_is_searched_once_a_step_whatever_calls_for_it(searches):
    model = lora_model()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model = prepared(model=model)
    train(model, 3, micro_batches=4)
    assert searches.count("q4_k") == 3 * 6  # six matrices of one layer; the seventh is q6_k
    assert searches.count("q6_k") == 3 + 2  # the frozen embedding once as embedding and once as head
    searches.clear()
    with torch.no_grad():
        for _ in range(3):
            model.eval()(TOKENS)
    model.train()(TOKENS)
    assert len(searches) == 7  # the last step's update


def test_reused_scales_are_searched_once_in_so_many_steps(searches):
    train(prepared(4), 9, micro_batches=2)
    assert searches.count("q4_k") == 3 * 6


def test_a_type_without_costly_scales_is_exact_at_every_step():
    models = [lora_model().train(), lora_model().train()]
    for model, refresh_every in zip(models, (1, 4), strict=True):
        rounding.prepare(model, dict.fromkeys(k_types(model), "f32") | {DOWN: "Q4_0"}, refresh_every)
        train(model, 6)
    assert_equal_weights(*models)
    assert [site.rounder.scales for site in rounding.sites(models[1])] == [None] * len(rounding.sites(models[1]))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("refresh_every", [1, 3])
def test_an_evaluation_does_not_change_the_training(refresh_every, mode):
    alone, watched = prepared(refresh_every), prepared(refresh_every)
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


def test_a_run_resumed_after_a_multiple_of_refresh_every_repeats_the_uninterrupted_one():
    whole, first = prepared(3), prepared(3)
    train(whole, 9)
    optimizer = optimizer_of(first)
    train(first, 6, optimizer)
    resumed = prepared(3)
    resumed.load_state_dict(trainable(first), strict=False)
    again = optimizer_of(resumed)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert_equal_weights(train(resumed, 3, again), whole)


def test_all_parameters_trained_with_reused_scales_are_exported_exactly():
    model = prepared(10, plain_model())
    before = trainable(model)
    train(model, 5)
    assert all(not torch.equal(before[name], p) for name, p in trainable(model).items())
    with torch.no_grad():
        reused, exact = model(TOKENS).logits, model.eval()(TOKENS).logits
    assert not torch.equal(reused, exact)
    rounding.strip(model)
    types = k_types(model)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.to(torch.bfloat16))
    assert torch.equal(rounding.quantize_model(model, types)(TOKENS).logits, exact)


def test_a_model_in_bfloat16_computes_in_it_and_proves_the_values_of_the_file():
    model = lora_model().to(torch.bfloat16)
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data.float()  # as PEFT keeps adapters
    model = train(prepared(5, model), 3)
    types, found = k_types(model), rounding.fingerprints(model)
    merged = {site.name: site.saved() for site in rounding.sites(model)}
    for name, place in layout.of(model).items():
        assert found[place.tensors[0]] == grids.sha256(grids.fake_quantize(merged[name], types[name]))


def test_refreshing_less_than_never_is_refused():
    with pytest.raises(ValueError, match="refresh_every is 0, expected 1 or more"):
        prepared(0)
