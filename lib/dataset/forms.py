"""Texts brought to one form, so that an answer and its truth can be compared: case, spelling, synonyms, negations."""

import re
import unicodedata

from lib.dataset.wording import spaced

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
NEGATION = re.compile(
    r"\b(?:not|no|never|without|cannot|rather than|instead of|unlike|\w+n t|neither|nor|absence of|negative for|except|"
    r"ruled? out|excluding)\b[^.;:]*$"
    r"|(?:不 是|并 非|而 非|不 考 虑|不 支 持|排 除|没 有|无|不 可 能|不 像|未 见|否 认)[^.;:]*$"
)
DENIED = re.compile(  # behind a mention
    r"^ (?:(?:is|was|are|were|has been|should be|can be|could be) )?"
    r"(?:excluded|ruled out|unlikely|contraindicated|not|(?:the )?wrong|incorrect|absent)\b|^ 可 以 排 除"
)
SENTENCE = re.compile(r"[.;:!?\n]\s*|[。；：！？，]")


def normalise(text):
    """Comparable form: NFKC, lower case, punctuation to blanks (decimal points stay), one blank between words.

    In a script without blanks every character is a word.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"(?<!\d)\.|\.(?!\d)", " ", text)
    return " ".join(spaced(re.sub(r"[^\w.%]|_", " ", text)).split())


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
    """Whether every mention of a phrase in the text is denied within its sentence, before it or right behind it."""
    mentions = [
        (sentence, match.start(), match.end())
        for sentence in (canonical(s) for s in SENTENCE.split(text))
        for match in re.finditer(rf"(?<!\S){re.escape(canonical(phrase))}(?!\S)", sentence)
    ]
    return bool(mentions) and all(
        NEGATION.search(sentence[:start]) or DENIED.search(sentence[end:]) for sentence, start, end in mentions
    )
