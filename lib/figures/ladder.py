"""Figures of exported files: a block on its grid with the unused values, and how far each file is from the original."""

import itertools

from matplotlib.path import Path
from matplotlib.transforms import Bbox

from lib.figures.plots import COLOURS, INK, MUTED, SPARE, _canvas, colour, logarithmic

MARKERS = {"": "o", "control": "s", "control-imatrix": "D", "int4": "^", "qat": "P"}  # by the way of training
AROUND = [(1, 0), (1, 0.6), (1, -0.6), (0.4, 1), (0.4, -1), (-1, 0), (-1, 0.6), (-1, -0.6), (-0.4, 1), (-0.4, -1)]


def block_levels(weights, rounded, levels, title="One block of weights on its grid"):
    """Weights (circles), what they become (ends of the stems), every value of the grid, dashed where none uses it.

    weights, rounded: equally long sequences of numbers that share a scale. levels: all values that the block can hold.
    """
    figure, (ax,) = _canvas(3.9, title)
    used = {float(value) for value in rounded}
    for level in levels:
        style = {"color": INK, "lw": 0.9} if float(level) in used else {"color": "#BBBBBB", "lw": 0.9, "ls": "--"}
        ax.axhline(float(level), **style)
    places = range(len(weights))
    ax.vlines(places, weights, rounded, color=colour("qat"), linewidth=1.6, label="rounding error")
    ax.plot(places, weights, "o", color="white", markeredgecolor=INK, markersize=4.5, label="weight as trained")
    ax.plot(places, rounded, "_", color=colour("qat"), markersize=7, markeredgewidth=1.8, label="value in the file")
    ax.set_xlabel("position in the block (weights)")
    ax.set_ylabel("value (no unit)")
    ax.legend(frameon=False, fontsize=10, ncols=3, loc="upper left", bbox_to_anchor=(0, 1.12))
    return figure


def divergence(rows, title="What each file costs: size against distance from 16 bits"):
    """File size against divergence from the same weights in 16 bits, every file a point with its 95 % interval.

    rows: [{"name", "mib", "value", "stderr"}], nats a token; a value of 0 or below cannot be drawn and is left out.
    A name is a type of file, or a way of training and a type: the colour is the type's, the marker the way's. Files of
    one type are equally large, so their points coincide: a second panel shows them one below another, on a linear axis.
    """
    rows = sorted((row for row in rows if row["value"] > 0), key=lambda row: -row["value"])
    of_type = {}
    for row in rows:
        of_type.setdefault(row["name"].rpartition(" ")[2], []).append(row)
    shades = _shades(of_type)
    several = [(kind, row) for kind, files in of_type.items() if len(files) > 1 for row in files[::-1]]
    heights = [3.2, 0.26 * len(several) + 0.1][: 2 if several else 1]
    more = {"sharex": False, "gridspec_kw": {"height_ratios": heights}}
    figure, (ax, *below) = _canvas(sum(heights) + 1.1 * len(heights), title, len(heights), **more)
    for kind, files in of_type.items():
        for row in files:
            ax.errorbar(row["mib"], row["value"], yerr=_span(row), **_drawn(row, shades[kind]))
    logarithmic(ax)
    ax.margins(0.08)
    ax.set_xlabel("file size (MiB)")
    ax.set_ylabel("divergence (nats a token;\nlower is closer)")
    for place, (kind, row) in enumerate(several):
        style = _drawn(row, shades[kind]) | {"capsize": 4, "capthick": 0.9}
        below[0].errorbar(row["value"], place, xerr=1.96 * row["stderr"], **style)
    for panel in below:
        panel.set_yticks(range(len(several)), [row["name"] for _, row in several])
        panel.set_ylim(len(several) - 0.4, -0.6)
        panel.set_xlabel("divergence (nats a token), linear")
    for panel in (ax, *below):
        panel.grid(color="#DDDDDD", linewidth=0.8)
    _name(ax, rows, of_type)
    return figure


def _shades(kinds):
    """{type: colour}: its own where no type before it has that, else one that is left, as long as there are any."""
    found = {}
    for kind in sorted(kinds, key=lambda kind: (kind not in COLOURS, kind)):
        spare = [shade for shade in (colour(kind), *SPARE, *COLOURS.values()) if shade not in found.values()]
        found[kind] = (spare or [colour(kind)])[0]
    return found


def _span(row):
    """How far a file's interval reaches down and up; one that reaches zero ends at a tenth of the value."""
    reach = 1.96 * row["stderr"]
    return [[min(reach, 0.9 * row["value"])], [reach]]


def _drawn(row, shade):
    """How one file is drawn: a hollow marker, so that what lies below it is seen."""
    marker = MARKERS.get(row["name"].rpartition(" ")[0], "p")
    edge = {"markerfacecolor": "none", "markeredgecolor": shade, "markeredgewidth": 1.7, "markersize": 9}
    return {"fmt": marker, "ecolor": INK, "elinewidth": 0.9, "label": row["name"], **edge}


def _name(ax, rows, of_type):
    """Write the name of each type beside its points: on no point, interval or other name, a line to it where far."""
    ax.figure.draw_without_rendering()  # fixes where the axes are
    scale, renderer = ax.figure.dpi / 72, ax.figure.canvas.get_renderer()
    taken, dots, texts, lines = [], [], [], []
    for row in rows:
        (down,), (up,) = _span(row)
        ends = ax.transData.transform([(row["mib"], row["value"] + by) for by in (-down, 0, up)])
        taken.append(Bbox(ends[::2]).padded(6 * scale))
        dots.append((row["name"].rpartition(" ")[2], Bbox(ends[[1, 1]]).padded(6 * scale)))
    for kind, files in of_type.items():
        row = files[len(files) // 2]
        place, text = (row["mib"], row["value"]), f"{kind}: {len(files)} files, below"
        if len(files) == 1:
            text = row["name"]
        note = ax.annotate(text, place, (0, 0), textcoords="offset points", fontsize=10)
        point, size = ax.transData.transform(place), note.get_window_extent(renderer).size
        note.remove()
        others = [dot for own, dot in dots if own != kind]  # a line to one of a type may pass its own
        for reach, (right, up) in itertools.product(range(11, 150, 6), AROUND):
            box, line = _beside(point, size, (scale * right * reach, scale * up * reach))
            crossed = any(line.intersects_bbox(other) for other in (*texts, *others))
            covers = box.count_overlaps(taken + texts) or any(other.intersects_bbox(box) for other in lines)
            if ax.bbox.contains(*box.min) and ax.bbox.contains(*box.max) and not crossed and not covers:
                break
        style = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.8, "shrinkA": 1, "shrinkB": 6}
        style |= {"relpos": (0 if right > 0 else 1, 0.5)}
        ax.annotate(
            text, place, (right * reach, up * reach), textcoords="offset points", fontsize=10, va="center",
            ha="left" if right > 0 else "right", arrowprops=style if reach > 11 else None,
        )  # fmt: skip
        texts.append(box)
        lines.append(line)


def _beside(point, size, by):
    """(box, line to the point) of a text of that size which begins, or ends, `by` so many pixels from a point."""
    x, y = point[0] + by[0], point[1] + by[1]
    left, below = x - (0 if by[0] > 0 else size[0]), y - size[1] / 2
    return Bbox.from_bounds(left, below, *size), Path([point, (x, y)])
