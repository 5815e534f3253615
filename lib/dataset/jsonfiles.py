"""Rows of JSON: one object a line, or a document that is a list of objects or holds one."""

import gzip
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

from lib.dataset.shapes import ROLES

BLANK = re.compile(r"\s*")
SEEN = 1 << 20  # bytes from which encoding and kind are told


def _once(pairs):
    """An object of JSON. Raises ValueError where a key stands twice: json would keep the last value alone."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice in one object")
    return found


JSON = json.JSONDecoder(object_pairs_hook=_once)


class Line(str):
    """The text of a row that could not be read; `where` says file, line and fault."""

    where = ""


def unpacked(path):
    """A file opened for bytes, unpacked where it is gzipped."""
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if packed else open(path, "rb")


def opening(path):
    """The first bytes of a file, unpacked."""
    with unpacked(path) as file:
        try:
            return file.read(SEEN)
        except (OSError, EOFError) as error:
            raise ValueError(f"{path.name} is packed by gzip and damaged ({error}): copy it again") from error


def opened(path, encoding):
    """A file opened for text, its line ends as they are; a byte that does not decode stays, and its row is counted."""
    return io.TextIOWrapper(unpacked(path), encoding, "surrogateescape" if "8" in encoding else "replace", "")


def is_lines(text: str) -> bool:
    """Whether the beginning of a file shows one object a line; a first line that is broken may be an accident."""
    lines = [line for line in text[: 1 << 18].split("\n")[:20] if line.strip()]
    if text.startswith("{"):  # a list that lost its brackets: each line is then counted, and told why
        lines = [line.rstrip().removesuffix(",") for line in lines]
    return len(lines) > 1 and (_is_object(lines[0]) or sum(map(_is_object, lines)) * 2 >= len(lines))


def _is_object(line):
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def json_lines(path: Path, encoding: str = "utf-8") -> Iterator:
    """Rows of a JSONL file; a line that is not JSON is handed on, so that it is counted; blank lines are none."""
    with opened(path, encoding) as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield JSON.decode(line)
            except (ValueError, RecursionError) as error:  # ValueError: not JSON, or a number of too many digits
                if line.strip():
                    yield broken_line(line, path, number, f"{error}"[:80] + (
                        ": JSON lines have no comma between rows" if line.rstrip().endswith("},") else ""))  # fmt: skip


def broken_line(text, path, number, why):
    """The Line of a row that could not be read."""
    line = Line(text)
    line.where = f"{path.name}, line {number}: {why}"
    return line


def json_rows(path: Path, encoding: str, part: str | None) -> Iterator:
    """Rows of a JSON document: a list of objects, objects one after another, or an object that holds such a list."""
    with opened(path, encoding) as file:
        text = file.read()
    at, found = BLANK.match(text).end(), []
    while at < len(text):
        try:
            value, at = JSON.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise _broken(text, getattr(error, "pos", at), path, getattr(error, "msg", str(error))) from None
        found.append(value)
        at = BLANK.match(text, at).end()
    if len(found) == 1:
        found = found[0] if isinstance(found[0], list) else _unwrapped(found[0], path, part)
    yield from found


def _broken(text, at, path, why):
    if not text[at:].strip():
        why = "it never ends, the file is cut"
    elif re.search(r",\s*[]}]$", text[max(0, at - 200) : at + 1]):
        why = f"a comma stands before {text[at]}"
    line, near = text.count("\n", 0, at) + 1, text[max(0, at - 30) : at + 20].strip()
    return ValueError(f"{path.name} is no valid JSON, line {line}: {why}, near {near!r}. Mend that line, or write one "
                      "object a line (JSON lines), where a broken line is counted and the others are read")  # fmt: skip


def _unwrapped(document, path, part):
    """The rows that one object holds: by column, in its only list, in the one that `part` names, by key, or itself."""
    if table := _by_column(document):
        return table
    lists = {k: v for k, v in document.items() if isinstance(v, list) and v and all(isinstance(r, dict) for r in v)}
    if part in lists:
        return lists[part]
    if any(set(map(str.lower, lists)) & set(names) for names in ROLES.values()):  # lists that are cells: one row
        return [document]
    if len(lists) == 1:
        return next(iter(lists.values()))
    if len(lists) > 1 and not any(isinstance(v, str) for v in document.values()):
        raise ValueError(f"{path.name} is an object of several lists, {', '.join(lists)}: say which in the "
                         "recipe's entry, e.g. split: " + next(iter(lists)))  # fmt: skip
    if document and all(isinstance(row, dict) for row in document.values()):
        return [{"id": key} | row for key, row in document.items()]
    return [document]


def _by_column(document):
    """Rows of a table that was written by column, as pandas' to_json does; [] for another object."""
    columns = list(document.values())
    if document.keys() == {"columns", "index", "data"} and all(isinstance(cells, list) for cells in columns):
        return [dict(zip(document["columns"], cells, strict=True)) for cells in document["data"]]  # orient="split"
    if columns and all(isinstance(cells, dict) and cells.keys() == columns[0].keys() for cells in columns):
        if all(map(str.isdecimal, document)) or not all(map(str.isdecimal, columns[0])):
            return []  # rows by key; columns hold their cells by number
        columns = [list(cells.values()) for cells in columns]
    elif not all(isinstance(cells, list) and len(cells) == len(columns[0]) for cells in columns):
        return []
    if len(columns) < 2 or all(isinstance(cell, dict) for cells in columns for cell in cells):
        return []  # lists of rows, or one row whose cells are lists of messages
    return [dict(zip(document, cells, strict=True)) for cells in zip(*columns, strict=True)]
