"""The README's results: six rows of a run's headline metrics, short enough for a first page."""

import textwrap

from lib.figures.markup import interval

ROWS = 6
WANTED = ("lookup", "by likelihood", "sft accuracy", "price of rounding", "recovered", "qat")  # words of their labels


def block(records, origin):
    """Markdown of the six rows and, below them, where they come from. Lines have at most 120 characters.

    records: stage.json contents in the order of the chapters. origin: one sentence on command, machine and time.
    A recipe without one of the wanted rows (no QAT, say) gets its other headline rows instead.
    """
    lines = ["| Chapter | Measured | Value | 95 % interval | n |", "|:--|:--|--:|--:|--:|"]
    for stage, entry in rows(records):
        unit = entry.get("unit", "%")
        value = interval({"value": entry["value"]}, unit)
        bounds = interval({key: entry.get(key) for key in ("value", "low", "high")}, unit)
        number = int(stage[:2])
        link = f"[{number}](outputs/published/{stage}.ipynb)"
        label = entry["label"].replace("|", r"\|")
        bounds = bounds.removeprefix(value).strip(" ()")
        lines.append(f"| {link} | {label} | {value} | {bounds} | {entry.get('n') or ''} |")
    return "\n".join([*lines, "", *textwrap.wrap(origin, 118, break_on_hyphens=False)])


def rows(records):
    """[(stage, headline entry)], at most ROWS: the wanted ones, filled up with others, in the order of the chapters."""
    entries = [(r["stage"], entry) for r in records for entry in r.get("metrics", {}).get("headline", [])]
    picked = []
    for word in WANTED:
        found = [i for i, (_, entry) in enumerate(entries) if word in entry["label"].lower() and i not in picked]
        picked += found[:1]
    others = [i for i in range(len(entries)) if i not in picked]
    return [entries[i] for i in sorted((picked + others)[:ROWS])]
