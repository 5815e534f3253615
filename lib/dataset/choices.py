"""Multiple choice, however a source writes it: the options, and the index of the right one.

Every function raises Reject with a short reason instead of guessing; lib/dataset/ingest.py counts the reasons.
"""

import re

from lib.dataset.cells import Reject as Reject
from lib.dataset.cells import clean as clean
from lib.dataset.cells import fold
from lib.dataset.cells import unquote as unquote
from lib.dataset.wording import ASKS

LETTERS = "ABCDEFGHIJ"
OPEN, CLOSE = r"[(\[（]?", r"[.):\]．、：）]"  # around a letter; the wide ones of Chinese take no blank behind them
BEHIND = r"(?:[ \t]|(?<=[．、：）])|(?=[\u3400-\u9fff]))"
MARK = rf"{OPEN}(?P<letter>{{letters}}){CLOSE}(?P<blank>\s*)"
UPPER, LOWER = (re.compile(rf"(?:{MARK.format(letters=span)})(?P<text>.*)") for span in ("[A-Z]", "[a-z]"))
PREFIXED = re.compile(rf"{OPEN}([A-Ja-j]){CLOSE}\s*(?=\S)")
LETTERED = re.compile(r"(?:option\s+)?[(\[（]?([a-j])[)\]）]?[.):]*", re.IGNORECASE)
FIELDS = {"key": ("key", "label", "letter"), "value": ("value", "text")}
HEADING = r"(?:(?:answer choices|options|choices|选项)[ \t]*[:：]?\s*)?"
BLOCK = re.compile(
    rf"(?:(?:^|\n)[ \t]*{HEADING}|[ \t]+answer choices[ \t]*:\s*)(?={OPEN}a{CLOSE}{BEHIND})", re.IGNORECASE
)
LABEL = r"(?:(?:your|the|my)\s+)?(?:(?:final|correct|best|right)\s+)*(?:answer|response|assistant)(?:\s+is)?"
NAMED = rf"\b[^\n]*\b(?:{ASKS}|reasoning|rationale|step|(?-i:[A-J]))\b[^\n]*"
ORDER = re.compile(  # what a prompt says behind its list: "Answer:", "Answer with the letter only."
    rf"(?:\n[\s#*_]*{LABEL}\s*[:：]?[\s*_]*[(\[]?|\s(?-i:Answer|ANSWER)\s*:"
    r"|\n\s*(?:(?:please\s+|just\s+|only\s+)*(?:(?:answer|respond|reply)\b[^\n]*"
    rf"|(?:choose|select|pick|give|return|output|provide|indicate|mark|state|write|explain|think){NAMED})"
    r"|let.s think[^\n]*|(?:正确)?答案[^\n]{0,9}|请[^\n]*)"
    rf"|(?<=[^\W\d_]{{2}}[.?!;])\s+(?:please\s+)?(?:answer|respond|reply)\s+(?:with|by|only|using){NAMED})\s*$",
    re.IGNORECASE,
)
BESIDE = re.compile(  # a new paragraph or sentence, an order, a template's mark: no part of an option
    r"\n\s*\n\s*\S|(?<![,，-])\n\s*[^a-z\d(\s]|[:：]\s*$|\[/INST\]|<\|"
)
LIST = re.compile(  # signs of a list, read or not: A and B, or 1 and 2, each marked
    rf"(?:^|\s){OPEN}(?:a{CLOSE}.*?[\s；;,，]{OPEN}b|1{CLOSE}.*?[\s；;,，]{OPEN}2){CLOSE}", re.IGNORECASE | re.DOTALL
)


