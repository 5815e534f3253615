"""Verdicts that outlive the process: a cache that makes a judged question cost once, and a ledger of what was spent."""

import contextlib
import json
import sqlite3
import time

TABLES = """
CREATE TABLE IF NOT EXISTS verdicts (
    question TEXT, judge TEXT, position_order TEXT, prompt_hash TEXT, attempt INTEGER, verdict TEXT, made_at REAL,
    UNIQUE (question, judge, position_order, prompt_hash, attempt));
CREATE TABLE IF NOT EXISTS calls (judge TEXT, outcome TEXT, tokens_in INTEGER, tokens_out INTEGER, usd REAL);
"""


class Store:
    """Verdicts and calls in one SQLite file (write-ahead log, so that two runs may share it). Used from one thread.

    Only valid verdicts are kept: a failure is asked again by the next run.
    """

    def __init__(self, path):
        self.db = sqlite3.connect(path, timeout=30.0, isolation_level=None)
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.executescript(TABLES)

    def get(self, question, judge, order, prompt_hash):
        """The first valid verdict kept under this key, a list of dicts in shown order, or None."""
        row = self.db.execute(
            "SELECT verdict FROM verdicts WHERE question = ? AND judge = ? AND position_order = ? AND prompt_hash = ? "
            "ORDER BY attempt LIMIT 1",
            (question, judge, order, prompt_hash),
        ).fetchone()
        return json.loads(row[0]) if row else None

    def put(self, key, attempt, verdict):
        """Keep a valid verdict. key: (question, judge, order, prompt_hash)."""
        self.db.execute(
            "INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?, ?, ?, ?, ?)",
            (*key, attempt, json.dumps(verdict), time.time()),
        )

    def record_calls(self, judge, calls):
        """Add calls to the ledger: (outcome, input tokens, output tokens, dollars) each, failed ones included."""
        self.db.executemany("INSERT INTO calls VALUES (?, ?, ?, ?, ?)", [(judge, *call) for call in calls])

    def spent(self, judge=None):
        """Dollars in the ledger, of one judge or of all."""
        where, values = ("WHERE judge = ?", (judge,)) if judge else ("", ())
        return self.db.execute(f"SELECT COALESCE(SUM(usd), 0) FROM calls {where}", values).fetchone()[0]

    def close(self):
        with contextlib.suppress(sqlite3.Error):
            self.db.close()
