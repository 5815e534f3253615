"""Converters never raise and account for every row; loading says what is wrong and what to do."""

import dataclasses
import json
import math
import random
import string

import pytest

from lib import answers, converters, sources

GOOD = {
    "medical_o1": {"Question": "Why?", "Complex_CoT": "Because of the mechanism.", "Response": "So.\n\nAnswer: Yes"},
    "medical_r1": {
        "question": "Why?",
        "reasoning (reasoning_content)": "Because of the mechanism.",
        "response (content)": "So.",
    },
    "medreason": {
        "dataset_name": "made_up",
        "id_in_dataset": 0,
        "question": "Which vitamin prevents scurvy?",
        "answer": "Vitamin C. Explanation: It hydroxylates collagen.",
        "reasoning": "Weak collagen points to ascorbic acid.",
        "options": "Answer Choices:\nA. Vitamin A\nB. Vitamin C\nC. Vitamin K",
    },
}
TEXT_COLUMNS = {
    "medical_o1": ("Question", "Complex_CoT", "Response"),
    "medical_r1": ("question", "reasoning (reasoning_content)", "response (content)"),
    "medreason": ("question", "reasoning", "answer"),
}
# What the files in data/samples were written to contain, counted by hand.
SAMPLE_REASONS = {
    "medical_o1": {
        "kept": 7,
        "empty_question": 1,
        "empty_reasoning": 1,
        "reasoning_too_short": 1,
        "wrong_type": 1,
        "control_characters": 1,
    },
    "medical_r1": {"kept": 8, "empty_reasoning": 1, "empty_answer": 1, "wrong_type": 1, "bad_utf8": 1},
    "medreason": {
        "kept": 7,
        "answer_not_in_options": 1,
        "options_unparsable": 1,
        "duplicate_id": 1,
        "empty_reasoning": 1,
        "wrong_type": 1,
    },
}


def reasons_of(name, row, **options):
    """Reject reason of one row, read beside a good one (a source that keeps nothing is an error)."""
    spec = {"name": name}
    _, reasons = sources.convert(name, [GOOD[name], row], spec, **options)
    assert reasons.total() == 2
    return set(reasons) - {"kept"}


@pytest.mark.parametrize("name", sources.SOURCES)
def test_samples_are_counted_as_they_were_written(name):
    spec = {"name": name, "config": "en" if name == "medical_o1" else None}
    records, reasons = sources.convert(name, sources.rows(spec, "samples"), spec, min_reasoning_chars=20)
    assert dict(reasons) == SAMPLE_REASONS[name]
    assert len(records) == reasons["kept"]
    assert len({record["id"] for record in records}) == len(records)


def test_multiple_choice_record_is_complete():
    spec = {"name": "medreason", "split": "test", "revision": "abc"}
    (record,), _ = sources.convert("medreason", [GOOD["medreason"]], spec)
    assert record == {
        "id": "medreason:test:0",
        "source": "medreason",
        "config": None,
        "split": "test",
        "revision": "abc",
        "row": 0,
        "licence": "Apache-2.0",
        "instruction": "Which vitamin prevents scurvy?\n\nA. Vitamin A\nB. Vitamin C\nC. Vitamin K",
        "reasoning": "Weak collagen points to ascorbic acid.",
        "output": "It hydroxylates collagen.\n\nAnswer: Vitamin C",
        "options": ["Vitamin A", "Vitamin C", "Vitamin K"],
        "answer": "Vitamin C",
        "letter": "B",
    }


def test_open_question_reads_the_last_answer_line():
    (record,), _ = sources.convert("medical_o1", [GOOD["medical_o1"]], {"name": "medical_o1", "config": "en"})
    assert (record["id"], record["answer"], record["output"]) == ("medical_o1:en:train:0", "Yes", "So.\n\nAnswer: Yes")
    (record,), _ = sources.convert("medical_r1", [GOOD["medical_r1"]], {"name": "medical_r1"})
    assert record["answer"] is None and record["options"] == []


def test_an_answer_line_that_is_not_last_is_no_ground_truth():
    row = GOOD["medical_o1"] | {"Response": "Answer: Yes\nThe patient's answer: none."}
    (record,), _ = sources.convert("medical_o1", [row], {"name": "medical_o1"})
    assert record["answer"] is None