def options_of(value) -> list[str]:
    """The 2 to 10 option texts, in order and without letters, each on one line; [] where nothing is listed.

    value: None; a text block ("Answer Choices:\\nA. ...\\nB. ..."); a dict by letter in any case; a list of texts, with
        or without their letters; a list of {"key", "value"}; or the dict of two lists that Arrow makes of such a list.
    Two wrong options may be alike. Raises Reject: options_alike when all are; options_unparsable for fewer than 2, more
    than 10, or letters that do not run from A.
    """
    if isinstance(value, dict):
        value = _pairs(value)
    if value is None or (isinstance(value, str) and not value.strip()) or (isinstance(value, list) and not value):
        return []
    if isinstance(value, str):
        texts = parse_block(_in_lines(clean(value, "options_unparsable")))
        return _checked(texts) if texts else []
    if not isinstance(value, list | tuple):
        raise Reject("wrong_type")
    if all(isinstance(entry, dict) for entry in value):
        value = _by_letter([(_field(entry, "key"), _field(entry, "value")) for entry in value])
    texts = [clean(text, "options_unparsable") for text in value[: len(LETTERS) + 1]]
    marks = [PREFIXED.match(text) for text in texts]
    if all(marks) and "".join(mark[1] for mark in marks).upper() == LETTERS[: len(marks)]:
        texts = [text[mark.end() :] for text, mark in zip(texts, marks, strict=True)]
    return _checked(texts)


def _pairs(value: dict):
    """The dict's texts in the order of its letters; None for a dict without any."""
    if all(isinstance(column, list) for column in value.values()) and len(value) == 2:
        keys, texts = (next((value[k] for k in value if str(k).casefold() in names), None) for names in FIELDS.values())
        if keys is not None and texts is not None:
            if len(keys) != len(texts):
                raise Reject("options_unparsable")
            return _by_letter(list(zip(keys, texts, strict=True))) or None
    return _by_letter(list(value.items())) or None


def _field(entry: dict, name: str):
    found = [value for key, value in entry.items() if str(key).casefold() in FIELDS[name]]
    if len(found) != 1:
        raise Reject("options_unparsable")
    return found[0]


def _by_letter(pairs: list[tuple]) -> list:
    """Texts ordered by their letters or numbers. Arrow gives every row all letters: None at the end is no option."""
    if any(not isinstance(key, str) for key, _ in pairs):
        raise Reject("wrong_type")
    marks = [_letter(key) for key, _ in pairs]
    if all(mark.isdecimal() and len(mark) < 3 for mark in marks):
        places = [int(mark) - ("0" not in marks) for mark in marks]
    else:
        places = [LETTERS.index(mark) if mark in set(LETTERS) else -1 for mark in marks]
    if len(pairs) > len(LETTERS) or sorted(places) != list(range(len(pairs))):
        raise Reject("options_unparsable")
    texts = [pairs[places.index(place)][1] for place in range(len(pairs))]
    while texts and texts[-1] is None:
        texts.pop()
    return texts


def _letter(key: str) -> str:
    return key.strip().strip("().:").upper()


def parse_block(block: str) -> list[str]:
    """The option texts of a block of lines; an option may run over its line. [] for an empty block. Raises Reject."""
    block = re.sub(rf"^\s*{HEADING}(?={OPEN}a{CLOSE}|\s*$)", "", block, flags=re.IGNORECASE)
    lines = [line.strip() for line in block.splitlines() if line.strip()]
    texts, pattern = [], UPPER if not lines or UPPER.match(lines[0]) else LOWER
    for line in lines:
        match = pattern.fullmatch(line)
        if match and match["letter"].upper() == LETTERS[len(texts) : len(texts) + 1]:
            texts.append(match["text"])
        elif texts and not (match and match["blank"]):  # "I.V. drugs" goes on, "F. text" out of turn does not
            texts[-1] += " " + line
        else:
            raise Reject("options_unparsable")
    return texts


def _checked(texts: list[str]) -> list[str]:
    texts = [" ".join(text.split()) for text in texts]
    folded = {fold(text) for text in texts}
    if not 2 <= len(texts) <= len(LETTERS) or "" in folded:
        raise Reject("options_unparsable")
    if len(folded) == 1:
        raise Reject("options_alike")
    return texts


def unique(options: list[str], index: int) -> bool:
    """Whether no other option reads like this one."""
    return [fold(option) for option in options].count(fold(options[index])) == 1


