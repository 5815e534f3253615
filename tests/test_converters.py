"""Every converter: what its good rows become, 20 and more kinds of damage to each cell, and any row at all."""

import json
import math
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.dataset import answers, choices, ingest, readers, records, shapes, sources
from lib.dataset.choices import LETTERS
from lib.pipeline.files import ROOT

CONFIG = {"medical_o1": "en", "reasonmed": "reasonmed", "pubmedqa": "pqa_labeled"}
ALIASES = {"jsonl", "parquet"}  # other names of a user's own file
GOOD = {  # the first row of each file in data/samples is a good one
    name: json.loads(open(ROOT / f"data/samples/{name}.jsonl", encoding="utf-8").readline())
    for name in sources.SOURCES
    if name not in ALIASES
} | {
    "own": {
        "instruction": "Which?",
        "output": "It.",
        "reasoning": "So.",
        "options": ["x", "y"],
        "answer": "y",
        "id": 1,
    }
}
REQUIRED = {  # text columns, and the reason for which a void cell is rejected
    "medical_o1": {"Question": "empty_question", "Complex_CoT": "empty_reasoning", "Response": "empty_answer"},
    "medical_r1": dict(zip(sources.MEDICAL_R1, ("empty_question", "empty_reasoning", "empty_answer"), strict=True)),
    "medical_r1_zh": dict(zip(sources.MEDICAL_R1, ("empty_question", "empty_reasoning", "empty_answer"), strict=True)),
    "medreason": {"question": "empty_question", "reasoning": "empty_reasoning", "answer": "empty_answer"},
    "verifiable": {"Open-ended Verifiable Question": "empty_question", "Ground-True Answer": "empty_answer"},
    "reasonmed": {"instruction": "empty_question", "output": "empty_answer"},
    "pubmedqa": {"question": "empty_question", "final_decision": "empty_answer"},
    "medmcqa": {"question": "empty_question", "opa": "options_unparsable", "opd": "options_unparsable"},
    "medqa": {"question": "empty_question", "answer": "empty_answer", "answer_idx": "empty_answer"},
    "medqa_bigbio": {"question": "empty_question", "answer": "empty_answer", "answer_idx": "empty_answer"},
    "own": {"instruction": "empty_question", "output": "empty_answer"},
}
OPTIONAL = {"reasonmed": ["input"], "pubmedqa": ["long_answer"], "medmcqa": ["exp"], "own": ["reasoning"]}
ABSENT = object()
DAMAGE = {  # kind: (the cell, the reason; None stands for the column's own reason for a void cell)
    "missing key": (ABSENT, "missing_column"),
    "None": (None, None),
    "empty": ("", None),
    "blanks": (" \t\r\n ", None),
    "no-break blanks": ("\xa0\u2003", None),
    "int": (3, "wrong_type"),
    "huge int": (10**400, "wrong_type"),
    "float": (2.5, "wrong_type"),
    "NaN": (math.nan, "wrong_type"),
    "infinity": (math.inf, "wrong_type"),
    "bool": (True, "wrong_type"),
    "empty list": ([], "wrong_type"),
    "list": (["text"], "wrong_type"),
    "dict": ({"text": "x"}, "wrong_type"),
    "nested dict": ({"a": {"b": [{"c": None}]}}, "wrong_type"),
    "bytes": (b"text", "wrong_type"),
    "NUL": ("a\x00b", "control_characters"),
    "escape": ("a\x1b[1mb", "control_characters"),
    "delete": ("a\x7fb", "control_characters"),
    "vertical tab": ("a\x0bb", "control_characters"),
    "lone high surrogate": ("a\ud800b", "bad_utf8"),
    "lone low surrogate": ("\udcffb", "bad_utf8"),
    "replacement character": ("a\ufffdb", "bad_utf8"),
    "300,000 characters": ("x" * 300_000, "too_long"),
    "10 million characters": ("é" * 10_000_000, "too_long"),
}


