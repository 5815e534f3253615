"""Ground truths as published rows state them: what is read, what is a counted reject, and what is no truth at all."""

from collections import Counter

import pytest

from lib.dataset import answers, choices, ingest, stated, wording
from lib.dataset.choices import Reject
from lib.evaluation import overlap
from lib.judge import lexical

ROW = {
    "dataset_name": "pubmedqa",
    "id_in_dataset": 1,
    "question": "Does early mobilisation shorten the stay?",
    "reasoning": "Finding reasoning paths: mobilisation -> fewer complications.",
    "options": "Answer Choices:\nA. Yes\nB. No",
    "answer": "",
}
PROSE = "The sailor most likely lacks vitamin C. It is needed for collagen. Without it the gums bleed."
LISTED = "Which organ makes bile?\n\nAnswer Choices:\nA. Liver\nB. Spleen\nC. Pancreas"


def outcome(**cells):
    """The record of a MedReason row, or the reason why there is none."""
    reasons = Counter()
    try:
        (record,) = ingest.stream("medreason", [ROW | cells], {"name": "medreason"}, reasons)
    except ValueError:
        (record,) = reasons
    return record


@pytest.mark.parametrize(
    ("answer", "letter", "output"),
    [
        ("The final decision is: yes. Patients left earlier.", "A", "Patients left earlier.\n\nAnswer: Yes"),
        ("The final decision is: no", "B", "Answer: No"),
        ("The final decision is no. The stay was as long.", "B", "The stay was as long.\n\nAnswer: No"),
        ("The answer is: Yes, as the trial shows.", "A", "as the trial shows.\n\nAnswer: Yes"),
        ("Yes. Explanation: Patients left earlier.", "A", "Patients left earlier.\n\nAnswer: Yes"),
        ("Yes. Explanation: Ans. is 'a' i.e., they left earlier.", "A", "they left earlier.\n\nAnswer: Yes"),
    ],
)
def test_a_decision_names_its_option(answer, letter, output):
    record = outcome(answer=answer)
    assert (record["letter"], record["output"]) == (letter, output)


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"answer": "The final decision is: maybe. The study was small."}, "answer_not_in_options"),
        ({"answer": "The final decision is: unclear."}, "answer_not_in_options"),
        ({"answer": "Yes. Explanation: The answer is (B)."}, "answer_conflict"),
        ({"answer": "C", "options": ""}, "answer_not_in_options"),  # a letter without a list
        ({"answer": "D", "options": "", "question": LISTED}, "answer_not_in_options"),
        ({"answer": "Yes", "options": "A. Yes\nB. yes"}, "options_alike"),
        ({"answer": "Yes", "options": "A. Yes\nB. No\nC. yes."}, "options_alike"),
    ],
)
def test_what_cannot_be_a_truth_is_counted(cells, reason):
    assert outcome(**cells) == reason


@pytest.mark.parametrize("answer", ["A", "(A)", "A. Liver", "Liver", "The answer is: Liver. It is the only one."])
@pytest.mark.parametrize(
    "question", [LISTED, "Which organ makes bile? Answer Choices: (A) Liver (B) Spleen (C) Pancreas"]
)
def test_options_inside_the_question_are_read(question, answer):
    record = outcome(question=question, options="", answer=answer)
    assert record["options"] == ["Liver", "Spleen", "Pancreas"] and record["answer"] == "Liver"
    assert record["instruction"] == "Which organ makes bile?\n\nA. Liver\nB. Spleen\nC. Pancreas"


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        (PROSE, None),
        ("The sailor lacks vitamin C\n\nIt is needed for collagen", None),
        (" ".join(["word"] * 40), None),
        ("患者最可能缺乏维生素C。它是合成胶原所必需的。", None),
        ("Scurvy.", "Scurvy"),
        ("C. difficile colitis", "C. difficile colitis"),
        ("Vitamin C deficiency. Explanation: " + PROSE, "Vitamin C deficiency"),
    ],
)
def test_a_whole_response_is_no_short_truth(answer, truth):
    record = outcome(dataset_name="huatuo", options="", answer=answer)
    assert record["answer"] == truth and record["output"] == answer


@pytest.mark.parametrize("truth", ["A", "a", "I", "B"])
def test_a_truth_of_one_letter_is_no_word(truth):
    text = "A man with a cough: I would take a film of B cells, and a culture."
    assert not answers.matches(text, truth)
    for said in (f"Answer: {truth.upper()}", f"({truth.upper()})", f"The answer is {truth.upper()}.", truth.upper()):
        assert answers.matches(said, truth)