@pytest.mark.parametrize(
    ("answer", "options", "letter"),
    [
        ("vitamin  c", "A. Vitamin A\nB. Vitamin C", "B"),
        ("B. Vitamin C. Explanation: Answer A is wrong.", "A. Vitamin A\nB. Vitamin C.", "B"),
        ("(b) Vitamin C", "Answer Choices:\nA. Vitamin A\nB. Vitamin C", "B"),
        ("B", "A) Vitamin A\nB) Vitamin C", "B"),
        ("C. Explanation: x", "A. B1\nB. C\nC. D", "B"),  # the option whose text is "C", not the third one
        ("C", "A. one\nB. two\nC. three,\n   continued", "C"),
        ("j", "\n".join(f"{letter}. text {letter}{letter}" for letter in "ABCDEFGHIJ"), "J"),
    ],
)
def test_answer_is_found_among_options(answer, options, letter):
    (record,), _ = sources.convert(
        "medreason", [GOOD["medreason"] | {"answer": answer, "options": options}], {"name": "medreason"}
    )
    assert record["letter"] == letter
    assert record["output"].endswith(f"Answer: {record['answer']}")
    assert answers.choice(record["output"], record["options"]) == letter, "the scorer reads what the converter writes"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"options": "A. x\nC. y"}, "options_unparsable"),
        ({"options": "A. x"}, "options_unparsable"),
        ({"options": "A. Vitamin C\nB. vitamin c."}, "options_unparsable"),
        ({"options": "A. \nB. Vitamin C"}, "options_unparsable"),
        ({"options": "Vitamin A or Vitamin C"}, "options_unparsable"),
        ({"options": "\n".join(f"{chr(65 + i)}. x{i}" for i in range(11))}, "options_unparsable"),
        ({"options": ["Vitamin A", "Vitamin C"]}, "wrong_type"),
        ({"options": {"A": "Vitamin A"}}, "wrong_type"),
        ({"options": 3}, "wrong_type"),
        ({"answer": "Vitamin D. Explanation: sun."}, "answer_not_in_options"),
        ({"answer": "E"}, "answer_not_in_options"),
        ({"answer": "Explanation: none given"}, "empty_answer"),
        ({}, "duplicate_id"),
    ],
)
def test_medreason_rejects(change, reason):
    fresh = {} if reason == "duplicate_id" else {"id_in_dataset": 1}
    assert reasons_of("medreason", GOOD["medreason"] | fresh | change) == {reason}


def test_rows_without_an_id_are_not_duplicates():
    row = GOOD["medreason"] | {"id_in_dataset": None}
    _, reasons = sources.convert("medreason", [row, row], {"name": "medreason"})
    assert dict(reasons) == {"kept": 2}


def test_medreason_without_options_is_an_open_question():
    row = GOOD["medreason"] | {"options": " \n", "answer": "Ascorbic acid. Explanation: collagen."}
    (record,), _ = sources.convert("medreason", [row], {"name": "medreason"})
    assert (record["answer"], record["letter"], record["options"]) == ("Ascorbic acid", None, [])
    assert record["instruction"] == row["question"] and record["output"] == row["answer"]


@pytest.mark.parametrize("name", sources.SOURCES)
@pytest.mark.parametrize("place", range(3))
def test_every_text_cell_is_checked(name, place):
    column = TEXT_COLUMNS[name][place]
    empty = ("empty_question", "empty_reasoning", "empty_answer")[place]
    cases = {
        empty: (None, "", " \t\r\n"),
        "wrong_type": (3, 2.5, True, math.nan, [], ["x"], {"x": 1}, b"bytes"),
        "too_long": ("x" * 10_000_000,),
        "bad_utf8": ("a\ufffdb", "a\ud800b"),
        "control_characters": ("a\x00b", "a\x1bb", "a\x7fb"),
    }
    for reason, values in cases.items():
        for value in values:
            assert reasons_of(name, GOOD[name] | {"id_in_dataset": 1, column: value}) == {reason}, repr(value)[:40]
    short = GOOD[name] | {"id_in_dataset": 1}
    kept_length = len(GOOD[name][TEXT_COLUMNS[name][1]])
    short[TEXT_COLUMNS[name][1]] = "x" * (kept_length - 1)
    assert reasons_of(name, short, min_reasoning_chars=kept_length) == {"reasoning_too_short"}


@pytest.mark.parametrize("row", [None, 3, "text", ["list"], b"x"])
def test_rows_that_are_not_objects_are_counted(row):
    assert reasons_of("medical_o1", row) == {"not_an_object"}
    assert reasons_of("medical_o1", {"Question": "only this"}) == {"missing_column"}


def test_random_rows_never_raise_and_are_all_counted():
    """4,000 rows put together at random from odd values: kept + rejects = rows read."""
    random.seed(5)
    noise = "".join(random.choices(string.printable, k=300))
    odd = [None, "", " ", 0, -1, math.inf, True, [], [[]], {}, {"A": 1}, b"\xff", noise, "\ud83d", "<|im_end|>", "A. x"]
    for name, good in GOOD.items():
        rows = [good]
        for _ in range(4000):
            row = {key: random.choice([value, value, *odd]) for key, value in good.items() if random.random() > 0.02}
            rows.append(random.choice([row, row, row, random.choice(odd)]))
        records, reasons = sources.convert(name, rows, {"name": name})
        assert reasons.total() == len(rows) and reasons["kept"] == len(records)
        assert not reasons["converter_error"]
        json.dumps(records).encode("utf-8")


