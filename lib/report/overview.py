"""One page over all runs: python -m lib.report.overview writes outputs/report/index.html from all stage.json.

A run is a folder in outputs/ with at least one stage.json. What a stage.json lacks, because an older version wrote it,
is a dash in its row; one that cannot be read is named on the page.
"""

import sys

import pandas as pd

from lib.pipeline.files import outputs_dir, read_json, write_text
from lib.report import results
from lib.report.pages import link, render

COLUMNS = {"run": "Run", "recipe": "Recipe", "stage": "Stage", "state": "State", "headline": "Result",
           "wall": "Wall time", "peak": "Peak memory", "machine": "Machine", "code": "Code"}  # fmt: skip
FIELDS = ["run", "stage", "recipe", "overrides", "error", "accepted", "metrics.headline", "timings.wall_s",
          "peak_memory_mib", "hardware.gpu", "hardware.cpu", "git.commit"]  # fmt: skip


def build(outputs=None):
    """Write outputs/report/index.html; returns its path. outputs: the folder of all runs, default outputs_dir().

    Raises ValueError when no run has a stage.json.
    """
    outputs = outputs or outputs_dir()
    records, unread = read_records(outputs)
    if not records:
        raise ValueError(f"{outputs} holds no run with a stage.json: make all")
    # These may be trees of any depth: they stay values while the sections beside them become columns.
    whole = pd.DataFrame([{key: record.pop(key, None) for key in ("overrides", "accepted")} for record in records])
    frame = pd.json_normalize(records, max_level=1).join(whole).reindex(columns=FIELDS)
    frame = frame.astype(object).where(frame.notna(), None)
    runs = frame["run"].nunique()
    rows = [_row(record, outputs) for record in frame.to_dict("records")]
    pages = [{"file": "index.html", "title": "All runs", "state": "fresh"}]
    values = {"run": "all runs", "title": "All runs", "here": "index.html", "pages": pages, "unread": unread}
    values |= {"lead": f"{runs} run{'s' * (runs != 1)}, {len(rows)} stages", "columns": COLUMNS, "rows": rows}
    return write_text(outputs / "report" / "index.html", render("overview.html.j2", **values))


def read_records(outputs):
    """(every stage.json with its run and stage, [what could not be read, in words]), both in order of names."""
    records, unread = [], []
    for path in sorted(outputs.glob("*/[0-9][0-9]_*/stage.json")):
        try:
            record = read_json(path)
            if not isinstance(record, dict):
                raise ValueError(f"{path} should hold an object, found {type(record).__name__}")
            records.append(record | {"run": path.parts[-3], "stage": path.parts[-2]})
        except (ValueError, OSError) as error:
            unread.append(str(error).replace(f"{outputs}/", ""))
    return records, unread


def _row(record, outputs):
    """The cells of one stage, as text; its run and itself are links where their pages are there."""
    name, stage, wall, peak = (record[key] for key in ("run", "stage", "timings.wall_s", "peak_memory_mib"))

    def linked(text, page):
        there = (outputs / name / "report" / page).exists()
        return link(f"../{name}/report/{page}" if there else None, text)

    overrides = record["overrides"] if isinstance(record["overrides"], dict) else {}
    entries = [e for e in record["metrics.headline"] or [] if isinstance(e, dict) and {"label", "value"} <= e.keys()]
    # Chapters put accuracies first; one result a stage keeps the table a table.
    told = [f"{e['label']}: {results.interval(e, e.get('unit', '%'))}" for e in entries[:1]]
    state = "finished" + ("; code edited since, accepted" if record["accepted"] else "")
    return {
        "run": linked(name, "index.html"),
        "recipe": " ".join([str(record["recipe"] or name.partition("+")[0]), results.settings(overrides)]).strip(),
        "stage": linked(stage, f"{stage}.html"),
        "state": f"failed: {record['error']}" if record["error"] else state,
        "headline": told[0] if told else results.DASH,
        "wall": results.DASH if wall is None else results.clock(wall),
        "peak": f"{int(peak):,} MiB" if peak else results.DASH,
        "machine": record["hardware.gpu"] or record["hardware.cpu"] or results.DASH,
        "code": str(record["git.commit"] or results.DASH)[:10],
    }


if __name__ == "__main__":
    try:
        print(f"report-all   {build().relative_to(outputs_dir().parent)}")
    except (ValueError, OSError) as error:
        print(f"report-all   FAILED: {error}", file=sys.stderr)
        sys.exit(1)
