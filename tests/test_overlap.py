import math

import pytest
from sklearn.metrics import f1_score

from lib import stats
from lib.evaluation import overlap

ANSWERS = ["Give warfarin and vitamin K today.", "aspirin", "", "the cat sat on the mat"]
REFERENCES = ["give Warfarin and vitamin K, today", "Oxygen", "heparin", "the cat is on the mat"]


def test_texts_by_hand():
    rows = [overlap.of(*pair) for pair in zip(ANSWERS, REFERENCES, strict=True)]
    assert [row["exact"] for row in rows] == [True, False, False, False]
    # the cat _ on the mat: five words of six and six in common order, so precision = recall = 5/6
    assert [row["rouge_l"] for row in rows] == pytest.approx([100, 0, 0, 500 / 6])
    # 1-grams 5/6, 2-grams 3/5 (the cat, on the, the mat), 3-grams 1/4 (on the mat), 4-grams 0/3, smoothed to 1/(2*3)
    assert rows[3]["bleu"] == pytest.approx(100 * (5 / 6 * 3 / 5 * 1 / 4 * 1 / 6) ** 0.25)
    assert (rows[1]["bleu"], rows[2]["bleu"]) == (0, 0)


def test_a_short_answer_pays_the_brevity_penalty():
    row = overlap.of("aspirin", "aspirin and rest")
    assert row["bleu"] == pytest.approx(100 * math.exp(1 - 3 / 1))  # precision 1 of the only order there is
    assert row["rouge_l"] == pytest.approx(100 * 2 * 1 * (1 / 3) / (1 + 1 / 3))


TRUTH = ["yes", "yes", "yes", "no", "no", "maybe"]
PICKED = ["yes", "yes", None, "yes", "no", "no"]


def test_macro_f1_by_hand():
    # yes: 2 hits of 3 true and 3 picked, F1 4/6; no: 1 hit of 2 and 2, F1 2/4; maybe: 0 of 1 and 0
    found = overlap.macro_f1(PICKED, TRUTH, ("yes", "no", "maybe"))
    assert (found["value"], found["n"]) == (pytest.approx((4 / 6 + 2 / 4 + 0) / 3), 6)
    assert 0 <= found["low"] < found["value"] < found["high"] <= 1


def test_the_bootstrap_of_macro_f1_is_that_of_scikit_learn():
    labels = ("yes", "no", "maybe")
    codes = [[labels.index(t), labels.index(p) if p else 3] for t, p in zip(TRUTH, PICKED, strict=True)]
    slow = stats.bootstrap(
        codes,
        lambda v: f1_score(v[:, 0], v[:, 1], labels=range(3), average="macro", zero_division=0),
        B=200,
    )
    counts = [[[t == x == p, t == x, p == x] for x in labels] for t, p in zip(TRUTH, PICKED, strict=True)]
    counts = [list(zip(*rows, strict=True)) for rows in counts]  # (3, labels)
    assert stats.bootstrap(counts, overlap._macro_f1, B=200) == pytest.approx(slow)


def test_macro_f1_wants_known_labels():
    with pytest.raises(ValueError, match=r"true labels \['maybe'\] are not among \['yes', 'no'\]"):
        overlap.macro_f1(PICKED, TRUTH, ("yes", "no"))


def test_majority_by_hand():
    found = overlap.majority(TRUTH)
    assert (found["label"], found["value"], found["n"]) == ("yes", 1 / 2, 6)
    assert (found["low"], found["high"]) == pytest.approx((0.1876, 0.8124), abs=2e-4)  # 0.5 +- 0.3124
    assert overlap.majority(["no", "maybe"])["label"] == "maybe"
    # its macro-F1: only its own label has one, 2*3/(3+6) = 2/3
    assert overlap.macro_f1(["yes"] * 6, TRUTH, ("yes", "no", "maybe"))["value"] == pytest.approx(2 / 9)
    with pytest.raises(ValueError, match="no labels"):
        overlap.majority([])
