import pytest

from lib.dataset import answers

DRUGS = ["Aspirin", "Metoprolol", "Warfarin", "Vitamin K"]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Answer: C", "C"),
        ("**Answer:** C", "C"),
        ("**Answer: C**", "C"),
        ("Answer: **C**", "C"),
        ("Answer: (C)", "C"),
        ("Answer: C.", "C"),
        ("Answer: C) Warfarin", "C"),
        ("Answer: C. Warfarin", "C"),
        ("Answer: C Warfarin", "C"),
        ("Answer: C - it lowers the risk of stroke", "C"),
        ("Answer： C", "C"),  # full-width colon
        ("Answer:\n\nC", "C"),
        ("## Final answer: B", "B"),
        ("The correct answer is (B).", "B"),
        ("Stroke must be prevented, so the answer is C.", "C"),
        ("Therefore, the best answer is option C.", "C"),
        ("Answer: Aspirin", "A"),
        ("Answer: warfarin.", "C"),
        ("Answer: Vitamin K", "D"),
        (r"We conclude \boxed{C}", "C"),
        (r"\boxed{\text{B}} then Answer: A", "B"),
        ("<answer>D</answer>", "D"),
        ("C", "C"),
        ("(B)", "B"),
        ("b", None),  # the letter is case-sensitive
        ("Give warfarin now and control the INR.", "C"),
        ("Not aspirin and not metoprolol: warfarin.", "C"),
    ],
)
def test_choice_reads_what_is_stated(text, letter):
    assert answers.choice(text, DRUGS) == letter


@pytest.mark.parametrize(
    "text",
    [
        "Vitamin C deficiency causes scurvy.",
        "Answer: Heparin",
        "Answer: A patient with this finding needs surgery",
        "A patient with atrial fibrillation needs anticoagulation.",
        "Answer: C-reactive protein",
        "Answer: C. difficile colitis",
        "Answer: B12 deficiency",
        "Answer: A or B",
        "Answer: A, B",
        "Answer: A/C",
        "Answer: E",
        "Answer: c",
        "The answer is not C",
        "Aspirin or warfarin would do.",
        "It is not aspirin.",
        "",
    ],
)
def test_choice_does_not_guess(text):
    assert answers.choice(text, DRUGS) is None


def test_the_last_statement_wins_even_when_it_names_no_option():
    assert answers.choice("Answer: A\nOn reflection:\nAnswer: C", DRUGS) == "C"
    assert answers.choice("Answer: A. No, the answer is C.", DRUGS) == "C"
    assert answers.choice("Answer: C\nAnswer: Heparin", DRUGS) is None
    assert answers.choice("Answer: C\nThe answer is supported by the INR.", DRUGS) == "C"


def test_an_option_inside_another_is_told_apart():
    options = ["Aspirin", "Aspirin and clopidogrel", "Heparin", "None of the above"]
    assert answers.choice("We give aspirin and clopidogrel.", options) == "B"
    assert answers.choice("Aspirin alone is enough.", options) == "A"


def test_letters_reach_as_far_as_the_options():
    assert answers.choice("Answer: B", ["yes", "no"]) == "B"
    assert answers.choice("Answer: C", ["yes", "no"]) is None
    assert answers.choice("There is no evidence.", ["yes", "no"]) is None
    assert answers.choice("Answer: J", [f"drug {i}" for i in range(10)]) == "J"
    with pytest.raises(ValueError, match="1 options"):
        answers.choice("Answer: A", ["only"])


def test_equal_options_are_not_resolved_by_their_text():
    assert answers.choice("Answer: aspirin", ["Aspirin", "aspirin", "Heparin"]) is None


def test_species_that_are_options():
    species = ["E. coli", "C. difficile", "H. pylori", "S. aureus"]
    assert answers.choice("Answer: C. difficile", species) == "B"
    assert answers.choice("Answer: C. H. pylori", species) == "C"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\nfever\n</think>\n\nAnswer: C", ("fever", "Answer: C", True)),
        ("<think>\n\n</think>\n\nAnswer: C", ("", "Answer: C", True)),  # as Qwen3 writes no reasoning
        ("<think>fever</think>", ("fever", "", False)),
        ("<think>fever, so Answer: A", ("fever, so Answer: A", "", False)),
        ("fever</think>Answer: C", ("fever", "Answer: C", False)),
        ("Answer: C", ("", "Answer: C", False)),
        ("<think>a</think>b</think>Answer: C", ("a\nb", "Answer: C", False)),
        ("<think>a</think>Answer: C<think>more", ("a\nmore", "Answer: C", False)),
        ("<think>a</think>Answer: C<think>b</think>", ("a\nb", "Answer: C", False)),
        ("", ("", "", False)),
    ],
)
def test_split_think(text, expected):
    assert answers.split_reasoning(text, "think") == expected


def test_split_names_the_formats_it_knows():
    with pytest.raises(ValueError, match="'xml' has no splitter: known are .*think"):
        answers.split_reasoning("x", "xml")


def test_normalise():
    assert answers.normalise(" The  ＥＣＧ—shows 0.5 mV (ST). ") == "the ecg shows 0.5 mv st"
    assert answers.normalise("H. pylori") == "h pylori"