def outcome(name, row):
    """Where one row went, read beside a good one with another id (a source that keeps nothing is an error)."""
    own = sources.SOURCES[name].identity[-1:]
    other = GOOD[name] | {column: "another" for column in own}
    reasons = ingest.convert(name, [other, row], {"name": name, "config": CONFIG.get(name)})[1]
    assert reasons.total() == 2
    reasons["kept"] -= 1
    (found,) = +reasons
    return found


def kept(name, row):
    """The record of one row."""
    (record,), _ = ingest.convert(name, [row], {"name": name, "config": CONFIG.get(name)})
    return record


def test_there_are_twenty_kinds_of_damage_and_every_source_is_tested():
    assert len(DAMAGE) >= 20
    assert set(REQUIRED) == set(GOOD) == set(sources.SOURCES) - ALIASES
    assert all(sources.SOURCES[name] is sources.SOURCES["own"] for name in ALIASES), "one converter, so one test"


CELLS = [(name, column) for cells in (REQUIRED, OPTIONAL) for name in cells for column in cells[name]]


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize(("name", "column"), CELLS)
def test_a_damaged_cell_is_counted_under_its_reason_but_an_optional_one_may_be_void(name, column, kind):
    cell, reason = DAMAGE[kind]
    row = {key: value for key, value in GOOD[name].items() if key != column}
    if cell is not ABSENT:
        row[column] = cell
    if column in REQUIRED[name]:
        expected = reason or REQUIRED[name][column]
    else:
        void = reason is None or (cell is ABSENT and column not in sources.SOURCES[name].columns)
        expected = "kept" if void else reason
    assert outcome(name, row) == expected


@pytest.mark.parametrize("row", [None, 3, "text", ["list"], b"x", math.nan, True])
@pytest.mark.parametrize("name", GOOD)
def test_rows_that_are_not_objects(name, row):
    assert outcome(name, row) == "not_an_object"
    if name == "own":  # of a user's own row nothing may be lost
        with pytest.raises(shapes.Unread, match="nothing reads 'something', e.g. 'else'"):
            outcome(name, {"something": "else"})
    else:
        assert outcome(name, {"something": "else"}) == "missing_column"
    assert outcome(name, {}) == "missing_column"


@pytest.mark.parametrize("name", ["medreason", "medqa", "medqa_bigbio", "own"])
@pytest.mark.parametrize(
    "options", [["B12"], ["B12", "x\x00"], ["B12", "\udc00"], ["B12", "x" * 300_000], {"A": {"text": "B12"}}, "B12", 4]
)
def test_damaged_options_are_counted(name, options):
    """Every kind of damage to a list is tested in test_choices: each source hands its list to the same reader."""
    found = outcome(name, GOOD[name] | {"options": options} | fresh(name))
    assert found in ("options_unparsable", "wrong_type", "control_characters", "bad_utf8", "too_long"), found


