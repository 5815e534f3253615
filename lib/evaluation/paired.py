"""Sets of weights on the same conversations: loss, divergence and same-top of each, and differences with intervals.

A measurement is an array (conversations, 4) of sums over a conversation's labelled tokens: their number, their loss,
their Kullback-Leibler divergence from the reference (both in nats), and before how many of them both find the same next
token likeliest. Conversations are the unit of resampling, together with the seeds of training where there are several.
"""

import math
from statistics import median

import numpy as np
from torch.nn.functional import cross_entropy

from lib import stats
from lib.chat.turns import IGNORE_INDEX
from lib.evaluation import probability
from lib.figures.markup import interval

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
    return _sums(found, reference or found), found


def _sums(found, reference):
    rows = []
    for ours, other, targets in zip(found["logits"], reference["logits"], found["targets"], strict=True):
        ours, other = (logits.double().log_softmax(-1) for logits in (ours, other))
        divergence = (other.exp() * (other - ours)).sum()
        same = (ours.argmax(-1) == other.argmax(-1)).sum()
        rows.append([len(targets), cross_entropy(ours, targets, reduction="sum"), divergence, same])
    return np.array(rows, dtype=float)


def mean(measured, column):
    """The mean of one of COLUMNS over tokens: {"value", "low", "high", "n"}. measured: (seeds, conversations, 4)."""
    return _interval(np.asarray(measured), lambda drawn: _over(drawn, COLUMNS[column]))


def difference(ours, theirs, column):
    """ours minus theirs, paired by conversation and seed; both (seeds, conversations, 4)."""
    at = COLUMNS[column]
    both = np.stack([ours, theirs], axis=2)
    return _interval(both, lambda drawn: _over(drawn[:, :, 0], at) - _over(drawn[:, :, 1], at))


def recovered(control, rounded, ours):
    """Share of the control's rounding loss that a way recovers: (rounded - ours) / (rounded - control).

    None where that loss, the denominator, cannot be told from 0: an interval of resampled ratios would say nothing.
    """
    if difference(rounded, control, "loss")["low"] <= 0:
        return None
    both = np.stack([control, rounded, ours], axis=2)

    def share(drawn):
        whole, after, way = (_over(drawn[:, :, side], COLUMNS["loss"]) for side in range(3))
        return (after - way) / (after - whole)

    return _interval(both, share)


def share_in_words(share):
    """What `recovered` found, as the end of a sentence on the price."""
    if share is None:
        return "which cannot be told from 0: no share of it can be named"
    return f"of which {interval(share)} are recovered"


def quantized_or_not(small, full):
    """The quantized base against the unquantized one: {"quantized", "unquantized", "divergence", "same_top", ...}.

    small, full: from `probability.read`, of the same rows. The first two hold perplexity, mib and seconds (the median
    row's). divergence: of the quantized base from the other; loss_change: of the mean loss, both in nats a token;
    same_top: the share of tokens before which both find the same next one likeliest. Raises ValueError where the rows
    differ.
    """
    if [t.tolist() for t in small["targets"]] != [t.tolist() for t in full["targets"]]:
        raise ValueError("the two bases read different rows: give `read` the same ones for both")
    measured, of = {"quantized": [_sums(small, full)], "unquantized": [_sums(full, full)]}, {}
    for (name, sums), read in zip(measured.items(), (small, full), strict=True):
        perplexity = math.exp(mean(sums, "loss")["value"])
        of[name] = {"perplexity": perplexity, "mib": read["mib"], "seconds": median(read["seconds"])}
    ours, theirs = measured.values()
    return of | {
        "divergence": mean(ours, "divergence") | {"unit": "nats"},
        "same_top": mean(ours, "same_top"),
        "loss_change": difference(ours, theirs, "loss") | {"unit": "nats"},
        "tokens": int(ours[0][:, 0].sum()),
    }


def in_words(cost):
    """One sentence on what `quantized_or_not` found."""
    small, full, change = cost["quantized"], cost["unquantized"], cost["loss_change"]
    price = "worse" if change["low"] > 0 else "better" if change["high"] < 0 else "neither worse nor better for certain"
    return (
        f"Quantized, the weights take {small['mib'] / full['mib']:.0%} of the memory, and a row "
        f"{small['seconds'] / full['seconds']:.2f} times as long. The likeliest next token is another one "
        f"{1 - cost['same_top']['value']:.1%} of the time, and the loss per token changes by "
        f"{interval(change, 'nats')}: {price}."
    )


def _over(drawn, column):
    return drawn[..., column].sum() / drawn[..., 0].sum()


def _interval(values, statistic):
    low, high = stats.crossed(values, statistic)
    return {"value": float(statistic(values)), "low": low, "high": high, "n": values.shape[1]}