def test_matches_synonyms_and_spellings_but_not_negations():
    assert answers.matches("This is a heart attack.", "Myocardial infarction")
    assert answers.matches("Order an ECG at once", "electrocardiogram")
    assert answers.matches("Iron deficiency anemia", "Iron-deficiency anaemia")
    assert answers.matches("Drain the tumor", "tumour")
    assert not answers.matches("It is not myocardial infarction.", "myocardial infarction")
    assert answers.matches("Not a stroke. It is a migraine", "migraine")
    assert answers.matches("Avoid metformin.", "metformin")  # the question may have asked what to avoid
    assert not answers.matches("aspirinate", "aspirin")
    assert not answers.matches("", "aspirin")


HARMONY = "<|channel|>analysis<|message|>why<|end|><|start|>assistant<|channel|>final<|message|>two"


@pytest.mark.parametrize(
    ("fmt", "text", "parts"),
    [
        ("harmony", HARMONY, ("why", "two", True)),
        ("harmony", HARMONY + "<|return|>", ("why", "two", True)),
        ("harmony", "<|channel|>analysis<|message|>why and", ("why and", "", False)),
        ("harmony", "<|channel|>final<|message|>two<|return|>", ("", "two", True)),
        ("harmony", "plain words", ("", "plain words", False)),
        ("harmony", HARMONY.replace("why", "why<|message|>"), ("why<|message|>", "two", False)),
        ("thinking_response", "## Thinking\n\nwhy\n\n## Final Response\n\ntwo", ("why", "two", True)),
        ("thinking_response", "## Thinking\n\nwhy", ("why", "", False)),
        ("thinking_response", "## Thinking\n\n\n\n## Final Response\n\ntwo", ("", "two", True)),
        ("thinking_response", "two", ("", "two", False)),
        ("thinking_response", "## Final Response\ntwo", ("", "two", False)),
        (
            "thinking_response",
            "## Thinking\na\n## Thinking\nb\n## Final Response\ntwo",
            ("a\n## Thinking\nb", "two", False),
        ),
        ("instruction", " why\n\nAnswer: two ", ("", "why\n\nAnswer: two", True)),
        ("instruction", "  ", ("", "", False)),
    ],
)
def test_the_other_formats_are_split(fmt, text, parts):
    assert answers.split_reasoning(text, fmt) == parts


def test_every_format_of_training_can_be_read_back():
    from lib.chat import encoding

    assert set(answers.FORMATS) == set(encoding.FORMATS)


@pytest.mark.parametrize("text", [
    "It isn't pneumonia.", "The patient doesn’t have pneumonia.", "This can't be pneumonia", "neither pneumonia nor TB",
    "negative for pneumonia", "Pneumonia is excluded.", "Pneumonia is ruled out.", "Rule out pneumonia.",
    "absence of pneumonia", "Pneumonia is unlikely here.",
])  # fmt: skip
def test_a_denied_answer_is_no_match(text):
    assert not answers.matches(text, "pneumonia")
    assert answers.matches(f"{text}. Then again, it is pneumonia.", "pneumonia"), "one mention that is not denied"


@pytest.mark.parametrize("text", ["不可能是肺炎", "不像肺炎", "未见肺炎", "否认肺炎", "肺炎可以排除"])
def test_a_denied_answer_in_chinese_is_no_match(text):
    assert not answers.matches(text, "肺炎") and answers.matches("诊断是肺炎", "肺炎")


@pytest.mark.parametrize("text", [
    "Heparin is contraindicated.", "Any drug except heparin.", "I can't recommend heparin", "don't give heparin",
    "Heparin is the wrong drug here.",
])  # fmt: skip
def test_a_rejected_option_is_not_chosen(text):
    assert answers.choice(text, ["aspirin", "warfarin", "heparin", "clopidogrel"]) is None


@pytest.mark.parametrize("text", ["Answer: A. Wrong, it is C.", "Answer: A (incorrect), C (correct)", "Answer: A; C"])
def test_a_letter_that_is_taken_back_or_not_alone_is_not_chosen(text):
    assert answers.choice(text, ["aspirin", "warfarin", "heparin", "clopidogrel"]) is None


@pytest.mark.parametrize("text", ["Answer: C; A is wrong because it bleeds.", "Answer: C, not A", "Answer: C. Not A."])
def test_a_letter_beside_a_rejected_one_is_chosen(text):
    assert answers.choice(text, ["aspirin", "warfarin", "heparin", "clopidogrel"]) == "C"


@pytest.mark.parametrize("text", [
    "Final answer: C\n\nWait, actually B.", r"\boxed{A} or \boxed{C}",
    "A: would be right if pregnant. B: wrong. C: best.",
    "A: right-sided heart failure. B: wrong drug. C: false", "A: partially correct. B: wrong.", "A正确;C也正确",
    "Option A would be the best choice, but the patient is allergic.", "I am unsure between B and\nC",
])  # fmt: skip
def test_an_answer_that_revises_or_hedges_itself_is_not_read(text):
    assert answers.choice(text, ["aspirin", "warfarin", "heparin", "clopidogrel"]) is None


@pytest.mark.parametrize("text", [
    r"\boxed{C}", "Option C would be the best choice.", "It is not \\boxed{B}\n\\boxed{C}", "C正确", "My answer:\nC",
    "Answer: C\nActually this is common.", "A: wrong. B: wrong. C: right", r"\boxed{C}, that is \boxed{C}",
])  # fmt: skip
def test_the_neighbours_of_such_an_answer_are_read(text):
    assert answers.choice(text, ["aspirin", "warfarin", "heparin", "clopidogrel"]) == "C"


def test_yes_and_no_together_are_neither():
    options = ["yes", "no", "maybe"]
    assert answers.choice("no, yes in women", options) is None
    assert answers.choice("yes, maybe more so in women", options) == "A"
