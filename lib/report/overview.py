"""One page over all runs: python -m lib.report.overview writes outputs/report/index.html from all stage.json.

A run is a folder in outputs/ with at least one stage.json. What a stage.json lacks, because its stage has not run or an
older version wrote it, is left out of its table; one that cannot be read is named on the page.
"""

import re
import sys

from lib.figures.markup import interval
from lib.pipeline import recipe
from lib.pipeline.files import ROOT, outputs_dir, read_json, write_text
from lib.report import results
from lib.report.pages import render

LADDER = {  # rungs measured before the files of chapter 5: (name, stage, where in its metrics)
    "lookup, no model": ("02_baseline", "lookup", "accuracy"),
    "base, by likelihood": ("02_baseline", "likelihood", "accuracy"),
    "base, generated": ("02_baseline", "generated", "accuracy"),
    "sft": ("03_sft", "generated", "accuracy"),
}
WAYS = {"control": "no rounding", "int4": "torchao's grid", "qat": "the file's grid"}


def build(outputs=None):
    """Write outputs/report/index.html; returns its path. outputs: the folder of all runs, default outputs_dir().

    Raises ValueError when no run has a stage.json.
    """
    outputs = outputs or outputs_dir()
    runs, unread = read_runs(outputs)
    if not runs:
        raise ValueError(f"{outputs} holds no run with a stage.json: make all")
    gpus = recipe.parse((ROOT / "params" / "prices.yaml").read_text(encoding="utf-8"))["gpus"]
    pages = [{"file": "index.html", "title": "All runs", "state": "fresh"}]
    told = [_told(name, records, gpus) for name, records in runs.items()]
    for run in told:
        linked = (outputs / run["name"] / "report" / "index.html").exists()
        run["page"] = f"../{run['name']}/report/index.html" if linked else None
        pages.append({"file": f"#{run['name']}", "title": run["name"], "state": "fresh"})
    values = {"run": "all runs", "title": "All runs", "here": "index.html", "pages": pages, "runs": told}
    values |= {"unread": unread, "stages": sorted({stage for records in runs.values() for stage in records})}
    values["rungs"] = list(dict.fromkeys(rung["name"] for run in told for rung in run["ladder"]))
    page = render("overview.html.j2", **values)
    return write_text(outputs / "report" / "index.html", page)


def read_runs(outputs):
    """({run: {stage: its stage.json}}, [what could not be read, in words]), both in order of names."""
    runs, unread = {}, []
    for path in sorted(outputs.glob("*/[0-9][0-9]_*/stage.json")):
        try:
            record = read_json(path)
            if not isinstance(record, dict):
                raise ValueError(f"{path} should hold an object, found {type(record).__name__}")
        except (ValueError, OSError) as error:
            unread.append(str(error).replace(f"{outputs}/", ""))
            continue
        runs.setdefault(path.parts[-3], {})[path.parts[-2]] = record
    return runs, unread


