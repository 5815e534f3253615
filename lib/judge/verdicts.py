"""Verdicts that outlive the process: what was judged once is never paid twice, by however many runners.

A runner claims a verdict before it asks. A claim ends with the verdict, with its runner's process, or with its lease,
so that a killed runner blocks nobody; the cap on dollars counts what all runners have spent and set aside.
"""

import contextlib
import json
import os
import sqlite3
import threading
import time

TABLES = """
CREATE TABLE IF NOT EXISTS verdicts (
    question TEXT, judge TEXT, position_order TEXT, prompt_hash TEXT, repeat INTEGER, attempt INTEGER, verdict TEXT,
    made_at REAL, UNIQUE (question, judge, position_order, prompt_hash, repeat));
CREATE TABLE IF NOT EXISTS claims (
    question TEXT, judge TEXT, position_order TEXT, prompt_hash TEXT, repeat INTEGER, pid INTEGER, until REAL, usd REAL,
    UNIQUE (question, judge, position_order, prompt_hash, repeat));
CREATE TABLE IF NOT EXISTS failures (
    question TEXT, judge TEXT, position_order TEXT, prompt_hash TEXT, repeat INTEGER, cause TEXT, failed_at REAL);
CREATE TABLE IF NOT EXISTS calls (judge TEXT, outcome TEXT, tokens_in INTEGER, tokens_out INTEGER, usd REAL);
CREATE TABLE IF NOT EXISTS batches (judge TEXT, work_hash TEXT, batch TEXT, UNIQUE (judge, work_hash));
"""
KEY = "question = ? AND judge = ? AND position_order = ? AND prompt_hash = ? AND repeat = ?"


class Store:
    """Verdicts, claims and calls in one SQLite file (write-ahead log). Threads and processes may share it.

    A key is (question, judge, order, prompt hash, repeat). Only valid verdicts are kept: a failure is told to runners
    that were under way, and asked again by the next run.
    """

    def __init__(self, path):
        self.db = sqlite3.connect(path, timeout=60.0, isolation_level=None, check_same_thread=False)
        self.lock = threading.RLock()
        self.db.execute("PRAGMA busy_timeout=60000")
        with self.lock:
            self.db.execute("PRAGMA journal_mode=WAL")
            self.db.executescript(TABLES)

    def _one(self, statement, values):
        with self.lock:
            return self.db.execute(statement, values).fetchone()

    @contextlib.contextmanager
    def _writing(self):
        with self.lock:
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield self.db
                self.db.execute("COMMIT")
            except BaseException:
                self.db.execute("ROLLBACK")
                raise

    def get(self, key):
        """The valid verdict kept under a key, as it was put, or None."""
        row = self._one(f"SELECT verdict FROM verdicts WHERE {KEY}", key)
        return json.loads(row[0]) if row else None

    def failure(self, key, since):
        """Why a runner gave this key up after `since` (time.time()), or None."""
        row = self._one(f"SELECT cause FROM failures WHERE {KEY} AND failed_at >= ?", (*key, since))
        return row[0] if row else None

    def claim(self, key, usd, max_usd, lease_s, since):
        """Set a call's expected dollars aside: "claimed", "done", "failed" after `since`, "held" by another runner, or
        "budget".
        """
        with self._writing() as db:
            if self.get(key):
                return "done"
            if self.failure(key, since):
                return "failed"
            held = db.execute(f"SELECT pid, until FROM claims WHERE {KEY}", key).fetchone()
            if held and held[1] > time.time() and _alive(held[0]):
                return "held"
            db.execute(f"DELETE FROM claims WHERE {KEY}", key)
            if usd > 0 and usd > max_usd - self.spent() - self._set_aside():
                return "budget"
            db.execute(
                "INSERT INTO claims VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*key, os.getpid(), time.time() + lease_s, usd)
            )
            return "claimed"

    def _set_aside(self):
        rows = self.db.execute("SELECT usd, pid, until FROM claims").fetchall()
        return sum(usd for usd, pid, until in rows if until > time.time() and _alive(pid))

    def may_spend(self, key, usd, max_usd):
        """Whether another call under a claim that is held stays within the cap."""
        with self._writing():
            return usd <= 0 or usd <= max_usd - self.spent() - self._set_aside() + usd

    def settle(self, key, attempt, verdict=None, cause=None):
        """End a claim with a valid verdict, or with the cause for which there is none."""
        with self._writing() as db:
            if verdict is not None:
                values = (*key, attempt, json.dumps(verdict), time.time())
                db.execute("INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
            elif cause != "budget":
                db.execute("INSERT INTO failures VALUES (?, ?, ?, ?, ?, ?, ?)", (*key, cause, time.time()))
            db.execute(f"DELETE FROM claims WHERE {KEY}", key)

    def record_call(self, judge, outcome, tokens_in, tokens_out, usd):
        """Add one call to the ledger, failed ones included."""
        with self.lock:
            self.db.execute("INSERT INTO calls VALUES (?, ?, ?, ?, ?)", (judge, outcome, tokens_in, tokens_out, usd))

    def spent(self, judge=None):
        """Dollars in the ledger, of one judge or of all."""
        where, values = ("WHERE judge = ?", (judge,)) if judge else ("", ())
        return self._one(f"SELECT COALESCE(SUM(usd), 0) FROM calls {where}", values)[0]

    def batch(self, judge, work_hash, batch=None):
        """The id of the batch that was submitted for this work, remembered when `batch` is given; None where none."""
        if batch:
            with self.lock:
                self.db.execute("INSERT OR REPLACE INTO batches VALUES (?, ?, ?)", (judge, work_hash, batch))
        row = self._one("SELECT batch FROM batches WHERE judge = ? AND work_hash = ?", (judge, work_hash))
        return row[0] if row else None

    def close(self):
        with contextlib.suppress(sqlite3.Error):
            self.db.close()


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
