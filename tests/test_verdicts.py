import errno
import json
import random
import warnings

import pytest

from lib.judge import verdicts
from lib.judge.verdicts import Store

KEY = ("q1", "judge", "a>b", "hash", 0)


def test_the_first_valid_verdict_is_kept_and_outlives_the_process(tmp_path):
    store = Store(tmp_path / "v.jsonl")
    assert store.get(KEY) is None
    store.put(KEY, 2, [{"score": 3}])
    store.put(KEY, 1, [{"score": 7}])
    store.record_call("judge", "valid", 100, 10, 0.1)
    again = Store(tmp_path / "v.jsonl")
    assert again.get(KEY) == [{"score": 3}]
    for other in (("q1", "judge", "b>a", "hash", 0), ("q1", "judge", "a>b", "other", 0), (*KEY[:4], 1)):
        assert again.get(other) is None
    assert (again.spent(), again.spent("judge"), again.spent("b")) == (0.1, 0.1, 0)


def filled(path, count=40):
    store = Store(path)
    for i in range(count):
        store.put((f"q{i}", "judge", "a>b", f"hash {i}", 0), 0, [{"score": i}] * 9)
        store.record_call("judge", "valid", 100, 10, 0.25)
    return path.read_bytes()


def found(path, count=40):
    """(verdicts, dollars, whether damage was named) of a file, which can be written to once it is open."""
    with warnings.catch_warnings(record=True) as named:
        warnings.simplefilter("always")
        store = Store(path)
    got = [store.get((f"q{i}", "judge", "a>b", f"hash {i}", 0)) for i in range(count)]
    spent = store.spent()
    store.put(("new", "judge", "a>b", "hash", 0), 0, 1)
    store.record_call("judge", "valid", 1, 1, 0.0)
    assert all(str(path) in str(warning.message) for warning in named)
    return got, spent, bool(named)


def test_no_flipped_bit_is_silent_or_ends_the_chapter(tmp_path):
    whole, draw, damaged = filled(tmp_path / "whole.jsonl"), random.Random(7), 0
    for i in range(400):
        raw, path = bytearray(whole), tmp_path / f"{i}.jsonl"
        raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
        path.write_bytes(raw)
        got, spent, named = found(path)
        assert all(verdict in (None, [{"score": n}] * 9) for n, verdict in enumerate(got))
        assert named or (None not in got and spent == 10.0)  # a bit that no row rests on may go unsaid
        assert named == path.with_name(f"{i}.jsonl.damaged").exists()
        damaged += named
        assert found(path)[2] is False  # what was built from the sound rows is sound
    assert damaged


def test_a_full_disk_while_a_damaged_ledger_is_mended_loses_no_row(tmp_path, monkeypatch):
    path = tmp_path / "judge.jsonl"
    raw = bytearray(filled(path))
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)

    def full(*given):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, pytest.warns(UserWarning, match="is damaged"):
        patched.setattr(verdicts, "write_own", full)
        with pytest.raises(OSError, match="No space"):
            Store(path)
    got, spent, named = found(path)
    assert named and len([verdict for verdict in got if verdict]) >= 39 and spent >= 9.75


def test_a_row_that_was_changed_or_taken_away_is_named(tmp_path):
    lines = filled(tmp_path / "whole.jsonl").splitlines(keepends=True)
    call, verdict = next(n for n, line in enumerate(lines) if b"call" in line), 6
    cheaper = lines[call].replace(b"0.25", b"0.00")
    changes = {"changed": (call, cheaper), "gone": (call, b""), "verdict": (verdict, b"[]\n")}
    for name, (place, line) in changes.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_bytes(b"".join([*lines[:place], line, *lines[place + 1 :]]))
        got, spent, named = found(path)
        assert named and (got[3] is None) == (name == "verdict") and spent == (10.0 if name == "verdict" else 9.75)


def test_a_line_that_a_kill_cut_short_is_left_out_and_the_next_one_is_whole(tmp_path):
    path = tmp_path / "v.jsonl"
    path.write_bytes(filled(path)[:-30])  # of the last call
    assert found(path)[1:] == (9.75, False)
    assert json.loads(path.read_bytes().splitlines()[-2])[1] == "verdict" and found(path)[1:] == (9.75, False)
