"""The letter of the option that a text chooses.

Case-exact where that matters, and never a guess: a text that names no option unambiguously is unparsed, and unparsed
counts as wrong. The rules answer known faults of published scorers: reading C out of "Vitamin C deficiency", A out of
"Answer: Aspirin" or out of the article "a", and missing "**Answer:** C".
"""

import re
import unicodedata
from itertools import zip_longest

from lib.dataset.forms import contains, negated, normalise
from lib.dataset.wording import ALONE

LETTERS = "ABCDEFGHIJ"
MIN_CONTAINED = 4  # an option of fewer characters ("no", "5") must be the whole statement, not a part of it

TAGGED = re.compile(r"\\boxed\{(?:\\text\{)?([^{}]*)\}|<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
IS = r"(?:is|was|would be|should be|must be|will be|has to be|seems to be|appears to be)\b"
STATED = re.compile(  # opens a line, or a clause within one where "is" follows
    r"(?:^[\s>#*_`{\"'-]*|(?<=[.,;:!?)])\s+(?=[^\n:=]{0,60}\b(?:is|be|was)\b)|\b(?:so|thus|therefore|hence|and),?\s+"
    r"(?=(?:the|my)\s+(?:\w+\s+){0,3}(?:answer|option|choice)\s+(?:is|was)\b))"
    r"(?:(?:so|thus|therefore|hence|and|in conclusion|overall),?\s+)?(?:the\s+|my\s+)?"
    r"(?:final\s+|correct\s+|best\s+|right\s+|single\s+|most likely\s+|most appropriate\s+)*"
    rf"(?:answer|ans\b\.?|option|choice)[\s*_`\"']*(?P<mark>:|=|-+>|→|[-–—](?=\s)|{IS}:?|(?=\n|[A-J]\b[^\w]*$))"
    r"|(?:正确|最佳|最终)?(?:答案|选项)(?:应该|应当|应)?\s*(?P<han>是|为|选|:|】)\s*:?"
    r"|(?<![\u4e00-\u9fff])(?:所以|因此|故|综上,?)?应?选择?(?P<pick>:|(?=\s*[(\[]?[A-J](?![A-Za-z])))"
    r"|\bI(?:'d| would| will|'ll)?\s+(?P<verb>choose|pick|select|go with|opt for)(?=\s+(?:option\s+)?[(*]*[A-J]\b)",
    re.IGNORECASE | re.MULTILINE,
)
SUBJECT = re.compile(  # "Option C is correct.", "(C) is the best choice"; of what, or when, makes it another statement
    r"(?:^|[\s(*_`])(?:(?:[Oo]ption|[Cc]hoice|[Aa]nswer)\s+)?[(*_`]*(?P<letter>[A-J])[)*_`]*\s+"
    r"(?:is|would be(?![^.!?\n]*\b(?:but|if|unless|were)\b))\s+"
    r"(?:the\s+)?"
    r"(?:(?:most|best|correct|right|likely|appropriate|single)\s+)*(?:correct|right|answer|choice|option)"
    r"(?=[*_`]*(?:[.,;!)\n]|$|\s+(?:because|since|here|as)\b))"
    r"|(?<![A-Za-z])(?P<han>[A-J])\s*(?:是|项)?(?:是|也)?正确(?:的|答案|选项)?(?=[。.,;!\s]|$)"
)
MARKUP = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\{([^{}]*)\}|\\[()\[\]]|^[\"'“‘]([A-J])[\"'”’]")
NOUN = r"(?:(?:[Oo]ption|[Cc]hoice|[Ll]etter|[Aa]nswer|选项?)\s*)?"
LETTER = re.compile(rf"^{NOUN}[(\[*_`$\"'\s]*(?P<letter>[A-J])(?P<rest>(?![A-Za-z0-9'’]).*)$", re.DOTALL)
SECOND = re.compile(
    r"^[\s)\]*_.$]*(?:,|;|/|&|\+|、|和|或|\band\b|\bor\b)\s*(?:(?:both|option|choice)\s+)?[(\[*_]*[A-J]"
    r"(?![A-Za-z0-9'’]|\s+(?:is|was|would)\b)"
)
# "A. Wrong, it is C."
TAKEN_BACK = re.compile(r"^[\s)\]*_.,;:(–—-]*(?:wrong|incorrect|false|no,|错误|不正确)", re.IGNORECASE)
CLOSED = re.compile(  # "C. difficile", "C-reactive": no
    r"^(?:[*_`$\"'}\s]*$|[*_`$\"']*[):\],;(\n}。、]|\s*[-–—=]\s|[*_`$\"']*\.(?!\s*[a-z])|\s*(?:因|项|是?正确)"
    r"|\s+(?:\(|because\b|since\b|given\b|due to\b|which\b|rather than\b|(?:and |but )?not\b|instead of\b"
    r"|as (?:it|this|the)\b))"
)
OPENING = re.compile(r"\s*(?:[,;:.(!\n。、]|\s[-–—]\s|\b(?:because|since|given|due to|as (?:it|this|the))\b|因为)")
SEVERAL = re.compile(r"\b(?:[A-J]\s*(?:,|and|or|&)\s*)+[A-J]\s+(?:is|are|would)\b")
LINE = re.compile(r"[\s*_`#>(\[$]*(?P<letter>[A-J])[\s*_`)\].$]*")
ITEM = re.compile(
    r"(?:^|(?<=[.;,!?\n)\s]))[(*_`]*(?:option\s+)?(?P<letter>[A-J])[)*_`]*\s*(?:[.:)]|\s[-–—]\s|\s+is\b)", re.IGNORECASE
)
RIGHT = re.compile(
    r"(?<!in)(?<!not )(?<!never )\b(?:correct|right(?!-)|true|best answer)\b|✓|✔|(?<!不)正确", re.IGNORECASE
)
HEDGED = re.compile(r"\b(?:part(?:ial)?ly|would be|could be|if)\s+(?:correct|right|true)\b|\bright if\b", re.IGNORECASE)
REVISED = re.compile(  # behind a stated answer: "Wait, actually B."
    r"\b(?:wait|actually|correction|on second thought|scratch that|I meant?)\b[^\n]{0,40}?"
    r"(?<![A-Za-z])[A-J](?![A-Za-z'’])",
    re.IGNORECASE,
)
WRONG = re.compile(r"\b(?:incorrect|wrong|false|not|never|unlikely|excluded)\b|✗|✘|❌|错误|不正确", re.IGNORECASE)


def _same_text(value, options):
    """Letter of the one option whose whole text the value is, else None."""
    found = [i for i, option in enumerate(options) if normalise(option) and normalise(option) == normalise(value)]
    return LETTERS[found[0]] if len(found) == 1 else None


def _opening(value, options):
    """Letter of the option with which a statement opens ("yes, maybe more so in women"), unless it lists two."""
    for end in (match.start() for match in OPENING.finditer(value)):
        if letter := _same_text(value[:end].strip('*_`" '), options):
            others = [option for option in options if normalise(option) != normalise(value[:end])]
            rest = normalise(re.split(r"[,.;:(]", value[end:].lstrip(" ,;:.("), maxsplit=1)[0])
            listed = {normalise(option) for option in others} | {
                f"{w} {normalise(o)}" for o in others for w in ("or", "and")
            }
            other = re.match(r"(yes|no) (?:in|for|if|when|with)\b", rest)  # "no, yes in women"
            against = bool(other) and {normalise(value[:end]), other[1]} == {"yes", "no"}
            return None if rest in listed or against else letter
    return None


def _letter(value, options):
    """Letter that a statement gives ("C", "(C)", "C. warfarin", "warfarin"), else None.

    A letter followed by a word is an article or a name ("A patient", "C. difficile") unless the words open that
    option's text; two letters ("A or B"), or a letter before another option's text, are no answer.
    """
    value = MARKUP.sub(lambda match: match[1] or match[2] or "", value).strip()
    if whole := _same_text(value.strip("*_`.$\"'{} "), options):
        return whole
    found = LETTER.match(value)
    if not found or LETTERS.index(found["letter"]) >= len(options) or SECOND.match(found["rest"]):
        return _opening(value, options)
    if TAKEN_BACK.match(found["rest"]):
        return None
    place, rest = LETTERS.index(found["letter"]), normalise(found["rest"])
    own, other = normalise(options[place]), _same_text(found["rest"], options)
    if other and LETTERS.index(other) != place and normalise(options[LETTERS.index(other)]) != own:
        return None
    named = bool(own) and f"{rest} ".startswith(f"{own} ")
    return found["letter"] if named or CLOSED.match(found["rest"]) else _opening(value, options)


def _stated(text, options):
    """(letter or None, whether the text states an answer at all), from the last statement."""
    heads, outcome, end = list(STATED.finditer(text)), (None, False), 0
    for head, following in zip_longest(heads, heads[1:]):
        lines = text[head.end() : following.start() if following else len(text)].splitlines()
        # "Answer:" alone on its line: the statement is the next line that is not empty
        value = next((line.strip() for line in lines if line.strip('*_`" ')), "")
        letter = _letter(value.lstrip('*_`" '), options)
        if letter or (head["mark"] or head["han"]) in (":", "="):
            outcome, end = (letter, True), head.end()
    said = [match["letter"] or match["han"] for match in SUBJECT.finditer(text, end)]
    if said and not outcome[1] and not SEVERAL.search(text):
        return (said[0] if len(set(said)) == 1 and LETTERS.index(said[0]) < len(options) else None), True
    return outcome


def _revised(text):
    """Whether a letter is named anew behind the last statement of an answer."""
    ends = [match.end() for match in STATED.finditer(text)]
    return bool(ends) and bool(REVISED.search(text, ends[-1]))


def _discussed(text, options):
    """(letter, True) where the text goes through the options and calls one right, (None, True) where not just one."""
    items = list(ITEM.finditer(text))
    if len({item["letter"].upper() for item in items}) < 2:
        return None, False
    if HEDGED.search(text):
        return None, True
    right, verdicts = set(), 0
    for item, following in zip_longest(items, items[1:]):
        said = text[item.end() : following.start() if following else len(text)]
        good, bad = RIGHT.search(said), WRONG.search(said)
        verdicts += bool(good or bad)
        if good and not (bad and bad.start() < good.start()):
            right.add(item["letter"].upper())
    if verdicts < 2:
        return None, False
    found = next(iter(right)) if len(right) == 1 else None
    return (found if found and LETTERS.index(found) < len(options) else None), True


def _only_mentioned(text, options):
    """Letter of the only option whose full text stands, not negated, in the text, else None."""
    forms = [normalise(option) for option in options]
    rest, found = normalise(text), []
    for index in sorted(range(len(forms)), key=lambda i: -len(forms[i])):  # "aspirin and heparin" before "aspirin"
        if contains(rest, forms[index]):
            found.append(index)
            rest = f" {rest} ".replace(f" {forms[index]} ", " | ").strip()
    found = [index for index in found if not negated(text, options[index])]
    if len(found) != 1 or forms.count(forms[found[0]]) != 1:
        return None
    long = len(forms[found[0]]) >= MIN_CONTAINED or len(ALONE.findall(forms[found[0]])) > 1
    return LETTERS[found[0]] if long else None


def choice(answer_text, options):
    """Letter of the chosen option, or None where the text does not settle it (scored as wrong, counted as unparsed).

    answer_text: the answer without its reasoning. options: 2 to 10 option texts in the order A, B, C, ...
    Tiers, the first that speaks decides: (1) the last \\boxed{} or <answer> tag; (2) the last line that states an
    answer ("Answer: C", "**The answer is (C)**", "Answer: warfarin"), case-sensitive, not followed by a word, or else
    "Option C is correct"; a last statement that names no option leaves the text unparsed; (3) the options gone through
    one by one, of which one is called right; (4) the text, or its last line, is nothing but a letter or an option, or
    opens with one; (5) exactly one option's full text is mentioned and not negated.
    """
    if not 2 <= len(options) <= len(LETTERS):
        raise ValueError(f"{len(options)} options: expected 2 to {len(LETTERS)}")
    text = unicodedata.normalize("NFKC", answer_text or "").strip()
    for read in (stated, _discussed):
        letter, speaks = read(text, options)
        if speaks:
            return None if _revised(text) else letter
    before, _, line = text.rpartition("\n")
    last = LINE.fullmatch(line) if not re.search(r"(?:\b(?:and|or|between)|[,和或])\s*$", before) else None
    if last and LETTERS.index(last["letter"]) < len(options):
        return last["letter"]
    whole = _letter(text, options) if "\n" not in text else _opening(text.partition("\n")[0], options)
    return whole or _only_mentioned(text, options)


def stated(text, options):
    """(letter or None, whether the text states an answer): the first two tiers of `choice` alone.

    What a data set calls the truth is told by these: an option that is only mentioned may be the wrong one.
    """
    text = unicodedata.normalize("NFKC", text)
    boxes = [
        (match, letter) for match in TAGGED.finditer(text) if (letter := _letter(match[1] or match[2] or "", options))
    ]
    if boxes:
        last, letter = boxes[-1]
        line = text[text.rfind("\n", 0, last.start()) + 1 : last.start()]
        beside = {found for match, found in boxes if match.group() in line}
        return (letter if beside <= {letter} else None), True
    return _stated(text, options)
