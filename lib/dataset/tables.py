"""Rows of files on a disk, by what is in them and not by what they are called: JSON lines, JSON, CSV, Parquet, gzipped.

A line that cannot be read is handed on as a Line, so that it is counted and not fatal; a file that cannot be read stops
the stage with its name, the line and what to do.
"""

import codecs
import csv
import itertools
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from lib.dataset import conversations, folders, jsonfiles
from lib.dataset.jsonfiles import broken_line, opened, opening

BATCH = 1000  # rows decoded at once
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
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
         codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}  # fmt: skip
NUMPY = re.compile(  # what numpy writes of lists in a cell of a table: no commas between, "array(" around; strings stay
    r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")(\s+(?=['"]))?|array\(|,\s*dtype=object\)|(?<=[}\]])\s+(?=[{\[])"""
)
csv.field_size_limit(1 << 30)  # the module's own limit is 131,072 characters; cells that are too long are counted later


def rows(path: str, local: Callable[[str], Path], part: str | None = None, columns=(), decode=None) -> Iterator:
    """Rows of a file, a folder or a pattern. local: records a file as an input of the stage and gives its place.

    part: the split to read, where files of a folder or lists of a JSON file are named "train", "test". columns: to read
    of a Parquet file, all of them by default. decode: row -> row, for rows of tables, whose cells are text.
    Raises ValueError, at once where the first bytes show that it cannot be read.
    """
    found = [local(folders.named(file)) for file in folders.files(path, part)]
    return _alike([(Path(file).name, _whole(Path(file), _reader(Path(file), part, columns, decode))) for file in found])


def _whole(path, rows, *damages):
    """Rows of a file, to its end. Raises ValueError where it is damaged further on."""
    try:
        yield from rows
    except (OSError, EOFError, zlib.error, *damages) as error:
        raise ValueError(f"{path.name} is damaged or cut ({error}): copy it again") from error


def _alike(readers):
    """Rows of (name, rows) one after another. Raises ValueError for files that have no column in common."""
    first = None
    for name, rows in readers:
        begun = list(itertools.islice(rows, 2))
        keys = set().union(*(row for row in begun if isinstance(row, dict)))
        this = (len(begun) != 1, name, keys)
        if keys and first and not keys & first[2]:
            (is_table, odd, own), (_, other, others) = sorted((this, first), key=lambda one: one[0])
            what = "has the columns" if is_table else f"is one object of {len(own)} keys,"
            raise ValueError(
                f"{odd} {what} {_few(own)}, and {other} beside it {_few(others)}: give each an entry of its own, move "
                "one elsewhere, or name the files in path, e.g. folder/*.jsonl"
            )
        first = first or (this if keys else None)
        yield from itertools.chain(begun, rows)


def _few(names):
    return ", ".join(sorted(map(str, names))[:3]) + ", ..." * (len(names) > 3)


def refuse(path: Path, head: bytes | None = None) -> None:
    """Raise ValueError, saying what it is, for a file whose first bytes are those of another kind."""
    head = opening(path) if head is None else head
    for start, (what, remedy) in OTHERS.items():
        if head[: len(start)].upper() == start.upper():
            raise ValueError(f"{path.name} is {what}: {remedy}. JSON lines, JSON, CSV and Parquet can be read")


def _reader(path, part, columns, decode):
    """An iterator over the rows of one file."""
    head = opening(path)
    if not head.strip(b"\0 \t\r\n"):
        raise ValueError(f"{path.name} is empty: mend its entry in the recipe, or the file")
    if head.startswith(b"PAR1"):
        return parquet_rows(path, columns)
    refuse(path, head)
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
    found = table_rows(path, encoding, mark)
    return (decode(row) if isinstance(row, dict) else row for row in found) if decode else found


def _encoding(path, head):
    """The encoding that the first bytes show. Raises ValueError for what is not UTF-8, UTF-16 or UTF-32."""
    for mark, name in MARKS.items():
        if head.startswith(mark):
            return name
    for width in (4, 2):  # an ASCII character first, its other bytes zero
        if head[:width].count(0) == width - 1 and head[0] != head[width - 1]:
            return f"utf-{8 * width}-{'be' if head[0] == 0 else 'le'}"
    if head.count(0) > 0.1 * len(head):
        raise ValueError(f"{path.name} is no text: JSON lines, JSON, CSV and Parquet can be read")
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
                if not header and len(cells) == 2 and cells[0] == "sep=":
                    continue  # Excel's own line, which names the mark
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


def decoded(row: dict) -> dict:
    """A row of a hub data set whose lists, objects and numbers a table stores as text."""
    for name, cell in row.items():
        if cell[:1] in ("[", "{"):
            commas = NUMPY.sub(lambda m: m[1] + "," * bool(m[2]) if m[1] else "," * m[0].isspace(), cell)
            plain = conversations.listed(commas)
            row[name] = cell if isinstance(plain, str) else plain
        elif name == "cop":
            row[name] = int(float(cell)) if re.fullmatch(r"-?\d(\.0)?", cell.strip()) else cell.strip() or None
    return row


def parquet_rows(path: Path, columns=()) -> Iterator:
    """Rows of a Parquet file, of the columns named or of all."""
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path.name} is a damaged Parquet file ({error}): copy it again") from error
    wanted = [name for name in file.schema_arrow.names if not columns or name in columns]
    batches = map(batch_rows, file.iter_batches(BATCH, columns=wanted))
    return _whole(path, itertools.chain.from_iterable(batches), pyarrow.ArrowException)


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
