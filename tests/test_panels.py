"""Figures of several panels: what is drawn is what was given, with labelled axes, and nothing is not drawn."""

import pytest
import torch

from lib.figures import panels

PAIRS = {"medical_o1": [(100 * n, 10 * n) for n in range(1, 50)], "medqa": [(0, 5)] * 30, "empty": []}


def texts(figure):
    axes = figure.axes
    return " ".join(ax.get_title(loc="left") for ax in axes), [t.get_text() for ax in axes for t in ax.texts]


def test_a_panel_per_source_with_its_medians():
    titles, _ = texts(panels.reasoning_against_answer(PAIRS))
    assert "medical_o1: 49 rows, medians (+) 2,500 of reasoning and 250 of answer" in titles
    assert "medqa: 30 rows, medians (+) 0 of reasoning" in titles and "empty" not in titles
    with pytest.raises(ValueError, match="no lengths to draw"):
        panels.reasoning_against_answer({"a": []})


def test_a_map_writes_each_share_and_leaves_what_was_not_measured():
    _, cells = texts(panels.heat_map({"a": {"a": 1.0, "b": 0.125}, "b": {"a": 0.0, "b": 1.0}}))
    assert cells == ["–", "12.5", "0.0", "–"]
    rows = [{"after": "base", "medqa": 0.25, "pubmedqa": None}, {"after": "medqa", "medqa": 0.705, "pubmedqa": 0.5}]
    assert texts(panels.forgetting(rows))[1] == ["25.0", "–", "70.5", "50.0"]


@pytest.mark.parametrize(
    "names",
    [
        [f"clinic, in {name}'s columns" for name in ("medical_o1", "medical_r1", "medreason", "verifiable")],
        [f"clinic, in {name}'s columns" for name in ("medical_o1", "medical_r1", "medreason")],
        ["pubmedqa", "medmcqa", "medqa"],
        ["FreedomIntelligence/medical-o1-reasoning-SFT", "own/file_with_a_long_name_of_its_own.jsonl", "b"],
        [f"source {n} of a name in several words" for n in range(8)],
    ],
)
def test_the_names_of_a_map_do_not_cover_each_other(names):
    figure = panels.heat_map({row: dict.fromkeys(names, 0.5) for row in names})
    figure.draw_without_rendering()
    for labels in (figure.axes[0].get_xticklabels(), figure.axes[0].get_yticklabels()):
        assert [" ".join(label.get_text().split()) for label in labels] == names
        if not labels[0].get_rotation():  # slanted ones have boxes that overlap although the letters do not
            boxes = [label.get_window_extent() for label in labels]
            assert not any(box.count_overlaps(boxes) > 1 for box in boxes)


def test_block_errors_has_one_dot_a_block_and_labels():
    (ax,) = panels.block_errors(torch.tensor([0.1, 0.2]), torch.tensor([0.01, 0.02]), 0.05).axes
    assert ax.lines[0].get_xdata().tolist() == pytest.approx([0.1, 0.2])
    assert ax.get_xlabel() and ax.get_ylabel()
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


def test_rounding_steps_places_each_loss_and_marks_the_first():
    rows = [{"name": "control", "bf16": 1.0, "grid": 1.1}, {"name": "qat", "bf16": 1.01, "grid": 1.05}]
    (ax,) = panels.rounding_steps(rows).axes
    places = [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in ax.lines[:4]]
    assert places == [(1.0, 0), (1.1, 0), (1.01, 1), (1.05, 1)]
    assert ax.lines[4].get_xdata()[0] == 1.0
    assert [label.get_text() for label in ax.get_yticklabels()] == ["control", "qat"]