def fresh(name):
    return {column: "fresh" for column in sources.SOURCES[name].identity[-1:]}


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("medmcqa", {"cop": -1}, "answer_hidden"),
        ("medmcqa", {"cop": None}, "answer_hidden"),
        ("medmcqa", {"cop": 4}, "answer_not_in_options"),
        ("medmcqa", {"cop": -2}, "answer_not_in_options"),
        ("medmcqa", {"cop": "1"}, "wrong_type"),
        ("medmcqa", {"cop": True}, "wrong_type"),
        ("medmcqa", {"cop": 0.5}, "wrong_type"),
        ("medmcqa", {"cop": math.nan}, "wrong_type"),
        ("medmcqa", {"cop": [0]}, "wrong_type"),
        ("medmcqa", {"opa": "Riboflavin "}, "options_alike"),
        ("medmcqa", {"exp": "Ans. is 'b' i.e., Riboflavin"}, "answer_conflict"),
        ("medmcqa", {"exp": "Ans. is 'a' & 'c'"}, "answer_conflict"),
        ("medmcqa", {"exp": "Answer: (D). Because"}, "answer_conflict"),
        ("medqa", {"answer_idx": "A"}, "answer_conflict"),
        ("medqa", {"answer_idx": "E"}, "answer_not_in_options"),
        ("medqa", {"answer_idx": "'"}, "empty_answer"),
        ("medqa", {"answer": "No such text"}, "answer_not_in_options"),
        ("medqa", {"options": {}}, "options_unparsable"),
        ("medqa", {"options": None}, "options_unparsable"),
        ("medqa", {"question": ' " '}, "empty_question"),
        ("medqa_bigbio", {"options": []}, "options_unparsable"),
        ("medreason", {"answer": "Explanation: none"}, "empty_answer"),
        ("medreason", {"answer": "Z"}, "answer_not_in_options"),
        ("medreason", {"answer": "Vitamin D. Explanation: sun."}, "answer_not_in_options"),
        ("medreason", {"options": "Vitamin A or Vitamin C"}, "options_unparsable"),
        ("medreason", {"options": ["Vitamin A", "Vitamin C"]}, "wrong_type"),
        ("medreason", {"options": {"A": "Vitamin A"}}, "wrong_type"),
        ("medreason", {"answer": "A. TSH-receptor antibodies"}, "answer_conflict"),
        ("pubmedqa", {"final_decision": "perhaps"}, "answer_not_in_options"),
        ("pubmedqa", {"context": None}, "wrong_type"),
        ("pubmedqa", {"context": ["text"]}, "wrong_type"),
        ("pubmedqa", {"context": {"contexts": "text"}}, "wrong_type"),
        ("pubmedqa", {"context": {"contexts": []}}, "empty_context"),
        ("pubmedqa", {"context": {"contexts": ["text", ""]}}, "empty_context"),
        ("pubmedqa", {"context": {"contexts": ["text", 3]}}, "wrong_type"),
        ("pubmedqa", {"context": {"contexts": ["te\x00xt"]}}, "control_characters"),
        ("reasonmed", {"instruction": "Which?\nA. one\nA. two\nB. three"}, "options_unparsable"),
        ("reasonmed", {"instruction": "Which?\nA. one"}, "options_unparsable"),
        ("reasonmed", {"output": "<think>\nOnly thoughts.\n</think>\n"}, "empty_answer"),
        ("own", {"answer": "A. y"}, "answer_conflict"),
        ("own", {"answer": "z"}, "answer_not_in_options"),
        ("own", {"reasoning": "Ans. is 'a' i.e., x"}, "answer_conflict"),
        ("own", {"reasoning": "It is late. So the answer is x."}, "answer_conflict"),
        ("own", {"reasoning": "The answer is B. No: the answer is A."}, "answer_conflict"),
        ("own", {"output": "It is late.\n\nAnswer: A"}, "answer_conflict"),
        ("own", {"output": "It is late. So the answer is x."}, "answer_conflict"),
        ("own", {"output": "A"}, "answer_conflict"),
        ("own", {"output": "A. x, since it is late."}, "answer_conflict"),
        ("reasonmed", {"output": "So.\n\nThe answer is A.\n\nWait, on reflection the answer is B."}, "answer_conflict"),
        ("own", {"options": ["C", "vitamin C", "D"], "answer": "C"}, "answer_ambiguous"),
        ("own", {"answer": 1}, "wrong_type"),
        ("own", {"answer": None}, "answer_not_in_options"),
        ("own", {"options": None, "answer": ["y"]}, "wrong_type"),
        *[(name, {sources.SOURCES[name].identity[-1]: cell}, reason) for name in ("medreason", "medmcqa", "own")
          for cell, reason in (({"a": 1}, "wrong_type"), ([1], "wrong_type"), (True, "wrong_type"), (1.5, "wrong_type"),
                               ("a\ud800", "bad_utf8"), ("a\x00", "control_characters"), ("x" * 300_000, "too_long"),
                               ("another", "duplicate_id"))],
    ],
)  # fmt: skip
def test_rejects(name, change, reason):
    if "dataset_name" in GOOD[name]:
        change = change | {"dataset_name": GOOD[name]["dataset_name"]}
    assert outcome(name, GOOD[name] | change) == reason


