"""The figures of chapter 4: what is drawn is what was given, with labelled axes."""

import pytest
import torch

from lib.figures import gridplots
from lib.qat import grids


def test_a_row_shows_every_weight_its_rounded_value_and_the_blocks_own_levels():
    weights = torch.linspace(-1, 1, 64)
    rounded = grids.fake_quantize(weights, "q4_0")
    (ax,) = gridplots.grid_row(weights, rounded, 32).axes
    drawn = {line.get_label(): [float(y) for y in line.get_ydata()] for line in ax.lines}
    assert drawn["weight as trained"] == weights.tolist()
    assert drawn["value in the file"] == rounded.tolist()
    segments = [len(c.get_segments()) for c in ax.collections]
    assert segments == [len(set(half.tolist())) for half in (rounded[:32], rounded[32:])] + [64]


def test_block_errors_has_one_dot_a_block_and_labels():
    (ax,) = gridplots.block_errors(torch.tensor([0.1, 0.2]), torch.tensor([0.01, 0.02]), 0.05).axes
    assert ax.lines[0].get_xdata().tolist() == pytest.approx([0.1, 0.2])
    assert ax.get_xlabel() and ax.get_ylabel()
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


def test_rounding_steps_places_each_loss_and_marks_the_first():
    rows = [{"name": "control", "bf16": 1.0, "grid": 1.1}, {"name": "qat", "bf16": 1.01, "grid": 1.05}]
    (ax,) = gridplots.rounding_steps(rows).axes
    places = [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in ax.lines[:4]]
    assert places == [(1.0, 0), (1.1, 0), (1.01, 1), (1.05, 1)]
    assert ax.lines[4].get_xdata()[0] == 1.0
    assert [label.get_text() for label in ax.get_yticklabels()] == ["control", "qat"]


def test_two_grids_are_two_panels_of_the_same_weights():
    weights = torch.linspace(-1, 1, 64)
    both = {"file": grids.fake_quantize(weights, "q4_0"), "other": weights.round()}
    axes = gridplots.two_grids(weights, both, 32).axes
    assert [ax.get_title(loc="left") for ax in axes] == ["file", "other"]
    for ax, rounded in zip(axes, both.values(), strict=True):
        assert ax.lines[-1].get_ydata().tolist() == weights.tolist()
        stems = ax.collections[-1].get_segments()
        assert [float(stem[1][1]) for stem in stems] == pytest.approx(rounded.tolist())
