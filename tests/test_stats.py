import math

import numpy as np
import pytest

from lib import stats


def test_wilson_against_published_values():
    # Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662; 0 of 20 gives 0 to 0.1611.
    assert stats.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert stats.wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert stats.wilson(35, 50) == pytest.approx((0.5625, 0.8090), abs=5e-4)


def test_wilson_at_the_edges():
    assert stats.wilson(0, 0) == (0.0, 1.0)
    assert stats.wilson(7, 7)[1] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="8 successes of 7"):
        stats.wilson(8, 7)


def test_bootstrap_of_a_constant_has_no_width():
    assert stats.bootstrap([3.0] * 10) == (3.0, 3.0)


def test_bootstrap_matches_the_normal_interval_on_many_questions():
    values = np.random.default_rng(0).normal(5.0, 2.0, 400)
    half = 1.96 * values.std() / math.sqrt(len(values))
    low, high = stats.bootstrap(values, seed=1)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)


def test_bootstrap_takes_any_statistic_and_keeps_rows_of_a_question_together():
    rows = np.repeat(np.random.default_rng(2).normal(size=(60, 1)), 4, axis=1)  # four copies of each question's value
    assert stats.bootstrap(rows, B=2000) == pytest.approx(stats.bootstrap(rows[:, 0], B=2000))
    mean = stats.bootstrap(rows, lambda sample: sample.mean(), B=2000)
    assert mean == pytest.approx(stats.bootstrap(rows, B=2000))


def test_bootstrap_is_repeatable_and_refuses_nothing():
    assert stats.bootstrap([1, 2, 3, 4], seed=5) == stats.bootstrap([1, 2, 3, 4], seed=5)
    with pytest.raises(ValueError, match="at least one question"):
        stats.bootstrap([])


@pytest.mark.parametrize("n", [50, 200])
def test_bootstrap_over_questions_covers_the_truth(n):
    rng, runs = np.random.default_rng(n), 400
    hits = 0
    for _ in range(runs):
        question = rng.normal(0.0, 1.0, size=(n, 1))
        rows = question + rng.normal(0.0, 0.5, size=(n, 4))
        low, high = stats.bootstrap(rows, B=600, seed=1)
        hits += low <= 0.0 <= high
    assert 0.91 <= hits / runs <= 0.985  # 95 % nominal; two standard errors of 400 runs are 2.2 points


def test_a_mean_over_questions_carries_its_bootstrap():
    low, high = stats.bootstrap([1, 2, 6], seed=3)
    assert stats.mean([1, 2, 6], seed=3) == {"value": 3.0, "low": low, "high": high, "n": 3}
    with pytest.raises(ValueError, match="at least one question"):
        stats.mean([])


def test_permutation_is_exact_for_few_differences():
    # five positive differences: only all-plus and all-minus are as extreme, 2 of 32 patterns
    assert stats.paired_permutation([2, 3, 4, 5, 6], [1, 1, 1, 1, 1]) == pytest.approx(2 / 32)
    assert stats.paired_permutation([1, 2], [1, 2]) == 1.0


def test_permutation_samples_many_differences():
    rng = np.random.default_rng(3)
    a = rng.normal(size=100)
    assert stats.paired_permutation(a + 1.0, a) < 0.001
    # a balanced set of differences is as unremarkable as can be
    assert stats.paired_permutation([1, 0] * 50, [0, 1] * 50) == 1.0


def test_permutation_false_positive_rate_is_nominal():
    rng = np.random.default_rng(4)
    ps = [stats.paired_permutation(rng.normal(size=30), rng.normal(size=30), B=400, seed=i) for i in range(300)]
    assert 0.02 <= np.mean(np.array(ps) <= 0.05) <= 0.085


def test_permutation_wants_pairs():
    with pytest.raises(ValueError, match="found 2 and 3"):
        stats.paired_permutation([1, 2], [1, 2, 3])


def test_holm_by_hand():
    found = stats.holm([{"name": n, "p": p} for n, p in enumerate([0.01, 0.04, 0.03, 0.005])])
    assert [row["p_holm"] for row in found] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert [row["name"] for row in found] == [0, 1, 2, 3]
    assert [row["p_holm"] for row in stats.holm([{"p": 0.6}, {"p": 0.9}])] == [1.0, 1.0] and stats.holm([]) == []


def test_mcnemar_by_hand():
    a = [True] * 9 + [False] * 1 + [True] * 5
    b = [False] * 9 + [True] * 1 + [True] * 5
    # 9 against 1: 2 * (1 + 10) / 1024
    assert stats.mcnemar(a, b) == {"only_a": 9, "only_b": 1, "p": pytest.approx(22 / 1024)}
    assert stats.mcnemar([True], [True])["p"] == 1.0