@pytest.mark.parametrize(
    ("exp", "reasoning"),
    [
        ("Ans. is 'a' i.e., Thiamine. It is a cofactor.", "Thiamine. It is a cofactor."),
        ("Ans. (A) It is a cofactor.", "It is a cofactor."),
        ("Answer: A. It is a cofactor.", "It is a cofactor."),
        ("ans- a\nIt is a cofactor.", "It is a cofactor."),
        ("Ans. A Thiamine is a cofactor.", "Thiamine is a cofactor."),
        ("Ans. is 'a'", ""),
        ("Ans. A patient with beriberi lacks it.", "Ans. A patient with beriberi lacks it."),
        ("Answer depends on diet.", "Answer depends on diet."),
        ("A cofactor.", "A cofactor."),
        ("Option B is wrong.", "Option B is wrong."),
    ],
)
def test_the_opening_letter_of_an_explanation_goes_and_nothing_else(exp, reasoning):
    assert kept("medmcqa", GOOD["medmcqa"] | {"exp": exp})["reasoning"] == reasoning


def test_medmcqa_counts_from_zero():
    record = kept("medmcqa", GOOD["medmcqa"] | {"exp": None, "cop": 3})
    assert (record["letter"], record["answer"], record["output"]) == ("D", "Vitamin C", "Answer: Vitamin C")
    assert (record["row_id"], record["benchmark"], record["reasoning"]) == ("made-up-0", "medmcqa", "")


def test_a_copy_of_medmcqa_shows_from_where_it_counts():
    def letters(cops):
        rows = [GOOD["medmcqa"] | {"id": str(n), "exp": "", "cop": cop} for n, cop in enumerate(cops)]
        return [r["letter"] for r in ingest.convert("medmcqa", rows, {"name": "medmcqa", "path": "copy.jsonl"})[0]]

    assert letters([1, 2, 3, 4]) == letters([0, 1, 2, 3]) == letters([0.0, 1.0, 2.0, 3.0]) == list("ABCD")
    with pytest.raises(shapes.Unread, match="never 0 and never 4.*name: own, with columns: {base: 0} or {base: 1}"):
        letters([1, 2, 3])


@pytest.mark.parametrize(
    ("cells", "reasoning", "output"),
    [
        ({"reasoning": "Ans. is 'b' i.e., y. It is late."}, "y. It is late.", "It.\n\nAnswer: y"),
        ({"reasoning": "Perhaps the answer is A. No, the answer is B."}, None, "It.\n\nAnswer: y"),
        ({"output": "The answer is B, since it is late."}, "So.", "since it is late.\n\nAnswer: y"),
        ({"output": "B. y, since it is late."}, "So.", "y, since it is late.\n\nAnswer: y"),
        ({"output": "x is wrong, avoid it."}, "So.", "x is wrong, avoid it.\n\nAnswer: y"),
    ],
)
def test_what_states_the_right_letter_is_kept_without_it(cells, reasoning, output):
    record = kept("own", GOOD["own"] | cells)
    assert (record["reasoning"], record["output"]) == (reasoning or cells["reasoning"], output)


def test_pubmedqa_puts_the_abstract_before_the_question():
    record = kept("pubmedqa", GOOD["pubmedqa"])
    first, second, asked, listed = record["instruction"].split("\n\n")
    assert [first, second] == GOOD["pubmedqa"]["context"]["contexts"] and asked == GOOD["pubmedqa"]["question"]
    assert listed == "A. yes\nB. no\nC. maybe"
    assert record["reasoning"] == GOOD["pubmedqa"]["long_answer"]
    assert (record["output"], record["letter"], record["row_id"]) == ("Answer: yes", "A", "90000000")


