import pytest
import torch
from tiny_qwen import alone, byte_tokenizer, random_model
from transformers import GptOssConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lib.chat import packing
from lib.evaluation import decode


@pytest.fixture(scope="module")
def model():
    return random_model(byte_tokenizer(), seed=3)


def prompts(count):
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(3, 40, (count,), generator=generator).tolist()
    return [torch.randint(3, 250, (length,), generator=generator).tolist() for length in lengths]


def test_rows_that_end_early_leave_the_batch_without_harm(model):
    given = prompts(8)
    free = [alone(model, ids, 20) for ids in given]
    stops = {ids[5] for ids in free[:3]}  # tokens of the answers themselves, so that rows end at various times
    with decode.evaluation(model):
        got = decode.batch(model, given, stops, 20, decode.sampler(0.0, 0, "cpu"))
    for ids, (out, first, seconds) in zip(free, got, strict=True):
        end = next((i + 1 for i, token in enumerate(ids) if token in stops), len(ids))
        assert out == ids[:end] and 0 < first <= seconds
    assert len({len(out) for out, _, _ in got}) > 2


def test_grouped_attention_equals_the_usual_one():
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(3, 4, 1, 16, generator=generator)
    key, value = (torch.randn(3, 2, 9, 16, generator=generator) for _ in range(2))
    mask = torch.ones(3, 1, 1, 9, dtype=torch.bool)
    mask[1, :, :, :4] = False
    module = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = 2, True
    for chosen in (mask, None):
        got, _ = decode._grouped(module, query, key, value, chosen, scaling=0.3)
        expected, _ = sdpa_attention_forward(module, query, key, value, chosen, scaling=0.3)
        assert got.shape == expected.shape == (3, 1, 4, 16)
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)


def test_attention_and_mode_are_restored_also_after_an_error(model):
    model.train()
    with pytest.raises(KeyError), decode.evaluation(model):
        assert not model.training and model.config._attn_implementation == decode.GROUPED
        raise KeyError
    assert model.training and model.config._attn_implementation == "sdpa"
    model.eval()


def test_a_mixture_that_a_trainer_made_balance_its_router_still_decodes():
    """TRL sets the flag on the model itself, and a saved model would keep it."""
    small = packing.small(GptOssConfig(), "eager").eval()
    given = [[5, 6, 7], [8]]
    with decode.evaluation(small):
        expected = decode.batch(small, given, {2}, 5, decode.sampler(0.0, 0, "cpu"))
    small.config.output_router_logits = True
    with decode.evaluation(small):
        got = decode.batch(small, given, {2}, 5, decode.sampler(0.0, 0, "cpu"))
    assert [row[0] for row in got] == [row[0] for row in expected]
    assert small.config.output_router_logits


def test_left_pad_by_hand():
    ids, mask, positions = decode.left_pad([[5, 6, 7], [8]], "cpu")
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]] and mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert positions.tolist() == [[0, 1, 2], [0, 0, 0]]


def test_samplers():
    logits = torch.tensor([[0.0, 5.0, 1.0]] * 200)
    assert decode.sampler(0.0, 1, "cpu")(logits).tolist() == [1] * 200
    draws = [decode.sampler(2.0, seed, "cpu")(logits).tolist() for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2] and set(draws[0]) == {0, 1, 2}


def test_top_p_draws_among_the_fewest_tokens_that_hold_the_share():
    shares = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log().repeat(4000, 1)
    seen = {p: decode.sampler(1.0, 0, "cpu", p)(shares).bincount(minlength=4) / 4000 for p in (0.4, 0.7, 0.8, 1.0)}
    assert seen[0.4].tolist() == [0, 1, 0, 0]
    torch.testing.assert_close(seen[0.7], torch.tensor([0, 2 / 3, 0, 1 / 3]), atol=0.03, rtol=0)
    torch.testing.assert_close(seen[0.8], torch.tensor([0, 0.5, 0.15, 0.25]) / 0.9, atol=0.03, rtol=0)
    torch.testing.assert_close(seen[1.0], torch.tensor([0.1, 0.5, 0.15, 0.25]), atol=0.03, rtol=0)
    assert decode.sampler(0.0, 0, "cpu", 0.7)(shares).unique().tolist() == [1]
