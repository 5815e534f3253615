"""The figures of the data show every source, and refuse to draw nothing."""

import pytest

from lib.figures import dataplots

PAIRS = {"medical_o1": [(100 * n, 10 * n) for n in range(1, 50)], "medqa": [(0, 5)] * 30, "empty": []}


def texts(figure):
    axes = figure.axes
    return " ".join(ax.get_title(loc="left") for ax in axes), [t.get_text() for ax in axes for t in ax.texts]


def test_a_panel_per_source_with_its_medians():
    titles, _ = texts(dataplots.reasoning_against_answer(PAIRS))
    assert "medical_o1: 49 rows, medians (+) 2,500 of reasoning and 250 of answer" in titles
    assert "medqa: 30 rows, medians (+) 0 of reasoning" in titles and "empty" not in titles
    with pytest.raises(ValueError, match="no lengths to draw"):
        dataplots.reasoning_against_answer({"a": []})


def test_the_heat_map_writes_each_share_and_leaves_the_diagonal():
    _, cells = texts(dataplots.heat_map({"a": {"a": 1.0, "b": 0.125}, "b": {"a": 0.0, "b": 1.0}}))
    assert cells == ["", "12", "0", ""]


def test_the_forgetting_matrix_writes_each_accuracy_and_a_dash_where_none_was_scored():
    rows = [{"after": "base", "medqa": 0.25, "pubmedqa": None}, {"after": "medqa", "medqa": 0.705, "pubmedqa": 0.5}]
    labels, cells = texts(dataplots.forgetting(rows))
    assert cells == ["25.0", "–", "70.5", "50.0"]
