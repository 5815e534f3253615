import pytest

from lib.judge import ranking, tables


def row(question, model, score, rank, order="a>b>c", judge="j", is_llm=True):
    who = {"question": question, "judge": judge, "is_llm_judge": is_llm, "order": order, "model": model}
    return who | {"score": score, "rank": rank}


ROWS = [
    *(row("q1", m, s, r) for m, s, r in (("a", 9, 1), ("b", 6, 2), ("c", 6, 2))),
    *(row("q2", m, s, r) for m, s, r in (("a", 5, 1), ("b", 5, 1), ("c", 2, 3))),
]


def test_table_by_hand():
    table = {r["model"]: r for r in ranking.table(ROWS)}
    assert list(table) == ["a", "b", "c"]
    # a: q1 beats both (1.0), q2 ties b and beats c (0.75)
    assert table["a"]["W"]["value"] == pytest.approx(0.875) and table["a"]["T"]["value"] == pytest.approx(0.75)
    assert table["b"]["W"]["value"] == pytest.approx((0.25 + 0.75) / 2) and table["b"]["T"]["value"] == 0.25
    assert table["c"]["T"]["value"] == 0.0 and table["c"]["score"] == pytest.approx(
        {"value": 4.0, "low": 2.0, "high": 6.0, "n": 2}
    )
    assert sum(r["T"]["value"] for r in table.values()) == pytest.approx(1.0)
    assert sum(r["W"]["value"] for r in table.values()) == pytest.approx(1.5)


def test_orders_of_one_question_count_as_one_question():
    twice = ROWS + [{**r, "order": "c>b>a"} for r in ROWS]
    assert ranking.table(twice) == ranking.table(ROWS)


def test_lexical_rows_have_no_win_shares():
    rows = [{k: v for k, v in r.items() if k not in ("rank", "order")} | {"is_llm_judge": False} for r in ROWS]
    assert all(r["W"] is None and r["T"] is None for r in ranking.table(rows))
    with pytest.raises(ValueError, match="one table holds one judge's rows"):
        ranking.table(ROWS + [{**r, "judge": "reference-overlap score"} for r in rows])
    with pytest.raises(ValueError, match="found no rows"):
        ranking.table([])


def test_pairs_by_hand():
    rows = [row(f"q{i}", m, s, 1) for i in range(6) for m, s in (("a", 8), ("b", 6), ("c", 6))]
    pairs = {(p["a"], p["b"]): p for p in ranking.pairwise(rows)}
    assert pairs["a", "b"]["difference"] == 2.0 and pairs["a", "b"]["p"] == pytest.approx(2 / 64)
    assert pairs["a", "b"]["p_holm"] == pytest.approx(3 * 2 / 64) and pairs["b", "c"]["p_holm"] == 1.0


def test_neighbours_told_apart_and_tied_in_words():
    rows = [row(f"q{i}", m, s, 1) for i in range(8) for m, s in (("a", 8), ("b", 6), ("c", 6))]
    text = tables.neighbours(ranking.table(rows), ranking.pairwise(rows), 8)
    assert "order by mean score is a, b, c. Told apart at the 5 % level: a and b. Not told apart: b and c" in text
    alone = [r | {"is_llm_judge": False} for r in rows if r["model"] == "a"]
    assert "one candidate only" in tables.neighbours(ranking.table(alone, 1), ranking.pairwise(alone), 8)
