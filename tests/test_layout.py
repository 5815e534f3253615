"""What an array of addresses tells about what was done to it, and what cannot be told is refused."""

import numpy as np
import pytest
import torch
from transformers import GraniteMoeHybridConfig, LlamaConfig

from lib.model import addresses, layout

HEADS, PRIME = 3, 11
SMALL, LARGE = (HEADS * 2 * PRIME, 13), (HEADS * 8, 32)


def rotary(weight):
    return weight.reshape(HEADS, 2, -1, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


DONE = {  # name: (shape of the small parameter, of the large one, what a converter does)
    "renamed": (SMALL, LARGE, lambda w: [w]),
    "turned": (SMALL, LARGE, lambda w: [w.t()]),
    "rotary pairs": (SMALL, LARGE, lambda w: [rotary(w)]),
    "halves": (SMALL, LARGE, lambda w: list(w.chunk(2))),
    "alternating and turned": ((4, 13, 22), (4, 32, 64), lambda w: [w[..., ::2].mT, w[..., 1::2].mT]),
    "flattened": ((11, 22, 13), (8, 64, 32), lambda w: [w.reshape(-1, w.shape[-1])]),
    "one more": ((13,), (32,), lambda w: [w + 1]),
}


def probed(shape, done):
    halves = [done(half) for half in addresses.written(5, shape)]
    tensors = {f"t{n}": (high.numpy(), low.numpy()) for n, (high, low) in enumerate(zip(*halves, strict=True))}
    names = [f"p{n}" for n in range(6)]
    return addresses.places(names, [shape] * 6, tensors)["p5"]


@pytest.mark.parametrize("name", DONE)
def test_what_was_done_to_small_weights_is_done_to_large_ones(name):
    small, large, done = DONE[name]
    weight = torch.randn(large)
    found = [addresses.Form.scaled(place, large).read(weight) for place in probed(small, done).values()]
    assert [part.tolist() for part in found] == [part.tolist() for part in done(weight)]


def test_rows_are_the_dimension_that_the_file_runs_along():
    found = {name: addresses.Form.scaled(probed(small, done)["t0"], large).row()
             for name, (small, large, done) in DONE.items()}  # fmt: skip
    assert found == {"renamed": 1, "turned": 0, "rotary pairs": 1, "halves": 1, "alternating and turned": 1,
                     "flattened": 2, "one more": 0}  # fmt: skip
    across = addresses.Form.scaled(probed(SMALL, lambda w: [w[:, ::13]])["t0"], LARGE)
    assert across.row() is None


def test_what_is_no_view_of_the_weight_is_refused():
    order = torch.randperm(SMALL[0], generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="a way of its own"):
        addresses.Form.scaled(probed(SMALL, lambda w: [w[order]])["t0"], LARGE)
    assert probed(SMALL, lambda w: [2 * w]) == {}


def test_two_parameters_in_one_tensor_are_refused():
    both = [np.concatenate([a, b]) for a, b in zip(addresses.written(0, SMALL), addresses.written(1, SMALL))]  # noqa: B905
    found = addresses.places(["a", "b"], [SMALL, SMALL], {"t": both})
    for name in ("a", "b"):
        with pytest.raises(ValueError, match="shares t with 1 other"):
            addresses.Form.scaled(found[name]["t"], LARGE)


def test_addresses_of_large_parameters_are_exact():
    high, low = addresses.written(3, (5, addresses.LOW))
    assert len(torch.unique(torch.stack([high.flatten(), low.flatten()]), dim=1)[0]) == 5 * addresses.LOW


def test_a_small_model_keeps_the_arrangement_and_tells_its_sizes_apart():
    config = LlamaConfig(num_attention_heads=32, num_key_value_heads=8, num_hidden_layers=3, head_dim=128)
    small = layout.shrunk(config)
    assert (small.num_attention_heads, small.num_key_value_heads, small.num_hidden_layers) == (32, 8, 3)
    assert small.head_dim < 64 and small.hidden_size % 32 == 0 and small.hidden_size < 4096
    assert config.head_dim == 128  # the model's own is left as it is


def test_a_small_model_with_states_has_heads_that_fit(tmp_path):
    config = GraniteMoeHybridConfig(hidden_size=2048, mamba_n_heads=64, num_local_experts=0, num_experts_per_tok=0)
    small = layout.shrunk(config)
    small.save_pretrained(tmp_path)  # transformers checks the sizes there
    assert small.mamba_n_heads == 64 and small.mamba_d_head * 64 == 2 * small.hidden_size < 2 * config.hidden_size
