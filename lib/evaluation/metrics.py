"""Scores of answers against records, by benchmark and between two models, and how long the answers took."""

import math
import statistics

from lib import stats
from lib.dataset import answers as reading
from lib.evaluation import overlap

PROPORTIONS = {  # metric -> field of a scored row; None in a row means that the row has no such fact
    "accuracy": "correct",
    "format_compliance": "compliant",
    "truncated": "truncated",
    "parsed": "parsed",
    "errors": "error",
}
LENGTHS = ("reasoning_tokens", "answer_tokens")
FLAGS = {"accuracy": "correct", "format compliance": "compliant", "exact match": "exact"}
NUMBERS = {
    "ROUGE-L": "rouge_l",
    "BLEU": "bleu",
    "reasoning length": "reasoning_tokens",
    "answer length": "answer_tokens",
}
UNITS = {"ROUGE-L": "points", "BLEU": "points", "reasoning length": "tokens", "answer length": "tokens"}


def score(answers, records, fmt, tokenizer=None):
    """Score answers to records, both in the same order: one row per question.

    answers: from generate.py. fmt: reasoning format of the recipe. tokenizer: counts reasoning and answer in tokens;
    without it both lengths are None.
    A row has id, picked (letter or None), correct (None where the record has no ground truth), compliant (to the
    format, with reasoning where the record has any), truncated, parsed (None where there are no options), error,
    reasoning_tokens, answer_tokens, tokens.
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
        "compliant": reading.kept(reasoning, compliant, record) and answer["finish"] == "stop",
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


def chance(records):
    """Share of correct answers of a guess: the mean of 1 / options over the questions that have a letter.

    None where no record has one.
    """
    lettered = [len(record["options"]) for record in records if record["letter"]]
    return sum(1 / count for count in lettered) / len(lettered) if lettered else None


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


def with_overlap(scored, answers, records, fmt):
    """The rows of metrics.score, each with `overlap.of` its answer and the record's whole one."""
    said = (reading.split_reasoning(answer["text"], fmt)[1] for answer in answers)
    return [row | overlap.of(text, record["output"] or "")
            for row, text, record in zip(scored, said, records, strict=True)]  # fmt: skip


def before_after(before, after):
    """Paired changes: [{"measure", "unit", "before", "after", "change", "low", "high", "p", "p_holm", "n"}].

    before, after: rows of `with_overlap` on the same questions, in the same order. Proportions and their change are
    shares; p is exact McNemar's for them and a sign-flip permutation's for means, Holm-adjusted over the measures.
    low, high: 95 % interval of the change, questions resampled. A measure that one side lacks does not appear.
    Raises ValueError where the questions differ.
    """
    if [row["id"] for row in before] != [row["id"] for row in after]:
        raise ValueError(f"{len(before)} and {len(after)} rows are not of the same questions: score the same test set")
    table = []
    for name, field in (FLAGS | NUMBERS).items():
        pairs = [(a[field], b[field]) for a, b in zip(before, after, strict=True)
                 if a[field] is not None and b[field] is not None]  # fmt: skip
        if not pairs:
            continue
        one, two = ([float(value) for value in side] for side in zip(*pairs, strict=True))
        low, high = stats.bootstrap([y - x for x, y in zip(one, two, strict=True)])
        p = stats.mcnemar(one, two)["p"] if name in FLAGS else stats.paired_permutation(one, two)
        row = {
            "measure": name,
            "unit": UNITS.get(name, "%"),
            "before": statistics.fmean(one),
            "after": statistics.fmean(two),
        }
        table.append(row | {"change": row["after"] - row["before"], "low": low, "high": high, "p": p, "n": len(pairs)})
    return stats.holm(table)


def by_source(scored, records):
    """One row per benchmark: {"source", "accuracy", "macro_f1", "majority", "majority_share", "unparsed"}.

    accuracy, with Wilson's interval, over questions with a ground truth. macro_f1 and the majority baseline where all
    questions of a source share their options (PubMedQA's yes, no, maybe), else None.
    """
    found = []
    for source in sorted({record["source"] for record in records}):
        mine = [(row, record) for row, record in zip(scored, records, strict=True)
                if record["source"] == source and row["correct"] is not None]  # fmt: skip
        if not mine:
            continue
        options = {tuple(record["options"]) for _, record in mine}
        row = {"source": source, "accuracy": stats.proportion([row["correct"] for row, _ in mine]), "macro_f1": None,
               "majority": None, "majority_share": None}  # fmt: skip
        if len(options) == 1 and (labels := next(iter(options))):
            texts = dict(zip(reading.LETTERS, labels, strict=False))
            truth = [record["letter"] for _, record in mine]
            row["macro_f1"] = overlap.macro_f1([r["picked"] for r, _ in mine], truth, list(texts)[: len(labels)])
            common = overlap.majority(truth)
            row |= {"majority": texts[common.pop("label")], "majority_share": common}
        found.append(row | {"unparsed": sum(r["parsed"] is False for r, _ in mine)})
    return found
