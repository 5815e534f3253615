"""Intervals and tests for scores on questions.

The unit of resampling is always the question: several rows about one question (orders, judges, samples) are not
independent, and an interval over rows is too narrow. Nothing here imports another module of lib.
"""

from itertools import product
from statistics import fmean

import numpy as np
from scipy.stats import binomtest

EXACT_LIMIT = 14  # up to 2**14 sign patterns are enumerated; above that they are sampled
CHUNK = 500  # resamples drawn at a time, so that memory stays below CHUNK * questions numbers


def wilson(successes, n, level=0.95):
    """Wilson score interval of a proportion: (low, high), both between 0 and 1.

    successes: number of hits, n: number of trials. n = 0 gives (0.0, 1.0): nothing is known.
    Source: Wilson 1927; unlike the normal approximation it stays inside [0, 1] and holds near 0 % and 100 %.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} trials: expected 0 <= successes <= n")
    if n == 0:
        return 0.0, 1.0
    found = binomtest(int(successes), n).proportion_ci(level, method="wilson")
    return float(found.low), float(found.high)


def proportion(flags):
    """{"value", "low", "high", "n"} of truth values, with the 95 % Wilson interval; value None when there are none."""
    hits, n = sum(map(bool, flags)), len(flags)
    low, high = wilson(hits, n)
    return {"value": hits / n if n else None, "low": low, "high": high, "n": n}


def bootstrap(values_by_question, statistic=None, B=10_000, seed=42, level=0.95):
    """Percentile interval of a statistic over resampled questions: (low, high).

    values_by_question: one entry per question, a number or an equally shaped array (orders, models, judges).
    statistic: takes an array (questions, ...) and returns a number; None means the mean of all entries.
    Raises ValueError when there is no question. Source: Efron 1979, cluster form.
    """
    values = np.asarray(values_by_question, dtype=float)
    if not len(values):
        raise ValueError("bootstrap needs at least one question, found none")
    rng = np.random.default_rng(seed)
    n, draws = len(values), []
    flat = values.reshape(n, -1).mean(axis=1)
    for start in range(0, B, CHUNK):
        picks = rng.integers(0, n, size=(min(CHUNK, B - start), n))
        draws.append(flat[picks].mean(axis=1) if statistic is None else np.array([statistic(values[p]) for p in picks]))
    low, high = np.quantile(np.concatenate(draws), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean(values, seed=42):
    """Mean over questions: {"value", "low", "high", "n"}, with the 95 % interval of `bootstrap`.

    values: one number a question. Raises ValueError when there is none.
    """
    low, high = bootstrap(values, seed=seed)
    return {"value": float(fmean(values)), "low": low, "high": high, "n": len(values)}


def paired_permutation(a, b, B=10_000, seed=42):
    """Two-sided p value of the sign-flip test that a and b have the same mean.

    a, b: one value per question each, in the same order. Under the null hypothesis the sign of each difference is
    arbitrary. Exact for up to EXACT_LIMIT non-zero differences, else B random sign patterns, with the observed
    pattern counted as one of them so that p is never 0. (scipy's permutation_test gives the same exact values; its
    sampled ones come from another stream, and published values would move.)
    """
    if len(a) != len(b):
        raise ValueError(f"paired values expected, found {len(a)} and {len(b)}")
    differences = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    differences = differences[differences != 0]
    if not len(differences):
        return 1.0
    observed = abs(differences.sum()) - 1e-12 * np.abs(differences).sum()
    if len(differences) <= EXACT_LIMIT:
        signs = np.array(list(product((-1, 1), repeat=len(differences))))
        return float((np.abs(signs @ differences) >= observed).mean())
    rng, hits = np.random.default_rng(seed), 0
    for start in range(0, B, CHUNK):
        signs = rng.integers(0, 2, size=(min(CHUNK, B - start), len(differences))) * 2 - 1
        hits += int((np.abs(signs @ differences) >= observed).sum())
    return (hits + 1) / (B + 1)


def holm(rows):
    """The rows with "p_holm": their "p", adjusted over all of them by Holm's step-down rule.

    It controls the chance of any false positive among all comparisons. Source: Holm 1979.
    """
    found, running = [dict(row) for row in rows], 0.0
    for rank, row in enumerate(sorted(found, key=lambda row: row["p"])):
        running = max(running, (len(found) - rank) * row["p"])
        row["p_holm"] = min(1.0, running)
    return found


def mcnemar(a, b):
    """Exact two-sided McNemar test for paired yes/no outcomes.

    a, b: one truth value per question each, in the same order.
    Returns {"only_a", "only_b", "p"}: the discordant counts and the binomial p value; p = 1.0 without discordance.
    """
    if len(a) != len(b):
        raise ValueError(f"paired outcomes expected, found {len(a)} and {len(b)}")
    only_a = sum(bool(x) and not y for x, y in zip(a, b, strict=True))
    only_b = sum(bool(y) and not x for x, y in zip(a, b, strict=True))
    n = only_a + only_b
    return {"only_a": only_a, "only_b": only_b, "p": float(binomtest(only_a, n).pvalue) if n else 1.0}


def crossed(values, statistic, B=2_000, seed=42, level=0.95):
    """Percentile interval over seeds and questions together: (low, high).

    values: (seeds, questions, ...), each question measured under each seed. Every resample draws seeds and questions,
    each with replacement and independently of the other; with one seed the interval covers the questions alone.
    statistic: takes (seeds, questions, ...) and returns a number. Source: Owen 2007, the pigeonhole bootstrap.
    """
    values, rng, draws = np.asarray(values, dtype=float), np.random.default_rng(seed), []
    if values.ndim < 2 or not values.size:
        raise ValueError(f"values of shape {values.shape}: expected (seeds, questions, ...), at least one of each")
    for _ in range(B):
        seeds, questions = (rng.integers(0, n, n) for n in values.shape[:2])
        draws.append(statistic(values[seeds][:, questions]))
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
