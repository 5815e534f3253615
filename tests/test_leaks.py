"""Leakage as real text has it: both sides alike, generic stems, decisions, Chinese; and the figures to reach.

REAL=DIR adds the tests on the real PubMedQA (pqa_labeled.jsonl and test_ground_truth.json of DIR), which is not in the
repository.
"""

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks import leaks
from lib.dataset import choices, content, grams, ingest, leakage, near, split
from lib.pipeline.files import read_jsonl

GENERIC = "Which of the following is true?"
VIGNETTE = (
    "A 61-year-old man with long-standing diabetes comes with two days of fever, flank pain on the left, vomiting and "
    "burning when he passes water. Which drug is given first?"
)
needs_real = pytest.mark.skipif(not os.environ.get("REAL"), reason="REAL=DIR names no folder with the real PubMedQA")


def record(text, options=(), answer=None, **fields):
    text = choices.listed(text, list(options)) if options else text
    return {"source": "a", "instruction": text, "options": list(options), "answer": answer, "reasoning": "",
            "output": "", "benchmark": None} | fields  # fmt: skip


def flags(train, evaluation, **options):
    """{detector: whether it flags the one training record}."""
    scan = leakage.scan([train], {"test": [evaluation]}, 0, **options)
    return {name: bool(scan.flagged([name])[0]) for name in leakage.DETECTORS}


@pytest.mark.parametrize(
    ("train", "evaluation", "same"),
    [
        ((GENERIC, ["Rest", "Dust"], "Rest"), (GENERIC, ["Iron", "Salt"], "Salt"), False),
        ((GENERIC, ["Rest", "Dust"], "Rest"), (GENERIC, ["Salt", "Rest"], "Rest"), True),
        ((GENERIC, ["x", "y"], "x"), (GENERIC, ["x", "y"], "y"), True),  # the same with another key
        ((GENERIC, ["x", "y"], None), (GENERIC, ["x", "y"], None), True),
        (("痛风，哪项正确？", ["甲", "乙"], "甲"), ("痛风，哪项正确？", ["丙", "丁"], "丁"), False),
        ((VIGNETTE, ["ceftriaxone", "aspirin"], "ceftriaxone"), (VIGNETTE, ["insulin", "heparin"], "insulin"), True),
        ((VIGNETTE, [], None), (VIGNETTE, ["insulin", "heparin"], "insulin"), True),
        (("Which organ makes bile?", [], "liver"), ("Which organ makes bile?", ["Liver", "Spleen"], "Liver"), True),
        ((f"Question: {VIGNETTE}", [], None), (VIGNETTE, [], None), True),
    ],
)  # fmt: skip
def test_a_generic_stem_over_other_options_is_another_question(train, evaluation, same):
    found = flags(record(*train), record(*evaluation))
    assert found["exact"] == same and (same or not (found["near"] or found["content"]))


def test_questions_that_share_a_generic_stem_are_not_split_as_one():
    records = [record(GENERIC, [f"right {n}", f"wrong {n}"], f"right {n}") for n in range(4)] + [
        record("Why?"),
        record("Why?"),
    ]
    keys = split.keys(records, 1)
    assert len(set(keys.question.tolist())) == 5 and len(set(keys.brief.tolist())) == 2
    assert split.settled(keys.brief[:1], keys.whole[:1]) == keys.brief[:1], "alone it is not generic"


CONTEXT = "Two hundred patients were followed for a year.\n\nBoth groups were alike at the start."
ASKED = "Does early mobilisation shorten the stay after hip surgery in old patients?"


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (ASKED, ["Yes", "No"]),
        (f"{CONTEXT}\n\n{ASKED}", ["yes", "no", "maybe"]),
        (f"Question: {ASKED}", ["yes", "no", "maybe"]),
        (f"{ASKED}\n\n{CONTEXT}", ["yes", "no", "maybe"]),
        (f"Another abstract.\n{ASKED}", ["yes", "no"]),
        (ASKED, []),
    ],
)
def test_a_decision_is_keyed_by_its_question_alone(text, options):
    evaluation = record(f"{CONTEXT}\n\n{ASKED}", ["yes", "no", "maybe"], "yes")
    train = record(text, options, options and options[0])
    assert flags(train, evaluation)["exact"] and flags(train, evaluation)["near"]


