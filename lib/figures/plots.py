"""Every figure, table and transcript of the report, in one style.

Figures are matplotlib figures that show themselves once, as a PNG at twice the screen's resolution, in JupyterLab,
Colab, papermill and nbconvert alike. Tables, transcripts and the loss mask are lib.figures.markup's, offered here too.
"""

import io
import itertools
import re
import zlib
from base64 import b64encode

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator

from lib.figures.markup import interval, loss_mask, p_value, plain, size_table, table, transcripts

WIDTH, DPI = 8.2, 108  # inches, pixels per inch: about 890 px, the width of a notebook on a laptop
INK, MUTED = "#222222", "#5B7083"
# Okabe and Ito's colours, and some of Paul Tol's. In grey print, bars are told by their names, lines by their dashes.
COLOURS = {
    "base": "#999999", "lookup": "#DDCC77", "sft": "#0072B2", "merged": "#0072B2",
    "qat": "#D55E00", "control": "#E69F00", "ptq": "#CC79A7", "bf16": "#333333", "f16": "#333333",
    "q4_0": "#56B4E9", "q4_k_m": "#009E73", "q5_k_m": "#F0E442", "q8_0": "#882255",
}  # fmt: skip
SPARE = ("#44AA99", "#332288", "#AA4499", "#999933", "#117733", "#661100")
DASHES = ("-", "--", "-.", ":")
FIGURES = ["accuracy_bars", "length_histogram", "loss_curve", "score_bars", "colour"]
__all__ = [*FIGURES, "interval", "loss_mask", "p_value", "plain", "size_table", "table", "transcripts"]


class Plot(Figure):
    """A figure drawn without pyplot: the notebook shows it when it is a cell's value, and only then."""

    def _repr_mimebundle_(self, include=None, exclude=None):
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=2 * DPI)
        width, height = (round(inches * DPI) for inches in self.get_size_inches())
        shown = {"width": width, "height": height, "alt": self.get_suptitle()}
        data = {"image/png": b64encode(buffer.getvalue()).decode("ascii"), "text/plain": f"<figure: {shown['alt']}>"}
        return data, {"image/png": shown}


def colour(name):
    """The fixed colour of a model, by the first known word of its name ("sft, likelihood" has sft's colour)."""
    words = re.findall(r"[a-z0-9_]+", name.lower().replace("-", "_"))
    known = (COLOURS[word] for word in words if word in COLOURS)
    return next(known, SPARE[zlib.crc32(name.encode()) % len(SPARE)])


def _canvas(height, title, panels=1, **grid):
    """(figure, list of axes) of our width and `height` inches, `panels` below each other with a common x axis.

    grid: further fields of Figure.subplots.
    """
    figure = Plot(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11.5, fontweight="bold", color=INK)
    axes = figure.subplots(panels, 1, **{"sharex": True, "squeeze": False} | grid)[:, 0]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=10, color=MUTED)
        ax.set_axisbelow(True)
    return figure, list(axes)


def _bars(rows, title, label, mark=None):
    """Horizontal bars with whiskers where rows have low and high, and their text to the right of the frame.

    rows: [{"name", "value", "text", "low"?, "high"?, "group"?}]; rows of one group stand together under its name.
    mark: (value, name) of a dashed vertical line, such as chance.
    """
    if not rows:
        raise ValueError(f"no rows to draw for {title!r}: give at least one {{'name', 'value'}}")
    places, heads, y = [], [], 0.0
    for group, members in itertools.groupby(rows, key=lambda row: row.get("group")):
        if group is not None:
            heads.append((y + 0.1, group))
            y += 0.85
        for _ in members:
            places.append(y)
            y += 1.0
    figure, (ax,) = _canvas(1.15 + 0.36 * y, title)
    for place, row in zip(places, rows, strict=True):
        ax.barh(place, row["value"], height=0.68, color=colour(row["name"]), edgecolor=INK, linewidth=0.6)
        if row.get("low") is not None and row.get("high") is not None:
            reach = [[max(0.0, row["value"] - row["low"])], [max(0.0, row["high"] - row["value"])]]
            ax.errorbar(row["value"], place, xerr=reach, color="white", capsize=5, lw=3.4, capthick=3.4)
            ax.errorbar(row["value"], place, xerr=reach, color=INK, capsize=4, lw=1.4, capthick=1.4)
        ax.text(1.02, place, row["text"], transform=ax.get_yaxis_transform(), va="center", fontsize=10, color=INK)
    for place, group in heads:
        ax.text(0.0, place, group, transform=ax.get_yaxis_transform(), va="center", fontsize=10, style="italic")
    if mark is not None:
        ax.axvline(mark[0], color=INK, linestyle="--", linewidth=1.2)
        ax.annotate(mark[1], (mark[0], 0), (4, 4), ax.get_xaxis_transform(), textcoords="offset points", fontsize=9)
    ax.set_yticks(places, [row["name"] for row in rows])
    ax.set_ylim(y - 0.4 + (0.55 if mark else 0), -0.6)
    ax.set_xlabel(label)
    ax.grid(axis="x", color="#DDDDDD", linewidth=0.8)
    return figure


def score_bars(rows, chance=None, title="Judged answers", label="mean pairwise win share (%)", unit="%"):
    """Scores as bars with their 95 % intervals, one per candidate; unit "%" draws proportions as per cent.

    rows: [{"name", "value", "low", "high", "n", "group"?}]. chance: the value that a coin would give, in the rows' own
        scale (0.5 for win shares, 1/M for first places), drawn as a dashed line.
    """
    scale = 100 if unit == "%" else 1
    drawn = [row | {"text": interval(row, unit)} for row in rows]
    for row in drawn:
        row |= {key: scale * row[key] for key in ("value", "low", "high") if row.get(key) is not None}
    figure = _bars(drawn, title, label, None if chance is None else (scale * chance, "chance"))
    if unit == "%":
        figure.axes[0].set_xlim(0, 100)
    return figure


