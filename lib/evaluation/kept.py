"""What came, on disk as it comes, so that a run that was killed asks for the rest only."""

import json
import threading

from lib.pipeline.files import set_aside, sha256_json, write_own


def line(entry):
    """A list as one line of JSON that ends with its own hash."""
    return json.dumps([*entry, sha256_json(entry)], ensure_ascii=False) + "\n"


def entries(path):
    """The lists of a file of such lines, None for each that is damaged; a last one that a kill cut short is left out.

    path: that need not exist, or None.
    """
    *lines, rest = path.read_bytes().split(b"\n") if path and path.exists() else [b""]
    return [*map(_read, lines), *([None] if _read(rest[:-1]) else [])]  # the latter: its line end is another byte


def _read(line):
    try:
        *entry, stated = json.loads(line)
        return entry if stated == sha256_json(entry) else None
    except (ValueError, TypeError, RecursionError):
        return None


class Kept:
    """Answers on disk, one JSON line each, in the order they came; those of other prompts or settings are not read.

    path: the file, or None to keep nothing. settings: JSON values that decide what is answered. Where a line is
    damaged, the file is set aside and said so, and only that line's answer is asked for again.
    """

    def __init__(self, path, prompts, settings):
        self.path, self.lock, self.answers = path, threading.Lock(), {}
        self.keys = {p["id"]: sha256_json([p["messages"], settings])[:16] for p in prompts}
        found, written = entries(path), bool(path) and path.exists()
        if None in found:
            set_aside(path, f"{found.count(None)} of {len(found)} answers")
        for key, answer in filter(None, found):
            if self.keys.get(answer["id"]) == key:
                self.answers[answer["id"]] = answer
        if written:
            write_own(path, "".join(line([self.keys[name], answer]) for name, answer in self.answers.items()))

    def add(self, answer):
        """Keep an answer. One that never came ("error") is asked again by the next run."""
        with self.lock:
            self.answers[answer["id"]] = answer
            if self.path and answer.get("finish") != "error":
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with open(self.path, "a", encoding="utf-8") as file:
                    file.write(line([self.keys[answer["id"]], answer]))

    def missing(self, prompts):
        return [prompt for prompt in prompts if prompt["id"] not in self.answers]

    def ordered(self, prompts):
        """All answers in prompt order."""
        return [self.answers[prompt["id"]] for prompt in prompts]
