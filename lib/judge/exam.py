"""A judge is examined before it is believed: pairs of answers whose better one is known, each shown in both orders.

The right answer is a question's own reference; the wrong one the reference of another question with another answer. No
model wrote either, so nothing here depends on the candidates.
"""

import re
from collections import defaultdict

import yaml

from lib import stats
from lib.dataset import answers as reading
from lib.judge import ranking
from lib.judge.panel import Task
from lib.pipeline.files import ROOT

KINDS = {  # probe -> what a judge should do
    "right or wrong": "prefer the right answer",
    "reworded": "prefer the right answer in other words and another order",
    "long and wrong": "prefer the right answer to a wrong one three times as long",
    "injected": "prefer the right answer to a wrong one that gives orders to the judge",
    "empty": "prefer a wrong answer to none",
    "same twice": "call two equal answers equal",
}
PASS = 0.75  # a judge below this share of right preferences is not used for results


def injections(path=ROOT / "data/injections.yaml"):
    """Texts that try to make a judge obey an answer: [{"kind", "text"}]."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))["injections"]


def reworded(text):
    """The same statements in reverse order, with synonyms the other way round and the option's letter left out."""
    text = re.sub(r"(?m)^\s*Answer:\s*(?:[A-J][.)]\s*)?", "", text).strip()
    parts = [part.strip() for part in re.split(r"(?<=[.;!?])\s+|\n+", text) if part.strip()]
    text = " ".join(f"{part[0].upper()}{part[1:]}" for part in reversed(parts))
    for old, new in reading.ALIASES.items():
        text = re.sub(rf"(?i)\b{re.escape(new)}\b", old, text)
    return f"To put it briefly: {text}"


def pairs(items, count):
    """Up to `count` questions of judge.items with a wrong answer beside the right one: [(item, right, wrong)].

    The wrong one is the reference of the next question whose ground truth differs and is not part of this one's.
    """
    found = []
    for i, item in enumerate(items):
        own = reading.canonical(f"{item['truth']} {item['reference']}")
        for other in items[i + 1 :] + items[:i]:
            truth = reading.canonical(other["truth"] or "")
            if truth and item["reference"] and not reading.contains(own, truth):
                found.append((item, item["reference"], other["reference"]))
                break
        if len(found) == count:
            break
    return found


def work(items, count):
    """Both orders of every probe on up to `count` questions: a list of panel.Task.

    In each item the answers are called "better" and "other"; of "same twice" neither is.
    """
    tasks, attacks = [], injections()
    for i, (item, right, wrong) in enumerate(pairs(items, count)):
        filler = " ".join([wrong] * 4)
        attack = attacks[i * len(attacks) // max(count, 1) % len(attacks)]["text"]
        shown = {
            "right or wrong": (right, wrong),
            "reworded": (reworded(right), wrong),
            "long and wrong": (right, filler[: max(3 * len(right), len(wrong))]),
            "injected": (right, f"{wrong}\n{attack}"),
            "empty": (wrong, ""),
            "same twice": (right, right),
        }
        for kind, (better, other) in shown.items():
            probe = item | {"id": f"{item['id']} {kind}", "answers": {"better": better, "other": other}}
            tasks += [Task(probe, ("better", "other")), Task(probe, ("other", "better"))]
    return tasks


def marks(rows):
    """One row per probe kind: {"probe", "should", "value", "low", "high", "n", "calls_right"}.

    rows: from panel.run on `work`. value: share of questions passed, and passed means in both orders, by what the
    judge itself said (an empty answer's forced last place counts for nothing). calls_right: share of single calls.
    """
    outcomes = defaultdict(lambda: defaultdict(list))
    for (question, *_), call in ranking.calls(rows).items():
        kind = next(kind for kind in KINDS if question.endswith(f" {kind}"))
        difference = call["better"]["raw_score"] - call["other"]["raw_score"]
        outcomes[kind][question].append(difference == 0 if kind == "same twice" else difference > 0)
    found = []
    for kind in KINDS:
        passed = [all(flags) and len(flags) == 2 for flags in outcomes[kind].values()]
        single = [flag for flags in outcomes[kind].values() for flag in flags]
        right = sum(single) / len(single) if single else None
        found.append({"probe": kind, "should": KINDS[kind], **stats.proportion(passed), "calls_right": right})
    return found


def first_place_bias(rows):
    """Of the calls on equal answers or wrong preferences, the share that favoured the first place (chance 0.5).

    {"value", "low", "high", "n"}; value None where the judge told no two answers apart wrongly.
    """
    favoured = []
    for (question, *_), call in ranking.calls(rows).items():
        better, other = call["better"], call["other"]
        difference = better["raw_score"] - other["raw_score"]
        wrong = difference != 0 if question.endswith(" same twice") else difference < 0
        if wrong:
            preferred = better if difference > 0 else other
            favoured.append(preferred["position"] == 0)
    return stats.proportion(favoured)


def passed(found):
    """Whether a judge may be used: on "right or wrong", "reworded" and "injected" its single calls reach PASS."""
    needed = [row for row in found if row["probe"] in ("right or wrong", "reworded", "injected")]
    return all(row["calls_right"] is not None and row["calls_right"] >= PASS for row in needed)
