"""Options and answers in every encoding come back as the same list and index; what is ambiguous is rejected."""

import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lib.dataset import choices
from lib.dataset.choices import LETTERS, Reject

OPTIONS = ["Vitamin A", "Vitamin C", "Vitamin K"]


def reason(call, *args, **options):
    with pytest.raises(Reject) as caught:
        call(*args, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        OPTIONS,
        tuple(OPTIONS),
        ["A. Vitamin A", "B. Vitamin C", "C. Vitamin K"],
        ["(a) Vitamin A", "(b) Vitamin C", "(c) Vitamin K"],
        {"A": "Vitamin A", "B": "Vitamin C", "C": "Vitamin K"},
        {"c": "Vitamin K", "b": " Vitamin C ", "a": "Vitamin A"},
        {"A": "Vitamin A", "B": "Vitamin C", "C": "Vitamin K", "D": None, "E": None},
        [{"key": "B", "value": "Vitamin C"}, {"key": "A", "value": "Vitamin A"}, {"key": "C", "value": "Vitamin K"}],
        [{"Label": "a", "Text": "Vitamin A"}, {"Label": "b", "Text": "Vitamin C"}, {"Label": "c", "Text": "Vitamin K"}],
        {"key": ["A", "B", "C"], "value": OPTIONS},
        "Answer Choices:\nA. Vitamin A\nB. Vitamin C\nC. Vitamin K",
        "A) Vitamin A\r\nB) Vitamin\r\n   C\r\n\r\nC) Vitamin K",
        "(a) Vitamin A\n(b) Vitamin C\n(c) Vitamin K",
        "A.Vitamin A\nB.Vitamin C\nC.Vitamin K",
        "A: Vitamin A\nB: Vitamin C\nC: Vitamin K",
        "A. Vitamin A B. Vitamin C C. Vitamin K",
        "Options: (a) Vitamin A (b) Vitamin C (c) Vitamin K",
        "A．Vitamin A\nB．Vitamin C\nC．Vitamin K",
        {"0": "Vitamin A", "1": "Vitamin C", "2": "Vitamin K"},
        {"3": "Vitamin K", "1": "Vitamin A", "2": "Vitamin C"},
        {"label": ["1", "2", "3"], "text": OPTIONS},
    ],
)
def test_options_in_every_encoding(value):
    assert choices.options_of(value) == OPTIONS


@pytest.mark.parametrize("value", [None, "", " \n", [], {}, "Answer Choices:\n"])
def test_nothing_listed_is_an_open_question(value):
    assert choices.options_of(value) == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["one"], "options_unparsable"),
        ([f"text {n}" for n in range(11)], "options_unparsable"),
        ({letter: f"text {letter}" for letter in "ABCDEFGHIJK"}, "options_unparsable"),
        ("\n".join(f"{letter}. text {letter}" for letter in "ABCDEFGHIJK"), "options_unparsable"),
        (["Vitamin C", "vitamin  c."], "options_alike"),
        (["one", ""], "options_unparsable"),
        (["one", None], "options_unparsable"),
        (["one", "."], "options_unparsable"),
        ({"A": "one", "C": "two"}, "options_unparsable"),
        ({"A": None, "B": "two"}, "options_unparsable"),
        ({"1": "one", "3": "two"}, "options_unparsable"),
        ({"2": "one", "3": "two"}, "options_unparsable"),
        ({"A": "one", "1": "two"}, "options_unparsable"),
        ({"A": "one", "a": "two"}, "options_unparsable"),
        ([{"key": "A", "value": "x"}, {"key": "A", "value": "y"}], "options_unparsable"),
        ([{"key": "A"}, {"value": "y"}], "options_unparsable"),
        ({"key": ["A", "B"], "value": ["x"]}, "options_unparsable"),
        ("A. x\nC. y", "options_unparsable"),
        ("Vitamin A or Vitamin C", "options_unparsable"),
        ([1, 2], "wrong_type"),
        ([["one"], ["two"]], "wrong_type"),
        ([{"key": 1, "value": "x"}, {"key": 2, "value": "y"}], "wrong_type"),
        ({0: "one", 1: "two"}, "wrong_type"),
        (3, "wrong_type"),
        (math.nan, "wrong_type"),
        (True, "wrong_type"),
        (b"A. x", "wrong_type"),
        (["one", "t\x00wo"], "control_characters"),
        (["one", "t\ud800wo"], "bad_utf8"),
        (["one", "x" * 300_000], "too_long"),
    ],
)
def test_options_that_cannot_be_read(value, expected):
    assert reason(choices.options_of, value) == expected


