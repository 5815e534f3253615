"""Figures of the data: how long reasoning and answers are, and how much sources share."""

from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from lib.figures.plots import INK, MUTED, _canvas

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
        ax.set_ylabel("answer")
        ax.grid(color="#EEEEEE", linewidth=0.7)
    axes[-1].set_xlabel("tokens of reasoning")
    return figure


def heat_map(shares, title="Questions of one source that another has too"):
    """A square map of percentages, rows against columns, each cell with its number; the diagonal is left empty.

    shares: {row: {column: proportion between 0 and 1}} with the same names in rows and columns.
    """
    names = list(shares)
    figure, (ax,) = _canvas(1.5 + 0.45 * len(names), title)
    values = [[100 * shares[row][column] if row != column else 0.0 for column in names] for row in names]
    ax.imshow(values, cmap=SHADES, vmin=0, vmax=100, aspect="auto")
    for y, row in enumerate(names):
        for x, column in enumerate(names):
            share = 100 * shares[row][column]
            text = "" if row == column else "0" if share == 0 else "<0.1" if share < 0.1 else f"{share:.2g}"
            ax.text(x, y, text, ha="center", va="center", fontsize=10, color="white" if share > 60 else INK)
    ax.set_xticks(
        range(len(names)), names, rotation=30 if len(names) > 4 else 0, ha="right" if len(names) > 4 else "center"
    )
    ax.set_yticks(range(len(names)), names)
    ax.set_xlabel("... that stand in this source too (%)")
    ax.set_ylabel("questions of this source ...")
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.tick_params(length=0)
    return figure


def forgetting(rows, title="What each stage taught, and what it cost elsewhere"):
    """Accuracy on every benchmark after every stage of training, as a map of percentages.

    rows: [{"after": name, benchmark: proportion between 0 and 1 or None, ...}] in order of training, the base first.
    """
    names = [name for name in rows[0] if name != "after"]
    figure, (ax,) = _canvas(1.5 + 0.45 * len(rows), title)
    values = [[100 * (row[name] or 0.0) for name in names] for row in rows]
    ax.imshow(values, cmap=SHADES, vmin=0, vmax=100, aspect="auto")
    for y, row in enumerate(rows):
        for x, name in enumerate(names):
            text = "–" if row[name] is None else f"{100 * row[name]:.1f}"
            ax.text(x, y, text, ha="center", va="center", fontsize=10, color="white" if values[y][x] > 60 else INK)
    ax.set_xticks(range(len(names)), names)
    ax.set_yticks(range(len(rows)), [row["after"] for row in rows])
    ax.set_xlabel("accuracy on ... (%)")
    ax.set_ylabel("after ...")
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.tick_params(length=0)
    return figure
