"""Content of a row of a user's own file, whatever its shape, once its cells are named by role.

The roles are listed in lib/dataset/shapes.py, which finds out what holds them.
"""

import re

from lib.dataset import choices, stated
from lib.dataset.choices import LETTERS, Reject, clean
from lib.dataset.conversations import conversation, exchange, joined, listed, taken_apart, void
from lib.dataset.converters import TAIL_CHARS, choice, content, last_answer, named, optional

NUMBERED = re.compile(r"(?:\n[ \t]*\(?[1-9][.)．、]\s*\S[^\n]*){2,9}\s*$")
COUNTED = re.compile(r"\b(?:how many|number of)\b|多少|几", re.IGNORECASE)  # asks for a number, which is no option's


def own(row: dict) -> dict:
    """Content fields of a row by role: instruction, context, input, output, reasoning, options, answer, index, base,
    system, history, messages. Raises Reject.

    Of `messages` the last assistant turn is the answer, the user turn before it the question, and what stood before
    that is `history`, without its reasoning.
    """
    if row.get("messages") is not None:
        row = row | exchange(conversation(row["messages"]))
    question = "\n\n".join(filter(None, (optional(row, role) for role in ("context", "instruction", "input"))))
    question = clean(question, "empty_question")
    system = {"role": "system", "content": optional(row, "system")}
    spoken = conversation([system] if system["content"] else []) + conversation(row.get("history"))
    earlier = [{"role": turn["role"], "content": turn["content"]} for turn in joined(spoken)]
    given = clean(row["output"], "empty_answer") if "output" in row else ""  # options and a truth can do without
    reasoning, output = taken_apart(given)
    if column := optional(row, "reasoning"):
        if reasoning not in ("", column):
            raise Reject("two_reasonings")
        reasoning = column
    fields = _answered(row, question, reasoning, output)
    return fields | {"history": earlier} if earlier else fields


def _answered(row, question, reasoning, output):
    """The content of one question and answer, multiple choice where options are listed.

    All that states an answer has to agree: the columns for it, the output, and the reasoning at its end.
    """
    stem, options = question, choices.options_of(listed(row.get("options")))
    given = [(role, value) for role in ("answer", "index") if not void(value := row.get(role))]
    if not options:
        stem, options = choices.inside_or_none(question)
        if not (options or given) and (found := _numbered(question, output)):
            stem, options, output = found
    said = _said(output, options, None if given else row.get("base")) if options else None
    if not options or not (given or row.get("options") or said is not None):
        return _open(row, question, reasoning, output, [value for _, value in given])
    places = {choices.find(value, options, _means(role, value), row.get("base")) for role, value in given}
    places |= {said} - {None}
    if not places:
        raise Reject("answer_not_in_options" if output else "empty_answer")
    if len(places) > 1:
        raise Reject("answer_conflict")
    (place,) = places
    reasoning = _agreeing(reasoning, options, place)
    return choice(stem, reasoning, _explanation(output, options, place, row.get("base")), options, place)


def _numbered(question: str, output: str):
    """(stem, options, output by letter) where "1. ..." lines end a question and the output opens with one's number."""
    asked = choices.without_order(question)
    lines, told = NUMBERED.search(asked), re.fullmatch(r"\(?([1-9])(?:[.)]+(.*))?", output, re.DOTALL)
    if not lines or not told or COUNTED.search(asked[: lines.start()]):
        return None
    numbers, texts = zip(*re.findall(r"\n[ \t]*\(?([1-9])[.)．、]\s*(\S[^\n]*)", lines[0]), strict=True)
    if list(numbers) != [str(n) for n in range(1, len(texts) + 1)] or told[1] not in numbers:
        return None
    options, said = choices.options_of(list(texts)), f"{LETTERS[int(told[1]) - 1]}. {told[2] or ''}".strip()
    return (asked[: lines.start()].strip(), options, said) if _said(said, options, None) is not None else None


def _open(row, question, reasoning, output, given):
    """The content of a question without options; its answer is the output where the file has no column for that."""
    said = clean(given[0], "") if given else last_answer(output)
    output = clean(output if "output" in row else said, "empty_answer")
    if choices.LETTERED.fullmatch(output) and "options" in row and "output" not in row:
        raise Reject("answer_not_in_options")
    if re.fullmatch(r"\W*[A-Ja-j1-9]\W*", output) and choices.LIST.search(question):
        raise Reject("options_unparsable")  # a letter or a number alone, and a list that was not read
    return content(question, reasoning, output, said)


def _means(role, value) -> str | None:
    """A number in a column that counts options is never an option's text."""
    return "letter" if role == "index" and str(value).strip()[:1].isdigit() else None


def _said(output: str, options: list[str], base: int | None) -> int | None:
    """Index of the option that an output is, opens with ("B. warfarin, since ...") or states; None where it does not.

    Raises Reject for a letter that no option has, and for statements that do not agree.
    """
    if not output:
        return None
    try:
        return choices.find(output, options, base=base)
    except Reject as reject:
        if str(reject) in ("answer_conflict", "answer_ambiguous") or choices.LETTERED.fullmatch(output):
            raise
    opened, said = _opening(output, options), named(output, options)
    if opened and said not in (None, opened[0]):
        raise Reject("answer_conflict")
    return opened[0] if opened else said


def _opening(output, options):
    """(index, the output without its first letter) where an output opens with an option's letter and text, or None."""
    mark = choices.PREFIXED.match(output)
    place = LETTERS.index(mark[1].upper()) if mark else len(options)
    if place >= len(options):
        return None
    words = r"\s+".join(map(re.escape, options[place].rstrip(" .").split()))
    rest = output[mark.end() :]
    return (place, rest) if re.match(rf"{words}[ \t]*(?:[.,;:(\n–—-]|$)", rest, re.IGNORECASE) else None


def _agreeing(reasoning: str, options: list[str], place: int) -> str:
    """Reasoning without the letters that it states; where it changes its mind the last one counts, and all stays."""
    if named(reasoning[-TAIL_CHARS:], options) not in (None, place):
        raise Reject("answer_conflict")
    try:
        return stated.without_letters(reasoning, options, place)
    except Reject:
        if stated.letters(reasoning)[-1:] != [LETTERS[place]]:
            raise
        return reasoning


def _explanation(output: str, options: list[str], place: int, base: int | None) -> str:
    """What an output says beside naming its option: the record says that in a last line of its own."""
    if last_answer(output):
        output = output[: output.rfind("\n") + 1].strip()
    try:
        return "" if output and choices.find(output, options, base=base) is not None else output
    except Reject:
        opened = _opening(output, options)
        return stated.without_letters(opened[1] if opened else output, options, place)
