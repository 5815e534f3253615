"""From the text of a model to the answer that is scored.

Everything here is case-exact where that matters and refuses to guess: a text that names no option unambiguously is
unparsed, and unparsed counts as wrong. The rules answer known faults of published scorers: reading C out of
"Vitamin C deficiency", A out of "Answer: Aspirin" or out of the article "a", and missing "**Answer:** C".
"""

import re
import unicodedata
from itertools import zip_longest

LETTERS = "ABCDEFGHIJ"
MIN_CONTAINED = 4  # an option of fewer characters ("no", "5") must be the whole statement, not a part of it

ALIASES = {  # normal form -> the form both sides are brought to; only clinical synonyms that never differ in meaning
    "acetaminophen": "paracetamol",
    "adrenaline": "epinephrine",
    "noradrenaline": "norepinephrine",
    "salbutamol": "albuterol",
    "frusemide": "furosemide",
    "heart attack": "myocardial infarction",
    "high blood pressure": "hypertension",
    "electrocardiography": "electrocardiogram",
    "electrocardiograph": "electrocardiogram",
    "ecg": "electrocardiogram",
    "ekg": "electrocardiogram",
    "ct": "computed tomography",
    "cat scan": "computed tomography",
    "mri": "magnetic resonance imaging",
    "beta": "β",
    "alpha": "α",
    "gamma": "γ",
}
SPELLINGS = (("ae", "e"), ("oe", "e"), ("our", "or"), ("isation", "ization"), ("ise", "ize"))  # British to American

NEGATION = re.compile(r"\b(?:not|no|never|without|cannot|rather than|instead of|unlike)\b[^.;:]*$")
TAGGED = re.compile(r"\\boxed\{(?:\\text\{)?([^{}]*)\}|<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
STATED = re.compile(  # opens a line, or a clause within one where "is" follows
    r"(?:^[\s>#*_`-]*|(?<=[.,;:!?])\s+(?=[^\n:=]{0,60}\bis\b))(?:(?:so|thus|therefore|hence),?\s+)?(?:the\s+|my\s+)?"
    r"(?:final\s+|correct\s+|best\s+|most likely\s+)*(?:answer|option|choice)[\s*_`]*(?P<mark>:|=|is\b:?)",
    re.IGNORECASE | re.MULTILINE,
)
LETTER = re.compile(r"^(?:[Oo]ption\s+)?[(\[*_`\s]*(?P<letter>[A-J])(?P<rest>(?![A-Za-z0-9'’]).*)$", re.DOTALL)
SECOND = re.compile(r"^[\s)\]*_.]*(?:,|/|&|\+|\band\b|\bor\b)\s*[(\[*_]*[A-J](?![A-Za-z0-9'’])")
CLOSED = re.compile(
    r"^(?:[*_`]*\s*$|[*_`]*[):\],;(\n]|\s*[-–—]\s|[*_`]*\.(?!\s*[a-z]))"
)  # "C. difficile", "C-reactive": no


def _split_think(text):
    """(reasoning, answer, compliant) of "<think> reasoning </think> answer"; compliant: just that, both non-empty."""
    form = re.fullmatch(r"\s*<think>(.*?)</think>(.*)", text, re.DOTALL)
    if form and "think>" not in form[1] + form[2]:
        reasoning, answer = form[1].strip(), form[2].strip()
        return reasoning, answer, bool(reasoning and answer)
    reasoning = re.findall(r"<think>(.*?)</think>", text, re.DOTALL)
    rest = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL)
    if "</think>" in rest:  # closed without an opening: what stands before the last closing tag is reasoning
        before, _, rest = rest.rpartition("</think>")
        reasoning.append(before)
    rest, opened, unclosed = rest.partition("<think>")
    if opened:  # never closed: the budget ended, or the model went on thinking; none of it is an answer
        reasoning.append(unclosed)
    return "\n".join(part.strip() for part in reasoning).strip(), rest.strip(), False


