"""Paired measurements of sets of weights: sums by hand, differences, and intervals over conversations and seeds."""

import math

import numpy as np
import pytest
import torch

from lib import stats
from lib.evaluation import paired, probability


def made(rows):
    """{"logits", "targets"} as probability.read gives them, from probabilities of three words."""
    logits = [torch.tensor(probabilities).log() for probabilities, _ in rows]
    return {"logits": logits, "targets": [torch.tensor(targets) for _, targets in rows]}


def test_a_measurement_by_hand(monkeypatch):
    exact = made([([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]], [0, 1])])
    other = made([([[0.25, 0.5, 0.25], [0.1, 0.8, 0.1]], [0, 1])])
    given = iter([exact, other])
    monkeypatch.setattr(probability, "read", lambda model, rows: next(given))
    mine, reference = paired.measure(None, None)
    assert mine[0].tolist() == pytest.approx([2, -math.log(0.5) - math.log(0.8), 0, 2])
    theirs, _ = paired.measure(None, None, reference)
    # 0.5 log(0.5 / 0.25) + 0.25 log(0.25 / 0.5) = 0.25 log 2; the likeliest differs at the first token only
    assert theirs[0].tolist() == pytest.approx([2, -math.log(0.25) - math.log(0.8), 0.25 * math.log(2), 1])


def sums(*losses):
    return np.array([[10.0, loss, 0.0, 10.0] for loss in losses])


def test_means_weigh_tokens_and_differences_are_paired():
    ours, theirs = np.array([[[10, 20, 0, 9], [30, 30, 0, 30]]]), np.array([[[10, 10, 0, 10], [30, 20, 0, 30]]])
    assert paired.mean(ours, "loss")["value"] == 50 / 40
    found = paired.difference(ours, theirs, "loss")
    assert found["value"] == pytest.approx(0.5) and found["n"] == 2
    # each conversation alone: 1 and 1/3
    assert (found["low"], found["high"]) == (pytest.approx(1 / 3), pytest.approx(1))
    share = paired.recovered(*(np.array([sums(loss)]) for loss in (10, 20, 14)))
    assert share["value"] == pytest.approx(0.6) and "of which 60.0 %" in paired.share_in_words(share)
    free = [np.array([sums(*losses)]) for losses in ((10, 10), (9, 11.5), (9, 11))]  # a price that may be none
    assert paired.recovered(*free) is None and "no share of it" in paired.share_in_words(None)


def test_the_interval_covers_questions_and_seeds_together():
    steady = np.array([[1.0, 2.0, 3.0, 4.0]] * 3)[..., None]
    moved = steady + np.array([0.0, 10.0, 20.0])[:, None, None]
    within, both = (stats.crossed(values, np.mean) for values in (steady, moved))
    assert within[1] - within[0] < 3 and both[1] - both[0] > 10
    assert stats.crossed(np.ones((1, 5, 1)), np.mean) == (1, 1)
    with pytest.raises(ValueError, match=r"shape \(0, 3\)"):
        stats.crossed(np.ones((0, 3)), np.mean)


def test_conversations_are_cut_where_a_large_vocabulary_would_fill_the_memory(monkeypatch):
    rows = [([1, 2, 3, 4], [-100, 2, 3, 4]), ([1, 2], [-100, -100])]
    assert paired.cut(rows, 10) == [rows[0]]
    monkeypatch.setattr(paired, "NUMBERS", 40)
    assert paired.cut(rows, 10) == [([1, 2, 3], [-100, 2, 3])]  # 40 / (10 * 2) = 2 labelled tokens a row
