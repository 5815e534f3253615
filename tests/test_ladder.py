"""Figures of exported files: what is drawn is what was given."""

import pytest
from matplotlib.text import Text

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
    assert [text.get_text() for text in ax.texts] == ["q4_0"]
    (bar,) = ax.containers
    ((low, high),) = [segment[:, 1] for segment in bar.lines[2][0].get_segments()]
    assert (low, high) == (pytest.approx(0.0004), pytest.approx(0.004 + 1.96 * 0.003))
    assert bar.lines[0].get_xdata()[0] == 1.5


WAYS = {"": 4.76, "control ": 4.57, "control-imatrix ": 3.95, "qat ": 4.38, "int4 ": 4.78}


def files(**values):
    made = [{"name": f"{way}q4_0", "mib": 1.434, "value": v / 1000, "stderr": 2e-4} for way, v in WAYS.items()]
    return made + [{"name": n, "mib": mib, "value": v, "stderr": v / 30} for n, (mib, v) in values.items()]


def test_files_of_one_type_share_a_colour_and_stand_one_below_another_in_a_panel_of_their_own():
    figure = ladder.divergence(files(q4_k_m=(1.474, 0.003), q8_0=(2.4, 1e-4)))
    ax, rows = figure.axes
    assert sorted(text.get_text() for text in ax.texts) == ["q4_0: 5 files, below", "q4_k_m", "q8_0"]
    points = [bar.lines[0] for bar in rows.containers]
    assert [point.get_xdata()[0] for point in points] == sorted(v / 1000 for v in WAYS.values())
    names = [label.get_text() for label in rows.get_yticklabels()]
    assert names == ["control-imatrix q4_0", "qat q4_0", "control q4_0", "q4_0", "int4 q4_0"]
    assert len({point.get_marker() for point in points}) == 5
    assert {point.get_markerfacecolor() for point in points} == {"none"}
    assert {point.get_markeredgecolor() for point in points} == {ladder.colour("q4_0")}


def test_fourteen_files_have_colours_of_their_own_and_names_that_cover_nothing():
    kinds = {
        "q2_k": (2.9, 0.41), "q3_k_s": (3.3, 0.21), "q3_k_m": (3.6, 0.13), "q3_k_l": (3.9, 0.11), "iq4_xs": (4.1, 0.05),
        "q4_k_s": (4.36, 0.041), "q4_k_m": (4.58, 0.036), "q6_k": (6.1, 0.005), "q8_0": (7.9, 9e-4),
    }  # fmt: skip
    ours = [row | {"mib": 4.34, "value": 13 * row["value"]} for row in files()]
    figure = ladder.divergence(ours + files(**kinds)[len(ours) :])
    figure.draw_without_rendering()
    ax = figure.axes[0]
    boxes = [Text.get_window_extent(text) for text in ax.texts]  # an annotation's own is with its line
    assert len(boxes) == 10 and not any(box.count_overlaps(boxes) > 1 for box in boxes)
    points = [ax.transData.transform(bar.lines[0].get_xydata()[0]) for bar in ax.containers]
    assert len(points) == 14 and not any(box.contains(*point) for box in boxes for point in points)
    assert len({bar.lines[0].get_markeredgecolor() for bar in ax.containers}) == 10
    assert len(ladder.divergence([]).axes) == 1
