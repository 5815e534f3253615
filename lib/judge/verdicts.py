"""Verdicts that outlive the process: what was judged once is never paid twice, and every call is in a ledger."""

import contextlib
import json
import sqlite3
import threading
import time
from pathlib import Path

from lib.pipeline.files import set_aside, sha256_json

TABLES = """
CREATE TABLE IF NOT EXISTS verdicts (
    question TEXT, judge TEXT, position_order TEXT, prompt_hash TEXT, repeat INTEGER, attempt INTEGER, verdict TEXT,
    made_at REAL, sha256 TEXT, UNIQUE (question, judge, position_order, prompt_hash, repeat));
CREATE TABLE IF NOT EXISTS calls (
    judge TEXT, outcome TEXT, tokens_in INTEGER, tokens_out INTEGER, usd REAL, sha256 TEXT);
"""
KEY = "question = ? AND judge = ? AND position_order = ? AND prompt_hash = ? AND repeat = ?"
NO_DAMAGE = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_FULL", "SQLITE_CANTOPEN", "SQLITE_IOERR")
SHAPE = "SELECT name, sql FROM sqlite_master WHERE sql NOT NULL ORDER BY name"


class Store:
    """Verdicts and calls in one SQLite file, written as they come. Threads of one process may share it.

    A key is (question, judge, order, prompt hash, repeat). Only valid verdicts are kept: what failed is asked again by
    the next run. Each row has a hash of its own. A damaged file is set aside and said so; its sound rows are kept.
    """

    def __init__(self, path):
        self.path, self.lock = Path(path), threading.RLock()
        sound, (rows, lost) = self._open(), self._read()
        if not sound or lost:
            self.close()
            set_aside(self.path, "some verdicts, or costs in its ledger,")
            for leftover in ("-wal", "-shm"):
                self.path.with_name(self.path.name + leftover).unlink(missing_ok=True)
            self._open()
            for table, row in rows:
                self._add(table, row)

    def _open(self):
        """Open the file; whether its pages, its tables and the count of its ledger are as they were written."""
        self.db = sqlite3.connect(self.path, timeout=60.0, isolation_level=None, check_same_thread=False)
        self.db.text_factory = lambda text: text.decode("utf-8", "replace")  # a damaged text is read, and found out
        try:
            self.db.execute("PRAGMA journal_mode=WAL")
            self.db.executescript(TABLES + "PRAGMA user_version = 1;")  # the latter is a write: some damage forbids it
            with contextlib.closing(sqlite3.connect(":memory:")) as plain:
                plain.executescript(TABLES)
                sound = self.db.execute(SHAPE).fetchall() == plain.execute(SHAPE).fetchall()
            count, last = self._one("SELECT COUNT(*), COALESCE(MAX(rowid), 0) FROM calls", ())  # none is ever deleted
            return sound and count == last and self._one("PRAGMA integrity_check", ())[0] == "ok"
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorname", "").startswith(NO_DAMAGE):
                raise
            return False

    def _read(self):
        """([(table, row without its hash)], number of rows or tables that are lost): a row agrees with its hash."""
        rows, lost = [], 0
        for table in ("verdicts", "calls"):
            try:
                for *row, stated in self.db.execute(f"SELECT * FROM {table} NOT INDEXED"):
                    sound = stated == _sum(row)
                    lost += not sound
                    rows += [(table, row)] * sound
            except sqlite3.DatabaseError:
                lost += 1
        return rows, lost

    def _add(self, table, row):
        places = ", ".join("?" * (len(row) + 1))
        with self.lock:
            self.db.execute(f"INSERT OR IGNORE INTO {table} VALUES ({places})", (*row, _sum(row)))

    def _one(self, statement, values):
        with self.lock:
            return self.db.execute(statement, values).fetchone()

    def get(self, key):
        """The valid verdict kept under a key, as it was put, or None."""
        row = self._one(f"SELECT verdict FROM verdicts WHERE {KEY}", key)
        return json.loads(row[0]) if row else None

    def put(self, key, attempt, verdict):
        """Keep a valid verdict; the first one under a key stays."""
        self._add("verdicts", (*key, attempt, json.dumps(verdict), time.time()))

    def record_call(self, judge, outcome, tokens_in, tokens_out, usd):
        """Add one call to the ledger, failed ones included."""
        self._add("calls", (judge, outcome, tokens_in, tokens_out, float(usd)))

    def spent(self, judge=None):
        """Dollars in the ledger, of one judge or of all."""
        where, values = ("WHERE judge = ?", (judge,)) if judge else ("", ())
        return self._one(f"SELECT COALESCE(SUM(usd), 0) FROM calls {where}", values)[0]

    def close(self):
        with contextlib.suppress(sqlite3.Error):
            self.db.close()


def _sum(row):
    return sha256_json([value.hex() if isinstance(value, bytes) else value for value in row])
