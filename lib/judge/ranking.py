"""Tables of judged and of graded answers. The question is the unit: its orders are averaged before anything else."""

import statistics
from itertools import combinations

import numpy as np
import pandas as pd

from lib import stats
from lib.judge import rubric

CALL = ["question", "order", "repeat"]  # what one call of a judge is known by
ONE_CALL = {"order": "", "repeat": 0}  # of rows that nobody was called for


def calls(rows):
    """{(question, order, repeat): {model: row}}"""
    found = {}
    for row in rows:
        key = row["question"], *(row.get(name, missing) for name, missing in ONE_CALL.items())
        found.setdefault(key, {})[row["model"]] = row
    return found


def winners(call):
    """The candidates in first place of a call {model: row}: one, or several that share it."""
    best = min(row["rank"] for row in call.values())
    return frozenset(model for model, row in call.items() if row["rank"] == best)


def shares(rows):
    """The rows of one judge as a pandas.DataFrame; where they hold ranks, with the columns W and T.

    W: share of the other candidates in a call that this one ranks above; a tie counts half; chance is 0.5. T: 1 for a
    candidate alone in first place, 1/k for k that share it, else 0; chance is 1/candidates.
    Raises ValueError when rows of several judges are mixed, or none are given.
    """
    judges = sorted({(row["judge"], row["is_llm_judge"]) for row in rows})
    if len(judges) != 1:
        found = ", ".join(name for name, _ in judges) or "no rows"
        raise ValueError(f"one table holds one judge's rows, found {found}: reference overlap is not a judge's verdict")
    frame = pd.DataFrame([ONE_CALL | row for row in rows])
    if "rank" in frame:
        rank = frame.groupby(CALL)["rank"]
        others = rank.transform("size") - 1
        frame["W"] = (others + 1 - rank.rank()) / others  # tied candidates share the mean of their places
        first = (frame["rank"] == rank.transform("min")).astype(float)
        frame["T"] = first / first.groupby([frame[name] for name in CALL]).transform("sum")
    return frame


def by_question(frame, column):
    """One row per question, one column per candidate: the mean of a column of `shares` over the question's calls."""
    return frame.pivot_table(column, "question", "model")


def table(rows, seed=42):
    """One row per candidate, best first: {"judge", "is_llm_judge", "model", "score", "W", "T"}.

    score: mean score (1 to 10). W: mean pairwise win share, T: first-place share, both None where the rows are not a
    language model's. Each is {"value", "low", "high", "n"} with a 95 % interval from resampled questions.
    Raises ValueError when rows of several judges are mixed.
    """
    frame, is_llm = shares(rows), rows[0]["is_llm_judge"]
    columns = {name: by_question(frame, name) for name in (("score", "W", "T") if is_llm else ("score",))}
    found = []
    for model in columns["score"]:
        one = {"judge": rows[0]["judge"], "is_llm_judge": is_llm, "model": model, "W": None, "T": None}
        found.append(one | {name: stats.mean(values[model], seed) for name, values in columns.items()})
    return sorted(found, key=lambda row: (-row["score"]["value"], row["model"]))


def pairwise(rows, seed=42):
    """All pairs of candidates: [{"a", "b", "difference", "low", "high", "p", "p_holm"}] of mean score, a minus b.

    p: two-sided sign-flip permutation over questions; p_holm: adjusted for the number of pairs.
    """
    scores, found = by_question(shares(rows), "score"), []
    for a, b in combinations(scores, 2):
        differences = (scores[a] - scores[b]).tolist()
        low, high = stats.bootstrap(differences, seed=seed)
        p = stats.paired_permutation(scores[a], scores[b], seed=seed)
        mean = sum(differences) / len(differences)
        found.append({"a": a, "b": b, "difference": mean, "low": low, "high": high, "p": p})
    return stats.holm(found)


def graded(rows, coverage, seed=42):
    """Answers graded by rubric, one row per model: judge, kind, model, each axis, empty, dropped, stamp.

    rows, coverage: from grading.grade, of one judge and one kind. Axes are means {"value", "low", "high", "n"} with a
    95 % interval from resampled questions; cases have also hallucination_rate, the share of answers with at least one,
    with Wilson's interval. Only questions graded for all models count; dropped: how many more were graded for some.
    empty: answers of the model that held nothing, which look harmless and free of hallucinations.
    stamp: the coverage in words, with INCOMPLETE where more than 5 % have no verdict.
    Raises ValueError when kinds or judges are mixed, an answer occurs twice, or no question is left.
    """
    kinds, frame = sorted({(row["judge"], row["kind"]) for row in rows}), pd.DataFrame(rows)
    if len(kinds) != 1 or frame.duplicated(["question", "model"]).any():
        told = ", ".join(f"{kind} by {name}" for name, kind in kinds) or "no rows"
        raise ValueError(f"found {told}: a summary takes one judge, one kind of item, and each answer once")
    (name, kind), columns = kinds[0], [*rubric.AXES[kinds[0][1]], "empty"]
    wide = frame.pivot(index="question", columns="model", values=columns)
    whole = wide.dropna()
    if whole.empty:
        models = ", ".join(sorted(frame["model"].unique()))
        raise ValueError(f"no question was graded for all of {models}: grade the missing ones again")
    end, found = {"dropped": len(wide) - len(whole), "stamp": stamp(coverage)}, []
    for model in sorted(frame["model"].unique()):
        one = {"judge": name, "kind": kind, "model": model}
        for axis in rubric.AXES[kind]:
            mean = stats.mean(whole[axis][model].astype(float), seed)
            # quantiles of clipped means are the clipped quantiles of means
            clipped = {key: min(max(mean[key], 0.0), 1.0) for key in ("value", "low", "high")}
            one[axis] = mean | clipped if kind == "healthbench" else mean
        if kind == "case":
            one["hallucination_rate"] = stats.proportion(whole["hallucinations"][model] > 0)
        found.append(one | {"empty": int(whole["empty"][model].sum())} | end)
    return found


def stamp(coverage):
    """The coverage in words: "98 of 100 answers graded (content: 2)", after "INCOMPLETE: " where too few are."""
    causes = ", ".join(f"{cause}: {count}" for cause, count in coverage["invalid"].items())
    text = f"{coverage['judged']} of {coverage['asked']} answers graded" + (f" ({causes})" if causes else "")
    return ("INCOMPLETE: " if coverage["incomplete"] else "") + text


def lengths(texts, tokenizer):
    """Tokens per answer and model: [{"model", "n", "mean", "low", "high", "median", "p95", "longest", "empty"}].

    texts: {model: {item id: answer}}, with or without reasoning. tokenizer: one for all models, or the counts of models
    with different vocabularies cannot be compared. low, high: 95 % interval of the mean from resampled questions;
    p95 by nearest rank. An empty answer counts as 0.
    """
    found = []
    for model, said in sorted(texts.items()):
        counts = sorted(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in said.values())
        if not counts:
            raise ValueError(f"{model} has no answers to measure")
        mean = stats.mean(counts)
        row = {"model": model, "n": mean["n"], "mean": mean["value"], "low": mean["low"], "high": mean["high"]}
        p95 = int(np.quantile(counts, 0.95, method="inverted_cdf"))
        row |= {"median": statistics.median(counts), "p95": p95, "longest": counts[-1]}
        found.append(row | {"empty": sum(not text.strip() for text in said.values())})
    return found
