"""Figures and HTML pieces: what they draw and say, checked on rows small enough to read."""

import base64
import re

import pytest

from lib.figures import plots

ROWS = [
    {"name": "base", "value": 0.25, "low": 0.2, "high": 0.31, "n": 240, "group": "likelihood"},
    {"name": "sft", "value": 0.842, "low": 0.79, "high": 0.883, "n": 240, "group": "likelihood"},
    {"name": "sft, generated", "value": 0.8, "low": 0.745, "high": 0.846, "n": 240, "group": "generation"},
]


class Letters:
    """A tokenizer of one letter a token."""

    def decode(self, ids):
        return "".join(map(chr, ids))


def words(figure):
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def drawn(figure):
    """The figure's notebook bundle, checked to be a PNG of twice the announced size."""
    data, metadata = figure._repr_mimebundle_()
    png = base64.b64decode(data["image/png"])
    assert png.startswith(b"\x89PNG")
    width, height = int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
    assert width == pytest.approx(2 * metadata["image/png"]["width"], abs=2)
    assert height == pytest.approx(2 * metadata["image/png"]["height"], abs=2)
    return metadata["image/png"]["alt"]


def test_interval_in_words():
    assert plots.interval({"value": 0.842, "low": 0.79, "high": 0.883, "n": 240}) == "84.2 % (79.0-88.3, n = 240)"
    assert plots.interval({"value": -0.01, "low": -0.03, "high": 0.012}) == "-1.0 % (-3.0 to 1.2)"
    assert plots.interval({"value": 2.34567}, unit="nats") == "2.346 nats"
    assert plots.interval({"value": 1.0, "n": 12000}) == "100.0 % (n = 12,000)"


def test_a_model_has_one_colour():
    assert plots.colour("sft") == plots.colour("SFT, likelihood") == plots.colour("merged")
    assert plots.colour("q4_k_m") == plots.colour("Q4-K-M")
    assert plots.colour("qat q4_0") == plots.colour("qat") != plots.colour("q4_0")
    names = ("base", "sft", "qat", "control", "ptq", "bf16", "q4_0", "q4_k_m", "q5_k_m", "q8_0")
    assert len({plots.colour(name) for name in names}) == len(names)
    assert plots.colour("gpt-oss-20b") == plots.colour("gpt-oss-20b")


def test_accuracy_bars_are_in_per_cent_with_chance():
    figure = plots.accuracy_bars(ROWS, chance=0.25)
    ax = figure.axes[0]
    assert [round(bar.get_width(), 6) for bar in ax.patches] == [25.0, 84.2, 80.0]
    assert ax.get_xlim() == (0, 100) and ax.get_xlabel() == "correct answers (%)"
    assert [label.get_text() for label in ax.get_yticklabels()] == ["base", "sft", "sft, generated"]
    assert {"84.2 % (79.0-88.3, n = 240)", "likelihood", "generation", "chance"} <= set(words(figure))
    assert drawn(figure) == "Accuracy on the held-out questions"


def test_bars_need_rows():
    with pytest.raises(ValueError, match="no rows"):
        plots.accuracy_bars([])


def test_score_bars_in_shares_and_in_points():
    assert plots.score_bars(ROWS, chance=0.5).axes[0].get_xlim() == (0, 100)
    figure = plots.score_bars(
        [{"name": "sft", "value": 8.32, "low": 8, "high": 8.6, "n": 50}], unit="", label="mean score (0-10)"
    )
    assert figure.axes[0].patches[0].get_width() == 8.32
    assert "8.32 (8-8.6, n = 50)" in words(figure)


def test_sizes():
    table = plots.size_table([{"name": "q4_k_m", "original_mib": 39909, "quantized_mib": 15061}]).data
    assert all(text in table for text in ("39,909.0", "15,061.0", "37.7 %", "24,848.0"))


def test_length_histogram_counts_what_is_cut():
    figure = plots.length_histogram({"a": [10, 20, 30, 300], "b": [5, 6], "none": []}, cutoff=256)
    assert len(figure.axes) == 2
    texts = " ".join(words(figure))
    assert "a: 4 rows, median 30, longest 300, 25.0 % beyond the cut-off of 256" in texts
    assert sum(bar.get_height() for bar in figure.axes[0].patches) == 4
    drawn(figure)
    with pytest.raises(ValueError, match="every source is empty"):
        plots.length_histogram({"a": []}, 256)


def test_loss_curve_has_training_and_evaluation():
    log = [{"step": i, "loss": 2 / i} for i in range(1, 11)] + [
        {"step": 10, "eval_loss": 0.3},
        {"step": 10, "train_runtime": 9.0},
    ]
    lines = plots.loss_curve(log).axes[0].lines
    assert list(lines[0].get_ydata()) == [2 / i for i in range(1, 11)]
    assert list(lines[1].get_xdata()) == [10] and list(lines[1].get_ydata()) == [0.3]
    both = plots.loss_curve({"qat": log, "control": log}, title="Two runs")
    assert [line.get_color() for line in both.axes[0].lines[::2]] == [plots.colour("qat"), plots.colour("control")]
    assert drawn(both) == "Two runs"
    assert len(both.axes) == 1
    with pytest.raises(ValueError, match="logging_steps"):
        plots.loss_curve([{"step": 1, "eval_loss": 1.0}])


