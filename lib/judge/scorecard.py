"""Tables of answers graded against a rubric, one row per model. The question is the unit of every interval."""

import statistics

from lib import stats
from lib.judge import rubric


def summary(rows, coverage, seed=42):
    """One row per model: judge, kind, model, each axis, empty, dropped, stamp.

    rows, coverage: from grading.grade, of one judge and one kind. Axes are means {"value", "low", "high", "n"} with a
    95 % interval from resampled questions; cases have also hallucination_rate, the share of answers with at least one,
    with Wilson's interval. Only questions graded for all models count; dropped: how many more were graded for some.
    empty: answers of the model that held nothing, which look harmless and free of hallucinations.
    stamp: the coverage in words, with INCOMPLETE where more than 5 % have no verdict.
    Raises ValueError when kinds or judges are mixed, an answer occurs twice, or no question is left.
    """
    kinds = sorted({(row["judge"], row["kind"]) for row in rows})
    found = {}
    for row in rows:
        found.setdefault(row["model"], {})[row["question"]] = row
    if len(kinds) != 1 or sum(map(len, found.values())) != len(rows):
        told = ", ".join(f"{kind} by {name}" for name, kind in kinds) or "no rows"
        raise ValueError(f"found {told}: a summary takes one judge, one kind of item, and each answer once")
    (name, kind), shared = kinds[0], sorted(set.intersection(*(set(graded) for graded in found.values())))
    if not shared:
        raise ValueError(f"no question was graded for all of {', '.join(found)}: grade the missing ones again")
    dropped = len({row["question"] for row in rows}) - len(shared)
    table = []
    for model, graded in sorted(found.items()):
        one = {"judge": name, "kind": kind, "model": model}
        for axis in rubric.AXES[kind]:
            one[axis] = _mean([graded[q][axis] for q in shared], seed, clip=kind == "healthbench")
        if kind == "case":
            one["hallucination_rate"] = stats.proportion([graded[q]["hallucinations"] > 0 for q in shared])
        one |= {"empty": sum(graded[q]["empty"] for q in shared), "dropped": dropped, "stamp": stamp(coverage)}
        table.append(one)
    return table


def stamp(coverage):
    """The coverage in words: "98 of 100 answers graded (content: 2)", after "INCOMPLETE: " where too few are."""
    causes = ", ".join(f"{cause}: {count}" for cause, count in coverage["invalid"].items())
    text = f"{coverage['judged']} of {coverage['asked']} answers graded" + (f" ({causes})" if causes else "")
    return ("INCOMPLETE: " if coverage["incomplete"] else "") + text


def _mean(values, seed, clip):
    numbers = [statistics.fmean(values), *stats.bootstrap(values, seed=seed)]
    if clip:  # quantiles of clipped means are the clipped quantiles of means
        numbers = [min(max(number, 0.0), 1.0) for number in numbers]
    return dict(zip(("value", "low", "high"), numbers, strict=True)) | {"n": len(values)}


def lengths(texts, tokenizer):
    """Tokens per answer and model: [{"model", "n", "mean", "low", "high", "median", "p95", "longest", "empty"}].

    texts: {model: {item id: answer}}, with or without reasoning. tokenizer: one for all models, or the counts of models
    with different vocabularies cannot be compared. low, high: 95 % interval of the mean from resampled questions;
    p95 by nearest rank. An empty answer counts as 0.
    """
    table = []
    for model, found in sorted(texts.items()):
        counts = sorted(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in found.values())
        if not counts:
            raise ValueError(f"{model} has no answers to measure")
        (low, high), n = stats.bootstrap(counts), len(counts)
        row = {"model": model, "n": n, "mean": statistics.fmean(counts), "low": low, "high": high}
        row |= {"median": statistics.median(counts), "p95": counts[-(-95 * n // 100) - 1], "longest": counts[-1]}
        table.append(row | {"empty": sum(not text.strip() for text in found.values())})
    return table