def test_chinese_truths_are_found_and_their_denial_is_none():
    assert answers.matches("考虑为社区获得性肺炎，予以抗感染治疗。", "肺炎")
    assert not answers.matches("不是肺炎，是肺结核。", "肺炎") and answers.matches("不是肺炎，是肺结核。", "肺结核")
    assert not answers.matches("肺结核", "肺炎") and not answers.matches("已排除肺炎。", "肺炎")


OPTIONS = ["Thiamine", "Riboflavin", "Niacin", "Vitamin C"]


@pytest.mark.parametrize(
    ("explanation", "left"),
    [
        ("It fits. Ans. is 'a' i.e., Thiamine.", "It fits. Thiamine."),
        ("It fits. Hence the answer is A.", "It fits."),
        ("It fits. So option (a) is the correct answer.", "It fits."),
        ("The correct option is A, as it fits.", "as it fits."),
        ("答案：A", ""),
        ("The answer is a cofactor.", "The answer is a cofactor."),
        ("Answer: C. difficile grows.", "Answer: C. difficile grows."),
        ("The answer is B cells.", "The answer is B cells."),
        ("Option B is wrong.", "Option B is wrong."),
        ("It fits. Answer: (B).", Reject),
        ("Option C is the answer", Reject),
        ("Ans. is 'a'. In other books the answer is D.", Reject),
        ("正确答案是B。", Reject),
    ],
)
def test_letters_in_an_explanation_are_cut_or_contradict(explanation, left):
    if left is Reject:
        with pytest.raises(Reject, match="answer_conflict"):
            stated.without_letters(explanation, OPTIONS, 0)
    else:
        assert stated.without_letters(explanation, OPTIONS, 0) == left


@pytest.mark.parametrize(
    "text",
    [
        "Please answer the following multiple-choice question:\n{}",
        "Answer the question below: {}",
        "Select the best option.\n{}",
        "Question: {}",
        "Please answer the following question.\nQuestion: {}",
        "Multiple-choice question 12: {}",
        "{} Choose the correct answer.",
        "{} Let's think step by step.",
        "请回答下面的单项选择题：{}",
        "问题：{}",
        "{} 请选择正确答案。",
    ],
)
def test_a_stock_phrase_is_no_part_of_the_question(text):
    for asked in ("Which organ makes bile?", "一名男孩发热三天，最可能的诊断是什么？"):
        assert wording.without_stock(text.format(asked)) == asked


@pytest.mark.parametrize(
    "text",
    [
        "Select the drug for anaphylaxis.",
        "Choose the correct statement about the heart:",
        "Read the film: what do you see?",
        "Which question should be asked first?",
        "Please help, my child has a fever.",
        "A man asks: which answer is best?",
    ],
)
def test_a_question_is_no_stock_phrase(text):
    assert wording.without_stock(text) == text


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (
            "Q?\nAnswer Choices: (A) Rotavirus (B) C. difficile (C) Norovirus",
            ["Rotavirus", "C. difficile", "Norovirus"],
        ),
        ("Q?\nA) vitamin B. complex B) iron", ["vitamin B. complex", "iron"]),
        ("Q? Answer Choices: (A) yes (B) no", ["yes", "no"]),
        ("Q?\n(a) one (b) two (c) three", ["one", "two", "three"]),
        ("Q?\nA: E. coli B: C. albicans", ["E. coli", "C. albicans"]),
    ],
)
def test_options_in_a_row_break_at_marks_of_one_form(text, options):
    assert choices.inside(text) == ("Q?", options)


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ('Explain it without the word "tumour"', 'Explain it without the word "tumour"'),
        ('"Tumour" is the word', '"Tumour" is the word'),
        ('"two" ', "two"),
        ('Which?"', "Which?"),
        ("'three'", "three"),
        ("5'", "5'"),
        ('He said "yes""', 'He said "yes"'),
    ],
)
def test_quotes_inside_stay(text, bare):
    assert choices.unquote(text) == bare


def test_chinese_answers_are_compared_by_characters():
    reference = "首选华法林抗凝，并监测国际标准化比值。"
    same, other = (overlap.of(text, reference) for text in (reference, "建议静脉补液观察。"))
    assert same["exact"] and same["rouge_l"] == 100 and same["bleu"] > 99 and other["rouge_l"] < 20
    item = {"options": [], "truth": "华法林", "letter": None, "reference": reference}
    assert lexical.score(item, reference)["score"] == 10 and lexical.score(item, "建议静脉补液。")["score"] == 1
    assert overlap.of("Give warfarin, now.", "give Warfarin now")["rouge_l"] == 100, (
        "English words are the library's own"
    )
