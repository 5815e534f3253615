"""From a raw row of one data set to the content of a record, or a Reject that carries a short reason.

Content fields: instruction, reasoning, output, options, answer, letter. Provenance is added in lib/sources.py.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

MAX_CELL_CHARS = 200_000  # about 50k tokens: longer cells are scraping accidents, no recipe can train them
LETTERS = "ABCDEFGHIJ"
ANSWER_LINE = re.compile(r"(?:^|\n)Answer:[ \t]*(\S[^\n]*)$")
EXPLANATION = re.compile(r"\s*\bExplanation:\s*")
OPTION_LINE = re.compile(r"([A-Z])[.)]\s*(.*)")
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
UNDECODABLE = re.compile("[\ud800-\udfff\ufffd]")  # lone surrogates, and what a lossy decoder left


class Reject(Exception):
    """A row that cannot become a record; `str(reject)` is the short reason that is counted."""


@dataclass(frozen=True)
class Source:
    """A data set: where it lives, what its rows hold, and how one row is converted.

    convert: raw row (dict holding all `columns`) -> the record's content fields, or raises Reject.
    configs: the hub's configuration names where one must be chosen, else ().
    identity: columns that together name a row, else (): then no row can be a duplicate_id.
    """

    hub_id: str
    licence: str
    citation: str
    columns: tuple[str, ...]
    convert: Callable[[dict], dict]
    configs: tuple[str, ...] = ()
    identity: tuple[str, ...] = ()


def text_cell(row: dict, column: str, empty: str) -> str:
    """One cell as clean text: line ends are "\\n", no outer blanks. Raises Reject, with `empty` for a void cell."""
    value = row[column]
    if value is None:
        raise Reject(empty)
    if not isinstance(value, str):
        raise Reject("wrong_type")
    if len(value) > MAX_CELL_CHARS:
        raise Reject("too_long")
    if UNDECODABLE.search(value):
        raise Reject("bad_utf8")
    value = value.replace("\r\n", "\n").replace("\r", "\n")
    if CONTROL.search(value):
        raise Reject("control_characters")
    value = value.strip()
    if not value:
        raise Reject(empty)
    return value


def open_question(row: dict, columns: tuple[str, str, str]) -> dict:
    """Content of a free-text question from its (question, reasoning, response) columns.

    A last line "Answer: <text>" of the response is read as the short ground truth.
    """
    question = text_cell(row, columns[0], "empty_question")
    reasoning = text_cell(row, columns[1], "empty_reasoning")
    output = text_cell(row, columns[2], "empty_answer")
    truth = ANSWER_LINE.search(output)
    answer = truth.group(1).strip() if truth else None
    fields = {"instruction": question, "reasoning": reasoning, "output": output}
    return fields | {"options": [], "answer": answer, "letter": None}


def parse_options(block: str) -> list[str]:
    """The 2 to 10 option texts of "Answer Choices:\\nA. ...\\nB. ..."; [] where none is listed. Raises Reject."""
    lines = [line.strip() for line in block.splitlines() if line.strip()]
    if lines and lines[0].rstrip(":").casefold() == "answer choices":
        lines = lines[1:]
    if not lines:
        return []
    options = []
    for line in lines:
        match = OPTION_LINE.fullmatch(line)
        if match and match.group(1) == LETTERS[len(options) : len(options) + 1]:
            options.append(match.group(2))
        elif options and not match:
            options[-1] += " " + line  # an option that runs over its line
        else:
            raise Reject("options_unparsable")
    folded = {fold(option) for option in options}
    if len(options) < 2 or "" in folded or len(folded) < len(options):
        raise Reject("options_unparsable")
    return options


def fold(text: str) -> str:
    """Text as compared between an answer and its options: case, blanks and the closing full stop do not count."""
    return " ".join(text.split()).rstrip(" .;,").casefold()


def find_option(answer: str, options: list[str]) -> int:
    """Index of the option that `answer` names by its text, its letter, or "C. text". Raises Reject when none does."""
    wanted = [fold(option) for option in options]
    answer = fold(answer)
    if answer in wanted:
        return wanted.index(answer)
    for index, option in enumerate(wanted):
        letter = LETTERS[index].casefold()
        if answer.strip("()") == letter or re.fullmatch(rf"\(?{letter}[.):]\s*{re.escape(option)}", answer):
            return index
    raise Reject("answer_not_in_options")


def medreason(row: dict) -> dict:
    """Content of a MedReason row: `answer` is "<option text>. Explanation: <why>", `options` is one string or empty."""
    question = text_cell(row, "question", "empty_question")
    reasoning = text_cell(row, "reasoning", "empty_reasoning")
    output = text_cell(row, "answer", "empty_answer")
    block = row["options"] or ""
    is_open = isinstance(block, str) and not block.strip()
    options = [] if is_open else parse_options(text_cell(row, "options", "options_unparsable"))
    truth, *explanation = (part.strip() for part in EXPLANATION.split(output, maxsplit=1))
    if not truth:
        raise Reject("empty_answer")
    fields = {"instruction": question, "reasoning": reasoning, "output": output, "options": options}
    if not options:
        return fields | {"answer": truth.rstrip("."), "letter": None}
    index = find_option(truth, options)
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    fields["instruction"] = f"{question}\n\n{listed}"
    # The option's text, not its letter: a letter says nothing without the list.
    fields["output"] = "\n\n".join([*filter(None, explanation), f"Answer: {options[index]}"])
    return fields | {"answer": options[index], "letter": LETTERS[index]}
