"""Letters that an explanation states, "Ans. is 'd' i.e.": compared with the key and cut out, since options move."""

import re

from lib.dataset import choices
from lib.dataset.choices import LETTERS, Reject

STATED = re.compile(  # "Ans. is 'd'", "Ans: (B)", "Answer: C", and the second letter of "Ans. is 'a' & 'b'"
    r"ans(?:wer)?\b[\s.:]*(?:is\b|-)?[\s:]*(?P<open>[('\"‘“`\[]*)(?P<letter>[a-d])(?P<close>[)'\"’”`\]]*)"
    r"(?:\s*(?:&|,|/|and)\s*[('\"‘“`\[]*(?P<second>[a-d])[)'\"’”`\]]*)?"
    r"(?P<rest>\s*i\.?e\b[.,:;\s]*|\s*[.,:;]+\s*|\s*\n\s*|\s*$|\s+(?=\S)|(?=\())",
    re.IGNORECASE,
)
LETTER = (  # in quotes or brackets, or a capital that no word follows
    r"(?:[('\"‘“`\[]*(?P<{0}>[A-Ja-j])[)'\"’”`\]]+"
    r"|(?P<{0}_bare>(?-i:[A-J]))(?=\s*(?:[;,)\n。，]|\.(?!\s*(?-i:[a-z]))|i\.?e\b|$)))"
)
INNER = re.compile(  # further on: "Ans. is 'd' i.e.", "Hence the right option is C.", "Option (b) is the answer"
    r"(?:(?:so|hence|thus|therefore)[,\s]+)?(?:the\s+)?(?:(?:correct|right|best|final)\s+)?(?:"
    r"(?:\bans(?:wer)?\b|(?<=correct\s)option\b|(?<=right\s)(?:option|choice)\b|(?:正确)?答案)[\s.:：]*(?:is\b|-|是|为)?"
    r"[\s:：]*(?:option\s+)?" + LETTER.format("stated") + r"(?:\s*i\.?e\b)?[.,:;。，\s]*"
    r"|\b(?:option|choice)\s+(?:" + LETTER.format("named") + r"|(?P<plain>(?-i:[A-J])))\s+is\s+(?:the\s+)?"
    r"(?:correct\s+|right\s+|best\s+)?(?:answer|option|choice)\b[.,:;\s]*)",
    re.IGNORECASE,
)
HINT = re.compile(  # what INNER cannot do without, seven times as fast
    r"(?:ans(?:wer)?|option|choice|答案)[\s.:：]*(?:is\b|-|是|为)?[\s:：]*(?:option\s+)?[('\"‘“`\[]*[a-j](?![a-z])",
    re.IGNORECASE,
)


def letters(text: str) -> list[str]:
    """The letters that a text states further on, in order and as capitals."""
    return [_letter(match) for match in _inner(text)]


def _inner(text: str):
    return INNER.finditer(text) if HINT.search(text) else ()


def _letter(match) -> str:
    return next(filter(None, match.group("stated", "stated_bare", "named", "named_bare", "plain"))).upper()


def without_letters(explanation: str, options: list[str], index: int) -> str:
    """The explanation without the letters that it states, first or further on. Raises Reject: answer_conflict."""
    explanation, kept, end = _without_first(explanation, options, index), [], 0
    for match in _inner(explanation):
        if LETTERS.index(_letter(match)) != index:
            raise Reject("answer_conflict")
        kept, end = [*kept, explanation[end : match.start()]], match.end()
    return "".join([*kept, explanation[end:]]).strip()


def _without_first(explanation: str, options: list[str], index: int) -> str:
    """The explanation without an opening "Ans. is 'd' i.e.,"; the article of "Ans. A patient" is no letter."""
    match = STATED.match(explanation)
    if not match:
        return explanation
    bare, rest = not (match["open"] or match["close"]), explanation[match.end() :]
    place = LETTERS.index(match["letter"].upper())
    named = place < len(options) and choices.fold(rest).startswith(choices.fold(options[place]))
    if bare and not match["second"] and match["rest"].isspace() and "\n" not in match["rest"] and not named:
        return explanation
    if bare and match["letter"].isupper() and match["rest"].strip() == "." and rest[:1].islower() and not named:
        return explanation  # "Answer: C. difficile"
    if place != index or (match["second"] and LETTERS.index(match["second"].upper()) != index):
        raise Reject("answer_conflict")
    return rest.strip()
