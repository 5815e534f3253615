"""Rows of what a recipe trains on: counted where they lie on this machine, before anything runs, else assumed.

Which number is which is printed with the plan; the assumed ones stand in params/prices.yaml.
"""

import glob
import itertools
import math
import os
import time

from lib.dataset import entries, folders, jsonfiles, readers, sources
from lib.pipeline.files import ROOT
from lib.plan import budget, memory

SECONDS = 5  # for which the rows of a table are read; how many are behind them is told by its bytes
SAMPLE = 1000  # rows whose bytes are counted for that
WHOLE = 1 << 30  # bytes of a JSON document, which is read at once, above which it is not


def counted(sections):
    """The sections with "rows" in each entry that could be counted, and in each, as "told", where its number is from.

    Entries of data.sources and preference.data. Whatever is wrong with a file, it is told, and the plan goes on.
    """
    data, chosen = sections["data"], sections["preference"]
    seen = [_told(spec, _rows(spec, data["origin"], sections["run"]["seed"])) for spec in data["sources"]]
    found = sections | {"data": data | {"sources": seen}}
    if chosen:
        pairs = [spec if spec["name"] == "clinic" else _told(spec, _pairs(spec)) for spec in chosen["data"]]
        found["preference"] = chosen | {"data": pairs}
    return found


def _rows(spec, origin, seed):
    """What reads an entry of data.sources, as `_told` takes it; None for a data set of the hub."""
    if spec.get("path"):
        return lambda local: readers.copied_rows(sources.lookup(spec["name"]), spec, local)
    return None if origin == "hub" else lambda local: readers.rows(spec, origin, local, seed)


def _pairs(spec):
    """The same of an entry of preference.data."""
    from lib.preference import converters

    usual = converters.USUAL.get(spec["name"], {}) | {key: value for key, value in spec.items() if value is not None}
    source = converters.SOURCES[spec["name"]]
    return (lambda local: readers.copied_rows(source, usual, local)) if spec.get("path") else None


def _told(spec, read):
    """The entry with its "rows" and what is "told" of them. read: local -> its rows, as readers.rows has them."""
    if not read:
        return spec | {"told": "assumed, as published"}
    count, is_all, wrong = 0, True, ""
    if spec.get("path") and missing(spec["path"]):
        wrong = "is missing: put the file there, or mend its path in the recipe"
    else:
        try:
            count, is_all = _count(spec, read)
            wrong = "" if count else "holds no rows: mend it, or its entry in the recipe"
        except Exception as error:  # a file may be broken in any way
            wrong = f"cannot be counted: {' '.join(str(error).split())}"
    if wrong:
        return spec | {"told": "assumed", "wrong": f"{spec.get('path') or spec['name']} {wrong}"}
    return spec | {"rows": count, "told": "counted" if is_all else "estimated from its first rows"}


def missing(path):
    """Whether there is no file, no folder and no match of a pattern where a path of the recipe leads."""
    place = folders.place(path)
    return not place.exists() and not glob.glob(str(place), recursive=True)


def _count(spec, read):
    """(rows of an entry, whether all were counted)."""
    files = []

    def local(name):
        files.append(ROOT / name)
        return files[-1]

    found = read(local)  # refuses what is no data
    sizes = [] if isinstance(found, list) else [_by_bytes(file) for file in files]
    if sizes and None not in sizes:
        return budget.taken(spec, sum(sizes)), True
    is_text = all(map(folders.readable, files))  # and no folder that `datasets` reads: those are packed, and quick
    rows, end = iter(found), time.monotonic() + SECONDS if is_text else math.inf
    first = list(itertools.islice(rows, SAMPLE))
    count = len(first)
    for _ in rows:
        count += 1
        if time.monotonic() > end:
            whole = sum(map(_bytes, files)) * SAMPLE // sum(map(_text_bytes, first))
            return max(count, budget.taken(spec, whole)), False
    return count, True


def _by_bytes(file):
    """Rows of a Parquet file or of JSON lines, without reading them; None of other files, which the reader counts."""
    head = jsonfiles.opening(file)
    if head.startswith(b"PAR1"):
        from pyarrow import parquet

        return parquet.ParquetFile(file).metadata.num_rows
    text = head.decode("utf-8-sig", "replace").lstrip()
    if jsonfiles.is_lines(text):
        with jsonfiles.unpacked(file) as lines:
            return sum(1 for line in lines if line.strip())
    if text[:1] in ("[", "{") and _bytes(file) > WHOLE:
        raise ValueError(f"{file.name} is one JSON document of more than 1 GiB. JSON lines are counted at any size")
    return None


def _bytes(file):
    """Bytes of a file, unpacked."""
    with jsonfiles.unpacked(file) as content:
        return content.seek(0, os.SEEK_END)


def _text_bytes(row):
    """About the bytes of a row in a table: its cells, and a mark behind each."""
    cells = row.values() if isinstance(row, dict) else [row]
    return sum(len(str(cell).encode(errors="replace")) + 1 for cell in cells)


def _entries(sections):
    """(name, entry) of all that chapters 3 and 7 train on, the clinic's pairs apart, whose number the recipe says."""
    yield from ((name, spec) for name, (role, spec) in entries.labelled(sections["data"]).items() if role == "train")
    for spec in (sections["preference"] or {"data": []})["data"]:
        if spec["name"] != "clinic":
            yield f"chapter 7, {spec.get('label') or spec['name']}", spec


def lines(sections, assumed):
    """The plan's lines on rows: how many of each entry, and whether they were counted. sections: of `counted`."""
    row = min(assumed["lengths"]["row"], memory.settings(sections)["max_length"])
    yield f"Rows of the sources, before any is left out or taken for the test; {row} tokens each, assumed"
    for name, spec in _entries(sections):
        place = spec.get("path") or spec.get("from")
        yield f"  {name}: {budget.counted(spec, assumed):,}, {spec['told']}" + (f" ({place})" if place else "")


def warnings(sections, assumed):
    """A line for each file that was not counted, and for each test file that is missing, with what to do."""
    for _, spec in _entries(sections):
        if "wrong" in spec:
            yield f"{spec['wrong']}. {budget.counted(spec, assumed):,} rows are assumed"
    for role, spec in entries.labelled(sections["data"]).values():
        if role != "train" and spec.get("path") and missing(spec["path"]):
            yield f"{spec['path']} is missing: put the file there, or mend its path in data.{entries.ROLES[role]}"
