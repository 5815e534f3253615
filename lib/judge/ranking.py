"""Tables of judged answers. The question is the unit: orders of one question are averaged before anything else."""

from itertools import combinations

from lib import stats


def _one_kind(rows):
    kinds = {(row["judge"], row["is_llm_judge"]) for row in rows}
    if len(kinds) != 1:
        found = ", ".join(sorted(name for name, _ in kinds)) or "no rows"
        raise ValueError(f"one table holds one judge's rows, found {found}: reference overlap is not a judge's verdict")
    return next(iter(kinds))


def _calls(rows):
    """{question: list of calls}, a call being {model: row}."""
    found = {}
    for row in rows:
        found.setdefault(row["question"], {}).setdefault(row.get("order", ""), {})[row["model"]] = row
    return {question: list(calls.values()) for question, calls in found.items()}


def win_share(call, model):
    """Share of the other candidates in a call that this one ranks above; a tie counts half. Chance is 0.5."""
    others = [row["rank"] for name, row in call.items() if name != model]
    own = call[model]["rank"]
    return sum(1.0 if own < rank else 0.5 if own == rank else 0.0 for rank in others) / len(others)


def first_place(call, model):
    """1 for a candidate alone in first place of a call, 1/k for k that share it, else 0. Chance is 1/candidates."""
    best = min(row["rank"] for row in call.values())
    winners = [name for name, row in call.items() if row["rank"] == best]
    return 1 / len(winners) if model in winners else 0.0


def by_question(rows, model, measure):
    """One value per question, in order of question id: the mean of `measure(call, model)` over its calls."""
    calls = _calls(rows)
    return [sum(measure(call, model) for call in calls[q]) / len(calls[q]) for q in sorted(calls)]


def _score(call, model):
    return call[model]["score"]


def _measured(values, seed):
    low, high = stats.bootstrap(values, seed=seed)
    return {"value": sum(values) / len(values), "low": low, "high": high, "n": len(values)}


def table(rows, seed=42):
    """One row per candidate, best first: {"judge", "is_llm_judge", "model", "score", "W", "T"}.

    score: mean score (1 to 10). W: mean pairwise win share, T: first-place share, both None where the rows are not a
    language model's. Each is {"value", "low", "high", "n"} with a 95 % interval from resampled questions.
    Raises ValueError when rows of several judges are mixed.
    """
    name, is_llm = _one_kind(rows)
    found = []
    for model in sorted({row["model"] for row in rows}):
        measures = {"score": _score} | ({"W": win_share, "T": first_place} if is_llm else {})
        values = {key: _measured(by_question(rows, model, measure), seed) for key, measure in measures.items()}
        found.append({"judge": name, "is_llm_judge": is_llm, "model": model, "W": None, "T": None} | values)
    return sorted(found, key=lambda row: (-row["score"]["value"], row["model"]))


def pairwise(rows, seed=42):
    """All pairs of candidates: [{"a", "b", "difference", "low", "high", "p", "p_holm"}] of mean score, a minus b.

    p: two-sided sign-flip permutation over questions; p_holm: adjusted for the number of pairs.
    """
    _one_kind(rows)
    values = {model: by_question(rows, model, _score) for model in sorted({row["model"] for row in rows})}
    found = []
    for a, b in combinations(values, 2):
        differences = [x - y for x, y in zip(values[a], values[b], strict=True)]
        low, high = stats.bootstrap(differences, seed=seed)
        mean = sum(differences) / len(differences)
        p = stats.paired_permutation(values[a], values[b], seed=seed)
        found.append({"a": a, "b": b, "difference": mean, "low": low, "high": high, "p": p})
    for pair, adjusted in zip(found, stats.holm([pair["p"] for pair in found]), strict=True):
        pair["p_holm"] = adjusted
    return found