def test_a_raising_converter_is_counted(monkeypatch):
    def convert(row):
        return {"reasoning": "r", "text": row["Question"] / 0} if row["Question"] == 1 else {"reasoning": "r"}

    broken = dataclasses.replace(sources.SOURCES["medical_o1"], convert=convert)
    monkeypatch.setitem(sources.SOURCES, "medical_o1", broken)
    _, reasons = sources.convert("medical_o1", [GOOD["medical_o1"], GOOD["medical_o1"] | {"Question": 1}], {})
    assert dict(reasons) == {"kept": 1, "converter_error": 1}


def test_an_empty_source_and_one_without_good_rows_are_named():
    with pytest.raises(ValueError, match="medical_r1 gave no record: 0 rows read"):
        sources.convert("medical_r1", [], {"name": "medical_r1"})
    with pytest.raises(ValueError, match="medical_r1 gave no record: 1 rows read.*not_an_object"):
        sources.convert("medical_r1", ["x"], {"name": "medical_r1"})


def test_a_renamed_column_is_an_error_with_expected_and_found():
    row = {"Question": "q", "CoT": "r", "Response": "a"}
    with pytest.raises(ValueError, match=r"missing_column: medical_o1 .*lacks \['Complex_CoT'\].*found.*'CoT'"):
        sources.convert("medical_o1", [row, row], {"name": "medical_o1"})


def test_unknown_names_are_errors():
    with pytest.raises(ValueError, match="'medical_o2', known are medical_o1, medical_r1, medreason"):
        sources.rows({"name": "medical_o2"}, "samples")
    with pytest.raises(ValueError, match="data.origin is 'web', expected hub, clinic or samples"):
        sources.rows({"name": "medical_o1"}, "web")


def test_a_broken_line_of_a_local_file_is_counted(tmp_path):
    path = tmp_path / "medical_o1.jsonl"
    bad = json.dumps(GOOD["medical_o1"]).encode().replace(b"Why?", b"Why\xff?")
    path.write_bytes(json.dumps(GOOD["medical_o1"]).encode() + b'\n{"Question": \n' + bad + b"\n")
    rows = sources.rows({"name": "medical_o1"}, "samples", stage_file=lambda name: path)
    _, reasons = sources.convert("medical_o1", rows, {"name": "medical_o1"})
    assert dict(reasons) == {"kept": 1, "not_an_object": 1, "bad_utf8": 1}


@pytest.fixture
def local_hub(tmp_path, monkeypatch):
    """medreason's hub id pointed at a folder, so that datasets.load_dataset itself runs without a network."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "hub"
    folder.mkdir()
    local = dataclasses.replace(sources.SOURCES["medreason"], hub_id=str(folder))
    monkeypatch.setitem(sources.SOURCES, "medreason", local)
    return folder


def test_hub_rows_pass_through_the_same_converter(local_hub):
    (local_hub / "train.jsonl").write_text(json.dumps(GOOD["medreason"]) + "\n")
    spec = {"name": "medreason"}
    records, reasons = sources.convert("medreason", sources.rows(spec, "hub"), spec)
    assert dict(reasons) == {"kept": 1} and records[0]["letter"] == "B"


def test_hub_errors_say_what_to_do(local_hub):
    (local_hub / "train.jsonl").write_text(json.dumps(GOOD["medreason"]) + "\n")
    with pytest.raises(ValueError, match="split 'test'.*Compare config, split and revision"):
        sources.rows({"name": "medreason", "split": "test"}, "hub")
    with pytest.raises(ValueError, match="config 'xx'.*Compare config, split and revision"):
        sources.rows({"name": "medreason", "config": "xx"}, "hub")
    with pytest.raises(ValueError, match="needs one of the configs en, zh, en_mix, zh_mix, found None"):
        sources.rows({"name": "medical_o1"}, "hub")


def test_hub_column_renamed(local_hub):
    row = {"query" if key == "question" else key: value for key, value in GOOD["medreason"].items()}
    (local_hub / "train.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=r"lacks \['question'\].*found \[.*'query'"):
        sources.rows({"name": "medreason"}, "hub")


def test_remedies_by_kind_of_failure():
    assert "HF_TOKEN" in sources.remedy(ValueError("Dataset 'x' is a gated dataset on the Hub."))
    assert "clinic or samples" in sources.remedy(ConnectionError("Couldn't reach 'x' on the Hub"))


def test_options_run_over_lines_and_stop_at_ten():
    assert converters.parse_options("Answer Choices:\nA. one\n   more\n\nB. two") == ["one more", "two"]
    assert converters.parse_options("Answer Choices:\n") == []
