"""HTML that notebooks show beside figures: tables, transcripts, the loss mask in colour; and intervals in words.

Text gets into HTML through markupsafe, which escapes it, and into Markdown through `plain`. Nothing here carries a
script, and everything stays readable where a viewer strips style attributes, as GitHub does.
"""

import html
import itertools
import re

import pandas as pd
from IPython.display import HTML
from markupsafe import Markup, escape

IGNORE_INDEX = -100  # torch.nn.CrossEntropyLoss skips this label
WITH_LOSS = Markup('<b><ins style="background-color:#c9e8cd;color:#0a3d12">{}</ins></b>')
VERDICT = Markup("</b> \u2014 <i>{}</i><b>")
CONTEXT = Markup('<span style="color:#767676">{}</span>')


def plain(text):
    """Text, or what str makes of a value, in which Markdown, a table's cell and HTML see nothing of theirs."""
    return re.sub(r"([\\`*|\[\]])", r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def interval(metric, unit="%"):
    """A measured value in words: {"value": .842, "low": .79, "high": .883, "n": 240} is "84.2 % (79.0-88.3, n = 240)".

    unit "%" multiplies proportions by 100 and shows one decimal; any other unit shows four significant digits.
    A value of None, measured on nothing, is "not scored".
    """
    if metric["value"] is None:
        return "not scored"

    def number(value):
        return f"{100 * value:.1f}" if unit == "%" else f"{value:,.4g}"

    text = number(metric["value"]) + (f" {unit}" if unit else "")
    notes = []
    if metric.get("low") is not None and metric.get("high") is not None:
        notes.append(number(metric["low"]) + (" to " if metric["low"] < 0 else "-") + number(metric["high"]))
    if metric.get("n") is not None:
        notes.append(f"n = {metric['n']:,}")
    return f"{text} ({', '.join(notes)})" if notes else text


def p_value(p):
    """A p value in four decimals, never "0.0000"."""
    return f"{p:.4f}" if p >= 0.0001 else "< 0.0001"


def _cell(value):
    """(text, is a number) of one table cell; a measured value {"value", "low", "high", "n"} becomes its wording."""
    if value is None:
        return "\u2013", False
    if isinstance(value, bool):
        return "yes" if value else "no", False
    if isinstance(value, dict) and "value" in value:
        return interval(value, value.get("unit", "%")), True
    if isinstance(value, int):
        return f"{value:,}", True
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}", True
    text = str(value)
    return text, bool(re.fullmatch(r"[-+~<]?\s?[\d.,]+(e[-+]?\d+)?( ?[^\d\s]\S*)?", text))


def table(rows, caption=None, columns=None):
    """A plain HTML table, numbers to the right, that JupyterLab, nbconvert and GitHub all render.

    rows: dicts with the same keys; values are text, numbers, None or measured values {"value", "low", "high", "n"}.
    columns: keys in the order to show, or {key: heading}; default: the keys of the first row.
    """
    if not rows:
        raise ValueError(f"no rows for the table {caption or 'without caption'!r}: give at least one dict")
    heads = dict(columns) if isinstance(columns, dict) else {key: key for key in (columns or rows[0])}
    cells = [[_cell(row.get(key)) for key in heads] for row in rows]
    # A column is one of numbers when every cell that is not a dash holds one.
    sides = ["right" if all(n or t == "\u2013" for t, n in column) else "left" for column in zip(*cells, strict=True)]
    frame = pd.DataFrame([[text for text, _ in row] for row in cells], columns=list(heads.values()), dtype=object)
    with pd.option_context("display.max_colwidth", None):
        page = frame.to_html(index=False, border=0, formatters=[str] * len(heads))
    # pandas aligns no single column, and GitHub drops styles but keeps align.
    side = itertools.cycle(sides)
    page = re.sub("<(t[hd])>", lambda tag: '<{0} align="{1}" style="text-align:{1}">'.format(tag[1], next(side)), page)
    # GitHub drops <caption>, so the caption is a paragraph.
    above = Markup("<p><b>{}</b></p>\n").format(caption) if caption else ""
    return HTML(above + Markup(f'<div class="scroll">{page}</div>'))  # pandas has escaped each cell


