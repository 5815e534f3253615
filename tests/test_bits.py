"""The same base quantized and not: what is kept of each, and how the two are compared."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import math

import pytest
import torch
from tiny_qwen import NF4, over_base

from lib.evaluation import paired, probability
from lib.model import loading
from lib.pipeline import machine

IDS = list(range(5, 45))
ROWS = [(IDS, [-100] * 10 + IDS[10:]), (IDS[::-1], [-100] * 30 + IDS[::-1][30:])]


def over(base, **model):
    return over_base(base, **{"dtype": "bfloat16", "quantization": NF4} | model)


def found(*shares, targets, seconds=1.0, mib=1.0):
    """What `probability.read` returns for one row of two words, from the first word's probability at each token."""
    logits = torch.tensor([[share, 1 - share] for share in shares]).log()
    return {"logits": [logits], "targets": [torch.tensor(targets)], "seconds": [seconds], "mib": mib}


def test_the_comparison_is_the_one_on_paper():
    small, full = found(0.5, 0.75, targets=[0, 0], seconds=3.0), found(0.25, 0.75, targets=[0, 0], mib=4.0)
    cost = paired.quantized_or_not(small, full)
    apart = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)  # at the first token; at the second they agree
    assert cost["divergence"]["value"] == pytest.approx(apart / 2, rel=1e-6)
    assert cost["loss_change"]["value"] == pytest.approx(math.log(0.25 / 0.5) / 2, rel=1e-6)
    assert cost["same_top"]["value"] == 0.5  # a tie goes to the first word
    assert cost["quantized"]["perplexity"] == pytest.approx((0.5 * 0.75) ** -0.5, rel=1e-6)
    assert cost["unquantized"] == {"perplexity": pytest.approx((0.25 * 0.75) ** -0.5), "mib": 4.0, "seconds": 1.0}
    assert paired.in_words(cost).startswith(
        "Quantized, the weights take 25% of the memory, and a row 3.00 times as long"
    )


def test_rows_weigh_by_their_tokens_and_are_what_is_drawn_again():
    short, long = found(0.5, targets=[0]), found(0.9, 0.9, 0.9, targets=[0, 0, 0])
    both = {key: short[key] + long[key] for key in ("logits", "targets", "seconds")} | {"mib": 1.0}
    sure = {**both, "logits": [torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.8, 0.2]] * 3).log()]}
    change = paired.quantized_or_not(both, sure)["loss_change"]
    assert change["value"] == pytest.approx(3 / 4 * math.log(0.8 / 0.9), rel=1e-5)
    assert (change["low"], change["high"]) == (pytest.approx(math.log(0.8 / 0.9), rel=1e-5), 0)
    assert change["n"] == 2 and change["unit"] == "nats"


def test_four_bits_are_smaller_and_close_and_the_base_itself_is_neither(small_base):
    cfg = over(small_base)
    small, full = (probability.read(load(cfg), ROWS) for load in (loading.base, loading.unquantized))
    held = (small_base / "model.safetensors").stat().st_size / 2**20
    assert full["mib"] == pytest.approx(held, rel=0.02)  # the tied embedding once
    assert [len(logits) for logits in full["logits"]] == [30, 10]
    assert full["logits"][0].dtype == torch.bfloat16 and len(full["seconds"]) == 2
    cost = paired.quantized_or_not(small, full)
    assert 0.25 * held < small["mib"] < 0.5 * held and cost["tokens"] == 40
    assert 0 < cost["divergence"]["value"] < 0.5
    same = paired.quantized_or_not(full, full)
    assert same["divergence"]["value"] == same["loss_change"]["value"] == 0 and same["same_top"]["value"] == 1
    with pytest.raises(ValueError, match="read different rows"):
        paired.quantized_or_not(small, probability.read(loading.unquantized(cfg), ROWS[:1]))


def test_a_base_that_does_not_fit_is_not_loaded(small_base, monkeypatch):
    cfg, size = over(small_base), 2**20
    assert probability.obstacle(cfg) is None and machine.free_bytes() > size
    monkeypatch.setattr(machine, "free_bytes", lambda: size // 2)
    count = loading.unquantized(cfg).num_parameters()
    said = f"in bfloat16 its {count:,} parameters take {2 * count / 2**20:,.0f} MiB, more than 80% of the 0 MiB"
    assert probability.obstacle(cfg).startswith(said)


def test_a_base_that_is_kept_in_four_bits_has_no_other(small_base, tmp_path):
    cfg = over(small_base)
    loading.write_nf4(cfg, loading.tokenizer(cfg), tmp_path)
    assert "is kept quantized itself" in probability.obstacle(over(tmp_path))
    assert probability.obstacle(over(small_base, checkpoint_4bit=True)) is None  # made here, of a base that is here
    names = [NF4, {"load_in_8bit": True}, {"load_in_4bit": True}]
    assert [probability.kind(each) for each in names] == ["nf4", "int8", "fp4"]