def _split_harmony(text):
    """The analysis channel and the final channel of gpt-oss; compliant: one of each, in this order, both non-empty."""
    form = re.fullmatch(
        r"\s*(?:<\|start\|>assistant)?<\|channel\|>analysis<\|message\|>(.*?)<\|end\|>"
        r"<\|start\|>assistant<\|channel\|>final<\|message\|>(.*?)(?:<\|return\|>|<\|end\|>)?\s*",
        text,
        re.DOTALL,
    )
    if form and "<|" not in form[1] + form[2]:
        reasoning, answer = form[1].strip(), form[2].strip()
        return reasoning, answer, bool(reasoning and answer)
    parts = re.findall(
        r"<\|channel\|>(\w+)[^<]*<\|message\|>(.*?)(?=<\|end\|>|<\|return\|>|<\|start\|>|\Z)", text, re.DOTALL
    )
    reasoning = "\n".join(part.strip() for channel, part in parts if channel != "final")
    final = [part.strip() for channel, part in parts if channel == "final"]
    return reasoning.strip(), final[-1] if final else "" if parts else text.strip(), False


def _split_headings(text):
    """ "## Thinking ... ## Final Response ...": compliant: each heading once, in this order, both parts non-empty."""
    before, heading, answer = text.rpartition("## Final Response")
    if not heading:  # the budget ended while it thought, or it never thought at all
        thinking = text.lstrip().startswith("## Thinking")
        return (text.replace("## Thinking", "", 1).strip(), "", False) if thinking else ("", text.strip(), False)
    reasoning = before.replace("## Thinking", "", 1).strip()
    once = before.count("## Thinking") == 1 and "## Final Response" not in before
    return (
        reasoning,
        answer.strip(),
        bool(before.lstrip().startswith("## Thinking") and once and reasoning and answer.strip()),
    )


def _split_instruction(text):
    """No marks: the whole turn is the answer; compliant: there is one."""
    return "", text.strip(), bool(text.strip())


FORMATS = {  # format of the recipe (chat.format) -> splitter of a whole assistant turn
    "think": _split_think,
    "harmony": _split_harmony,
    "thinking_response": _split_headings,
    "instruction": _split_instruction,
}


def split_reasoning(text, fmt):
    """Split an assistant turn into (reasoning, answer, compliant).

    text: the complete turn, including an opening tag that the template put into the prompt, without stop tokens.
    fmt: a key of FORMATS. compliant: the turn has exactly the form that training taught, nothing missing, nothing
    repeated. A turn that is not compliant still yields the answer where one can be told from the reasoning; where the
    reasoning never ends, the answer is "".
    """
    if fmt not in FORMATS:
        raise ValueError(f"chat.format {fmt!r} has no splitter: known are {', '.join(sorted(FORMATS))}")
    return FORMATS[fmt](text)


