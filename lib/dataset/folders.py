"""Which files a path of the recipe names: one file, a pattern, or those of a folder that belong to a split."""

import glob
import os
import re
from pathlib import Path

from lib.dataset.jsonfiles import is_lines, opening
from lib.pipeline.files import ROOT

SUFFIXES = ("jsonl", "ndjson", "json", "csv", "tsv", "txt", "parquet")
UNREAD = re.compile(  # names of files that hold rows and are not read: packed otherwise, kept aside, binary
    rf"\.({'|'.join(SUFFIXES)}|xlsx?|ods|arrow|feather|orc|pkl|pickle|sqlite3?|zip|tar|tgz|7z|rar|bz2|zst|xz)\b"
)
NO_ROWS = ("dataset_infos.json", "test_ground_truth.json")  # of published sets: a description, PubMedQA's test ids
SPLITS = {"train": "train(?:ing)?", "validation": "val(?:id(?:ation)?)?|dev", "test": "test(?:ing)?|eval(?:uation)?"}
SPLIT = re.compile("|".join(rf"(?<![a-z])(?P<{name}>{words})(?![a-z])" for name, words in SPLITS.items()))


def place(path: str) -> Path:
    """Where a path of the recipe lies, counted from the repository's root."""
    return Path(ROOT, os.path.expanduser(path))


def named(path: Path) -> str:
    """A path as it is recorded: from the repository's root on, where it lies below it."""
    return os.path.relpath(path, ROOT) if path.is_relative_to(ROOT) else str(path)


def files(path: str, part: str | None = None) -> list[Path]:
    """The files that a path names, in order: itself, those of a folder, or all that a pattern matches.

    part: the split to read of a folder whose files are named by splits. Raises ValueError where there is no file, where
    a file of the folder cannot be read, and where its names do not show which belong to `part`.
    """
    whole = place(path)
    if whole.is_dir():
        inside = sorted(p for p in whole.rglob("*") if p.is_file() and "/." not in f"/{p.relative_to(whole)}")
        if unread := [p for p in inside if not readable(p) and p.name not in NO_ROWS and _holds_rows(p)]:
            raise ValueError(f"{path} holds {', '.join(p.name for p in unread[:3])}, which nothing reads in a folder: "
                             f"unpack it, move it elsewhere, or say what to read, path: {path}/*.jsonl")  # fmt: skip
        found = _some([p for p in inside if readable(p)], path, f"a folder with {', '.join(SUFFIXES)} files")
        return _of_split(found, whole, path, part)
    if whole.is_file():
        return [whole]
    return _some(sorted(Path(p) for p in glob.glob(str(whole), recursive=True) if os.path.isfile(p)), path, "a file")


def readable(path: Path) -> bool:
    """Whether a file of a folder is taken for data by its name."""
    return path.name.casefold().removesuffix(".gz").rpartition(".")[2] in SUFFIXES and path.name not in NO_ROWS


def _holds_rows(path):
    if UNREAD.search(path.name.casefold()):
        return True
    head = opening(path)
    return head.startswith(b"PAR1") or is_lines(head.decode("utf-8", "replace"))


def _of_split(found, folder, path, part):
    """Those files of a folder that belong to the split `part`, all of them where no name says a split."""
    named = {file: _split_named(file.relative_to(folder).as_posix()) for file in found}
    splits = dict.fromkeys(named.values())
    wanted = part and (_split_named(part) if SPLIT.fullmatch(part) else part)
    if splits.keys() <= ({None, "train"} if wanted in (None, "train") else {None}) or (not wanted and len(splits) == 1):
        return found
    if wanted and wanted not in SPLITS:  # train_prefs and others of a set's own
        own = re.compile(rf"(?<![a-z0-9]){re.escape(wanted)}(?![a-z0-9_])", re.IGNORECASE)
        named = {file: wanted if own.search(file.relative_to(folder).as_posix()) else name
                 for file, name in named.items()}  # fmt: skip
    chosen = [file for file, name in named.items() if name == wanted]
    if not wanted or not chosen or None in named.values():
        said = ", ".join(f"{name or 'none'} ({next(f.name for f in named if named[f] == name)})" for name in splits)
        raise ValueError(f"{path} holds files of several splits, as their names say: {said}. In its entry of the "
                         f"recipe set split to one of them, or name files, path: {path}/*.jsonl, which reads all that "
                         "match")  # fmt: skip
    return chosen


def _split_named(text):
    """The split that a file's path names last, or None."""
    found = [match.lastgroup for match in SPLIT.finditer(text.casefold())]
    return found[-1] if found else None


def _some(found, path, expected):
    if not found:
        raise ValueError(f"a source's path is {path!r}, expected {expected}, from the repository's root on")
    return found