def dig(value, *keys):
    """value[key][key]... or None where any step is missing or no dict."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def price(name, gpus):
    """US dollars an hour of a GPU as its driver names it ("NVIDIA A100-SXM4-80GB"), or None where none is known.

    gpus: of params/prices.yaml. All parts of an entry's name ("a100-80gb") stand in the driver's as words; a slice of a
    GPU (MIG) has no price there.
    """
    words = set(re.split(r"[^a-z0-9]+", (name or "").lower()))
    found = [gpu for key, gpu in gpus.items() if set(key.split("-")) <= words and "mig" not in words]
    return found[0]["usd_per_hour"] if len(found) == 1 else None


def _told(name, records, gpus):
    """All that the page says of one run."""
    spent = {stage: dig(record, "timings", "wall_s") for stage, record in records.items()}
    peaks = [record.get("peak_memory_mib") or 0 for record in records.values()]
    done = [stage for stage, record in records.items() if not record.get("error")]
    return {
        "name": name,
        "recipe": _one(records, lambda r: r.get("recipe")) or name.partition("+")[0],
        "overrides": _overrides(records),
        "done": ", ".join(stage[:2] for stage in done),
        "failed": ", ".join(stage[:2] for stage in records if stage not in done),
        "wall": results.clock(sum(filter(None, spent.values()))) if any(spent.values()) else None,
        "peak": f"{max(peaks):,} MiB" if max(peaks) else None,
        "cost": _cost(records, gpus),
        "machine": _one(records, lambda r: results.hardware(r) if _complete(r) else None),
        "code": _one(records, lambda r: results.code(r) if isinstance(dig(r, "git", "commit"), str) else None),
        "ladder": _ladder(records),
        "training": _training(dig(records, "03_sft", "metrics")),
        "recovery": _recovery(dig(records, "04_qat", "metrics")),
        "judges": _judges(dig(records, "06_judge", "metrics")),
        "stages": {stage: _stage(record) for stage, record in records.items()},
    }


def _one(records, tell):
    """What all records tell, or each different thing once."""
    return "; ".join(dict.fromkeys(str(told) for record in records.values() if (told := tell(record)))) or None


def _complete(record):
    return all(key in (dig(record, "hardware") or {}) for key in ("cpu", "cores", "memory_gib", "gpu"))


def _overrides(records):
    overrides = next((r["overrides"] for r in records.values() if isinstance(r.get("overrides"), dict)), {})
    return results.settings(overrides)


def _cost(records, gpus):
    """{"usd", "of"}: hours at the list price for stages on a known GPU, and what judges charged; None for neither."""
    usd, of = 0.0, []
    for stage, record in records.items():
        hourly, seconds = price(dig(record, "hardware", "gpu"), gpus), dig(record, "timings", "wall_s")
        if hourly and seconds:
            usd += hourly * seconds / 3600
            of.append(stage[:2])
    judged = [dig(seen, "usd") or 0 for seen in (dig(records, "06_judge", "metrics", "llm", "coverage") or {}).values()]
    parts = [f"GPU, stages {', '.join(of)}"] * bool(of) + ["judges"] * any(judged)
    return {"usd": f"{usd + sum(judged):,.2f}", "of": " and ".join(parts)} if parts else None


def _measured(entry, unit="%"):
    """{"value", "range", "n"} in words, and as shares of one for a bar where the unit is %; None where not measured."""
    if not isinstance(entry, dict) or not isinstance(entry.get("value"), int | float):
        return None
    shown = interval({"value": entry["value"]}, unit)
    bounds = {key: entry.get(key) for key in ("value", "low", "high")}
    words = {"value": shown, "range": interval(bounds, unit).removeprefix(shown).strip(" ()"), "n": entry.get("n")}
    has_range = unit == "%" and entry.get("low") is not None and entry.get("high") is not None
    return words | ({"bar": [min(max(bounds[key], 0.0), 1.0) for key in bounds]} if has_range else {})


def _ladder(records):
    """Rungs from base to the last file: name, accuracy, change against the unrounded file, chance of the questions."""
    chance = dig(records, "02_baseline", "metrics", "chance")
    found = [("chance", {"value": chance}, None)]
    found += [(name, dig(records, stage, "metrics", *keys), None) for name, (stage, *keys) in LADDER.items()]
    for row in dig(records, "05_export", "metrics", "ladder") or []:
        found.append((f"{row.get('name')}, served", row, row.get("change") if row.get("name") != "bf16" else None))
    rungs = [{"name": n, "accuracy": _measured(a), "change": _measured(c)} for n, a, c in found]
    return [rung for rung in rungs if rung["accuracy"]]


def _training(metrics):
    """[(what, value)] of chapter 3."""
    loss, evals = dig(metrics, "loss") or {}, dig(metrics, "loss", "eval") or []
    learn, total = dig(metrics, "trainable_parameters"), dig(metrics, "parameters")
    rows = [
        ("Parameters that learn", f"{learn:,} of {total:,}" if learn and total else None),
        ("Steps", f"{metrics['steps']:,}" if dig(metrics, "steps") else None),
        ("Training loss, first to last", _from_to(loss.get("first"), loss.get("last"))),
        ("Held-out loss, first to last", _from_to(evals[0], evals[-1]) if evals else None),
        ("Format compliance", dig(_measured(dig(metrics, "generated", "format_compliance")), "value")),
    ]
    return [(name, value) for name, value in rows if value]


def _from_to(first, last):
    return f"{first:.4g} to {last:.4g} nats" if first is not None and last is not None else None


def _recovery(metrics):
    """{"scheme", "ways"} of chapter 4: the share of the rounding loss that training won back."""
    shares = dig(metrics, "recovered_share") or {}
    ways = [(WAYS.get(way, way), _measured(share)) for way, share in shares.items()]
    ways = [(way, share) for way, share in ways if share]
    return {"scheme": dig(metrics, "target") or dig(metrics, "scheme") or "", "ways": ways} if ways else None


def _judges(metrics):
    """[{"judge", "rows": [(model, score, W, T)]}]: the reference-overlap score, then language models that judged."""
    tables = {"reference-overlap score (words compared, no language model)": dig(metrics, "overlap", "table")}
    coverage = dig(metrics, "llm", "coverage") or {}
    for judge, table in (dig(metrics, "llm", "tables") or {}).items():
        tables[f"{judge} (INCOMPLETE)" if dig(coverage, judge, "incomplete") else judge] = table
    return [
        {"judge": judge, "rows": [
            (r.get("model"), _measured(r.get("score"), "points"), _measured(r.get("W")), _measured(r.get("T")))
            for r in table]}
        for judge, table in tables.items() if table
    ]  # fmt: skip


def _stage(record):
    """What a stage took, where it ran, in words."""
    wall, peak = dig(record, "timings", "wall_s"), record.get("peak_memory_mib")
    where = dig(record, "hardware", "gpu") or dig(record, "hardware", "cpu")
    wall, peak = results.clock(wall) if wall is not None else None, f"{peak:,} MiB" if peak else None
    return {"wall": wall, "peak": peak, "where": where, "failed": bool(record.get("error"))}


if __name__ == "__main__":
    try:
        print(f"report-all   {build().relative_to(outputs_dir().parent)}")
    except (ValueError, OSError) as error:
        print(f"report-all   FAILED: {error}", file=sys.stderr)
        sys.exit(1)
