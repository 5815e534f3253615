"""The reference-overlap score: how much of the reference stands in an answer, for runs without a language model.

It compares words. It cannot see that two sentences mean the same, so it is never called a judge's win rate: its rows
carry is_llm_judge False, and the tables refuse to mix them with a language model's.
"""

import re

from lib import answers as reading

NAME = "reference-overlap score"
WEIGHTS = {"decision": 6.0, "recall": 3.0}  # points above 1 for the right decision and for the reference's key terms
MAX_POINTS = 9.0  # spread over those of the two that the reference has
MISMATCH = 3.0  # points lost when a key term is affirmed on one side and denied on the other
DENIAL = re.compile(r"\b(?:not|no|never|without|avoid\w*|stop\w*|contraindicated|cannot|rather than|instead of)\b")
FILLER = set(
    "a an the and or of in on at to for from with by as is are was were be been this that these those it its he she "
    "his her they their there which who whom because so than then thus therefore also not no never without avoid "
    "avoided avoids should must may can could would will have has had do does answer option correct patient "
    "patients".split()
)


def key_terms(reference):
    """Words of the reference that carry content: canonical form, four letters or more, no fillers."""
    text = re.sub(r"(?m)^\s*Answer:.*$", "", reference or "")
    return {word for word in reading.canonical(text).split() if len(word) > 3 and word not in FILLER}


def denied_terms(text, terms):
    """Terms whose every mention follows a denial in its sentence; terms that are not mentioned are not among them."""
    affirmed, denied = set(), set()
    for sentence in re.split(r"[.;!?\n]\s*", text):
        words = reading.canonical(sentence)
        denial = DENIAL.search(words)
        for match in re.finditer(r"\S+", words):
            if match[0] in terms:
                (denied if denial and denial.start() < match.start() else affirmed).add(match[0])
    return denied - affirmed


def score(item, text):
    """Score one answer: {"score" (1 to 10), "correct", "recall", "mismatch"}.

    item: one of judge.items. correct: the letter (or, without options, the short ground truth) is the reference's.
    recall: share of the reference's key terms in the answer, None without key terms. mismatch: a key term is affirmed
    by one side and denied by the other. An empty answer scores 1. Without a ground truth, correct is None and recall
    takes all points; without key terms the decision does.
    """
    if not text.strip():
        return {"score": 1.0, "correct": False, "recall": 0.0, "mismatch": False}
    if item["options"]:
        correct = reading.choice(text, item["options"]) == item["letter"]
    else:
        correct = reading.matches(text, item["truth"]) if item["truth"] else None
    terms, words = key_terms(item["reference"]), set(reading.canonical(text).split())
    found = terms & words
    recall = len(found) / len(terms) if terms else None
    mismatch = bool(denied_terms(text, found) ^ denied_terms(item["reference"], found))
    shares = {"decision": None if correct is None else float(correct), "recall": recall}
    known = {part: share for part, share in shares.items() if share is not None}
    weight = sum(WEIGHTS[part] for part in known)
    points = MAX_POINTS * sum(WEIGHTS[part] * share for part, share in known.items()) / weight if weight else 0.0
    return {
        "score": min(10.0, max(1.0, 1.0 + points - MISMATCH * mismatch)),
        "correct": correct,
        "recall": recall,
        "mismatch": mismatch,
    }


def rows(items):
    """Score every answer of every item: rows as a judge's, with is_llm_judge False and without rank."""
    return [
        {"question": item["id"], "judge": NAME, "is_llm_judge": False, "model": model, **score(item, text)}
        for item in items
        for model, text in item["answers"].items()
    ]