def test_the_same_closed_question_about_other_patients_is_not_one():
    told = ["A cook limps since Monday.", "His toe has been red for a week.", "A bus driver cannot wear her left shoe."]
    *train, test = [record(f"{text}\n\nIs gout the diagnosis?", ["yes", "no"], "yes") for text in told]
    scan = leakage.scan(train, {"test": [test]}, 0)
    assert not scan.flagged(leakage.DETECTORS).any() and len(set(scan.keys.question.tolist())) == 2
    bare = leakage.scan([record("Is gout the diagnosis?", ["yes", "no"], "yes"), train[0]], {"test": [test]}, 0)
    assert bare.flagged(["exact"]).all(), "of two abstracts one may be the other, told differently"


@pytest.mark.parametrize(
    "shared",
    [
        "His pulse is 90/min, respirations are 15/min, and oxygen saturation is 98% on room air.",
        "Her temperature is 38.1 C (100.6 F), blood pressure is 120/80 mm Hg, and heart rate is 88 beats per minute.",
        "Which of the following is the most likely diagnosis and the most appropriate next step in management?",
        "体温38.5度，脉搏90次/分，呼吸20次/分，血压120/80毫米汞柱，最可能的诊断是什么？",
    ],
)
def test_vitals_and_closing_formulas_are_no_evidence(shared):
    starts = (
        "A girl limps since Monday and will not put her shoe on",
        "Two men of one ship cough up blood after shore leave",
    )
    if not shared.isascii():
        starts = (
            "小女孩周一起走路跛行不肯穿鞋，右膝肿胀发烫，夜里哭闹",
            "两名海员上岸度假后先后咯血，胸片可见空洞，痰中找到杆菌",
        )
    found = flags(*(record(f"{start}. {shared}") for start in starts))
    assert not any(found.values()), found


def test_a_run_in_two_evaluation_questions_is_wording_but_a_copy_of_one_question_is_not():
    wording = "he was told by his neighbour to take a spoon of honey with garlic every evening"
    exam = [
        record(f"{start}, and {wording}. {end}")
        for start, end in (
            ("A tall man has a rash on both arms", "Name the mite."),
            ("A cook has lost his sense of smell", "Name the nerve."),
        )
    ]
    train = [record(f"A farmer sleeps badly, and {wording}. Name the hormone.")]
    scan = leakage.scan(train, {"test": exam}, 0)
    assert not scan.flagged(["gram_13", "gram_8"]).any()
    assert leakage.scan(train, {"test": exam[:1]}, 0).flagged(["gram_13"]).all()
    twice = {"four": exam[:1], "five": [exam[0] | {"instruction": exam[0]["instruction"] + " Say why."}]}
    assert leakage.scan(train, twice, 0).flagged(["gram_13"]).all(), "one question in two sets is one question"


def test_medxpertqa_is_banned_where_medqa_is_the_test():
    train = record("Another text altogether.", benchmark="medxpertqa")
    assert flags(train, record(VIGNETTE, benchmark="medqa"))["provenance"]
    assert not flags(train, record(VIGNETTE, benchmark="medmcqa"))["provenance"]
    assert not flags(train | {"benchmark": "medmcqa"}, record(VIGNETTE, benchmark="medqa"))["provenance"]
    assert flags(train, record(VIGNETTE), banned=["MedXpertQA"])["provenance"]


