"""Scores of answers against records, and how long the answers took."""

import math
import statistics

from lib import stats
from lib.dataset import answers as reading

PROPORTIONS = {  # metric -> field of a scored row; None in a row means that the row has no such fact
    "accuracy": "correct",
    "format_compliance": "compliant",
    "truncated": "truncated",
    "parsed": "parsed",
    "errors": "error",
}
LENGTHS = ("reasoning_tokens", "answer_tokens")


def score(answers, records, fmt, tokenizer=None):
    """Score answers to records, both in the same order: one row per question.

    answers: from generate.py. fmt: reasoning format of the recipe. tokenizer: counts reasoning and answer in tokens;
    without it both lengths are None.
    A row has id, picked (letter or None), correct (None where the record has no ground truth), compliant (to the
    format), truncated, parsed (None where there are no options), error, reasoning_tokens, answer_tokens, tokens.
    Raises ValueError when an answer belongs to another question than its record.
    """
    if [a["id"] for a in answers] != [r["id"] for r in records]:
        raise ValueError(
            f"{len(answers)} answers do not match {len(records)} records in number and order: generate them again"
        )
    return [_score_one(answer, record, fmt, tokenizer) for answer, record in zip(answers, records, strict=True)]


def _score_one(answer, record, fmt, tokenizer):
    reasoning, text, compliant = reading.split_reasoning(answer["text"], fmt)
    options, picked, correct = record["options"], None, None
    if options:
        picked = reading.choice(text, options)
        correct = picked == record["letter"] if record["letter"] else None  # ReasonMed may list options and state none
    elif record["answer"]:
        correct = reading.matches(text, record["answer"])

    def length(part):
        return len(tokenizer(part, add_special_tokens=False)["input_ids"]) if tokenizer else None

    return {
        "id": record["id"],
        "picked": picked,
        "correct": correct,
        "compliant": compliant and answer["finish"] == "stop",
        "truncated": answer["finish"] == "length",
        "parsed": picked is not None if options else None,
        "error": answer["finish"] == "error",
        "reasoning_tokens": length(reasoning),
        "answer_tokens": length(text),
        "tokens": answer["tokens"],
    }


def summary(rows):
    """Proportions of scored rows with Wilson intervals, and lengths in tokens (median and mean, with a
    question-bootstrap interval of the mean). Times are not among them: see `latency`.
    """
    found = {}
    for name, field in PROPORTIONS.items():
        flags = [row[field] for row in rows if row[field] is not None]
        if flags:
            found[name] = stats.proportion(flags)
    for field in (*LENGTHS, "tokens"):
        values = [row[field] for row in rows if row[field] is not None]
        if values:
            found[field] = stats.mean(values) | {"median": statistics.median(values)}
    return found


def latency(answers):
    """How long answers took: {"first_s", "seconds", "tokens_per_s"}, each {"median", "p95"}, and "tokens" in all.

    first_s: seconds to the first token; tokens_per_s: of one answer, from its first token to its last. p95 by nearest
    rank; of the rate it is the slow end. Answers that never came ("error") are not among them.
    """
    came = [answer for answer in answers if answer["finish"] != "error"]
    if not came:
        raise ValueError(f"none of the {len(answers)} answers came: there is no latency to take")
    rates = [(a["tokens"] - 1) / (a["seconds"] - a["first_s"]) for a in came if a["seconds"] > a["first_s"]]
    return {
        "first_s": _spread([answer["first_s"] for answer in came]),
        "seconds": _spread([answer["seconds"] for answer in came]),
        "tokens_per_s": _spread(rates, slow=-1) if rates else None,
        "tokens": sum(answer["tokens"] for answer in came),
    }


def _spread(values, slow=1):
    ordered = sorted(values, reverse=slow < 0)
    return {"median": statistics.median(ordered), "p95": ordered[math.ceil(0.95 * len(ordered)) - 1]}
