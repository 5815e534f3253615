"""stage.json, and the report's record over a run: sealed when written, so that an edit or a flipped byte is seen.

The seal is the SHA-256 of a record's canonical form. A stage's record holds the hashes of what it read of the stages
above it and of what it wrote; the report's holds the seal of every stage it was made from, which chains the run. Seals
carry no key: they show damage and edits, not a forger who computes them anew.
"""

import contextlib
import json
from fnmatch import fnmatch

from lib.pipeline.files import read_json, sha256_file, sha256_json, write_json

STAGE, REPORT = "stage.json", "record.json"
KEPT = ("checkpoints", "cache", "logs")  # survive a restart of the stage: each entry in them carries its own key
RECORDS = (STAGE, "stage.pending.json")
LOCKS = (".lock", ".kernel.lock")
BESIDE = ("report", "spotcheck", ".hashes.json")  # what a run's folder holds besides its stages


def seal(record):
    """Hex SHA-256 over all that a record says, but for its own seal."""
    plain = json.loads(json.dumps(record))  # as it is read again: keys that are numbers become text
    return sha256_json({key: value for key, value in plain.items() if key != "seal"})


def write(path, record):
    """Write a record with its seal; `stage` in it names the folder it lies in."""
    return write_json(path, record | {"seal": seal(record)})


def read(path):
    """Read a sealed record. Raises ValueError, naming it, when it is damaged, was edited, or is another stage's.

    A run's folder may be copied under another name, to try another value: that makes stale what the value decides.
    """
    record, stage, stated = read_json(path), path.parent.name, None
    with contextlib.suppress(ValueError, RecursionError):  # text that is no UTF-8, nesting without end
        stated = seal(record) if isinstance(record, dict) else None
    if stated is None or record.get("seal") != stated:
        raise ValueError(f"{path} is not as it was written, its seal does not fit: run {stage} again")
    if record["stage"] != stage:
        raise ValueError(f"{path} is the record of {record['stage']}: run {stage} again")
    return record


def output_names(folder, stage):
    """Relative names of all artifacts of a stage: every file but checkpoints, caches, locks and its own records.

    What begins with a dot is none, nor are the executed notebooks of other ranks, who may still be writing them.
    """
    return [name for name in _entries(folder, stage) if name[0] != "." and not fnmatch(name, f"{stage}.rank*.ipynb")]


def _entries(folder, stage):
    """Relative names of all that a stage's folder holds but its records, its notebook and KEPT; of folders, what is
    in them.
    """
    skipped = (*RECORDS, f"{stage}.ipynb")
    tops = [top for top in folder.iterdir() if top.name not in skipped and not _kept(top)]
    paths = [p for top in tops for p in ([top] if top.is_symlink() or not top.is_dir() else [top, *top.rglob("*")])]
    return sorted(p.relative_to(folder).as_posix() for p in paths if p.is_symlink() or not p.is_dir())


def _kept(path):
    return path.name in KEPT and path.is_dir() and not path.is_symlink()


def _known(folder, record):
    """`_entries` but for locks, and for the notebooks of as many ranks as the stage had."""
    own = [f"{folder.name}.rank{rank}.ipynb" for rank in range(1, record.get("ranks", 1))]
    return [name for name in _entries(folder, folder.name) if name not in (*LOCKS, *own)]


def changed_input(folder, record):
    """Which input of a stage is no longer what its record says, as a phrase, or ""."""
    for name, sha in record["inputs"].items():
        upstream = name.partition("#")[0].partition("/")[0]
        path = folder.parent / upstream / STAGE
        if not path.exists():
            return f"{upstream} has not finished"
        above = read(path)
        found = sha256_json(above["metrics"]) if "#" in name else above["outputs"].get(name.partition("/")[2])
        if found != sha:
            return f"{name} changed"
    return ""


def verify(folder, stages):
    """Read every byte of a run again, and write nothing: (number of files read, what is wrong, a line for each).

    folder: outputs/<run>. stages: names of all that a finished run has.
    """
    known, read_again, seals = {*stages, *BESIDE}, 0, {}
    found = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    wrong = [f"{folder.name}/{name}: no stage of this run wrote it: remove it" for name in found if name not in known]
    for stage in stages:
        if not (folder / stage / STAGE).exists():
            wrong.append(f"{stage}: it has no stage.json, so it has not finished: run it again")
            continue
        try:
            record = read(folder / stage / STAGE)
            broken = changed_input(folder / stage, record)
        except ValueError as error:
            wrong.append(str(error))
            continue
        seals[stage] = record["seal"]
        executed = {f"{stage}.ipynb": record["executed"]} if "executed" in record else {}
        wrong += _differing(folder / stage, record["outputs"] | executed, _known(folder / stage, record))
        wrong += [f"{stage}: its input {broken} since it ran: run it again"] if broken else []
        read_again += len(record["outputs"] | executed)
    if seals:
        wrong += _verify_report(folder / "report", seals)
    return read_again, wrong


def _verify_report(folder, seals):
    if not (folder / REPORT).exists():
        return ["report: not made, or its record.json is gone: make report"]
    try:
        record = read(folder / REPORT)
    except ValueError as error:
        return [f"{error} (make report)"]
    old = [name for name in sorted(seals | record["stages"]) if seals.get(name) != record["stages"].get(name)]
    wrong = [f"report: made from another {name} than the one that lies there: make report" for name in old]
    found = [path.name for path in folder.iterdir() if path.name != REPORT]
    return wrong + _differing(folder, record["outputs"], found, "make report")


def _differing(folder, expected, found, remedy=None):
    """A line for every file that has other bytes than expected, is missing, or that nothing wrote."""
    remedy = remedy or f"run {folder.name} again"
    missing = [name for name in expected if not (folder / name).is_file()]
    other = [name for name in expected if name not in missing and sha256_file(folder / name) != expected[name]]
    wrong = [f"{folder.name}/{name}: it is missing: {remedy}" for name in missing]
    wrong += [f"{folder.name}/{name}: it has other bytes than were written: {remedy}" for name in other]
    unknown = sorted(set(found) - set(expected))
    return wrong + [f"{folder.name}/{name}: not written by {folder.name}: remove it" for name in unknown]
