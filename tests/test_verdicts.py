import sqlite3

from lib.verdicts import Store


def test_kept_verdicts_survive_and_the_first_attempt_wins(tmp_path):
    key = ("q1", "judge", "a>b", "hash")
    store = Store(tmp_path / "v.sqlite")
    assert store.get(*key) is None
    store.put(key, 2, [{"score": 3}])
    store.put(key, 1, [{"score": 7}])
    store.put(key, 1, [{"score": 9}])  # the same attempt again: ignored
    store.close()
    again = Store(tmp_path / "v.sqlite")
    assert again.get(*key) == [{"score": 7}]
    assert again.get("q1", "judge", "b>a", "hash") is None and again.get("q1", "judge", "a>b", "other") is None
    again.close()


def test_two_runs_share_the_file_and_the_ledger(tmp_path):
    one, two = Store(tmp_path / "v.sqlite"), Store(tmp_path / "v.sqlite")
    one.record_calls("a", [("valid", 100, 10, 0.25), ("transport", 0, 0, 0.0)])
    two.record_calls("b", [("content", 100, 10, 0.5)])
    assert (one.spent(), two.spent("a"), one.spent("b"), one.spent("c")) == (0.75, 0.25, 0.5, 0)
    one.close(), two.close()
    mode = sqlite3.connect(tmp_path / "v.sqlite").execute("PRAGMA journal_mode").fetchone()[0]
    assert mode == "wal"
