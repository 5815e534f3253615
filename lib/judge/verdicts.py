"""Verdicts that outlive the process: what was judged once is never paid twice, and every call is in a ledger."""

import contextlib
import json
import sqlite3
import threading
import time

TABLES = """
CREATE TABLE IF NOT EXISTS verdicts (
    question TEXT, judge TEXT, position_order TEXT, prompt_hash TEXT, repeat INTEGER, attempt INTEGER, verdict TEXT,
    made_at REAL, UNIQUE (question, judge, position_order, prompt_hash, repeat));
CREATE TABLE IF NOT EXISTS calls (judge TEXT, outcome TEXT, tokens_in INTEGER, tokens_out INTEGER, usd REAL);
"""
KEY = "question = ? AND judge = ? AND position_order = ? AND prompt_hash = ? AND repeat = ?"


class Store:
    """Verdicts and calls in one SQLite file, written as they come. Threads of one process may share it.

    A key is (question, judge, order, prompt hash, repeat). Only valid verdicts are kept: what failed is asked again by
    the next run.
    """

    def __init__(self, path):
        self.db = sqlite3.connect(path, timeout=60.0, isolation_level=None, check_same_thread=False)
        self.lock = threading.RLock()
        with self.lock:
            self.db.execute("PRAGMA journal_mode=WAL")
            self.db.executescript(TABLES)

    def _one(self, statement, values):
        with self.lock:
            return self.db.execute(statement, values).fetchone()

    def get(self, key):
        """The valid verdict kept under a key, as it was put, or None."""
        row = self._one(f"SELECT verdict FROM verdicts WHERE {KEY}", key)
        return json.loads(row[0]) if row else None

    def put(self, key, attempt, verdict):
        """Keep a valid verdict; the first one under a key stays."""
        values = (*key, attempt, json.dumps(verdict), time.time())
        with self.lock:
            self.db.execute("INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)

    def record_call(self, judge, outcome, tokens_in, tokens_out, usd):
        """Add one call to the ledger, failed ones included."""
        with self.lock:
            self.db.execute("INSERT INTO calls VALUES (?, ?, ?, ?, ?)", (judge, outcome, tokens_in, tokens_out, usd))

    def spent(self, judge=None):
        """Dollars in the ledger, of one judge or of all."""
        where, values = ("WHERE judge = ?", (judge,)) if judge else ("", ())
        return self._one(f"SELECT COALESCE(SUM(usd), 0) FROM calls {where}", values)[0]

    def close(self):
        with contextlib.suppress(sqlite3.Error):
            self.db.close()