def accuracy_bars(rows, chance=None, title="Accuracy on the held-out questions", label="correct answers (%)"):
    """Proportions between 0 and 1 as bars; rows and chance as in score_bars."""
    return score_bars(rows, chance, title, label)


def length_histogram(lengths_by_source, cutoff, title="Length of the training rows", label="tokens per row"):
    """One histogram per source on a common axis, with the cut-off beyond which a row loses its end.

    lengths_by_source: {source: [tokens per row]}; cutoff: tokens, or None where nothing is cut.
    """
    sources = {name: list(lengths) for name, lengths in lengths_by_source.items() if len(lengths)}
    if not sources:
        raise ValueError("no lengths to draw: every source is empty; look at the counted reasons of 01_dataset")
    top = max(max(lengths) for lengths in sources.values())
    right = 1.03 * max(top, cutoff if cutoff and cutoff < 3 * top else 0)
    edges = [right * i / 48 for i in range(49)]
    figure, axes = _canvas(0.9 + 1.15 * len(sources), title, len(sources))
    for ax, (name, lengths) in zip(axes, sources.items(), strict=True):
        ax.hist(lengths, bins=edges, color=MUTED, edgecolor="white", linewidth=0.5)
        note = f"{name}: {len(lengths):,} rows, median {sorted(lengths)[len(lengths) // 2]:,}, longest {max(lengths):,}"
        if cutoff is not None:
            ax.axvline(cutoff, color=INK, linestyle="--", linewidth=1.4)
            beyond = 100 * sum(length > cutoff for length in lengths) / len(lengths)
            note += f", {beyond:.1f} % beyond the cut-off of {cutoff:,}"
        ax.set_title(note, loc="left", fontsize=10, color=INK)
        ax.set_ylabel("rows")
        ax.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes[-1].set_xlabel(label)
    axes[-1].set_xlim(0, right)
    return figure


class Numbers(LogFormatter):
    """Labels of a logarithmic axis as plain numbers: 3, and not 3 x 10^0."""

    def __call__(self, x, pos=None):
        return f"{x:g}" if super().__call__(x, pos) else ""


def logarithmic(ax):
    """Make the y axis of a plot logarithmic."""
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(Numbers())
    ax.yaxis.set_minor_formatter(Numbers(labelOnlyBase=False, minor_thresholds=(1, 0.4)))


def loss_curve(log_history, title="Training and evaluation loss", name="sft", label="loss (nats per trained token)"):
    """Training loss (line) and evaluation loss (circles) over optimizer steps.

    log_history: trainer.state.log_history, or {name: log_history} to compare runs, each in its model's colour.
        From 60 logged values on, the line is a running mean and the values themselves stand faintly behind it.
    label: of the y axis, or {name: label}: runs that are measured in different things get a panel each.
    The axis is logarithmic, unless a loss of zero (a distance, say) has no place on one. The legend has the number of
    each run's last evaluation, because circles that differ may still coincide.
    """
    histories = log_history if isinstance(log_history, dict) else {name: log_history}
    logs = {run: pd.DataFrame(log, columns=["step", "loss", "eval_loss"]) for run, log in histories.items()}
    if not any(log["loss"].count() for log in logs.values()):
        raise ValueError("the log has no training loss: set logging_steps in the recipe below the number of steps")
    panels, dashes = {}, dict(zip(logs, itertools.cycle(DASHES), strict=False))
    for run in logs:
        panels.setdefault(label[run] if isinstance(label, dict) else label, []).append(run)
    figure, axes = _canvas(1.4 + 2.1 * len(panels) + 0.2 * len(logs), title, len(panels))
    for ax, (said, runs) in zip(axes, panels.items(), strict=True):
        drawn = [
            (_training(ax, run, logs[run], dashes[run]), _evaluation(ax, run, logs[run], 6 + 3.5 * (n % 3)))
            for n, run in enumerate(runs)
        ]
        if min((min(line.get_ydata()) for line in ax.lines if len(line.get_ydata())), default=0) > 0:
            logarithmic(ax)
        ax.set_ylabel(said)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(color="#DDDDDD", linewidth=0.8)
        above = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2, "ncols": 2}
        handles = [line for kind in zip(*drawn, strict=True) for line in kind if line]  # all lines, then all circles
        ax.legend(handles=handles, frameon=False, fontsize=9.5, **above)
    axes[-1].set_xlabel("optimizer step")
    return figure


def _training(ax, run, log, dashes):
    """The line of a run's training loss."""
    trained, window = log.dropna(subset="loss"), 1
    style = {"color": colour(run), "linewidth": 1.8, "label": f"{run}: training"}
    if len(trained) >= 60:
        ax.plot(trained["step"], trained["loss"], color=colour(run), linewidth=0.8, alpha=0.35)
        window = len(trained) // 30
        style["label"] += f", mean of {window} values"
    smooth = trained["loss"].rolling(window, min_periods=1).mean()
    return ax.plot(trained["step"], smooth, dashes, marker="." if len(trained) < 30 else None, **style)[0]


def _evaluation(ax, run, log, size):
    """The circles of a run's evaluation loss, or None; of another size for each run, so that none hides another."""
    held_out = log.dropna(subset="eval_loss")
    if not len(held_out):
        return None
    last = held_out.iloc[-1]
    said = f"{run}: evaluation, {last['eval_loss']:#.4g} at step {last['step']:.0f}"
    style = {"color": colour(run), "markerfacecolor": "none", "markersize": size, "markeredgewidth": 1.8}
    return ax.plot(held_out["step"], held_out["eval_loss"], "o", **style, label=said)[0]
