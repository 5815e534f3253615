import pytest

from lib.judge import lexical

REFERENCE = "Atrial fibrillation needs anticoagulation. Avoid aspirin alone.\nAnswer: B"
# key terms: atrial fibrillation needs anticoagulation aspirin alone


def item(text, **changes):
    base = {
        "id": "q1",
        "truth": "warfarin",
        "letter": "B",
        "options": ["Aspirin", "Warfarin", "Oxygen", "Rest"],
        "reference": REFERENCE,
        "answers": {"m": text},
    }
    return base | changes


def scored(text, **changes):
    return lexical.score(item(text, **changes), text)


def test_key_terms_leave_out_the_letter_and_fillers():
    assert lexical.key_terms(REFERENCE) == {"atrial", "fibrillation", "needs", "anticoagulation", "aspirin", "alone"}
    assert lexical.key_terms(None) == set()


def test_scores_by_hand():
    assert scored(REFERENCE) == {"score": 10.0, "correct": True, "recall": 1.0, "mismatch": []}
    assert scored("Answer: B") == {"score": 7.0, "correct": True, "recall": 0.0, "mismatch": []}
    half = scored("Atrial fibrillation needs rest.\nAnswer: A")
    assert (half["score"], half["recall"], half["correct"]) == (pytest.approx(2.5), 0.5, False)


def test_an_empty_answer_is_the_worst():
    assert scored("  ") == {"score": 1.0, "correct": False, "recall": 0.0, "mismatch": []}


def test_what_the_reference_denies_must_not_be_affirmed():
    wrong = scored("Atrial fibrillation needs anticoagulation. Give aspirin alone.\nAnswer: B")
    assert wrong["mismatch"] and wrong["score"] == pytest.approx(7.0)
    denied = scored("Atrial fibrillation does not need anticoagulation.\nAnswer: B")
    assert denied["mismatch"]
    assert not scored("Atrial fibrillation. Never give aspirin alone.\nAnswer: B")["mismatch"]


def test_open_questions_use_the_short_truth():
    found = scored("Start warfarin.", options=[], letter=None)
    assert found["correct"] and found["score"] == pytest.approx(7.0)
    assert not scored("Do not start warfarin.", options=[], letter=None)["correct"]


def test_without_ground_truth_or_key_terms_the_other_part_decides():
    half = scored("Atrial fibrillation needs rest.", options=[], letter=None, truth=None)
    assert (half["score"], half["correct"]) == (pytest.approx(5.5), None)
    assert scored("Answer: B", reference="Answer: B")["score"] == 10.0
    assert scored("Atrial fibrillation needs rest.", letter=None) == half  # options, and none known to be right
    assert scored("Rest.", reference="", options=[], letter=None, truth=None)["score"] == 1.0


def test_rows_never_pass_for_a_language_model():
    (row,) = lexical.rows([item("Answer: B")])
    assert row["is_llm_judge"] is False and row["judge"] == "reference-overlap score" and "rank" not in row


def test_a_number_or_an_escalation_that_differs_costs_points():
    dose = {"reference": "Give 300 mg of aspirin. Call an ambulance at once."}
    assert scored("Call an ambulance at once and give 300 mg aspirin.", **dose)["mismatch"] == []
    assert scored("Call an ambulance at once and give 3 g aspirin.", **dose)["mismatch"] == ["number"]
    assert scored("Give aspirin 300 mg and see your doctor next month.", **dose)["mismatch"] == ["escalation"]
    assert scored("Call an ambulance at once, aspirin.", **dose)["mismatch"] == []  # no number is not another number


def test_agreement_with_the_key_by_hand():
    good, bad = "Atrial fibrillation needs anticoagulation.\nAnswer: B", "Rest helps.\nAnswer: A"
    terse, wordy = "Answer: B", "Atrial fibrillation needs anticoagulation.\nAnswer: A"
    asked = [
        item("") | {"answers": {"a": good, "b": bad}},
        item("") | {"answers": {"a": terse, "b": wordy}},  # the words alone prefer the wrong one
        item("") | {"answers": {"a": terse, "b": "Answer: C"}},  # and cannot tell these apart
        item("") | {"answers": {"a": good, "b": good}},
        item("") | {"answers": {"a": good, "b": "</think> </tool_call>"}},  # garbage could not have been right
    ]
    found = lexical.agreement(asked)
    assert (found["value"], found["n"]) == (0.5, 3)
    assert lexical.agreement(asked[3:])["value"] is None
