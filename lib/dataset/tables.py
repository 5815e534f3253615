"""Rows of files on a disk, by what is in them and not by what they are called: JSON lines, JSON, CSV, Parquet, gzipped.

A line that cannot be read is handed on as a Line, so that it is counted and not fatal; a file that cannot be read stops
the stage with its name, the line and what to do.
"""

import csv
import glob
import itertools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from lib.dataset import jsonfiles
from lib.dataset.jsonfiles import broken_line, opened, unpacked
from lib.pipeline.files import ROOT

BATCH = 1000  # rows decoded at once
SEEN = 1 << 20  # bytes from which encoding and kind are told
SUFFIXES = ("jsonl", "ndjson", "json", "csv", "tsv", "txt", "parquet")
OTHERS = {  # first bytes of what people hand over by mistake: what it is, what to do
    b"PK\x03\x04": ("a zip archive or an Excel workbook", "unpack it, or save the sheet as CSV UTF-8"),
    b"\xd0\xcf\x11\xe0": ("an old Excel workbook", "save the sheet as CSV UTF-8"),
    b"%PDF": ("a PDF", "write its questions and answers into a table"),
    b"SQLite format 3": ("an SQLite database", "export the table as CSV"),
    b"(\xb5/\xfd": ("packed by zstd", "unpack it with unzstd"),
    b"BZh": ("packed by bzip2", "unpack it with bunzip2, or pack it with gzip"),
    b"\xfd7zXZ": ("packed by xz", "unpack it with unxz, or pack it with gzip"),
    b"version https://git-lfs": ("a Git LFS pointer, not the file itself", "fetch it with git lfs pull"),
    b"<!DOCTYPE": ("a web page", "download the file itself, not the page that shows it"),
    b"<html": ("a web page", "download the file itself, not the page that shows it"),
    b"ARROW1": ("an Arrow file", "name the folder that save_to_disk wrote"),
}
csv.field_size_limit(1 << 30)  # the module's own limit is 131,072 characters; cells that are too long are counted later


def place(path: str) -> Path:
    """Where a path of the recipe lies, counted from the repository's root."""
    return Path(ROOT, os.path.expanduser(path))


def named(path: Path) -> str:
    """A path as it is recorded: from the repository's root on, where it lies below it."""
    return os.path.relpath(path, ROOT) if path.is_relative_to(ROOT) else str(path)


def files(path: str) -> list[Path]:
    """The files that a path names, in order: itself, all that can be read in a folder, or all that a pattern matches.

    Raises ValueError where there is none.
    """
    whole = place(path)
    if whole.is_dir():
        inside = sorted(p for p in whole.rglob("*") if p.is_file() and "/." not in f"/{p.relative_to(whole)}")
        return _some([p for p in inside if readable(p)], path, f"a folder with {', '.join(SUFFIXES)} files")
    if whole.is_file():
        return [whole]
    return _some(sorted(Path(p) for p in glob.glob(str(whole), recursive=True) if os.path.isfile(p)), path, "a file")


def readable(path: Path) -> bool:
    """Whether a file of a folder is taken for data by its name."""
    return path.name.casefold().removesuffix(".gz").rpartition(".")[2] in SUFFIXES and path.name != "dataset_infos.json"


def _some(found, path, expected):
    if not found:
        raise ValueError(f"a source's path is {path!r}, expected {expected}, from the repository's root on")
    return found


def rows(path: str, local: Callable[[str], Path], part: str | None = None, columns=()) -> Iterator:
    """Rows of a file, a folder or a pattern. local: records a file as an input of the stage and gives its place.

    part: where a JSON file holds an object of several lists ("train", "test"), the one to read. columns: to read of a
    Parquet file, all of them by default. Raises ValueError, at once where the first bytes show that it cannot be read.
    """
    found = [local(named(file)) for file in files(path)]
    return _alike([(Path(file).name, _reader(Path(file), part, columns)) for file in found])


def _alike(readers):
    """Rows of (name, rows) one after another. Raises ValueError for one object among rows of other columns."""
    first = None
    for name, rows in readers:
        begun = list(itertools.islice(rows, 2))
        keys = set(begun[0]) if begun and isinstance(begun[0], dict) else set()
        this = (len(begun) != 1, name, keys)
        if keys and first and not keys & first[2] and not (this[0] and first[0]):
            _, odd, own = min(this, first)
            raise ValueError(
                f"{odd} is one object of {len(own)} keys ({', '.join(sorted(own)[:3])}, ...), none of them a column of "
                "the files beside it: move it elsewhere, or name the files in path, e.g. folder/*.jsonl"
            )
        first = first or (this if keys else None)
        yield from itertools.chain(begun, rows)


