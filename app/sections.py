"""Reasoning and answer told apart while they are written, token by token, in each format of a recipe.

The end result is the same for every way of cutting the text into pieces. lib.dataset.answers judges whole turns.
"""

REASONING, ANSWER, NEITHER = "reasoning", "answer", "neither"
MARKS = {  # format: what ends one section, and the section that begins there
    "think": {"<think>": REASONING, "</think>": ANSWER},
    "harmony": {
        "<|channel|>analysis<|message|>": REASONING,
        "<|channel|>commentary<|message|>": REASONING,
        "<|channel|>final<|message|>": ANSWER,
        "<|start|>assistant": NEITHER,
        "<|end|>": NEITHER,
        "<|return|>": NEITHER,
    },
    "thinking_response": {"## Thinking": REASONING, "## Final Response": ANSWER},
    "instruction": {},
}


class Sections:
    """A splitter for one answer. Give it text with `feed`, and call `close` after the last.

    form: chat.format of the recipe. opened: the prompt itself ends with the mark that opens the reasoning.
    """

    def __init__(self, form, opened=False):
        self.marks = MARKS[form]
        self.section = REASONING if opened else ANSWER
        self.held, self.begun = "", False  # held: may yet be part of a mark, or blanks at a section's end

    @property
    def plain(self):
        """Whether the next piece goes out as it is if it holds no mark, no blank at an end and nothing is held."""
        return self.begun and not self.held and self.section != NEITHER

    def feed(self, piece):
        """[(section, text)] that is certain after this piece."""
        text, out = self.held + piece, []
        while True:
            at, mark = min(((at, mark) for mark in self.marks if (at := text.find(mark)) >= 0), default=(-1, ""))
            if at < 0:
                break
            self._add(out, text[:at].rstrip())
            self.section, self.begun, text = self.marks[mark], False, text[at + len(mark) :]
        keep = max((n for mark in self.marks for n in range(1, len(mark)) if text.endswith(mark[:n])), default=0)
        sure = text[: len(text) - keep]
        if self.marks:
            sure = sure.rstrip() if self.begun else sure.strip() and sure.rstrip()
        self.held = text[len(sure) :]
        self._add(out, sure)
        return out

    def close(self):
        """What was held back to the end."""
        out, rest, self.held = [], self.held.rstrip(), ""
        self._add(out, rest)
        return out

    def _add(self, out, text):
        if not self.begun:
            text = text.lstrip()
        if text and self.section != NEITHER:
            self.begun = True
            out.append((self.section, text))
