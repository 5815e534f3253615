"""Answers on disk as they come, so that a run that was killed asks for the rest only."""

import json
import threading

from lib.pipeline.files import set_aside, sha256_json, write_own


class Kept:
    """Answers on disk, one JSON line each, in the order they came; those of other prompts or settings are not read.

    path: the file, or None to keep nothing. settings: JSON values that decide what is answered. Each line has a hash of
    its own. A last line that a kill cut short is dropped; where another one is damaged, the file is set aside and said
    so, and only that line's answer is asked for again.
    """

    def __init__(self, path, prompts, settings):
        self.path, self.lock, self.answers = path, threading.Lock(), {}
        self.keys = {p["id"]: sha256_json([p["messages"], settings])[:16] for p in prompts}
        if path and path.exists():
            lines = path.read_bytes().rpartition(b"\n")[0].split(b"\n")
            entries = [_read(line) for line in lines if line]
            if None in entries:
                set_aside(path, f"{entries.count(None)} of {len(entries)} answers")
            for key, answer in filter(None, entries):
                if self.keys.get(answer["id"]) == key:
                    self.answers[answer["id"]] = answer
            write_own(path, "".join(self._line(answer) for answer in self.answers.values()))

    def _line(self, answer):
        entry = [self.keys[answer["id"]], answer]
        return json.dumps([*entry, sha256_json(entry)], ensure_ascii=False) + "\n"

    def add(self, answer):
        """Keep an answer. One that never came ("error") is asked again by the next run."""
        with self.lock:
            self.answers[answer["id"]] = answer
            if self.path and answer["finish"] != "error":
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with open(self.path, "a", encoding="utf-8") as file:
                    file.write(self._line(answer))

    def missing(self, prompts):
        return [prompt for prompt in prompts if prompt["id"] not in self.answers]

    def ordered(self, prompts):
        """All answers in prompt order."""
        return [self.answers[prompt["id"]] for prompt in prompts]


def _read(line):
    """(key, answer) of a line, or None where its hash does not agree with it."""
    try:
        key, answer, stated = json.loads(line)
        return (key, answer) if stated == sha256_json([key, answer]) else None
    except (ValueError, TypeError, RecursionError):
        return None
