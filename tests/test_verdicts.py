import os
import sqlite3
import subprocess
import time

from lib.judge.verdicts import Store

KEY = ("q1", "judge", "a>b", "hash", 0)


def test_the_first_valid_verdict_is_kept(tmp_path):
    store = Store(tmp_path / "v.sqlite")
    assert store.get(KEY) is None and store.claim(KEY, 0.1, 1.0, 60, 0) == "claimed"
    store.settle(KEY, 2, [{"score": 3}])
    store.settle(KEY, 1, [{"score": 7}])  # a runner that lost its claim
    assert store.claim(KEY, 0.1, 1.0, 60, 0) == "done"
    store.close()
    again = Store(tmp_path / "v.sqlite")
    assert again.get(KEY) == [{"score": 3}]
    for other in (("q1", "judge", "b>a", "hash", 0), ("q1", "judge", "a>b", "other", 0), (*KEY[:4], 1)):
        assert again.get(other) is None
    again.close()


def test_a_claim_ends_with_its_process_its_lease_or_its_cause(tmp_path):
    one, two = Store(tmp_path / "v.sqlite"), Store(tmp_path / "v.sqlite")
    assert one.claim(KEY, 0, 1.0, 60, 0) == "claimed" and two.claim(KEY, 0, 1.0, 60, 0) == "held"
    child = subprocess.Popen(["true"])
    child.wait()
    one.db.execute("UPDATE claims SET pid = ?", (child.pid,))
    assert two.claim(KEY, 0, 1.0, 60, 0) == "claimed"
    two.settle(KEY, 0, cause="transport: APITimeoutError")
    assert one.claim(KEY, 0, 1.0, 60, 0) == "failed" and one.failure(KEY, 0) == "transport: APITimeoutError"
    assert one.claim(KEY, 0, 1.0, -1, time.time()) == "claimed"  # a later run asks again
    assert two.db.execute("SELECT pid FROM claims").fetchone()[0] == os.getpid()
    one.close(), two.close()


def test_the_cap_counts_what_all_runners_spent_and_set_aside(tmp_path):
    one, two = Store(tmp_path / "v.sqlite"), Store(tmp_path / "v.sqlite")
    keys = [(f"q{i}", *KEY[1:]) for i in range(4)]
    assert one.claim(keys[0], 0.4, 1.0, 60, 0) == two.claim(keys[1], 0.4, 1.0, 60, 0) == "claimed"
    assert one.claim(keys[2], 0.4, 1.0, 60, 0) == "budget" and one.claim(keys[2], 0.0, 1.0, 60, 0) == "claimed"
    one.record_call("judge", "valid", 100, 10, 0.1)
    one.settle(keys[0], 0, [{}])
    assert two.may_spend(keys[1], 0.4, 1.0) and two.claim(keys[3], 0.4, 1.0, 60, 0) == "claimed"
    assert (one.spent(), two.spent("judge"), one.spent("b")) == (0.1, 0.1, 0)
    one.close(), two.close()
    mode = sqlite3.connect(tmp_path / "v.sqlite").execute("PRAGMA journal_mode").fetchone()[0]
    assert mode == "wal"
