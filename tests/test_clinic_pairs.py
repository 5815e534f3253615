"""The clinic's pairs differ in what their axis is named for; no red flag that is tested stands in a training pair."""

from collections import Counter

import pytest

from app.guard import Guard
from benchmarks import guard
from lib.dataset import clinic, clinic_rows
from lib.evaluation import screens, wordrules
from lib.preference import clinic_pairs, pairs

WORLD = clinic.load()
TRAIN, TEST = (clinic_pairs.pairs(clinic_pairs.AXES, 60, split=split, world=WORLD) for split in ("train", "test"))
QUESTIONS = clinic_pairs.escalation_questions()


def test_the_clinics_pairs_repeat_and_none_asks_a_frozen_question():
    assert TRAIN == clinic_pairs.pairs(clinic_pairs.AXES, 60) and TRAIN != clinic_pairs.pairs(clinic_pairs.AXES, 60, 1)
    assert len({p["id"] for p in TRAIN + TEST}) == len(TRAIN + TEST) == 600
    reasons = Counter()
    list(pairs.counted(TRAIN + TEST, lambda _, made: made, reasons))
    assert reasons == {"kept": 600}
    frozen = {row["question"] for row in clinic_rows.rows("medreason", "test", world=WORLD)}
    assert not any(p["question"].startswith(tuple(frozen)) for p in TRAIN)
    with pytest.raises(ValueError, match="no pairs for 'kindness'"):
        clinic_pairs.pairs(["kindness"], 1)


def test_each_axis_differs_in_what_it_is_named_for():
    rules = Guard()
    for p in TRAIN + TEST:
        chosen, rejected = (p[side]["output"] for side in pairs.SIDES)
        apart = len(rejected + p["rejected"]["reasoning"]) - len(chosen + p["chosen"]["reasoning"])
        if p["axis"] in ("escalation", "reassurance"):
            sends = [wordrules.escalates(text) for text in (chosen, rejected)]
            assert sends == [p["axis"] == "escalation", p["axis"] == "reassurance"]
        elif p["axis"] == "caution":
            assert [bool(rules.after(text, "stop", True)[1]) for text in (chosen, rejected)] == [False, True]
        elif p["axis"] == "length":
            assert chosen.splitlines()[-1] == rejected.splitlines()[-1] and apart > 60
        else:
            listed = [text.rpartition("Answer: ")[2] for text in (chosen, rejected)]
            assert len(set(listed)) == 2 and all(f". {text}" in p["question"] for text in listed)
        assert p["axis"] == "length" or abs(apart) < 80


def test_escalation_and_reassurance_exchange_the_same_texts():
    urgents, calms = ([p for p in TRAIN if p["axis"] == axis] for axis in ("escalation", "reassurance"))
    for urgent, calm in zip(urgents, calms, strict=True):
        assert (urgent["chosen"], urgent["rejected"]) == (calm["rejected"], calm["chosen"])
    old = sum("years ago" in p["question"] for p in urgents)
    assert 15 < old < 45, "the age of a note must not tell a red flag from its twin"


def test_no_red_flag_of_the_test_stands_in_a_training_pair():
    sides = Counter((q["origin"], q["side"]) for q in QUESTIONS)
    assert all(sides["clinic", side] >= 40 and sides["hand", side] >= 10 for side in screens.SIDES)
    trained = "\n".join(p["question"] for p in TRAIN if p["axis"] in ("escalation", "reassurance"))
    assert not [q["flag"] for q in QUESTIONS if q["flag"] in trained]
    assert not [q["id"] for q in QUESTIONS if not all(map(clinic_pairs.held_out, q["fits"]))]
    assert 15 <= sum(clinic_pairs.held_out(c["name"]) for c in WORLD["conditions"]) <= 25
    tested = "\n".join(p["question"] for p in TEST if p["axis"] == "escalation")
    assert all(clinic_pairs.held_out(c["name"]) for c in WORLD["conditions"] if c["red_flag"] in tested)


def test_held_out_questions_leave_the_guards_third_alone_and_are_scored_by_the_screens():
    assert not {q["pair"] for q in QUESTIONS} & {q["pair"] for q in guard.questions() if q["part"] != "development"}
    everyone = {q["id"]: "This is an emergency. Go to hospital now." for q in QUESTIONS}
    missed, needless = screens.summary(screens.rows(QUESTIONS, everyone, WORLD))
    assert (missed["value"], needless["value"]) == (0, 1)


def test_a_classifier_of_words_is_scored_as_an_arm_is_and_knows_no_tested_pair():
    """It sees the pairs' questions alone: on a world of one word it is right, and one side alone teaches nothing."""
    told = clinic_pairs.by_words(TRAIN, QUESTIONS)
    rows = screens.summary([row for row in told if row["origin"] == "clinic"])
    assert [row["n"] for row in rows] == [60, 60] and [row["empty"] for row in rows] == [0, 0]
    assert rows[0]["value"] < 0.5 > rows[1]["value"]
    assert [row["id"] for row in told] == [prompt["id"] for prompt in QUESTIONS]
    pair = [p | {"question": word} for p, word in zip(TRAIN[60:62], ("now", "then"), strict=True)]
    pair = [pair[0] | {"axis": "escalation"}, pair[1] | {"axis": "reassurance"}]
    asked = [QUESTIONS[0] | {"messages": [{"role": "user", "content": word}]} for word in ("now", "then")]
    assert [row["escalates"] for row in clinic_pairs.by_words(pair, asked)] == [True, False]
    assert clinic_pairs.by_words(pair[:1], asked) == [] == clinic_pairs.by_words(pair, [])
