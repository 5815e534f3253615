"""Answers on disk as they come, so that a run that was killed asks for the rest only."""

import json
import threading

from lib.pipeline.files import sha256_json, write_own


class Kept:
    """Answers on disk, one JSON line each, in the order they came; those of other prompts or settings are not read.

    path: the file, or None to keep nothing. settings: JSON values that decide what is answered. A line that a kill cut
    short is dropped.
    """

    def __init__(self, path, prompts, settings):
        self.path, self.lock, self.answers = path, threading.Lock(), {}
        self.keys = {p["id"]: sha256_json([p["messages"], settings])[:16] for p in prompts}
        if path and path.exists():
            whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
            for line in map(json.loads, filter(None, whole.split("\n"))):
                if self.keys.get(line["answer"]["id"]) == line["key"]:
                    self.answers[line["answer"]["id"]] = line["answer"]
            write_own(path, "".join(self._line(answer) for answer in self.answers.values()))

    def _line(self, answer):
        return json.dumps({"key": self.keys[answer["id"]], "answer": answer}, ensure_ascii=False) + "\n"

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
