"""What a judge's verdicts say about the judge: its love of places and of length, and how often it agrees."""

from collections import defaultdict
from itertools import combinations

import krippendorff
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score

from lib import stats
from lib.judge import ranking
from lib.judge.ranking import calls, winners

RIDGE = 10.0  # inverse strength of the penalty: keeps a candidate that loses every time at a finite distance
RESAMPLES = 200  # each one is a fit


def position_curve(rows):
    """First-place share of each place in the prompt: [{"place" (from 1), "value", "low", "high", "n" (questions)}].

    Orders are balanced, so a judge without a love of places gives each the same share, 1 / candidates.
    """
    firsts = ranking.shares(rows).pivot_table("T", "question", "position")
    return [{"place": place + 1} | stats.mean(firsts[place]) for place in firsts]


def consistency(rows):
    """Share of questions, judged in two orders, whose first place stayed with the same candidates (Wilson interval)."""
    won = defaultdict(list)
    for (question, _, repeat), call in calls(rows).items():
        if repeat == 0:
            won[question].append(winners(call))
    return stats.proportion([len(set(found)) == 1 for found in won.values() if len(found) > 1])


def stability(rows):
    """Share of calls, made a second time under other codes, whose first place stayed the same (Wilson interval)."""
    made = calls(rows)
    pairs = [(made[q, o, 0], call) for (q, o, repeat), call in made.items() if repeat and (q, o, 0) in made]
    return stats.proportion([winners(a) == winners(b) for a, b in pairs])


def agreement(rows_by_judge):
    """How far judges agree on what all of them judged: [{"judges", "kappa", "alpha", "first_place", "n"}] by pair.

    kappa: Cohen's, quadratic weights, on scores 1 to 10. alpha: Krippendorff's, ordinal. first_place: share of calls
    with the same winners (Wilson). n: answers judged by both. kappa and alpha are None where scores do not vary.
    """
    found = []
    for a, b in combinations(rows_by_judge, 2):
        one, two = calls(rows_by_judge[a]), calls(rows_by_judge[b])
        shared = sorted(set(one) & set(two))
        pairs = [(one[key][model]["score"], two[key][model]["score"]) for key in shared for model in sorted(one[key])]
        varied = len({x for x, _ in pairs}) > 1 and len({y for _, y in pairs}) > 1
        kappa = alpha = None
        if varied:
            kappa = float(cohen_kappa_score(*zip(*pairs, strict=True), weights="quadratic", labels=range(1, 11)))
            alpha = float(krippendorff.alpha(np.array(pairs, dtype=float).T, level_of_measurement="ordinal"))
        same = stats.proportion([winners(one[key]) == winners(two[key]) for key in shared])
        found.append({"judges": f"{a} and {b}", "kappa": kappa, "alpha": alpha, "first_place": same, "n": len(pairs)})
    return found


def _pairs(rows, models):
    """(X, y, weight, question index) of all pairs in all calls; a tie is half a win for each side."""
    X, y, weight, question, names = [], [], [], [], {}
    for (q, _, _), call in calls(rows).items():
        for a, b in combinations(models, 2):
            if a not in call or b not in call:
                continue
            x = np.zeros(len(models) + 1)
            x[models.index(a)], x[models.index(b)] = 1.0, -1.0
            x[-1] = np.log1p(call[a]["length"]) - np.log1p(call[b]["length"])
            share = (1 + np.sign(call[b]["rank"] - call[a]["rank"])) / 2
            for side, won in ((x, share), (-x, 1 - share)):  # seen from both sides, so that there are always losers
                for outcome, part in ((1, won), (0, 1 - won)):
                    if part:
                        X.append(side), y.append(outcome), weight.append(part / 2)
                        question.append(names.setdefault(q, len(names)))
    return np.array(X), np.array(y), np.array(weight), np.array(question)


def _fit(X, y, weight):
    model = LogisticRegression(C=RIDGE, fit_intercept=False, solver="newton-cholesky").fit(X, y, weight)
    return np.append(model.coef_[0, :-1] - model.coef_[0, :-1].mean(), model.coef_[0, -1])


def bradley_terry(rows, seed=42):
    """Strengths of candidates with the judge's taste for length taken apart: (candidates, length).

    candidates: [{"model", "value", "low", "high", "n"}], strongest first, in log-odds around a mean of 0. length: the
    log-odds that a call gains when an answer is e times as long at equal strength; an interval away from 0 is a bias.
    n: questions. Intervals: resampled questions. A slight ridge penalty keeps clean sweeps finite, and shrinks both.
    Source: Bradley and Terry 1952.
    """
    models = sorted({row["model"] for row in rows})
    X, y, weight, question = _pairs(rows, models)
    estimate, n, rng, draws = _fit(X, y, weight), question.max() + 1, np.random.default_rng(seed), []
    for _ in range(RESAMPLES):
        times = np.bincount(rng.integers(0, n, n), minlength=n)[question]
        draws.append(_fit(X, y, weight * times))
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    found = [
        {"model": name, "value": float(estimate[i]), "low": float(low[i]), "high": float(high[i]), "n": int(n)}
        for i, name in enumerate([*models, "length"])
    ]
    return sorted(found[:-1], key=lambda row: -row["value"]), found[-1]
