import random
import sqlite3
import warnings

import pytest

from lib.judge.verdicts import Store

KEY = ("q1", "judge", "a>b", "hash", 0)


def test_the_first_valid_verdict_is_kept_and_outlives_the_process(tmp_path):
    store = Store(tmp_path / "v.sqlite")
    assert store.get(KEY) is None
    store.put(KEY, 2, [{"score": 3}])
    store.put(KEY, 1, [{"score": 7}])
    store.record_call("judge", "valid", 100, 10, 0.1)
    store.close()
    again = Store(tmp_path / "v.sqlite")
    assert again.get(KEY) == [{"score": 3}]
    for other in (("q1", "judge", "b>a", "hash", 0), ("q1", "judge", "a>b", "other", 0), (*KEY[:4], 1)):
        assert again.get(other) is None
    assert (again.spent(), again.spent("judge"), again.spent("b")) == (0.1, 0.1, 0)
    again.close()


def filled(path, count=40):
    store = Store(path)
    for i in range(count):
        store.put((f"q{i}", "judge", "a>b", f"hash {i}", 0), 0, [{"score": i}] * 9)
        store.record_call("judge", "valid", 100, 10, 0.25)
    store.close()
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
    store.close()
    assert all(str(path) in str(warning.message) for warning in named)
    return got, spent, bool(named)


def test_no_flipped_bit_is_silent_or_ends_the_chapter(tmp_path):
    whole, draw, damaged = filled(tmp_path / "whole.sqlite"), random.Random(7), 0
    for i in range(60):
        raw, path = bytearray(whole), tmp_path / f"{i}.sqlite"
        raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
        path.write_bytes(raw)
        got, spent, named = found(path)
        assert all(verdict in (None, [{"score": n}] * 9) for n, verdict in enumerate(got))
        assert named or (None not in got and spent == 10.0)  # a bit that no row rests on may go unsaid
        assert named == path.with_name(f"{i}.sqlite.damaged").exists()
        damaged += named
        assert found(path)[2] is False  # what was built from the sound rows is sound
    assert damaged


def test_a_row_that_was_changed_or_taken_away_is_named(tmp_path):
    changes = {
        "changed": "UPDATE calls SET usd = 0 WHERE rowid = 3",
        "gone": "DELETE FROM calls WHERE rowid = 3",
        "verdict": "UPDATE verdicts SET verdict = '1' WHERE question = 'q3'",
    }
    for name, change in changes.items():
        path = tmp_path / f"{name}.sqlite"
        filled(path)
        with sqlite3.connect(path) as db:
            db.execute(change)
        db.close()
        got, spent, named = found(path)
        assert named and (got[3] is None) == (name == "verdict") and spent == (10.0 if name == "verdict" else 9.75)


def test_a_file_that_is_in_use_is_not_taken_for_a_damaged_one(tmp_path, monkeypatch):
    path, connect = tmp_path / "v.sqlite", sqlite3.connect
    filled(path)
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **how: connect(*args, **how | {"timeout": 0.0}))
    other = connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        Store(path)
    other.close()
    assert found(path)[1:] == (10.0, False)
