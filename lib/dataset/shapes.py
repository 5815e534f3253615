"""The shapes of users' own files: which column holds what, found in the first rows and said aloud.

A cell that is not read stops the stage by its column's name, so that nothing of a row is lost in silence.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from lib.dataset import own, sources
from lib.dataset.choices import Reject

ROLES = {  # what a column may hold: names under which it is known, in lower case
    "messages": ("messages", "conversations", "conversation", "dialogue"),
    "instruction": ("instruction", "question", "prompt", "query"),
    "context": ("context", "passage"),
    "input": ("input",),
    "output": ("output", "response", "completion"),
    "reasoning": ("reasoning", "complex_cot", "cot", "chain_of_thought", "reasoning_content", "thinking", "rationale",
                  "explanation", "exp"),
    "options": ("options", "choices"),
    "answer": ("answer", "correct_answer", "final_answer", "ground_truth"),
    "index": ("answer_idx", "answer_index", "correct_option", "cop", "index"),
    "system": ("system", "system_prompt"),
    "history": ("history",),
    "id": ("id",),
    "benchmark": ("benchmark",),
}  # fmt: skip
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
            return f"the columns of {self.name}"
        words = {"instruction": "question", "output": "answer", "answer": "truth", "index": "truth by number"}
        asked = {"instruction": [c for r in ("context", "instruction", "input") for c in self.roles.get(r, ())]}
        roles = {
            role: names for role, names in (asked | self.roles | asked).items() if role not in ("context", "input")
        }
        parts = [f"{words.get(role, role)} = {' + '.join(map(str, names))}" for role, names in roles.items() if names]
        base = [] if self.base is None else [f"options count from {self.base}"]
        trained = {"each": "each answer is trained", "last": "the last answer is trained"}[self.turns]
        return f"{self.name}: " + ", ".join(parts + base + [trained] * ("messages" in self.roles))

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
        found = [own.listed(value) for value in found if not void(value)]
        if all(isinstance(value, list) for value in found):
            return list(itertools.chain(*found))
        if any(not isinstance(value, str) for value in found):
            raise Reject("wrong_type")
        return "\n\n".join(found)

    def unread(self, row) -> list:
        """Columns of a row that hold something and have no role."""
        return [c for c in row.keys() - self.ignored if not void(row[c])] if row.keys() - self.ignored else []

    def parts(self, row) -> Iterator:
        """The row once for each of its answers, up to that answer; most rows hold one."""
        names = self.roles.get("messages", ())
        cell = own.listed(row.get(names[0])) if len(names) == 1 and isinstance(row, dict) else None
        if self.turns == "last" or not isinstance(cell, list) or not all(isinstance(t, dict) for t in cell):
            yield row
            return
        speakers = [next((str(t[k]).casefold() for k in own.SPEAKER if t.get(k)), "") for t in cell]
        ends = [n for n, who in enumerate(speakers, 1) if own.SPEAKERS.get(who) == "assistant"
                and own.SPEAKERS.get((speakers + [""])[n]) != "assistant"]  # fmt: skip
        if not ends or ends[-1] < len(cell):  # a last question that nobody answers is counted as empty_answer
            ends.append(len(cell))
        (key,) = self.roles.get("id", (None,))
        for number, end in enumerate(ends):
            named = {key: f"{row[key]}.{number}"} if number and not void(row.get(key)) else {}
            yield row | {names[0]: cell[:end]} | named


def complaint(shape, cells):
    """What is said of cells that nothing reads, {column: cell}."""
    names = ", ".join(str(column) for column in cells)
    shown = "; ".join(f"{column!r}, e.g. {str(cell)[:60]!r}" for column, cell in list(cells.items())[:5])
    return (f"{shape.where}, read as {shape.said}: nothing reads {shown}. Nothing of a row is lost in silence: "
            + REMEDY.format(f"ROLE: {next(iter(cells))}}}, or leave out what is not needed, "
                            f"columns: {{ignore: [{names}]", ", ".join(KEYS)))  # fmt: skip


def void(cell) -> bool:
    return cell is None or cell == [] or (isinstance(cell, str) and not cell.strip()) or cell != cell
