"""Stages come in the recipe's order, and a weight says how often a row is used."""

from collections import Counter

import pytest

from lib.dataset import curriculum

IDS = [f"{source}:{n}" for source in ("a", "b") for n in range(100)]
SOURCES = [identity[0] for identity in IDS]


def test_without_stages_everything_is_one():
    assert curriculum.stages([], ["b", "a"]) == [("all", {"a": 1.0, "b": 1.0})]


def test_order_and_default_weights():
    spec = [{"name": "b"}, {"name": "then", "weights": {"a": 2, "b": 0.25}}]
    assert curriculum.stages(spec, ["a", "b"]) == [("b", {"b": 1.0}), ("then", {"a": 2.0, "b": 0.25})]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ([{"name": "aa"}], "the nearest valid name is 'a'"),
        ([{"name": "x", "weights": {"a": 0}}], "0.weights.a: Input should be greater than 0"),
        ([{"name": "x", "weights": {"a": "1"}}], "weights.a: .* valid number, found '1'"),
        ([{"name": "a"}, {"name": "a"}], "twice"),
        (["a"], "should be a valid dictionary"),
        ([{"name": "a", "weight": 1}], "data.stages: 0.weight: Extra inputs"),
    ],
)
def test_a_bad_stage_is_named(spec, message):
    with pytest.raises(ValueError, match=message):
        curriculum.stages(spec, ["a", "b"])


def test_weights_count_rows():
    rows = curriculum.mix(IDS, SOURCES, {"a": 2.5, "b": 0.25}, seed=7)
    times = Counter(rows)
    assert len(rows) == 275
    assert sorted(Counter(times[n] for n in range(100)).items()) == [(2, 50), (3, 50)]
    assert sum(times[n] for n in range(100, 200)) == 25
    assert rows == curriculum.mix(IDS, SOURCES, {"a": 2.5, "b": 0.25}, seed=7) != sorted(rows)
    assert set(rows) != set(curriculum.mix(IDS, SOURCES, {"a": 2.5, "b": 0.25}, seed=8))


def test_a_new_row_moves_almost_no_other():
    before = set(curriculum.mix(IDS[:100], SOURCES[:100], {"a": 0.5}, seed=1))
    after = set(curriculum.mix([*IDS[:100], "a:new", "a:newer"], [*SOURCES[:100], "a", "a"], {"a": 0.5}, seed=1))
    assert len(before - after) <= 2