def _in_lines(block: str) -> str:
    """ "A. one B. two C. three" with a line for each: broken before each mark that is written like the first."""
    block = re.sub(rf"^\s*{HEADING}(?={OPEN}a{CLOSE})", "", block.strip(), flags=re.IGNORECASE)
    first = re.match(rf"({OPEN})([Aa])({CLOSE})", block)
    if not first or "\n" in block:
        return block
    for letter in LETTERS[1:]:
        mark = re.escape(f"{first[1]}{letter if first[2].isupper() else letter.lower()}{first[3]}")
        parts = re.split(rf"\s+(?={mark}(?:\s|{BEHIND}))", block)
        if len(parts) == 1:
            break
        if len(parts) > 2:
            raise Reject("options_unparsable")
        block = "\n".join(parts)
    return block


def without_order(text: str) -> str:
    """Text without the orders and labels at its end."""
    while (bare := ORDER.sub("", text)) != text:
        text = bare
    return text


def inside(question: str) -> tuple[str, list[str]]:
    """(stem, options) of a question that lists its options at its end, on lines or in a row; (question, []) of others.

    An order or a label behind the list ("Answer with the letter only.", "Answer:") is no part of either.
    Raises Reject when a list begins there and cannot be read, or when something else stands behind it.
    """
    starts = list(BLOCK.finditer(question))
    if not starts:
        return question, []
    start = starts[-1]
    stem, block = question[: start.start()].strip(), without_order(question[start.end() :])
    if not stem:
        raise Reject("empty_question")
    if PREFIXED.match(stem[stem.rfind("\n") + 1 :].strip()):  # the letters start again: two lists, or a broken one
        raise Reject("options_unparsable")
    block = _in_lines(block)
    if BESIDE.search(re.split(rf"\n[ \t]*(?={OPEN}[A-Ja-j]{CLOSE})", block)[-1]):
        raise Reject("options_unparsable")
    return stem, _checked(parse_block(block))


def inside_or_none(question: str) -> tuple[str, list[str]]:
    """The same; a list that cannot be read is part of the question."""
    try:
        return inside(question)
    except Reject:
        return question, []


def listed(question: str, options: list[str]) -> str:
    """The question with its options below, as every record writes them."""
    return "\n".join([f"{question}\n", *(f"{mark}. {text}" for mark, text in zip(LETTERS, options, strict=False))])


def find(answer, options: list[str], means: str | None = None, base: int | None = None) -> int:
    """Index of the option that `answer` names.

    answer: a text ("warfarin"), a letter ("C", "(c)"), both ("C. warfarin"), or a number where `base` is given or an
        option reads so.
    means: "text" or "letter" (or number) where the source states which; None: a letter or a number that is also
        another option's text is ambiguous.
    base: number of the first option where the source counts its options, 0 or 1.
    Raises Reject: answer_not_in_options, answer_ambiguous, answer_conflict (letter and text disagree), wrong_type.
    """
    wanted = [fold(option) for option in options]
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        if isinstance(answer, float) and not answer.is_integer():  # NaN and infinity too
            raise Reject("wrong_type")
        number = str(int(answer)) if abs(answer) < 100 else "100"
        answer = answer if base is None and number not in wanted else number
    folded = fold(clean(answer, "empty_answer"))
    text = wanted.index(folded) if folded in wanted and means != "letter" else None
    letter = LETTERED.fullmatch(folded) if means != "text" or text is None else None
    if base is not None and folded.isdecimal() and len(folded) < 3:
        if text not in (None, int(folded) - base):
            raise Reject("answer_ambiguous")
        return _within(int(folded) - base, options)
    place = LETTERS.index(letter[1].upper()) if letter else None
    if text is not None and place not in (None, text):
        if means is None and place < len(options):
            raise Reject("answer_ambiguous")
        place = None
    if text is None and place is None:
        return _letter_and_text(folded, wanted)
    return _within(text if place is None else place, options)


def _letter_and_text(folded: str, wanted: list[str]) -> int:
    """Index that "c. warfarin" gives, both in folded form."""
    match = PREFIXED.match(folded)
    rest = folded[match.end() :] if match else ""
    if rest not in wanted:
        raise Reject("answer_not_in_options")
    if wanted.index(rest) != LETTERS.index(match[1].upper()):
        raise Reject("answer_conflict")
    return wanted.index(rest)


def _within(place: int, options: list[str]) -> int:
    if not 0 <= place < len(options):
        raise Reject("answer_not_in_options")
    return place
