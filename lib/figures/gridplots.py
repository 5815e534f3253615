"""Figures of quantization: where a grid puts the weights of a row, and which blocks pay most."""

from lib.figures.plots import INK, MUTED, _canvas, colour


def grid_row(weights, rounded, block, title="One row of weights and the values the file can hold"):
    """Weights (circles), what they become (ends of the stems), and each block's values in use (grey lines).

    weights, rounded: equally long sequences of numbers, the start of one row. block: weights that share a scale.
    """
    figure, (ax,) = _canvas(3.9, title)
    places = range(len(weights))
    for start in range(0, len(weights), block):
        levels = sorted({float(value) for value in rounded[start : start + block]})
        ax.hlines(levels, start - 0.5, min(start + block, len(weights)) - 0.5, color="#CCCCCC", linewidth=0.9)
        ax.axvline(start - 0.5, color=INK, linewidth=0.9, linestyle=":")
    ax.vlines(places, weights, rounded, color=colour("qat"), linewidth=1.6, label="rounding error")
    ax.plot(places, weights, "o", color="white", markeredgecolor=INK, markersize=4.5, label="weight as trained")
    ax.plot(places, rounded, "_", color=colour("qat"), markersize=7, markeredgewidth=1.8, label="value in the file")
    ax.set_xlabel("position in the row (weights)")
    ax.set_ylabel("value")
    ax.set_xlim(-1, len(weights))
    ax.legend(frameon=False, fontsize=10, ncols=3, loc="upper left", bbox_to_anchor=(0, 1.12))
    return figure


def two_grids(weights, grids, block, title="The same weights on two grids"):
    """The start of one row on several grids, one panel each: weights (circles) and the values in use (lines).

    grids: {name: rounded values, as many as weights}. block: weights that share a scale.
    """
    figure, axes = _canvas(2.6 * len(grids), title, panels=len(grids))
    for ax, (name, rounded) in zip(axes, grids.items(), strict=True):
        for start in range(0, len(weights), block):
            end, levels = min(start + block, len(weights)), sorted({float(v) for v in rounded[start : start + block]})
            ax.hlines(levels, start - 0.5, end - 0.5, color=MUTED, linewidth=0.9)
            ax.axvline(start - 0.5, color=INK, linewidth=0.9, linestyle=":")
        ax.vlines(range(len(weights)), weights, rounded, color=colour("qat"), linewidth=1.6)
        ax.plot(range(len(weights)), weights, "o", color="white", markeredgecolor=INK, markersize=4)
        ax.set_title(name, loc="left", fontsize=11)
        ax.set_ylabel("value")
        ax.set_xlim(-1, len(weights))
    axes[-1].set_xlabel("position in the row (weights)")
    return figure


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
