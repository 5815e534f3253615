"""One page over all runs: python -m lib.report.overview writes outputs/report/index.html from all stage.json.

A run is a folder in outputs/ with at least one stage.json; what that lacks is a dash in its row.
"""

import sys

import pandas as pd

from lib.pipeline import records, terminal
from lib.pipeline.files import outputs_dir, write_text
from lib.report import results
from lib.report.pages import link, render

COLUMNS = {"run": "Run", "set": "SET", "stage": "Stage", "error": "Error", "told": "Result",
           "timings.wall_s": "Wall time", "peak_memory_mib": "Peak MiB", "hardware.gpu": "GPU", "hardware.cpu": "CPU",
           "git.commit": "Code"}  # fmt: skip


def build(outputs=None):
    """Write outputs/report/index.html; returns its path. outputs: the folder of all runs, default outputs_dir().

    Raises ValueError when no run has a stage.json, and for one that cannot be read.
    """
    outputs = outputs or outputs_dir()
    told = [_record(path) for path in sorted(outputs.glob("*/[0-9][0-9]_*/stage.json"))]
    if not told:
        raise ValueError(f"{outputs} holds no run with a stage.json: make all")
    frame = pd.json_normalize(told, max_level=1).reindex(columns=COLUMNS)
    frame["timings.wall_s"] = frame["timings.wall_s"].map(results.clock, na_action="ignore")
    frame["peak_memory_mib"] = frame["peak_memory_mib"].map("{:,.0f}".format, na_action="ignore")
    frame["git.commit"] = frame["git.commit"].map(lambda commit: commit[:10], na_action="ignore")
    rows = frame.astype(object).where(frame.notna(), results.DASH).to_dict("records")
    for row in rows:
        there = (outputs / row["run"] / "report" / "index.html").exists()
        row["run"] = link(f"../{row['run']}/report/index.html" if there else None, row["run"])
    runs = frame["run"].nunique()
    values = {"run": "all runs", "title": "All runs", "here": "index.html", "columns": COLUMNS, "rows": rows}
    values["pages"] = [{"file": "index.html", "title": "All runs", "state": "fresh"}]
    values["lead"] = f"{runs} run{'s' * (runs != 1)}, {len(rows)} stages"
    return write_text(outputs / "report" / "index.html", render("overview.html.j2", **values))


def _record(path):
    """A stage.json with its run, its SET and its first result in words."""
    record = records.read(path) | {"run": path.parts[-3], "stage": path.parts[-2]}
    record["set"] = results.settings(record.pop("overrides", {}))
    for entry in record.get("metrics", {}).get("headline", [])[:1]:  # chapters put accuracies first
        record["told"] = f"{entry['label']}: {results.interval(entry, entry.get('unit', '%'))}"
    return record


if __name__ == "__main__":
    terminal.never_fail()
    try:
        print(f"report-all   {build().relative_to(outputs_dir().parent)}")
    except (ValueError, OSError) as error:
        print(f"report-all   FAILED: {error}", file=sys.stderr)
        sys.exit(1)
