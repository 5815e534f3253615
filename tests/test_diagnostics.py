import random

import pytest

from lib.judge import diagnostics, panel

MODELS = ("a", "b", "c", "d")


def judged(score, questions=60, orders=1, repeats=0, seed=0):
    """Rows of a simulated judge: score(model, position, words, draw) -> 1 to 10, over balanced orders."""
    draw, rows = random.Random(seed), []
    lengths = {(q, m): draw.randint(10, 200) for q in range(questions) for m in MODELS}
    items = [{"id": f"q{q}", "answers": {m: "w " * lengths[q, m] for m in MODELS}} for q in range(questions)]
    for task in panel.tasks(items, orders, repeats):
        words = [len(task.item["answers"][m].split()) for m in task.order]
        scores = [score(m, i, n, draw) for i, (m, n) in enumerate(zip(task.order, words, strict=True))]
        for i, (m, s, n) in enumerate(zip(task.order, scores, words, strict=True)):
            rows.append({"question": task.item["id"], "judge": "j", "is_llm_judge": True, "order": ">".join(task.order),
                         "repeat": task.repeat, "model": m, "position": i, "score": s, "length": n,
                         "rank": 1 + sum(other > s for other in scores)})  # fmt: skip
    return rows


def fair(model, position, words, draw):
    return max(1, min(10, round(2 + 2 * MODELS.index(model) + draw.gauss(0, 2))))


def first(model, position, words, draw):
    return 9 - 2 * position + draw.choice([-1, 0, 1])


def long(model, position, words, draw):
    return max(1, min(10, round(words / 20 + draw.gauss(0, 1))))


def noise(model, position, words, draw):
    return draw.randint(1, 10)


def test_a_love_of_the_first_place_shows_in_the_curve_and_not_in_the_shares():
    rows = judged(first)
    curve = diagnostics.position_curve(rows)
    assert curve[0]["low"] > 0.6 and curve[3]["high"] < 0.1
    assert sum(point["value"] for point in curve) == pytest.approx(1)
    strengths, length = diagnostics.bradley_terry(rows)
    assert all(row["low"] < 0 < row["high"] for row in strengths) and length["low"] < 0 < length["high"]
    flat = diagnostics.position_curve(judged(fair))
    assert all(point["low"] < 0.25 < point["high"] for point in flat)


def test_a_love_of_length_is_detected_and_taken_apart():
    strengths, length = diagnostics.bradley_terry(judged(long))
    assert length["low"] > 0.5
    assert all(row["low"] < 0 < row["high"] for row in strengths)
    strengths, length = diagnostics.bradley_terry(judged(fair))
    assert length["low"] < 0 < length["high"]
    assert [row["model"] for row in strengths] == ["d", "c", "b", "a"] and strengths[0]["low"] > strengths[-1]["high"]


def test_a_candidate_that_always_loses_stays_at_a_finite_distance():
    strengths, _ = diagnostics.bradley_terry(judged(lambda m, *_: 1 + 3 * MODELS.index(m), questions=8))
    assert [row["model"] for row in strengths] == ["d", "c", "b", "a"] and abs(strengths[0]["value"]) < 20


def test_consistency_and_stability():
    steady = judged(lambda m, *_: 1 + MODELS.index(m), orders=2, repeats=10)
    assert diagnostics.consistency(steady)["value"] == diagnostics.stability(steady)["value"] == 1.0
    assert (diagnostics.consistency(steady)["n"], diagnostics.stability(steady)["n"]) == (60, 10)
    torn = judged(first, orders=2, repeats=10)
    assert diagnostics.consistency(torn)["high"] < 0.3
    assert diagnostics.consistency(judged(fair))["n"] == 0 and diagnostics.consistency(judged(fair))["value"] is None


def test_agreement_of_judges():
    one, two, other = judged(fair), judged(fair, seed=5), judged(noise, seed=9)
    same = diagnostics.agreement({"one": one, "again": one})
    related, none = diagnostics.agreement({"one": one, "two": two}), diagnostics.agreement({"one": one, "noise": other})
    assert same[0]["kappa"] == same[0]["alpha"] == 1.0 and same[0]["first_place"]["value"] == 1.0
    assert 0.4 < related[0]["kappa"] < 0.95 and 0.4 < related[0]["alpha"] < 0.95
    assert abs(none[0]["kappa"]) < 0.2 and abs(none[0]["alpha"]) < 0.2 and none[0]["n"] == 240
    constant = judged(lambda *_: 5)
    assert diagnostics.agreement({"one": constant, "two": constant})[0]["kappa"] is None