def test_reasonmed_has_the_answer_that_its_output_states_last():
    asked = {"instruction": "Which?\nA. one\nB. two\nC. three", "input": ""}
    for output, letter, reasoning, said in (
        ("<think>\nFirst.\n</think>\n\nIt is two.\n\nAnswer: B. two", "B", "First.", "It is two.\n\nAnswer: two"),
        ("First.\n\nAnswer: A\n\nNo, second.\n\nAnswer: C", "C", "First.\n\nAnswer: A\n\nNo, second.", "Answer: three"),
        ("First.\n\nThe answer is A or B.", None, "First.", "The answer is A or B."),
        ("First.\n\nThe other options do not fit: three.", None, "First.", "The other options do not fit: three."),
        ("First.\n\n\\boxed{C}", "C", "First.", "\\boxed{C}\n\nAnswer: three"),
        ("First.\n\nIt depends.", None, "First.", "It depends."),
    ):
        record = kept("reasonmed", asked | {"output": output})
        assert (record["letter"], record["reasoning"], record["output"]) == (letter, reasoning, said)
        assert record["instruction"] == "Which?\n\nA. one\nB. two\nC. three" and record["options"][1] == "two"
    spec = {"name": "reasonmed", "config": "response"}
    (record,), _ = ingest.convert("reasonmed", [asked | {"output": "It is two.\n\nAnswer: B"}], spec, 20)
    assert (record["reasoning"], record["output"]) == ("", "It is two.\n\nAnswer: two")


def test_verifiable_has_the_truth_as_output_and_answer():
    record = kept("verifiable", {"Open-ended Verifiable Question": "Which?", "Ground-True Answer": " That. "})
    assert (record["instruction"], record["reasoning"], record["output"], record["answer"]) == (
        "Which?", "", "That.", "That.")  # fmt: skip


def test_stray_quotes_of_medqa():
    row = GOOD["medqa_bigbio"] | {"answer": '"two" ', "answer_idx": " b", "question": 'Which?"'}
    row["options"] = [{"key": "A", "value": "5'"}, {"key": "B", "value": " two'"}, {"key": "C", "value": "'three'"}]
    record = kept("medqa_bigbio", row)
    assert record["options"] == ["5'", "two", "three"] and record["letter"] == "B"
    assert record["instruction"] == "Which?\n\nA. 5'\nB. two\nC. three"


CELLS = st.one_of(
    st.sampled_from(
        [ABSENT, "A", "b", "(c)", "yes", "Answer: A", "A. one\nB. two", ["one", "two"], {"A": "x", "B": "y"}]
    ),
    st.recursive(
        st.none() | st.booleans() | st.integers(-2, 5) | st.integers() | st.floats() | st.text(max_size=30),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
        max_leaves=6,
    ),
)


@pytest.mark.parametrize("name", GOOD)
@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_any_row_is_kept_or_counted_and_a_kept_one_is_a_whole_record(name, data):
    columns = sources.SOURCES[name].columns + sources.SOURCES[name].optional
    columns = columns or [role for role in shapes.ROLES if role not in ("messages", "index")]
    changes = st.dictionaries(st.sampled_from(columns), CELLS, min_size=1, max_size=3)
    rows = [GOOD[name]] * (6 if name == "own" else 1)  # what most rows are decides how all are read
    for change in data.draw(st.lists(changes, min_size=1, max_size=5)):
        rows.append({k: v for k, v in (GOOD[name] | change).items() if v is not ABSENT})
    last = data.draw(CELLS)
    rows.append({} if name == "own" and isinstance(last, dict) else last)
    found, reasons = ingest.convert(name, rows, {"name": name, "config": CONFIG.get(name)})
    assert reasons.total() == len(rows) and reasons["kept"] == len(found) and not reasons["converter_error"]
    pa.RecordBatch.from_pylist(found, schema=records.SCHEMA)
    for record in found:
        assert set(record) == set(records.SCHEMA.names)
        if record["letter"]:
            assert record["options"][LETTERS.index(record["letter"])] == record["answer"]
            assert record["instruction"].endswith(choices.listed("", record["options"]))
            assert record["output"].endswith(f"Answer: {record['answer']}")


def test_the_scorer_reads_what_the_converters_write():
    counts = Counter()
    for name in GOOD:
        spec = {"name": name, "config": CONFIG.get(name)}
        for record in ingest.convert(name, readers.rows(spec, "samples"), spec)[0]:
            if record["letter"]:
                assert answers.choice(record["output"], record["options"]) == record["letter"]
                counts[name] += 1
    assert min(counts.values()) >= 4 and len(counts) == 7
