"""Figures of exported files: what is drawn is what was given."""

import pytest

from lib.figures import ladder


def test_a_block_shows_every_value_of_its_grid_and_tells_the_unused_ones():
    (ax,) = ladder.block_levels([0.9, -2.1], [1.0, -2.0], [-2.0, -1.0, 0.0, 1.0]).axes
    lines = [line for line in ax.lines if len(set(line.get_ydata())) == 1 and len(line.get_ydata()) == 2]
    assert {line.get_ydata()[0]: line.get_linestyle() for line in lines} == {-2: "-", -1: "--", 0: "--", 1: "-"}


def test_divergences_stand_over_file_sizes_without_the_file_itself():
    rows = [
        {"name": "bf16", "mib": 4.0, "value": 0.0, "stderr": 0.0},
        {"name": "q4_0", "mib": 1.5, "value": 0.004, "stderr": 0.003},
    ]
    (ax,) = ladder.divergence(rows).axes
    assert ax.get_yscale() == "log" and "nats" in ax.get_ylabel() and "MiB" in ax.get_xlabel()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["q4_0"]
    (bar,) = ax.containers
    low, high = bar.lines[1][0].get_ydata()[0], bar.lines[1][1].get_ydata()[0]
    assert (low, high) == (pytest.approx(0.0004), pytest.approx(0.004 + 1.96 * 0.003))
    assert bar.lines[0].get_xdata()[0] == 1.5
