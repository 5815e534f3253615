"""The shapes of users' own files: which column holds what, found in the first rows and said aloud.

A cell that is not read stops the stage by its column's name, so that nothing of a row is lost in silence.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from lib.dataset import conversations, own, sources
from lib.dataset.choices import Reject
from lib.dataset.conversations import listed, void

ROLES = {  # what a column may hold: names under which it is known, in lower case
    "messages": ("messages", "conversations", "conversation", "dialogue"),
    "instruction": ("instruction", "question", "prompt", "query"),
    "context": ("context", "passage"),
    "input": ("input",),
    "output": ("output", "response", "completion"),
    "reasoning": ("reasoning", "complex_cot", "cot", "chain_of_thought", "reasoning_content", "thinking", "rationale",
                  "explanation", "exp"),
    "options": ("options", "choices"),
    "answer": ("answer", "correct_answer", "final_answer", "ground_truth", "answer_key", "answerkey"),
    "index": ("answer_idx", "answer_index", "correct_option", "cop", "index"),
    "system": ("system", "system_prompt"),
    "history": ("history",),
    "id": ("id",),
    "benchmark": ("benchmark",),
}  # fmt: skip
ROW_NUMBERS = {"", "unnamed:_0", "__index_level_0__"}  # columns in which pandas numbers the rows
KEYS = (*ROLES, "ignore", "base")  # of `columns` in the recipe
REMEDY = "In its entry of the recipe say which, columns: {{{}}}; roles are {}: docs/own-data.md"


class Unread(ValueError):
    """A file whose columns are not known, or a cell that no role reads: it stops the stage."""


@dataclass(frozen=True)
class Shape:
    """How the rows of one file are read. roles: {role: its columns}; base: number of the first option, or None.

    ignored: columns that are read or left out knowingly. source: the hub data set whose columns these are, or "".
    reasoned: whether any of the first rows holds reasoning.
    """

    where: str
    name: str
    roles: dict
    ignored: frozenset = frozenset()
    base: int | None = None
    turns: str = "each"
    source: str = ""
    reasoned: bool = True

    @property
    def said(self) -> str:
        """ "alpaca: question = instruction + input, answer = output", as it is printed."""
        if self.source:
            more = [f"{role} = {names[0]}" for role, names in self.roles.items()]
            return ", ".join([f"the columns of {self.name}", *more])
        words = {"instruction": "question", "output": "answer", "answer": "truth", "index": "truth by number"}
        asked = {"instruction": [c for r in ("context", "instruction", "input") for c in self.roles.get(r, ())]}
        roles = {
            role: names for role, names in (asked | self.roles | asked).items() if role not in ("context", "input")
        }
        parts = [f"{words.get(role, role)} = {' + '.join(map(str, names))}" for role, names in roles.items() if names]
        base = [] if self.base is None else [f"options count from {self.base}"]
        trained = "each answer is trained" if self.each else "the last answer is trained"
        return f"{self.name}: " + ", ".join(parts + base + [trained] * ("messages" in self.roles))

    @property
    def each(self) -> bool:
        """Whether each answer of a conversation is trained: of prompt and completion the completion alone is."""
        return self.turns == "each" and len(self.roles.get("messages", ())) == 1

    @property
    def required(self) -> tuple:
        """Columns without which a row cannot be converted."""
        roles = ("messages",) if "messages" in self.roles else ("output",)
        asked = self.roles.get("instruction", ()) if "input" not in self.roles else ()
        return tuple(itertools.chain(asked, *(self.roles.get(role, ()) for role in roles)))

    def convert(self, row: dict) -> dict:
        """Content of one row. Raises Reject, and Unread for a cell that nothing reads."""
        if unread := self.unread(row):
            raise Unread(complaint(self, {column: row[column] for column in unread}))
        if self.source:
            return sources.SOURCES[self.source].convert(row)
        cells = {role: self.cell(row, role, names) for role, names in self.roles.items()}
        return own.own(cells | {"base": self.base})

    def cell(self, row, role, names):
        """What a role's columns hold in a row; several columns of text make one, several lists too."""
        found = [row.get(name) for name in names]
        if role == "options" and len(names) > 1:
            while found and void(found[-1]):
                found.pop()
            return found
        if len(names) == 1:
            return found[0]
        found = [listed(value) for value in found if not void(value)]
        if all(isinstance(value, list) for value in found):
            return list(itertools.chain(*found))
        if any(not isinstance(value, str) for value in found):
            raise Reject("wrong_type")
        return "\n\n".join(found)

    def unread(self, row) -> list:
        """Columns of a row that hold something and have no role; a row's number holds nothing."""
        if not row.keys() - self.ignored:
            return []
        return [c for c in row if c not in self.ignored and not void(row[c]) and not _row_number(c, row[c])]

    def parts(self, row) -> Iterator:
        """The row once for each of its answers, up to that answer; most rows hold one."""
        names = self.roles.get("messages", ())
        if not names or not isinstance(row, dict) or (len(names) > 1 and void(row.get(names[-1]))):
            yield row
            return
        try:
            cells = conversations.beginnings(self.cell(row, "messages", names), self.each)
        except Reject:
            yield row
            return
        (key,) = self.roles.get("id", (None,))
        for number, cell in enumerate(cells):
            named = {key: f"{row[key]}.{number}"} if number and not void(row.get(key)) else {}
            yield row | dict.fromkeys(names[1:]) | {names[0]: cell} | named


def plain(column) -> str:
    """A column's name as it is compared."""
    return str(column).strip().strip("\ufeff").casefold().replace(" ", "_") if column is not None else ""


def _row_number(column, cell) -> bool:
    return plain(column) in ROW_NUMBERS and bool(re.fullmatch(r"\d+(?:\.0)?", str(cell).strip()))


def complaint(shape, cells):
    """What is said of cells that nothing reads, {column: cell}."""
    written = [str(column) or '""' for column in cells]
    shown = "; ".join(f"{column!r}, e.g. {str(cell)[:60]!r}" for column, cell in list(cells.items())[:5])
    return (f"{shape.where}, read as {shape.said}: nothing reads {shown}. Nothing of a row is lost in silence: "
            + REMEDY.format(f"ROLE: {written[0]}}}, or leave out what is not needed, "
                            f"columns: {{ignore: [{', '.join(written)}]", ", ".join(KEYS)))  # fmt: skip
