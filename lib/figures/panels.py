"""Figures of several panels: lengths, shares of sources, and what rounding costs."""

import textwrap

from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from lib.figures.plots import INK, MUTED, _canvas, colour

SHOWN = 3000  # points drawn per source; more would only darken the figure
SHADES = LinearSegmentedColormap.from_list("share", ["#FFFFFF", "#9FC7E4", "#0072B2"])


def reasoning_against_answer(pairs_by_source, title="Length of the reasoning against length of the answer"):
    """One panel per source, both axes logarithmic, tokens.

    pairs_by_source: {source: [(reasoning tokens, answer tokens)]}; at most SHOWN evenly spaced rows are drawn, the
        medians are over all of them. A row without reasoning stands at 1.
    Raises ValueError when no source has a row.
    """
    sources = {name: list(pairs) for name, pairs in pairs_by_source.items() if len(pairs)}
    if not sources:
        raise ValueError("no lengths to draw: every source is empty; look at the counted reasons of 01_dataset")
    figure, axes = _canvas(1.0 + 1.5 * len(sources), title, len(sources))
    for ax, (name, pairs) in zip(axes, sources.items(), strict=True):
        shown = [(max(1, r), max(1, a)) for r, a in pairs[:: max(1, len(pairs) // SHOWN)]]
        ax.plot(*zip(*shown, strict=True), ".", color=MUTED, markersize=4, alpha=0.35, rasterized=True)
        middle = [sorted(values)[len(pairs) // 2] for values in zip(*pairs, strict=True)]
        ax.plot(*(max(1, m) for m in middle), "+", color=INK, markersize=13, markeredgewidth=2)
        note = f"{name}: {len(pairs):,} rows, medians (+) {middle[0]:,} of reasoning and {middle[1]:,} of answer"
        ax.set_title(note, loc="left", fontsize=10, color=INK)
        ax.set_xscale("log")
        ax.set_yscale("log")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            axis.set_minor_formatter(NullFormatter())
        ax.set_ylabel("answer (tokens)")
        ax.grid(color="#EEEEEE", linewidth=0.7)
    axes[-1].set_xlabel("reasoning (tokens)")
    return figure


def heat_map(shares, title="Questions of one source that another has too"):
    """A square map of percentages, rows against columns, each cell with its number; a dash on the diagonal.

    shares: {row: {column: proportion between 0 and 1}} with the same names in rows and columns.
    """
    cells = {row: {column: None if row == column else shares[row][column] for column in shares} for row in shares}
    labels = ("... that stand in this source too (%)", "questions of this source ...")
    return _percentages(cells, title, labels)


def forgetting(rows, title="What each stage taught, and what it cost elsewhere"):
    """Accuracy on every benchmark after every stage of training, as a map of percentages.

    rows: [{"after": name, benchmark: proportion between 0 and 1 or None, ...}] in order of training, the base first.
    """
    cells = {row["after"]: {name: share for name, share in row.items() if name != "after"} for row in rows}
    return _percentages(cells, title, ("accuracy on ... (%)", "after ..."))


def _percentages(cells, title, labels):
    """A map of {row: {column: proportion or None}}, shaded from 0 to 100, each cell with its number."""

    def text(share):
        return "–" if share is None else "<0.1" if 0 < share < 0.001 else f"{100 * share:.1f}"

    rows, columns = list(cells), list(next(iter(cells.values())))
    beside, left = _wrapped(rows, 24)
    below, widest = _wrapped(columns, room := (90 - left) // len(columns))
    slanted = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if widest > room else {}
    lines = max(text.count("\n") for text in beside) + 1
    height = 1.5 + max(0.45, 0.18 * lines) * len(rows)
    figure, (ax,) = _canvas(height + (0.045 * max(map(len, columns)) if slanted else 0), title)
    values = [[100 * (cells[row][column] or 0.0) for column in columns] for row in rows]
    ax.imshow(values, cmap=SHADES, vmin=0, vmax=100, aspect="auto")
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            shade = "white" if values[y][x] > 60 else INK
            ax.text(x, y, text(cells[row][column]), ha="center", va="center", fontsize=10, color=shade)
    ax.set_xticks(range(len(columns)), columns if slanted else below, **slanted)
    ax.set_yticks(range(len(rows)), beside)
    ax.set_xlabel(labels[0])
    ax.set_ylabel(labels[1])
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.tick_params(length=0)
    return figure


def _wrapped(names, letters):
    """(names in lines of so many letters where their words allow it, letters of the longest line)."""
    found = [textwrap.fill(name, letters, break_long_words=False, break_on_hyphens=False) for name in names]
    return found, max(len(line) for text in found for line in text.split("\n"))


def block_errors(largest, errors, typical, title="A block pays for its largest weight"):
    """Rounding error of every block against its largest weight, on logarithmic axes.

    largest, errors: per block, the magnitude of its largest weight and its root mean square error.
    typical: the tensor's root mean square weight, drawn as a dashed line.
    """
    figure, (ax,) = _canvas(3.4, title)
    ax.loglog(largest, errors, ".", color=MUTED, markersize=3, alpha=0.5, rasterized=True)
    ax.axvline(typical, color=INK, linestyle="--", linewidth=1.2)
    ax.annotate(
        "typical weight", (typical, 0), (4, 4), ax.get_xaxis_transform(), textcoords="offset points", fontsize=9
    )
    ax.set_xlabel("largest magnitude in the block")
    ax.set_ylabel("rounding error (root mean square)")
    ax.grid(color="#DDDDDD", linewidth=0.8)
    return figure


def rounding_steps(rows, title="What rounding costs each set of weights"):
    """One line per set of weights, from its loss before rounding (circle) to its loss on the grid (dot).

    rows: [{"name", "bf16", "grid"}], losses in nats a token; the dashed line is the first row's circle.
    """
    figure, (ax,) = _canvas(1.4 + 0.45 * len(rows), title)
    for place, row in enumerate(rows):
        drawn = {"color": colour(row["name"]), "markersize": 9, "markeredgecolor": INK}
        ax.annotate("", (row["grid"], place), (row["bf16"], place), arrowprops={"arrowstyle": "->", "color": INK})
        ax.plot(row["bf16"], place, "o", **drawn | {"color": "white"}, label=None if place else "bfloat16")
        ax.plot(row["grid"], place, "o", **drawn, label=None if place else "on the grid of the file")
    ax.axvline(rows[0]["bf16"], color=INK, linestyle="--", linewidth=1.2)
    ax.set_yticks(range(len(rows)), [row["name"] for row in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlabel("held-out loss (nats a token)")
    ax.grid(axis="x", color="#DDDDDD", linewidth=0.8)
    ax.legend(frameon=False, fontsize=10)
    return figure
