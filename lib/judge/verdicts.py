"""Verdicts that outlive the process: what was judged once is never paid twice, and every call is in a ledger."""

import json
import os
import threading
from pathlib import Path

from lib.evaluation import kept
from lib.pipeline.files import set_aside, write_own


class Store:
    """Verdicts and calls in one file, a line each as they come. Threads of one process may share it.

    A key is (question, judge, order, prompt hash, repeat). Only valid verdicts are kept: what failed is asked again by
    the next run. Lines are numbered and hold their own hash: a file in which one is damaged or gone is set aside and
    said so, and its sound lines are kept.
    """

    def __init__(self, path):
        self.path, self.lock = Path(path), threading.RLock()
        self.verdicts, self.calls, self.count = {}, [], 0
        found = kept.entries(self.path)
        rows = [row for row in found if row]
        if [row[0] for row in rows] != list(range(len(found))):
            set_aside(self.path, "some verdicts, or costs in its ledger,")
        write_own(self.path, "".join(map(self._taken, rows)))

    def _taken(self, row):
        """The next line, of a row [number, kind, ...], whose content is known from now on."""
        (_, kind, *values), number = row, self.count
        self.count += 1
        if kind == "call":
            self.calls.append(values)
        else:
            *key, _, verdict = values
            self.verdicts.setdefault(tuple(key), verdict)
        return kept.line([number, kind, *values])

    def _add(self, kind, *values):
        with self.lock, open(self.path, "a", encoding="utf-8") as file:
            file.write(self._taken([None, kind, *values]))
            file.flush()
            os.fsync(file.fileno())  # a call that was paid for is in the ledger

    def get(self, key):
        """The valid verdict kept under a key, as it was put, or None."""
        with self.lock:
            return json.loads(self.verdicts.get(key, "null"))

    def put(self, key, attempt, verdict):
        """Keep a valid verdict; the first one under a key stays."""
        if key not in self.verdicts:
            self._add("verdict", *key, attempt, json.dumps(verdict))

    def record_call(self, judge, outcome, tokens_in, tokens_out, usd):
        """Add one call to the ledger, failed ones included."""
        self._add("call", judge, outcome, tokens_in, tokens_out, float(usd))

    def spent(self, judge=None):
        """Dollars in the ledger, of one judge or of all."""
        with self.lock:
            return sum(usd for name, *_, usd in self.calls if judge in (None, name))