def test_characters_of_chinese_are_words_and_say_less_than_words():
    texts = ["发热三天，伴皮疹。", "“fever” — cough", "ｆｅｖｅｒ　ｃｏｕｇｈ", "かぜの薬", "e\u0301tat", "\u00e9tat"]
    hashes, offsets = grams.words(texts)
    assert np.diff(offsets).tolist() == [7, 2, 2, 4, 1, 1]
    assert (hashes[7:9] == hashes[9:11]).all() and hashes[-1] == hashes[-2]
    assert (hashes & grams.ONE).astype(bool).tolist() == [True] * 7 + [False] * 4 + [True] * 4 + [False] * 2
    han, words = grams.words(["一" * 40]), grams.words(["word " * 40])
    assert [len(grams.runs(*given, 13, weigh=True)[0]) for given in (han, words)] == [40 - 21 + 1, 40 - 13 + 1]
    assert [len(grams.runs(*given, 13)[0]) for given in (han, words)] == [28, 28]


def test_content_words_find_a_retold_question_and_groups_hold_copies():
    index = content.Index(
        [
            VIGNETTE,
            "Which organ makes bile in a healthy adult?",
            "一名男孩发热三天，伴皮疹和结膜充血，最可能的诊断是什么？",
        ]
    )
    told = (
        "Burning when passing water, vomiting, left flank pain and two days' fever: a diabetic man of 61. Which drug?"
    )
    assert index.closest(
        [told, "Where is the spleen found?", "男孩，结膜充血，皮疹，发热三天。诊断？", ""]
    ).tolist() == [0, -1, 2, -1]
    texts = [
        VIGNETTE,
        "Something else is asked here of the reader today.",
        VIGNETTE.replace("61", "62"),
        VIGNETTE.upper(),
    ]
    assert near.groups(near.signatures(texts)).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("language", leaks.LANGUAGES)
def test_verbatim_copies_are_removed_and_unrelated_questions_are_not(language):
    rows = {row["training rows"]: row for row in leaks.made_up(language, 300)}
    assert set(rows) == set(leaks.LEVELS) and all(row["n"] == 300 for row in rows.values())
    assert rows["verbatim"]["dropped"]["value"] >= 0.995 and rows["verbatim"]["exact"]["value"] >= 0.995
    assert rows["quoted"]["dropped"]["value"] >= 0.995 and rows["typo"]["dropped"]["value"] >= 0.995
    assert rows["unrelated"]["dropped"]["value"] <= 0.01 and rows["unrelated"]["content"]["value"] <= 0.01
    assert rows["retold"]["content"]["value"] > 0.5 > rows["retold"]["dropped"]["value"]


@needs_real
def test_the_real_pubmedqa_is_found_by_its_questions():
    folder = Path(os.environ["REAL"])
    rows = {row["training rows"]: row for row in leaks.real(folder)}
    assert rows["verbatim"]["exact"] | {"low": 0, "high": 0} == {"value": 1.0, "low": 0, "high": 0, "n": 500}
    assert rows["unrelated"]["dropped"]["value"] <= 0.01 and rows["unrelated"]["content"]["value"] <= 0.01


@needs_real
def test_medreasons_rows_of_the_real_pubmedqa_are_read_and_found():
    folder = Path(os.environ["REAL"])
    rows, truth = read_jsonl(folder / "pqa_labeled.jsonl"), json.loads((folder / "test_ground_truth.json").read_text())
    reasons = Counter()
    made = [{"dataset_name": "pubmedqa", "id_in_dataset": row["pubid"], "question": row["question"],
             "reasoning": "Finding reasoning paths.", "options": "Answer Choices:\nA. Yes\nB. No",
             "answer": f"The final decision is: {row['final_decision']}. {row['long_answer']}"}
            for row in rows]  # fmt: skip
    train = list(ingest.stream("medreason", made, {"name": "medreason"}, reasons))
    assert reasons == {"kept": 890, "answer_not_in_options": 110}
    spec = {"name": "pubmedqa", "config": "pqa_labeled"}
    records = list(ingest.stream("pubmedqa", rows, spec, Counter()))
    test = [one for one in records if one["row_id"] in truth]
    assert {one["row_id"]: one["answer"] for one in test} == truth
    found = leakage.scan(train, {"pubmedqa": test}, 0).flagged(["exact"])
    assert found.tolist() == [one["row_id"] in truth for one in train]