def test_circles_that_coincide_are_told_apart_by_the_legend_outside_the_axes():
    last = {"control": 0.08942, "int4": 0.0899, "qat": 0.0898}
    log = [{"step": 120, "loss": 0.1}, {"step": 120, "eval_loss": 0.09}, {"step": 240, "loss": 0.1}]
    figure = plots.loss_curve({run: [*log, {"step": 240, "eval_loss": loss}] for run, loss in last.items()})
    (ax,) = figure.axes
    said = [text.get_text() for text in ax.get_legend().get_texts()]
    assert said[:3] == ["control: training", "int4: training", "qat: training"]
    assert said[3:] == [
        "control: evaluation, 0.08942 at step 240",
        "int4: evaluation, 0.08990 at step 240",
        "qat: evaluation, 0.08980 at step 240",
    ]
    rings = ax.lines[1::2]
    assert len({ring.get_markersize() for ring in rings}) == 3
    assert {ring.get_markerfacecolor() for ring in rings} == {"none"}
    figure.draw_without_rendering()
    assert ax.get_legend().get_window_extent().y0 >= ax.bbox.y1
    assert ax.get_legend().get_window_extent().x1 <= figure.bbox.x1


def test_losses_of_different_kinds_have_a_panel_each():
    log = [{"step": i, "loss": 2 / i} for i in range(1, 11)]
    labels = {"longer": "nats a token", "dpo": "nats a pair", "longer-43": "nats a token"}
    figure = plots.loss_curve(dict.fromkeys(labels, log), label=labels)
    assert [ax.get_ylabel() for ax in figure.axes] == ["nats a token", "nats a pair"]
    said = [[text.get_text() for text in ax.get_legend().get_texts()] for ax in figure.axes]
    assert said == [["longer: training", "longer-43: training"], ["dpo: training"]]


def test_a_long_loss_curve_is_smoothed_by_a_running_mean():
    log = [{"step": i, "loss": float(i % 2)} for i in range(60)]
    faint, line = plots.loss_curve(log).axes[0].lines
    assert list(faint.get_ydata())[:3] == [0, 1, 0]
    assert list(line.get_ydata())[:3] == [0, 0.5, 0.5]


def test_loss_mask_marks_the_trained_tokens_without_styles_too():
    text = "ask <b>?\n  ok<end>"
    labels = [-100] * 9 + [ord(c) for c in text[9:]]
    page = plots.loss_mask([ord(c) for c in text], labels, Letters()).data
    bare = re.sub(r' style="[^"]*"', "", page)
    assert "<span>ask &lt;b&gt;?↵<br></span>" in bare
    assert "<b><ins>··ok&lt;end&gt;</ins></b>" in bare
    assert "9 of 18 tokens carry loss (50.0 %)" in bare


def test_loss_mask_is_cut_and_says_so():
    page = plots.loss_mask([97] * 10, [-100] * 4 + [97] * 6, Letters(), max_tokens=5).data
    assert "6 of 10 tokens carry loss (60.0 %)" in page
    assert "(5 more tokens, 5 of them with loss)" in page
    with pytest.raises(ValueError, match="3 input_ids but 2 labels"):
        plots.loss_mask([1, 2, 3], [1, 2], Letters())


def test_table_aligns_numbers_and_escapes_text():
    rows = [
        {"model": "sft <x>", "accuracy": ROWS[1], "loss": 0.31234, "tokens": 12000, "kept": True, "ratio": "37.7 %"},
        {"model": "base", "accuracy": None, "loss": None, "tokens": 7, "kept": False, "ratio": "100.0 %"},
    ]
    page = re.sub(r' style="[^"]*"|\n *', "", plots.table(rows, "Two models").data)
    assert "<p><b>Two models</b></p>" in page and "<style" not in page
    assert '<th align="left">model</th><th align="right">accuracy</th>' in page
    measured = '<td align="right">84.2 % (79.0-88.3, n = 240)</td><td align="right">0.3123</td>'
    assert f'<td align="left">sft &lt;x&gt;</td>{measured}' in page
    assert '<td align="right">12,000</td><td align="left">yes</td><td align="right">37.7 %</td>' in page
    assert page.count("–") == 2
    assert "word " * 99 + "end" in plots.table([{"long": "word " * 99 + "end"}]).data
    headed = plots.table(rows, columns={"tokens": "tokens seen", "model": "model"}).data
    assert headed.index("tokens seen") < headed.index("model") and "accuracy" not in headed
    with pytest.raises(ValueError, match="no rows"):
        plots.table([])


def test_transcripts_are_escaped_and_folded():
    item = {
        "question": "Which of <these>?\nA. x",
        "reference": "x",
        "answers": [
            {"name": "sft", "text": "<think>\nwhy\n</think>\nA", "verdict": "correct"},
            {"name": "base", "text": ""},
        ],
    }
    page = plots.transcripts([item, {**item, "title": "second"}]).data
    assert page.count("<details open>") == 1 and page.count("<details>") == 1
    assert "<summary>Which of &lt;these&gt;? A. x</summary>" in page and "<summary>second</summary>" in page
    assert "&lt;think&gt;<br>why<br>&lt;/think&gt;<br>A" in page
    assert "<b>sft</b> — <i>correct</i>" in page and "<i>(empty)</i>" in page