@pytest.mark.parametrize(
    ("answer", "how", "index"),
    [
        ("Vitamin C", {}, 1),
        ("vitamin  c.", {}, 1),
        ("B", {}, 1),
        ("b)", {}, 1),
        ("(c)", {}, 2),
        ("Option B", {}, 1),
        ("B. Vitamin C", {}, 1),
        ("(b) vitamin c", {}, 1),
        (0, {"base": 0}, 0),
        (1, {"base": 1}, 0),
        (2.0, {"base": 0}, 2),
        ("2", {"base": 1}, 1),
        ("B", {"means": "letter"}, 1),
        ("2", {"base": 1, "means": "letter"}, 1),
    ],
)
def test_answers_in_every_encoding(answer, how, index):
    assert choices.find(answer, OPTIONS, **how) == index


@pytest.mark.parametrize(
    ("answer", "options", "how", "expected"),
    [
        ("D", OPTIONS, {}, "answer_not_in_options"),
        ("Vitamin D", OPTIONS, {}, "answer_not_in_options"),
        ("B. Vitamin D", OPTIONS, {}, "answer_not_in_options"),
        ("A. Vitamin C", OPTIONS, {}, "answer_conflict"),
        ("Vitamin C", OPTIONS, {"means": "letter"}, "answer_not_in_options"),
        ("C", ["B", "C", "D"], {}, "answer_ambiguous"),
        ("2", ["1", "2", "3"], {"base": 0}, "answer_ambiguous"),
        (2, ["1", "2", "3"], {"base": 0}, "answer_ambiguous"),
        (3, OPTIONS, {"base": 0}, "answer_not_in_options"),
        (0, OPTIONS, {"base": 1}, "answer_not_in_options"),
        (10**400, OPTIONS, {"base": 0}, "answer_not_in_options"),
        (1, OPTIONS, {}, "wrong_type"),
        (True, OPTIONS, {"base": 0}, "wrong_type"),
        (0.5, OPTIONS, {"base": 0}, "wrong_type"),
        (math.nan, OPTIONS, {"base": 0}, "wrong_type"),
        (math.inf, OPTIONS, {"base": 0}, "wrong_type"),
        (["B"], OPTIONS, {}, "wrong_type"),
        (None, OPTIONS, {}, "empty_answer"),
        (" ", OPTIONS, {}, "empty_answer"),
    ],
)
def test_answers_that_name_no_option_or_two(answer, options, how, expected):
    assert reason(choices.find, answer, options, **how) == expected


def test_a_letter_that_is_an_options_text_follows_what_the_source_means():
    assert choices.find(3, ["2", "3", "4"]) == 1 and choices.find(1, ["2", "3", "1"], means="letter", base=0) == 1
    assert choices.find("C", ["B", "C", "D"], means="text") == 1
    assert choices.find("C", ["B", "C", "D"], means="letter") == 2
    assert choices.find("E", ["B", "E", "D"]) == 1, "there is no fifth option, so that E is the text"


