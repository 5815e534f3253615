"""The reference-overlap score: how much of the reference stands in an answer, for runs without a language model.

It compares words. It cannot see that two sentences mean the same, so it is never called a judge's win rate: its rows
carry is_llm_judge False, and the tables refuse to mix them with a language model's.
"""

import re
from itertools import pairwise

from lib import stats
from lib.dataset import answers as reading
from lib.dataset.wording import ALONE
from lib.pipeline.files import beside

NAME = "reference-overlap score"
WEIGHTS = {"decision": 6.0, "recall": 3.0}  # points above 1 for the right decision and for the reference's key terms
MAX_POINTS = 9.0  # spread over those of the two that the reference has
MISMATCH = 3.0  # points lost when a key term is affirmed on one side and denied on the other, or a number differs,
# or the reference sends the patient on at once and the answer does not
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:\s?(?:%|mg|g|mcg|µg|ml|l|mmol|units?|hours?|days?|weeks?))?(?![\w])")
WORDS = beside(__file__)
URGENT, DENIAL = (re.compile(rf"\b(?:{'|'.join(WORDS[name])})\b") for name in ("urgent", "denial"))
FILLER, PARTICLES = set(WORDS["filler"].split()), set(WORDS["particles"])


def key_terms(reference):
    """Words of the reference that carry content: canonical form, four letters or more, no fillers.

    In scripts without blanks, such as Chinese, pairs of characters.
    """
    words = terms(re.sub(r"(?m)^\s*Answer:.*$", "", reference or ""))
    return {word for word in words if (len(word) > 3 or ALONE.match(word)) and word not in FILLER}


def terms(text):
    """The words of a text in canonical form; pairs of characters where a script has no blanks."""
    words = reading.canonical(text).split()
    pairs = {a + b for a, b in pairwise(words) if ALONE.fullmatch(a) and ALONE.fullmatch(b)}
    return {word for word in words if not ALONE.fullmatch(word)} | {pair for pair in pairs if not set(pair) & PARTICLES}


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


def _numbers(text):
    return {re.sub(r"\s", "", found[0]) for found in NUMBER.finditer(reading.canonical(text))}


def mismatches(reference, text, terms):
    """What an answer says against its reference: a list out of "negation", "number" and "escalation".

    terms: key terms that both have. A number counts where both sides give numbers and share none.
    """
    found = []
    if denied_terms(text, terms) ^ denied_terms(reference, terms):
        found.append("negation")
    ours, theirs = _numbers(text), _numbers(reference)
    if ours and theirs and not ours & theirs:
        found.append("number")
    if URGENT.search(reading.canonical(reference)) and not URGENT.search(reading.canonical(text)):
        found.append("escalation")
    return found


def score(item, text):
    """Score one answer: {"score" (1 to 10), "correct", "recall", "mismatch" (list, see `mismatches`)}.

    item: one of judge.items. correct: the letter (or, without options, the short ground truth) is the reference's.
    recall: share of the reference's key terms in the answer, None without key terms. Any mismatch costs MISMATCH points
    once. An empty answer scores 1. Without a ground truth, correct is None and recall
    takes all points; without key terms the decision does.
    """
    if not text.strip():
        return {"score": 1.0, "correct": False, "recall": 0.0, "mismatch": []}
    if item["options"]:
        correct = reading.choice(text, item["options"]) == item["letter"] if item["letter"] else None
    else:
        correct = reading.matches(text, item["truth"]) if item["truth"] else None
    wanted = key_terms(item["reference"])
    found = wanted & terms(text)
    recall = len(found) / len(wanted) if wanted else None
    mismatch = mismatches(item["reference"], text, found)
    shares = {"decision": None if correct is None else float(correct), "recall": recall}
    known = {part: share for part, share in shares.items() if share is not None}
    weight = sum(WEIGHTS[part] for part in known)
    points = MAX_POINTS * sum(WEIGHTS[part] * share for part, share in known.items()) / weight if weight else 0.0
    return {
        "score": min(10.0, max(1.0, 1.0 + points - MISMATCH * bool(mismatch))),
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


def agreement(items):
    """Whether the words alone find the right answer: {"value", "low", "high", "n"}, by the answer key.

    Over pairs of answers to one question of which the key calls one right and the other wrong: the share in which
    recall and mismatches, without the points for the decision, put the right one first; a tie counts half. Only answers
    that could be right count, which name an option: to tell garbage from an answer takes no judge. n: questions with
    such a pair; the interval resamples questions. value None where there is none.
    """
    shares = []
    for item in items:
        if not item["options"]:
            continue
        named = [text for text in item["answers"].values() if reading.choice(text, item["options"])]
        scored = [score(item, text) for text in named]
        points = [(one["recall"] or 0.0) * MAX_POINTS - MISMATCH * bool(one["mismatch"]) for one in scored]
        pairs = [
            1.0 if p > q else 0.5 if p == q else 0.0
            for a, p in zip(scored, points, strict=True)
            for b, q in zip(scored, points, strict=True)
            if a["correct"] and not b["correct"]
        ]
        if pairs:
            shares.append(sum(pairs) / len(pairs))
    return stats.mean(shares) if shares else stats.proportion([])