def _reader(path, part, columns):
    """An iterator over the rows of one file."""
    head = _head(path)
    if not head.strip():
        raise ValueError(f"{path.name} is empty: mend its entry in the recipe, or the file")
    if head.startswith(b"PAR1"):
        return parquet_rows(path, columns)
    for start, (what, remedy) in OTHERS.items():
        if head[: len(start)].upper() == start.upper():
            raise ValueError(f"{path.name} is {what}: {remedy}. JSON lines, JSON, CSV and Parquet can be read")
    encoding = _encoding(path, head)
    text = head.decode(encoding, "replace").lstrip()
    if jsonfiles.is_lines(text):
        return jsonfiles.json_lines(path, encoding)
    if text[0] in "[{":
        return jsonfiles.json_rows(path, encoding, part)
    first = text.partition("\n")[0]
    mark = max("\t,;|", key=first.count)
    if mark not in first:
        raise ValueError(
            f"{path.name} is neither JSON nor a table: its first line is {first.strip()[:60]!r}. "
            "JSON lines, JSON, CSV or TSV with a header, and Parquet can be read"
        )
    return table_rows(path, encoding, mark)


def _head(path):
    with unpacked(path) as file:
        try:
            return file.read(SEEN)
        except (OSError, EOFError) as error:
            raise ValueError(f"{path.name} is packed by gzip and damaged ({error}): copy it again") from error


def _encoding(path, head):
    """The encoding that the first bytes show. Raises ValueError for text that is not UTF-8 or UTF-16."""
    for mark, name in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if head.startswith(mark):
            return name
    if b"\0" in head[:2] and 0 < head[:2].count(b"\0") < 2:
        return "utf-16-le" if head[1:2] == b"\0" else "utf-16-be"
    text = head.decode("utf-8", "surrogateescape")
    bad = [place for place in re.finditer(r"[\udc80-\udcff]", text) if place.end() < len(text) - 3]
    if len(bad) > len(re.findall(r"[^\x00-\x7f\udc80-\udcff]", text)):  # more wrong than right: no damage, another code
        line, byte = text.count("\n", 0, bad[0].start()) + 1, ord(bad[0].group()) - 0xDC00
        raise ValueError(
            f"{path.name}, line {line}: byte 0x{byte:02x} is not UTF-8, so the file is in another encoding. Save it as "
            f"UTF-8, e.g. iconv -f WINDOWS-1252 -t UTF-8 (GB18030 for Chinese) {path.name}"
        )
    return "utf-8"


def table_rows(path: Path, encoding: str, mark: str) -> Iterator:
    """Rows of a table with a header, its cells as text and parted by `mark`.

    csv and not pandas: it says which line it stopped at, and a row of too many cells does not lose the last ones.
    """
    with opened(path, encoding) as file:
        table = csv.reader(file, delimiter=mark, strict=True)
        header, at = [], 0
        try:
            for cells in table:
                start, at = at + 1, table.line_num
                if not header:
                    header = [name.strip() for name in cells]
                    if twice := next((name for name in header if header.count(name) > 1), None):
                        raise ValueError(f"{path.name}: the header names {twice!r} twice, rename one of the columns")
                elif len(cells) > len(header):
                    yield broken_line(mark.join(cells), path, start, f"{len(cells)} cells under {len(header)} columns")
                elif cells:
                    yield dict(zip(header, cells, strict=False))
        except csv.Error as error:
            raise ValueError(f"{path.name}, row that begins on line {at + 1}: {error}. A quote inside a cell is "
                             "written twice, and a cell with a line end stands in quotes") from error  # fmt: skip


def parquet_rows(path: Path, columns=()) -> Iterator:
    """Rows of a Parquet file, of the columns named or of all."""
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path.name} is a damaged Parquet file ({error}): copy it again") from error
    wanted = [name for name in file.schema_arrow.names if not columns or name in columns]
    return itertools.chain.from_iterable(map(batch_rows, file.iter_batches(BATCH, columns=wanted)))


def batch_rows(batch) -> Iterator[dict]:
    """Rows of a pyarrow.RecordBatch; a cell that is not UTF-8 reads "\\ufffd", so that its row is counted as such."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for place in range(len(batch)):
            yield {name: _cell(batch.column(name)[place]) for name in batch.schema.names}


def _cell(scalar):
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return "\ufffd"