def normalise(text):
    """Comparable form: NFKC, lower case, punctuation to blanks (decimal points stay), one blank between words."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"(?<!\d)\.|\.(?!\d)", " ", text)
    return " ".join(re.sub(r"[^\w.%]|_", " ", text).split())


def canonical(text):
    """The normal form with clinical synonyms and British spellings brought to one side."""
    words = f" {normalise(text)} "
    for old, new in ALIASES.items():
        words = words.replace(f" {old} ", f" {new} ")
    for old, new in SPELLINGS:
        words = words.replace(old, new)
    return words.strip()


def contains(text, phrase):
    """Whether the phrase stands in the text as whole words, both already in one normal form."""
    return bool(phrase) and f" {phrase} " in f" {text} "


def negated(text, phrase):
    """Whether every mention of a phrase in the text follows a negation within its sentence ("not", "avoid", ...)."""
    mentions = [
        (sentence, match.start())
        for sentence in (canonical(s) for s in re.split(r"[.;:!?\n]\s*", text))
        for match in re.finditer(rf"(?<!\S){re.escape(canonical(phrase))}(?!\S)", sentence)
    ]
    return bool(mentions) and all(NEGATION.search(sentence[:start]) for sentence, start in mentions)


def matches(answer_text, truth):
    """Whether the short ground truth stands in the answer, after synonyms and spelling, and is not negated there."""
    return contains(canonical(answer_text), canonical(truth)) and not negated(answer_text, truth)


def _same_text(value, options):
    """Letter of the one option whose whole text the value is, else None."""
    found = [i for i, option in enumerate(options) if normalise(option) and normalise(option) == normalise(value)]
    return LETTERS[found[0]] if len(found) == 1 else None


def _letter(value, options):
    """Letter that a statement gives ("C", "(C)", "C. warfarin", "warfarin"), else None.

    A letter followed by a word is an article or a name ("A patient", "C. difficile") unless the words open that
    option's text; two letters ("A or B") are no answer.
    """
    value = value.strip()
    if whole := _same_text(value.strip("*_`. "), options):
        return whole
    found = LETTER.match(value)
    if not found or LETTERS.index(found["letter"]) >= len(options) or SECOND.match(found["rest"]):
        return None
    own = normalise(options[LETTERS.index(found["letter"])])
    named = bool(own) and f"{normalise(found['rest'])} ".startswith(f"{own} ")
    return found["letter"] if named or CLOSED.match(found["rest"]) else None


def _stated(text, options):
    """(letter or None, whether the text states an answer at all), from the last statement."""
    heads, outcome = list(STATED.finditer(text)), (None, False)
    for head, following in zip_longest(heads, heads[1:]):
        lines = text[head.end() : following.start() if following else len(text)].splitlines()
        # "Answer:" alone on its line: the statement is the next line that is not empty
        value = next((line.strip() for line in lines if line.strip("*_` ")), "")
        letter = _letter(value.lstrip("*_` "), options)
        if letter or head["mark"] in ":=":
            outcome = (letter, True)
    return outcome


def _only_mentioned(text, options):
    """Letter of the only option whose full text stands, not negated, in the text, else None."""
    forms = [normalise(option) for option in options]
    rest, found = normalise(text), []
    for index in sorted(range(len(forms)), key=lambda i: -len(forms[i])):  # "aspirin and heparin" before "aspirin"
        if len(forms[index]) >= MIN_CONTAINED and contains(rest, forms[index]):
            found.append(index)
            rest = f" {rest} ".replace(f" {forms[index]} ", " | ").strip()
    found = [index for index in found if not negated(text, options[index])]
    return LETTERS[found[0]] if len(found) == 1 and forms.count(forms[found[0]]) == 1 else None


def choice(answer_text, options):
    """Letter of the chosen option, or None where the text does not settle it (scored as wrong, counted as unparsed).

    answer_text: the answer without its reasoning. options: 2 to 10 option texts in the order A, B, C, ...
    Tiers, the first that speaks decides: (1) the last \\boxed{} or <answer> tag; (2) the last line that states an
    answer ("Answer: C", "**The answer is (C)**", "Answer: warfarin"), case-sensitive, not followed by a word; a last
    statement that names no option leaves the text unparsed; (3) the text is nothing but a letter or an option;
    (4) exactly one option's full text is mentioned and not negated.
    """
    if not 2 <= len(options) <= len(LETTERS):
        raise ValueError(f"{len(options)} options: expected 2 to {len(LETTERS)}")
    text = unicodedata.normalize("NFKC", answer_text or "")
    for match in reversed(list(TAGGED.finditer(text))):
        if letter := _letter(match[1] or match[2] or "", options):
            return letter
    letter, stated = _stated(text, options)
    if stated:
        return letter
    whole = _letter(text, options) if "\n" not in text.strip() else None
    return whole or _only_mentioned(text, options)
