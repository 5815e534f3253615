"""Figures of exported files: a block on its grid with the unused values, and how far each file is from the original."""

from lib.figures.plots import INK, _canvas, colour, logarithmic


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
    """
    rows = [row for row in rows if row["value"] > 0]
    figure, (ax,) = _canvas(4.6, title)
    for row in sorted(rows, key=lambda row: row["name"]):
        reach = 1.96 * row["stderr"]
        low = min(reach, 0.9 * row["value"])  # an interval that reaches zero ends at a tenth of the value
        drawn = {"color": colour(row["name"]), "markeredgecolor": INK, "ecolor": INK, "label": row["name"]}
        ax.errorbar(row["mib"], row["value"], yerr=[[low], [reach]], fmt="o", markersize=8, capsize=4, **drawn)
    logarithmic(ax)
    ax.set_xlabel("file size (MiB)")
    ax.set_ylabel("divergence (nats a token; lower is closer)")
    ax.grid(color="#DDDDDD", linewidth=0.8)
    ax.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    return figure
