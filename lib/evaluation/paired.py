"""Sets of weights on the same conversations: loss, divergence and same-top of each, and differences with intervals.

A measurement is an array (conversations, 4) of sums over a conversation's labelled tokens: their number, their loss,
their Kullback-Leibler divergence from the reference (both in nats), and before how many of them both find the same next
token likeliest. Conversations are the unit of resampling, together with the seeds of training where there are several.
"""

import numpy as np
from torch.nn.functional import cross_entropy

from lib import stats
from lib.chat.turns import IGNORE_INDEX
from lib.evaluation import probability

NUMBERS = 2**29  # logits kept of one model: 2 GiB in float32
COLUMNS = {"loss": 1, "divergence": 2, "same_top": 3}


def cut(conversations, vocabulary):
    """The conversations, each behind so many labelled tokens that all logits of one model number at most NUMBERS."""
    most, found = max(1, NUMBERS // (vocabulary * max(1, len(conversations)))), []
    for ids, labels in conversations:
        labelled = [n for n, label in enumerate(labels) if label != IGNORE_INDEX][:most]
        found += [(ids[: labelled[-1] + 1], labels[: labelled[-1] + 1])] if labelled and labelled[-1] else []
    return found


def measure(model, conversations, reference=None):
    """(measurement, what it can be a reference of): see the module. Without a reference a model is its own."""
    found = probability.read(model, conversations)
    theirs, rows = (reference or found)["logits"], []
    for ours, other, targets in zip(found["logits"], theirs, found["targets"], strict=True):
        ours, other = (logits.double().log_softmax(-1) for logits in (ours, other))
        divergence = (other.exp() * (other - ours)).sum()
        same = (ours.argmax(-1) == other.argmax(-1)).sum()
        rows.append([len(targets), cross_entropy(ours, targets, reduction="sum"), divergence, same])
    return np.array(rows, dtype=float), found


def mean(measured, column):
    """The mean of one of COLUMNS over tokens: {"value", "low", "high", "n"}. measured: (seeds, conversations, 4)."""
    return _interval(np.asarray(measured), lambda drawn: _over(drawn, COLUMNS[column]))


def difference(ours, theirs, column):
    """ours minus theirs, paired by conversation and seed; both (seeds, conversations, 4)."""
    at = COLUMNS[column]
    both = np.stack([ours, theirs], axis=2)
    return _interval(both, lambda drawn: _over(drawn[:, :, 0], at) - _over(drawn[:, :, 1], at))


def recovered(control, rounded, ours):
    """Share of the control's rounding loss that a way recovers: (rounded - ours) / (rounded - control)."""
    both = np.stack([control, rounded, ours], axis=2)

    def share(drawn):
        whole, after, way = (_over(drawn[:, :, side], COLUMNS["loss"]) for side in range(3))
        return (after - way) / (after - whole)

    return _interval(both, share)


def _over(drawn, column):
    return drawn[..., column].sum() / drawn[..., 0].sum()


def _interval(values, statistic):
    low, high = stats.crossed(values, statistic)
    return {"value": float(statistic(values)), "low": low, "high": high, "n": values.shape[1]}
