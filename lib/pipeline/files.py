"""Files that are whole or absent: atomic writes, content hashes, and the folders everything lives in.

With several ranks, rank 0 alone writes: on the others the functions below that write do nothing.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
import warnings
from pathlib import Path

from lib.pipeline import ranks

ROOT = Path(__file__).resolve().parents[2]
NEW_S = 5  # a folder's first seconds, in which its maker may not have locked it yet


def cache_dir():
    """The user's cache folder for what is expensive and keyed by content: llama.cpp builds and tiny base models."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medtune"
    except RuntimeError:  # a user id that the system has no name for
        raise RuntimeError(f"user id {os.getuid()} has no home folder: set HOME, or XDG_CACHE_HOME") from None


def outputs_dir():
    """Where runs are written: OUTPUTS from the environment, counted from the repository's root; else outputs/."""
    return Path(ROOT, os.path.expanduser(os.environ.get("OUTPUTS") or "outputs")).resolve()


def rooted(base):
    """A model's folder as a recipe names it, from the repository's root on, as a path; a hub id stays as it is."""
    folder = Path(ROOT, os.path.expanduser(str(base)))
    return str(folder) if folder.is_dir() else base


def beside(module):
    """What the YAML file of a module's own name holds: its texts and tables, which count as its code does.

    module: the module's __file__.
    """
    import yaml  # not at the top: set-up reads this file before anything is installed

    return yaml.safe_load(Path(module).with_suffix(".yaml").read_text(encoding="utf-8"))


def write_text(path, text):
    """Write `text` so that `path` is either the old file or the whole new one, also after a kill or on a full disk."""
    return _write(path, [text]) if ranks.leads() else Path(path)


def write_own(path, text):
    """Like write_text, by every rank that calls it: for a file of this rank's own."""
    return _write(path, [text])


def _write(path, parts):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "w", encoding="utf-8") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def remove(path):
    """Remove a file or folder, if it is there; of a symbolic link the link alone, never what it points to."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(folder):
    """Give a path to write a folder to; it becomes `folder`, in place of what was there, when the block ends well."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        partial = Path(scratch, folder.name)
        yield partial
        remove(folder)
        os.replace(partial, folder)


def kept_folder(folder, write):
    """A folder of the cache that is named by its content, written whole by write(path) where it is missing.

    Where another process finishes the same folder first, that one is taken. What a killed one began is removed: it may
    be a whole model, and nobody holds its lock.
    """
    from filelock import FileLock, Timeout  # not at the top: set-up reads this file before anything is installed

    folder = Path(folder)
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    for begun in folder.parent.glob(f".{folder.name}.*"):
        with contextlib.suppress(Timeout, OSError), FileLock(begun / "lock", timeout=0):
            if time.time() - begun.stat().st_ctime > NEW_S:
                shutil.rmtree(begun)
    scratch = tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.", ignore_cleanup_errors=True)
    with scratch, FileLock(Path(scratch.name, "lock")):
        made = Path(scratch.name, folder.name)
        write(made)
        try:
            os.replace(made, folder)
        except OSError:
            if not folder.exists():
                raise
    return folder


def set_aside(path, what):
    """Copy a damaged file, so that it can be looked at, and warn. what: what is lost of it.

    It stays where it is until its sound part is written over it, at once: a full disk in between loses nothing.
    """
    aside = path.with_name(f"{path.name}.damaged")
    shutil.copyfile(path, aside)
    warnings.warn(f"{path} is damaged: {what} could not be read and are asked for again. A copy lies at {aside}.",
                  stacklevel=3)  # fmt: skip


def between(text, begin, end, block, name):
    """The text of a page with `block` between two marks, each on a line of its own.

    Raises ValueError, with the page's name, unless each mark stands there once and in order.
    """
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(
            f"{name} should hold the lines {begin} and, below it, {end}, each once: what is made goes between"
        )
    before, after = text.split(begin)[0], text.split(end)[1]
    return f"{before}{begin}\n{block}\n{end}{after}"


def write_json(path, value):
    """Write `value` as indented JSON, atomically. Raises ValueError on NaN or infinity, which JSON cannot hold."""
    return write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path):
    """Read one JSON file. Raises ValueError naming the file when it is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # among them numbers of thousands of digits
        raise ValueError(f"{path} is not valid JSON ({error}): delete it and run its stage again") from error


def write_jsonl(path, rows):
    """Write an iterable of JSON-able rows, one a line, atomically, one at a time."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    return _write(path, lines) if ranks.leads() else Path(path)


def iter_jsonl(path):
    """Yield the rows of a JSON-lines file. Raises ValueError naming file and line when a line is not JSON."""
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}, is not valid JSON ({error})") from error


def read_jsonl(path):
    """All rows of a JSON-lines file as a list."""
    return list(iter_jsonl(path))


def sha256_text(text):
    """Hex SHA-256 of a string's UTF-8 bytes."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def sha256_json(value):
    """Hex SHA-256 of a JSON-able value in canonical form: sorted keys, no blanks."""
    return sha256_text(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False))


def sha256_file(path):
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class HashCache:
    """SHA-256 of files, remembered by size and modification time in one JSON file, which holds its own hash.

    A damaged memory is none: every file is read again. A file that is changed without changing either is not noticed
    here; `make verify` reads every byte instead.
    """

    def __init__(self, path):
        self.path = Path(path)
        self.known, self.changed = {}, False
        with contextlib.suppress(OSError, ValueError, TypeError, LookupError, RecursionError):
            kept = json.loads(self.path.read_text(encoding="utf-8"))
            if kept["sha256"] == sha256_json(kept["files"]):
                self.known = kept["files"]

    def sha256(self, path):
        stat = os.stat(path)
        key, stamp = str(Path(path).resolve()), [stat.st_size, stat.st_mtime_ns]
        if self.known.get(key, [None])[0] != stamp:
            self.known[key] = [stamp, sha256_file(path)]
            self.changed = True
        return self.known[key][1]

    def save(self):
        if self.changed:
            known = {key: value for key, value in self.known.items() if os.path.exists(key)}
            write_json(self.path, {"sha256": sha256_json(known), "files": known})
            self.changed = False