@pytest.mark.parametrize(
    ("question", "stem", "options"),
    [
        ("Which?\nA. one\nB. two", "Which?", ["one", "two"]),
        ("Which?\n\nOptions:\nA) one\nB) two", "Which?", ["one", "two"]),
        ("Which?\nA. one B. two C. three", "Which?", ["one", "two", "three"]),
        ("Which?\nAnswer Choices: (A) one (B) two", "Which?", ["one", "two"]),
        ("Vitamin\nA deficiency: which?\na. one\nb. two", "Vitamin\nA deficiency: which?", ["one", "two"]),
        ("Is vitamin B. or C. needed?", "Is vitamin B. or C. needed?", []),
        ("哪个？\nA．one\nB．two", "哪个？", ["one", "two"]),
        ("哪个？\nA、甲 B、乙 C、丙", "哪个？", ["甲", "乙", "丙"]),
        ("哪个？\n（A）甲\n（B）乙", "哪个？", ["甲", "乙"]),
        ("哪个？\nA.甲\nB.乙", "哪个？", ["甲", "乙"]),
        ("Which?\n[A] one\n[B] two", "Which?", ["one", "two"]),
        ("Which?\nA. one, or\nTwo\nB. two,\nor three", "Which?", ["one, or Two", "two, or three"]),
        ("Which?\nA. Tell her\nB. Explain the options", "Which?", ["Tell her", "Explain the options"]),
    ],
)
def test_options_inside_a_question(question, stem, options):
    assert choices.inside(question) == (stem, options)


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Which?\nA. one", "options_unparsable"),
        ("Which?\nA. one\nC. two", "options_unparsable"),
        ("Which?\nA. one\nA. two\nB. three", "options_unparsable"),
        ("Which?\nA. one B. two B. three", "options_unparsable"),
        ("A. one\nB. two", "empty_question"),
        ("Which?\nA. one\nB. two\n\nshe is allergic", "options_unparsable"),
        ("Which?\nA. one\nB. two\nShe is allergic.", "options_unparsable"),
        ("Which?\nA. one\nB. two\n*Beware*", "options_unparsable"),
        ("Which?\nA. one\nB. two [/INST]", "options_unparsable"),
        ("Which?\nA. one B. two Choose the right one:", "options_unparsable"),
    ],
)
def test_a_broken_list_inside_a_question(question, expected):
    assert reason(choices.inside, question) == expected


@pytest.mark.parametrize(
    "order",
    [
        "\nAnswer:",
        " Answer:",
        "\n\nAnswer with the letter only.",
        ". Answer with the letter of the option.",
        "\nThe correct answer is",
        "\n### Response:",
        "\n\n**Answer:**",
        "\nChoose the best option.\nAnswer: (",
        "\nPlease respond only with A, B, C or D.",
        "\nLet's think step by step.",
        "\nExplain your reasoning, then give the answer.",
        "\n答案：",
        "\n请选择正确答案。",
    ],
)
def test_an_order_behind_the_list_is_no_part_of_its_last_option(order):
    assert choices.inside(f"Which?\nA. one\nB. S. aureus{order}") == (
        "Which?",
        ["one", "S. aureus" + "." * (order[0] == ".")],
    )


def test_unquote():
    assert [choices.unquote(t) for t in (' "x" ', "'x", 'x"', "5'", '"', "d'Arcy")] == [
        "x",
        "x",
        "x",
        "5'",
        "",
        "d'Arcy",
    ]


OPTION = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="\ufffd"), min_size=3)
SETS = st.lists(OPTION.filter(lambda t: choices.fold(t)), min_size=2, max_size=10, unique_by=choices.fold)
AS_OPTIONS = {
    "list": lambda options: options,
    "lettered": lambda options: [f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False)],
    "dict": lambda options: dict(zip(LETTERS.lower(), options, strict=False)),
    "pairs": lambda options: [{"key": k, "value": v} for k, v in zip(LETTERS, options, strict=False)][::-1],
    "block": lambda options: "\n".join(f"{k}) {v}" for k, v in zip(LETTERS, options, strict=False)),
}
AS_ANSWER = {
    "text": lambda options, index: (options[index], {"means": "text"}),
    "letter": lambda options, index: (LETTERS[index], {"means": "letter"}),
    "bracket": lambda options, index: (f"({LETTERS[index].lower()})", {"means": "letter"}),
    "both": lambda options, index: (f"{LETTERS[index]}. {options[index]}", {}),
    "from 0": lambda options, index: (index, {"base": 0}),
    "from 1": lambda options, index: (float(index + 1), {"base": 1}),
}


@given(SETS, st.data(), st.sampled_from(sorted(AS_OPTIONS)), st.sampled_from(sorted(AS_ANSWER)))
@settings(max_examples=150, deadline=None)
def test_round_trip(options, data, how, named):
    assume(not any(choices.PREFIXED.match(text) or choices.LETTERED.fullmatch(text) for text in options))
    index = data.draw(st.integers(0, len(options) - 1))
    found = choices.options_of(AS_OPTIONS[how](options))
    assert found == options
    answer, means = AS_ANSWER[named](options, index)
    assert choices.find(answer, found, **means) == index


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
KEYS = st.text() | st.sampled_from("ABab")


@given(st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner)))
@settings(max_examples=150, deadline=None)
def test_anything_is_read_or_rejected(value):
    for call, args in ((choices.options_of, ()), (choices.find, (OPTIONS,))):
        try:
            call(value, *args)
        except Reject as reject:
            assert str(reject).isidentifier()