def size_table(rows, caption="Size of each file against the original"):
    """Table of original MiB, quantized MiB, ratio and saved MiB. rows: [{"name", "original_mib", "quantized_mib"}]."""
    shown = []
    for row in rows:
        before, after = row["original_mib"], row["quantized_mib"]
        sizes = {"original MiB": f"{before:,.1f}", "quantized MiB": f"{after:,.1f}"}
        saved = {"ratio": f"{100 * after / before:.1f} %", "saved MiB": f"{before - after:,.1f}"}
        shown.append({"file": row["name"]} | sizes | saved)
    return table(shown, caption)


def _visible(text):
    """Escaped text in which newlines, tabs and all but single inner spaces can be seen."""
    text = re.sub(r"^ +| +$|(?<=\n) +| {2,}", lambda spaces: "\u00b7" * len(spaces[0]), text)
    return escape(text).replace("\t", "\u2192\t").replace("\n", Markup("\u21b5<br>"))


def loss_mask(input_ids, labels, tokenizer, max_tokens=400):
    """The tokens of one training row: grey where there is no loss; green, bold and underlined where there is.

    input_ids, labels: (seq_len,) as the trainer's own dataloader gives them, before the model's shift by one position.
    max_tokens: only the first so many are shown; the share in the heading counts all of them.
    """
    ids, trained = [int(i) for i in input_ids], [int(label) != IGNORE_INDEX for label in labels]
    if len(ids) != len(trained):
        raise ValueError(f"{len(ids)} input_ids but {len(trained)} labels: pass one row of the same batch")
    parts, shown = [], min(len(ids), max_tokens)
    for carries, places in itertools.groupby(range(shown), key=trained.__getitem__):
        text = _visible(tokenizer.decode([ids[place] for place in places]))
        parts.append((WITH_LOSS if carries else CONTEXT).format(text))
    more = f"<p>({len(ids) - shown:,} more tokens, {sum(trained[shown:]):,} of them with loss)</p>"
    rest = more if len(ids) > shown else ""
    share = 100 * sum(trained) / max(1, len(ids))
    head = f"{sum(trained):,} of {len(ids):,} tokens carry loss ({share:.1f} %)"
    key = WITH_LOSS.format("green, bold, underlined") + ": with loss; grey: context"
    text = f'<div style="line-height:1.6;overflow-wrap:anywhere">{"".join(parts)}</div>'
    return HTML(f"<p><b>{head}</b> ({key})</p>\n{text}{rest}")


def _quoted(head, text):
    body = escape(text.strip()).replace("\n", Markup("<br>")) or Markup("<i>(empty)</i>")
    return Markup("<p><b>{}</b></p><blockquote>{}</blockquote>").format(head, body)


def transcripts(items, opened=1):
    """One question with the answers of several models each, folded below each other, the first `opened` unfolded.

    items: [{"question", "answers": [{"name", "text", "verdict"?}], "reference"?, "title"? or "id"?}], all plain text.
    """
    pages = []
    for number, item in enumerate(items):
        parts = [_quoted("Question", item["question"])]
        if item.get("reference"):
            parts.append(_quoted("Reference", item["reference"]))
        for answer in item["answers"]:
            told = VERDICT.format(answer["verdict"]) if answer.get("verdict") is not None else ""
            parts.append(_quoted(escape(answer["name"]) + told, answer["text"]))
        title = item.get("title") or item.get("id") or " ".join(item["question"].split())[:100]
        state = Markup(" open" if number < opened else "")
        page = Markup("<details{}><summary>{}</summary>{}</details>")
        pages.append(page.format(state, title, Markup("").join(parts)))
    return HTML("\n".join(pages))
