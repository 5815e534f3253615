"""What a data set writes around all of its questions is no evidence that two of them are the same."""

import numpy as np
import pytest

from lib.dataset import framing, leakage, near, split

ORDER = "If you are a doctor, please answer the medical questions based on the patient's description."
LONG = (
    "You are a board-certified physician who answers multiple-choice questions of a licensing examination. Read the "
    "question with care, think about each option in turn, exclude those that are wrong with one sentence each, and "
    "only then decide. Write your reasoning first, and close with one line that begins with the word Answer."
)
DRUGS = "metformin warfarin digoxin lithium heparin aspirin insulin codeine".split()
ORGANS = "liver kidney heart thyroid lung spleen pancreas bladder".split()
QUESTIONS = [f"How does {drug} change the {organ}?" for drug in DRUGS for organ in ORGANS]
AROUND = [
    "{}",
    ORDER + "\n\n{}",
    "### Question:\n{}\n\n### Answer:",
    "Q: {}\nA:",
    "Hello doctor, {} Thank you.",
    LONG + "\n\n{}",
    "{}\n\nPlease reason step by step, and put your final answer within \\boxed{{}}.",
    "你是一名医生，请回答以下问题。{}",
]


def record(text, source="train", history=None, **more):
    empty = {"reasoning": "", "output": "z", "options": [], "answer": None, "history": history}
    return {"source": source, "instruction": text} | empty | more


def compared(train, test):
    frames = framing.learn(train, test)
    return leakage.scan(frames.bare(train), {"test": list(frames.bare(test))}, 0)


@pytest.mark.parametrize("around", AROUND)
def test_a_verbatim_question_is_found_in_whatever_its_data_set_writes_around_it(around):
    train = [record(around.format(text)) for text in QUESTIONS]
    scan = compared(train, [record(text, "test") for text in QUESTIONS[::2]])
    flags = scan.flagged(["exact"])
    assert flags[::2].all() and not scan.flagged(["exact", "near", "gram_13"])[1::2].any()
    assert len(set(scan.keys.question.tolist())) == len(QUESTIONS) and (near.duplicates(scan.signatures) < 0).all()


@pytest.mark.parametrize("around", AROUND[1:])
def test_the_same_words_around_both_sides_are_no_copy(around):
    halves = [[record(words.format(t), name) for t in QUESTIONS[half::2]] for words in (around, "{}")
              for half, name in ((0, "a"), (1, "b"))]  # fmt: skip
    scan, plain = compared(*halves[:2]), compared(*halves[2:])
    for detector in leakage.DETECTORS:
        assert (scan.flagged([detector]) == plain.flagged([detector])).all(), detector
    assert not scan.flagged(["exact", "gram_13"]).any() and (scan.signatures == plain.signatures).all()


def talk(question, opening="Hello doctor", source="train"):
    before = [("user", opening), ("assistant", "Hello! How can I help?")]
    return record(question, source, [{"role": role, "content": text} for role, text in before])


def test_conversations_that_open_with_a_greeting_are_told_by_what_follows():
    train, test = [talk(text) for text in QUESTIONS], [talk(QUESTIONS[0], source="test")]
    scan = compared(train, test)
    assert np.flatnonzero(scan.flagged(["exact"])).tolist() == [0]
    assert len(set(scan.keys.question.tolist())) == len(QUESTIONS)
    scan = compared([talk(text, f"I took {text[9:]}") for text in QUESTIONS], [record(QUESTIONS[0], "test")])
    assert np.flatnonzero(scan.flagged(["exact"])).tolist() == [0], "a test question as a later turn"
    long = [
        talk(text, "My knee hurts.") | {"history": [*talk("", "My knee hurts.")["history"]] * 2} for text in QUESTIONS
    ]
    assert "My knee hurts." not in framing.learn(long).openings, "one conversation's opening, before all of its turns"


def test_a_question_that_follows_a_passage_is_found_alone_unless_it_asks_anything():
    passages = [f"The {organ} was studied in rats. It grew." for organ in ORGANS]
    train = [record(f"{passage}\n\n{text}") for passage, text in zip(passages, QUESTIONS, strict=False)]
    assert compared(train, [record(QUESTIONS[3], "test")]).flagged(["exact"]).tolist() == [n == 3 for n in range(8)]
    vague = "What is the most likely diagnosis?"
    train = [record(f"{passage}\n\n{vague}") for passage in passages]
    assert not compared(train, [record(vague, "test")]).flagged(["exact"]).any()


def test_what_tells_questions_apart_is_no_frame():
    closing = [
        record(f"A man has pain in the {organ}. Name the {what}.") for organ in ORGANS for what in ("cause", "drug")
    ]
    assert framing.learn(closing).tails == frozenset()
    few = [record(f"A man takes {drug}. It helps the {organ}.") for drug in DRUGS[:2] for organ in ORGANS]
    assert framing.learn(few).heads == frozenset(), "without it the two drugs' questions would be one"
    asked = [record(f"What is the diagnosis? The {organ} of a man grows.") for organ in ORGANS]
    assert framing.learn(asked) == framing.Frames(), "a question is never frame"
    assert framing.learn(closing[:4]) == framing.Frames() and framing.Frames().said == ""
    frames = framing.learn([record(f"{ORDER}\n\n{text}") for text in QUESTIONS])
    assert frames.said.endswith("'If you are a doctor, please answer the medical questions ...'")
    assert frames.stripped(f"{ORDER}\n\n") and frames.stripped("") == "", (
        "of a row that holds nothing else a part stays"
    )
    listed = record(f"{ORDER}\n\nWhich drug?\n\nA. x\nB. y", options=["x", "y"])
    assert next(iter(frames.bare([listed])))["instruction"] == "Which drug?\n\nA. x\nB. y"
    assert split.stem(listed).startswith(ORDER), "what is asked keeps it"
