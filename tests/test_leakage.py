"""Each detector finds what it is for, exam wording is no evidence, and the ledger adds up."""

import numpy as np
import pytest

from lib.dataset import leakage, split

STEM = (
    "A 61-year-old man with long-standing diabetes comes with two days of fever, flank pain on the left, "
    "vomiting and burning when he passes water. Which drug is given first?"
)
WORDING = "the findings were discussed with the family and consent was given before the test"


def record(instruction, source="a", options=(), **fields):
    base = {
        "id": f"{source}:{instruction[:20]}",
        "source": source,
        "options": list(options),
        "reasoning": "",
        "output": "x",
    }
    return base | {"instruction": instruction, "answer": None, "benchmark": None} | fields


def scan(train, evaluation=None, **options):
    return leakage.scan(iter(train), evaluation or {"exam": [record(STEM, "exam")]}, seed=1, **options)


def found(result):
    """{detector: places of the flagged records} in any set."""
    return {name: np.flatnonzero(result.flagged([name])).tolist() for name in leakage.DETECTORS}


def test_each_detector_finds_its_kind_and_no_more():
    eight = "He says: with two days of fever, flank pain on the left and a rash."
    thirteen = f"Recall the man {STEM[16:110]} who was seen in March."
    nearly = STEM.replace("61-year-old", "62-year-old")
    train = [
        record("What is the first sign of scurvy in a sailor?"),
        record(STEM.upper().replace(",", ";"), options=()),
        record(nearly),
        record("Tell me about it.", reasoning=thirteen),
        record("Tell me more.", output=eight),
        record("Where is the spleen?", benchmark="PubMedQA"),
    ]
    flags = found(scan(train, banned=["pubmedqa"]))
    assert flags["provenance"] == [5] and flags["exact"] == [1]
    assert flags["near"] == [1, 2]
    assert flags["gram_13"] == [1, 2, 3] and flags["gram_8"] == [1, 2, 3, 4]


def test_options_do_not_hide_a_question():
    train = [record(STEM + "\n\nA. ciprofloxacin\nB. aspirin", options=("ciprofloxacin", "aspirin"))]
    assert found(scan(train))["exact"] == [0]


def test_exam_wording_is_no_evidence():
    exam = {"exam": [record(f"Short story one. And now, {WORDING}.", "exam")]}
    few = [record(f"Case {n} of anaemia. And now, {WORDING}.") for n in range(10)]
    assert len(found(scan(few, exam))["gram_8"]) == 10
    assert found(scan([*few, record(f"Another. And now, {WORDING}.")], exam))["gram_8"] == []
    assert len(found(scan([*few, record(f"Another. And now, {WORDING}.")], exam, boilerplate=11))["gram_8"]) == 11


def test_short_questions_have_no_grams_but_are_found_whole():
    flags = found(scan([record("What is gout? Say.")], {"exam": [record("What is gout, say?", "exam")]}))
    assert flags["exact"] == [0] and flags["gram_8"] == flags["gram_13"] == []


def test_the_table_names_source_and_set_and_counts_what_is_removed():
    exams = {"one": [record(STEM, "one")], "two": [record("Which vitamin is missing in scurvy, exactly?", "two")]}
    train = [record(STEM, "a"), record(STEM, "b"), record("which VITAMIN is missing in scurvy exactly", "b")]
    result = scan(train, exams)
    alive = np.array([True, True, True])
    rows = {(row["source"], row["against"]): row for row in result.table(("exact",), alive)}
    assert rows["a", "one"]["exact"] == 1 and rows["a", "two"]["exact"] == 0
    assert rows["b", "one"]["removed"] == 1 and rows["b", "two"]["removed"] == 1
    assert rows["a", "one"]["gram_13"] == 1 and sum(row["removed"] for row in rows.values()) == 3
    gone = {(row["source"], row["against"]): row for row in result.table(("exact",), np.array([False, True, True]))}
    assert gone["a", "one"]["removed"] == 0


def test_a_scan_in_batches_equals_one_batch(monkeypatch):
    train = [record(f"Question {n} about organ {n % 7}?", "ab"[n % 2]) for n in range(50)] + [record(STEM)]
    whole = scan(train)
    monkeypatch.setattr(leakage.grams, "BATCH", 8)
    monkeypatch.setattr(leakage.grams.batches, "__defaults__", (8,))
    parts = scan(train)
    assert found(whole) == found(parts) and found(whole)["exact"] == [50]
    for name in ("source", "question", "instruction", "draw"):
        assert (getattr(whole.keys, name) == getattr(parts.keys, name)).all()
    assert (whole.keys.question == split.keys(train, 1).question).all()


def test_overlap_of_sources():
    train = [record(f"Question {n} of the shared pool?", "a") for n in range(10)]
    train += [record(f"question {n} of the SHARED pool", "b") for n in range(5)]
    result = scan(train)
    shares = leakage.overlap(result.keys, result.signatures)
    assert shares == {"a": {"a": 1.0, "b": 0.5}, "b": {"a": 1.0, "b": 1.0}}


def test_recall_by_level_with_intervals():
    pairs = [{"level": "same", "original": STEM, "rewritten": STEM.upper()} for _ in range(20)]
    pairs += [{"level": "other", "original": STEM, "rewritten": "Where is the spleen found?"} for _ in range(20)]
    same, other = leakage.recall(pairs)
    assert same["level"] == "same" and same["exact"]["value"] == same["gram_8"]["value"] == same["near"]["value"] == 1
    assert other["near"]["value"] == other["gram_8"]["value"] == 0 and 0.1 < other["exact"]["high"] < 0.2


def test_nothing_to_compare_with():
    result = leakage.scan([record("Why?")], {}, seed=1)
    assert not result.flagged(leakage.DETECTORS).any() and result.table((), np.ones(1, bool)) == []
    with pytest.raises(KeyError):
        result.flagged(["psychic"])
