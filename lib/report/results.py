"""What a run's stage.json files say, in words and table rows: for the report and the README."""

import calendar
import time
from dataclasses import dataclass

from lib import execute
from lib.figures.markup import interval
from lib.pipeline import records
from lib.pipeline.files import ROOT, HashCache
from lib.pipeline.overrides import options as set_of
from lib.report import chapters

BETWEEN_S = 60  # a kernel ends and another begins in less; what takes longer is a pause
WORDS = {"fresh": "finished", "stale": "out of date", "failed": "failed", "missing": "not run yet"}


@dataclass
class Result:
    """One stage of a run as far as it has come.

    state: a key of WORDS, and why, in a phrase, unless fresh. record: its stage.json, or None.
    notebook: its executed notebook with today's prose, or None; same: whether its code cells are those of the source.
    """

    stage: str
    title: str
    state: str
    why: str
    record: dict | None
    notebook: dict | None
    same: bool

    @property
    def page(self):
        """The name of its page in the report, or None."""
        return f"{self.stage}.html" if self.notebook else None


def read_run(folder, cfg=None, notebooks=None):
    """Every stage of a run, in order, as a list of Result.

    folder: outputs/<run>. cfg: its Recipe, to tell stale stages from fresh ones, or None.
    notebooks: folder of the source notebooks, default the repository's.
    """
    return [_read_stage(folder / path.stem, path, cfg) for path in _sources(notebooks)]


def _sources(notebooks):
    sources = sorted((notebooks or ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    if not sources:
        raise ValueError("notebooks/ holds no stage such as 01_dataset.ipynb: the checkout is incomplete")
    return sources


def _read_stage(folder, path, cfg):
    import nbformat

    source = nbformat.read(path, as_version=4)
    record, damaged = None, ""
    try:
        record = records.read(folder / "stage.json")
    except FileNotFoundError:
        pass
    except ValueError as error:
        damaged = str(error)
    executed, notebook, same = folder / path.name, None, True
    # A run in JupyterLab keeps no executed copy; one that lies there is an older run's.
    if executed.exists() and not (record and record.get("interactive")):
        notebook, same = chapters.merge(source, nbformat.read(executed, as_version=4))
    state, why = ("stale", damaged) if damaged else _state(folder, record, notebook, cfg)
    return Result(path.stem, chapters.title(source, path.stem), state, why, record, notebook, same)


def _state(folder, record, notebook, cfg):
    if record and not record.get("error"):
        why = _stale(folder, cfg)
        return ("stale", why) if why else ("fresh", "")
    error = (record or {}).get("error") or (chapters.error_of(notebook) if notebook else None)
    if error or notebook:
        return "failed", error or "it was interrupted"
    return "missing", "not run yet"


def _stale(folder, cfg):
    return execute.stale(folder, cfg, HashCache(folder.parent / ".hashes.json")) if cfg else ""


def options(run, cfg=None):
    """What follows a make target to reach this run: ' RECIPE=... SET="..."', or nothing for the default recipe."""
    name, overrides = (cfg.name, cfg.overrides) if cfg else (run.partition("+")[0], {})
    given = set_of(name, overrides)
    return "" if given == "RECIPE=tiny" else f" {given.removeprefix('RECIPE=tiny ')}"


def headline(results):
    """Rows of the headline table, from metrics["headline"] of each stage, all text: stage, title, page, label, value,
    interval, n. Title and page stand in the first row of a stage only."""
    rows = []
    for result in results:
        for number, entry in enumerate((result.record or {}).get("metrics", {}).get("headline", [])):
            unit, bounds = entry.get("unit", "%"), {key: entry.get(key) for key in ("value", "low", "high")}
            value = interval({"value": entry["value"]}, unit)
            rows.append({
                "stage": result.stage, "title": "" if number else result.title, "page": None if number else result.page,
                "label": entry["label"], "value": value, "n": f"{entry['n']:,}" if entry.get("n") else "",
                "interval": interval(bounds, unit).removeprefix(value).strip(" ()"),
            })  # fmt: skip
    return rows


def elapsed(records):
    """Seconds from the first of these stages to the last: those side by side count once, pauses over BETWEEN_S not.

    Where a record does not say when its stage ended, as those before 2026-11-28, they ran one after another: the sum.
    """
    if not all("ended" in record for record in records):
        return sum(record["timings"]["wall_s"] for record in records)
    total, until = 0.0, 0.0
    for began, ended in sorted(map(_span, records)):
        began = began if began > until + BETWEEN_S else until
        total, until = total + max(0.0, ended - began), max(until, ended)
    return total


def _span(record):
    ended = calendar.timegm(time.strptime(record["ended"], "%Y-%m-%dT%H:%M:%SZ"))
    return ended - record["timings"]["wall_s"], ended


def times(results):
    """Rows of the table of times, the last of them for all: title, page, state, wall, cpu, memory, parts."""
    records = [result.record for result in results if result.record]
    wall, cpu = clock(elapsed(records)), clock(sum(record["timings"]["cpu_s"] for record in records))
    peak = max((record.get("peak_memory_mib") or 0 for record in records), default=0)
    total = {"title": "Total", "wall": wall, "cpu": cpu, "memory": f"{peak:,} MiB"}
    return [*map(_time, results), total]


def _time(result):
    row = {"title": result.title, "page": result.page, "state": WORDS[result.state]}
    if not result.record:
        return row
    spent, memory = result.record["timings"], result.record.get("peak_memory_mib") or 0
    parts = {name.replace("_", " "): s for name, s in spent.items() if name not in ("wall_s", "cpu_s") and s >= 0.5}
    if result.record.get("accepted"):
        row["state"] += "; code edited since, accepted"
    row |= {"wall": clock(spent["wall_s"]), "cpu": clock(spent["cpu_s"]), "memory": f"{memory:,} MiB"}
    return row | {"parts": ", ".join(f"{name} {clock(s)}" for name, s in parts.items())}


def facts(results):
    """[(name, text)] of machine, code, software and seed; where stages differ, each text names its stages."""
    tellers = {"Machine": hardware, "Code": code, "Software": software, "Seed": lambda record: str(record["seed"])}
    rows = []
    for name, tell in tellers.items():
        told = {}
        for result in results:
            if result.record:
                told.setdefault(tell(result.record), []).append(result.stage)
        rows += [(name, text if len(told) == 1 else f"{text} ({', '.join(at)})") for text, at in told.items()]
    return rows


def hardware(record):
    """In words: Intel Xeon, 2 cores, 23.5 GiB memory, no GPU."""
    has = record["hardware"]
    return f"{has['cpu']}, {has['cores']} cores, {has['memory_gib']} GiB memory, {has['gpu'] or 'no GPU'}"


def code(record):
    """In words: commit 0123456789, and whether files differed from it."""
    commit = record["git"]["commit"]
    return (f"commit {commit[:10]}" if commit else "no commit") + (", edited" if record["git"]["dirty"] else "")


def software(record):
    """In words: python 3.11.7, torch 2.13.0, ..."""
    return ", ".join(f"{name} {version}" for name, version in record["versions"].items())


def clock(seconds):
    """Seconds as people say them: 0.4 s, 58 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
