"""Converters never raise and account for every row; loading says what is wrong and what to do."""

import dataclasses
import json
import subprocess
import sys
from collections import Counter

import pyarrow as pa
import pytest
from pyarrow import parquet

from lib.dataset import answers, curriculum, entries, ingest, readers, sources
from lib.pipeline.files import ROOT

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
# What the files in data/samples were written to contain, counted by hand.
SAMPLE_REASONS = {  # (rows kept, the reasons of the others)
    "medical_o1": (7, "empty_question empty_reasoning reasoning_too_short wrong_type control_characters"),
    "medical_r1": (8, "empty_reasoning empty_answer wrong_type bad_utf8"),
    "medreason": (7, "answer_not_in_options options_unparsable duplicate_id empty_reasoning wrong_type"),
    "medical_r1_zh": (7, "reasoning_too_short empty_reasoning empty_answer wrong_type bad_utf8 control_characters"),
    "verifiable": (9, "empty_answer empty_question wrong_type control_characters bad_utf8 missing_column"),
    "reasonmed": (8, "empty_answer options_unparsable options_alike wrong_type missing_column"),
    "pubmedqa": (
        7,
        "reasoning_too_short answer_not_in_options empty_context wrong_type wrong_type duplicate_id empty_answer",
    ),
    "medmcqa": (
        9,
        "reasoning_too_short answer_hidden answer_conflict options_unparsable "
        "answer_not_in_options duplicate_id empty_question",
    ),
    "medqa": (8, "answer_conflict answer_not_in_options options_unparsable wrong_type empty_question not_an_object"),
    "medqa_bigbio": (
        8,
        "answer_conflict options_unparsable options_unparsable options_unparsable wrong_type empty_answer",
    ),
    "own": (
        4,
        "reasoning_too_short reasoning_too_short reasoning_too_short reasoning_too_short reasoning_too_short "
        "missing_column empty_question answer_not_in_options answer_not_in_options answer_ambiguous answer_conflict "
        "options_unparsable wrong_type",
    ),
}
SAMPLE_REASONS |= dict.fromkeys(("jsonl", "parquet"), SAMPLE_REASONS["own"])  # other names of a user's own file


@pytest.mark.parametrize("name", sources.SOURCES)
def test_samples_are_counted_as_they_were_written(name):
    spec = {"name": name, "config": "en" if name == "medical_o1" else None}
    records, reasons = ingest.convert(name, readers.rows(spec, "samples"), spec, min_reasoning_chars=20)
    kept, others = SAMPLE_REASONS[name]
    assert reasons == Counter(others.split()) + Counter(kept=kept)
    assert len(records) == reasons["kept"]
    assert len({record["id"] for record in records}) == len(records)


def test_multiple_choice_record_is_complete():
    spec = {"name": "medreason", "split": "test", "revision": "abc"}
    (record,), _ = ingest.convert("medreason", [GOOD["medreason"]], spec)
    assert record == {
        "id": "medreason:test:0",
        "source": "medreason",
        "config": None,
        "split": "test",
        "revision": "abc",
        "row": 0,
        "row_id": "0",
        "benchmark": "made_up",
        "licence": "Apache-2.0",
        "instruction": "Which vitamin prevents scurvy?\n\nA. Vitamin A\nB. Vitamin C\nC. Vitamin K",
        "reasoning": "Weak collagen points to ascorbic acid.",
        "output": "It hydroxylates collagen.\n\nAnswer: Vitamin C",
        "options": ["Vitamin A", "Vitamin C", "Vitamin K"],
        "answer": "Vitamin C",
        "letter": "B",
        "history": [],
        "skill": None,
    }


def test_open_question_reads_the_last_answer_line():
    (record,), _ = ingest.convert("medical_o1", [GOOD["medical_o1"]], {"name": "medical_o1", "config": "en"})
    assert (record["id"], record["answer"], record["output"]) == ("medical_o1:en:train:0", "Yes", "So.\n\nAnswer: Yes")
    (record,), _ = ingest.convert("medical_r1", [GOOD["medical_r1"]], {"name": "medical_r1"})
    assert record["answer"] is None and record["options"] == []


def test_an_answer_line_that_is_not_last_is_no_ground_truth():
    row = GOOD["medical_o1"] | {"Response": "Answer: Yes\nThe patient's answer: none."}
    (record,), _ = ingest.convert("medical_o1", [row], {"name": "medical_o1"})
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
    (record,), _ = ingest.convert(
        "medreason", [GOOD["medreason"] | {"answer": answer, "options": options}], {"name": "medreason"}
    )
    assert record["letter"] == letter
    assert record["output"].endswith(f"Answer: {record['answer']}")
    assert answers.choice(record["output"], record["options"]) == letter, "the scorer reads what the converter writes"


def test_rows_without_an_id_are_not_duplicates():
    row = GOOD["medreason"] | {"id_in_dataset": None}
    _, reasons = ingest.convert("medreason", [row, row], {"name": "medreason"})
    assert dict(reasons) == {"kept": 2}


def test_medreason_without_options_is_an_open_question():
    row = GOOD["medreason"] | {"options": " \n", "answer": "Ascorbic acid. Explanation: collagen."}
    (record,), _ = ingest.convert("medreason", [row], {"name": "medreason"})
    assert (record["answer"], record["letter"], record["options"]) == ("Ascorbic acid", None, [])
    assert record["instruction"] == row["question"] and record["output"] == row["answer"]


def test_short_reasoning_is_counted_but_where_there_is_none_by_design():
    column = "Complex_CoT"
    long = len(GOOD["medical_o1"][column])
    short = GOOD["medical_o1"] | {column: "x" * (long - 1)}
    reasons = ingest.convert("medical_o1", [GOOD["medical_o1"], short], {"name": "medical_o1"}, long)[1]
    assert reasons == {"kept": 1, "reasoning_too_short": 1}
    row = {"Open-ended Verifiable Question": "Which?", "Ground-True Answer": "That."}
    assert ingest.convert("verifiable", [row], {}, min_reasoning_chars=50)[1] == {"kept": 1}


def test_a_raising_converter_is_counted(monkeypatch):
    def convert(row):
        return {"reasoning": "r", "text": row["Question"] / 0} if row["Question"] == 1 else {"reasoning": "r"}

    broken = dataclasses.replace(sources.SOURCES["medical_o1"], convert=convert)
    monkeypatch.setitem(sources.SOURCES, "medical_o1", broken)
    _, reasons = ingest.convert("medical_o1", [GOOD["medical_o1"], GOOD["medical_o1"] | {"Question": 1}], {})
    assert dict(reasons) == {"kept": 1, "converter_error": 1}


def test_an_empty_source_and_one_without_good_rows_are_named():
    with pytest.raises(ValueError, match="medical_r1 gave no record: 0 rows read"):
        ingest.convert("medical_r1", [], {"name": "medical_r1"})
    with pytest.raises(ValueError, match="medical_r1 gave no record: 1 rows read.*not_an_object"):
        ingest.convert("medical_r1", ["x"], {"name": "medical_r1"})


def test_a_renamed_column_is_an_error_with_expected_and_found():
    row = {"Question": "q", "CoT": "r", "Response": "a"}
    with pytest.raises(ValueError, match=r"missing_column: medical_o1 .*lacks \['Complex_CoT'\].*found.*'CoT'"):
        ingest.convert("medical_o1", [row, row], {"name": "medical_o1"})


def test_unknown_names_are_errors():
    with pytest.raises(ValueError, match="'medical_o2'; the nearest valid name is 'medical_o1'"):
        readers.rows({"name": "medical_o2"}, "samples")
    with pytest.raises(ValueError, match="data.origin is 'web', expected hub, clinic or samples"):
        readers.rows({"name": "medical_o1"}, "web")


def test_a_broken_line_of_a_local_file_is_counted(tmp_path):
    path = tmp_path / "medical_o1.jsonl"
    bad = json.dumps(GOOD["medical_o1"]).encode().replace(b"Why?", b"Why\xff?")
    path.write_bytes(json.dumps(GOOD["medical_o1"]).encode() + b'\n{"Question": \n' + bad + b"\n")
    rows = readers.rows({"name": "medical_o1"}, "samples", stage_file=lambda name: path)
    _, reasons = ingest.convert("medical_o1", rows, {"name": "medical_o1"})
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
    records, reasons = ingest.convert("medreason", readers.rows(spec, "hub"), spec)
    assert dict(reasons) == {"kept": 1} and records[0]["letter"] == "B"


def test_hub_errors_say_what_to_do(local_hub):
    (local_hub / "train.jsonl").write_text(json.dumps(GOOD["medreason"]) + "\n")
    with pytest.raises(ValueError, match="split 'test'.*Compare config, split and revision"):
        readers.rows({"name": "medreason", "split": "test"}, "hub")
    with pytest.raises(ValueError, match="config 'xx'.*Compare config, split and revision"):
        readers.rows({"name": "medreason", "config": "xx"}, "hub")
    with pytest.raises(ValueError, match="needs one of the configs en, zh, en_mix, zh_mix, found None"):
        readers.rows({"name": "medical_o1"}, "hub")


def test_hub_column_renamed(local_hub):
    row = {"query" if key == "question" else key: value for key, value in GOOD["medreason"].items()}
    (local_hub / "train.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=r"lacks \['question'\].*found \[.*'query'"):
        readers.rows({"name": "medreason"}, "hub")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("medreason", "should read {name: medreason, ...}, found 'medreason'"),
        ({"config": "en"}, "should read {name: medreason"),
        ({"name": "medreson"}, "the nearest valid name is 'medreason'"),
        ({"name": "medreason", "splt": "test"}, "unknown key 'splt'.*nearest valid name is 'split'"),
        ({"name": "medreason", "label": "x"}, "unknown key 'label'"),
        ({"name": "own", "path": "x", "columns": {"outptu": "y"}}, "'outptu'.*the nearest valid name is 'output'"),
        ({"name": "own", "path": "x", "turns": "first"}, "turns: found 'first'.*valid are each, last"),
        ({"name": "medical_o1", "config": "eng"}, "medical_o1.config: found 'eng'.*nearest valid name is 'en'"),
        ({"name": "medqa_bigbio", "config": "med_qa_en_5options_source"}, "'med_qa_en_4options_source'"),
        ({"name": "medreason", "config": "en"}, "medreason.config: found 'en'"),
        ({"name": "medreason", "revision": 3}, "revision: found 3 .int., expected str or null"),
        ({"name": "jsonl"}, "path is missing"),
        ({"name": "parquet", "path": "x", "config": "en"}, "parquet.config: found 'en'"),
        ({"name": "pubmedqa", "config": "pqa_artificial", "split": "test"}, "pubmedqa.split: found 'test'"),
        ({"name": "pubmedqa", "config": "pqa_labeled", "split": "validation"}, "pubmedqa.split: found 'validation'"),
    ],
)
def test_a_wrong_spec_is_refused_before_anything_is_read(spec, said):
    with pytest.raises(ValueError, match=said):
        entries.check_spec(spec)


def test_good_specs_and_that_checking_them_loads_neither_datasets_nor_torch():
    specs = [{"name": name} for name in sources.SOURCES if name not in sources.OWN_NAMES]
    specs += [{"name": "pubmedqa", "config": "pqa_labeled", "split": "test", "revision": "abc"}]
    specs += [{"name": "jsonl", "path": "my.jsonl", "licence": "CC0-1.0", "citation": "me", "split": None}]
    code = f"import sys\nfrom lib.dataset import entries\nfor s in {specs!r}: entries.check_spec(s)\n"
    code += "print(sorted({'torch', 'datasets', 'transformers'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (ran.stdout.strip(), ran.stderr) == ("[]", "")


OWN = [
    {"instruction": "Which?", "output": "It.", "options": ["x", "y"], "answer": "y", "id": "1"},
    {"instruction": "Why?", "output": "So.", "options": None, "answer": None, "id": "2"},
    {"instruction": "", "output": "So.", "options": None, "answer": None, "id": "3"},
]


@pytest.mark.parametrize("name", ["jsonl", "parquet"])
@pytest.mark.parametrize("origin", ["hub", "clinic", "samples"])
def test_a_file_of_the_users_own_is_read_whatever_the_origin(tmp_path, name, origin):
    path = tmp_path / f"mine.{name}"
    if name == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in OWN))
    else:
        parquet.write_table(pa.Table.from_pylist(OWN), path)
    spec, read = {"name": name, "path": str(path), "licence": "CC0-1.0", "max_rejected": 0.5}, []
    found = readers.rows(spec, origin, stage_file=lambda asked: read.append(asked) or path)
    records, reasons = ingest.convert(name, found, spec)
    assert dict(reasons) == {"kept": 2, "empty_question": 1} and read == [str(path)]
    assert {record["source"] for record in records} == {name}, "labelled gives a label"
    assert [(r["row_id"], r["letter"], r["licence"]) for r in records] == [
        ("1", "B", "CC0-1.0"),
        ("2", None, "CC0-1.0"),
    ]
    assert ingest.convert(name, OWN, {"name": name})[0][0]["licence"] == "unknown"


def test_a_parquet_cell_that_is_not_utf8_is_counted(tmp_path):
    raw = pa.array([b"Which?", b"Wh\xffch?", b"Why?"]).view(pa.string())
    table = pa.table({"instruction": raw, "output": ["a", "b", "c"], "unread": [b"\xff"] * 3})
    parquet.write_table(table, tmp_path / "mine.parquet")
    spec = {"name": "own", "path": str(tmp_path / "mine.parquet"), "max_rejected": 0.5, "columns": {"ignore": "unread"}}
    assert ingest.convert("parquet", readers.rows(spec, "hub"), spec)[1] == {"kept": 2, "bad_utf8": 1}


def test_files_that_are_not_there_or_not_what_they_are_called(tmp_path):
    (tmp_path / "x.parquet").write_text("text")
    (tmp_path / "z.parquet").write_bytes(b"PAR1 and no more")
    for path, said in (("gone.parquet", "expected a file"), ("x.parquet", "neither JSON nor a table"),
                       ("z.parquet", "is a damaged Parquet file")):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            readers.rows({"name": "parquet", "path": str(tmp_path / path)}, "hub")
    with pytest.raises(ValueError, match="path is None, expected a file"):
        readers.rows({"name": "jsonl"}, "hub")


def test_a_number_of_too_many_digits_does_not_stop_a_file(tmp_path):
    (tmp_path / "x.jsonl").write_text(
        '{"instruction": ' + "9" * 5000 + ', "output": "x"}\n' + json.dumps(OWN[0]) + "\n"
    )
    spec = {"name": "jsonl", "path": str(tmp_path / "x.jsonl"), "max_rejected": 0.5}
    assert ingest.convert("jsonl", readers.rows(spec, "hub"), spec)[1] == {"not_an_object": 1, "kept": 1}


def test_the_hub_file_of_a_reasonmed_config(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for file, text in (("ReasonMed", "full"), ("CoTMed", "thought"), ("ResponseMed", "said")):
        row = {"instruction": "Which?", "input": "", "output": f"{text}.\n\nThat."}
        (tmp_path / f"{file}.json").write_text(json.dumps([row]))
    monkeypatch.setitem(sources.SOURCES, "reasonmed", dataclasses.replace(REASONMED, hub_id=str(tmp_path)))
    for config, reasoning, output in (("reasonmed", "full.", "That."), ("cot", "thought.", "That."),
                                      ("response", "", "said.\n\nThat.")):  # fmt: skip
        spec = {"name": "reasonmed", "config": config}
        (record,), _ = ingest.convert("reasonmed", readers.rows(spec, "hub"), spec)
        assert (record["reasoning"], record["output"], record["config"]) == (reasoning, output, config)


REASONMED, PUBMEDQA = sources.SOURCES["reasonmed"], sources.SOURCES["pubmedqa"]
DECISIONS = ["yes"] * 552 + ["no"] * 338 + ["maybe"] * 110  # of pqa_labeled: twice those of its test set


@pytest.fixture
def pubmedqa(tmp_path, monkeypatch):
    """PubMedQA's hub id pointed at a folder of 1,000 made-up rows, and its published ids at a file of this folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    context = {"contexts": ["We looked."], "labels": ["METHODS"], "meshes": ["Humans"]}
    rows = [
        {"pubid": n, "question": f"Is it {n}?", "context": context, "long_answer": "It is.", "final_decision": said}
        for n, said in enumerate(DECISIONS)
    ]
    hub = tmp_path / "hub"
    for config in ("pqa_labeled", "pqa_artificial"):
        (hub / config).mkdir(parents=True)
        parquet.write_table(pa.Table.from_pylist(rows), hub / config / "train.parquet")
    configs = "".join(
        f"- config_name: {c}\n  data_files: {c}/train.parquet\n" for c in ("pqa_labeled", "pqa_artificial")
    )
    (hub / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    monkeypatch.setitem(sources.SOURCES, "pubmedqa", dataclasses.replace(PUBMEDQA, hub_id=str(hub)))
    published = tmp_path / "test_ground_truth.json"
    published.write_text(json.dumps({str(n): said for n, said in enumerate(DECISIONS) if n % 2}))
    monkeypatch.setattr(readers, "PUBMEDQA_IDS", published.as_uri())
    monkeypatch.setattr(readers, "PUBMEDQA_FILE", str(tmp_path / "ids.txt"))
    return tmp_path


def test_pubmedqa_is_split_by_the_published_ids(pubmedqa):
    spec = {"name": "pubmedqa", "config": "pqa_labeled"}
    test, train = (list(readers.rows(spec | {"split": split}, "hub")) for split in ("test", "train"))
    assert Counter(row["final_decision"] for row in test) == readers.PUBMEDQA_TEST
    assert {row["pubid"] for row in test} == set(range(1, 1000, 2)) and len(train) == 500
    assert not {row["pubid"] for row in test} & {row["pubid"] for row in train}
    records, _ = ingest.convert("pubmedqa", test, spec | {"split": "test"})
    assert records[0]["id"] == "pubmedqa:pqa_labeled:test:0" and records[0]["row_id"] == "1"
    whole = list(readers.rows({"name": "pubmedqa", "config": "pqa_artificial"}, "hub"))
    assert len(whole) == 1000
    with pytest.raises(ValueError, match="pqa_artificial has no split 'test'"):
        readers.rows({"name": "pubmedqa", "config": "pqa_artificial", "split": "test"}, "hub")


def test_pubmedqas_ids_from_a_local_file_and_what_is_said_of_wrong_ones(pubmedqa):
    spec, ids = {"name": "pubmedqa", "config": "pqa_labeled", "split": "test"}, pubmedqa / "ids.txt"
    ids.write_text("\n".join(str(n) for n in range(0, 1000, 2)))
    asked = []
    rows = readers.rows(spec, "hub", stage_file=lambda name: asked.append(name) or name)
    assert {row["pubid"] for row in rows} == set(range(0, 1000, 2)) and asked == [str(ids)]
    ids.write_text("\n".join(str(n) for n in range(500)))
    with pytest.raises(ValueError, match=r"pick {'yes': 500} of 1000 rows, expected {'yes': 276"):
        readers.rows(spec, "hub")
    ids.write_text("1\n2\n")
    with pytest.raises(ValueError, match="ids.txt holds 2 different ids"):
        readers.rows(spec, "hub")
    ids.unlink()
    (pubmedqa / "test_ground_truth.json").unlink()
    with pytest.raises(ValueError, match="cannot read the ids of PubMedQA.*or the ids, one a line, into"):
        readers.rows(spec, "hub")


def test_stream_yields_while_it_reads_and_counts_as_it_goes():
    reasons, read = Counter(), []
    rows = (read.append(n) or (GOOD["medical_o1"] if n % 2 else None) for n in range(100))
    records = ingest.stream("medical_o1", rows, {"name": "medical_o1"}, reasons)
    assert not read and next(records)["row"] == 1 and len(read) == 2
    assert sum(1 for _ in records) == 49 and reasons == {"kept": 50, "not_an_object": 50}


def test_a_ground_truth_is_joined_by_question():
    def truth(question, answer):
        return {"Open-ended Verifiable Question": question, "Ground-True Answer": answer}

    pairs = [
        truth("WHY ??", "Mechanism"),
        truth("Who?", "A"),
        truth("who", "B"),
        truth("When?", "Now"),
        truth("When", "now."),
    ]
    truths = ingest.truths(ingest.convert("verifiable", pairs, {})[0])
    assert truths == {"why": "Mechanism", "when": "Now"}, "two answers to one question settle nothing"
    rows = [GOOD["medical_r1"] | {"question": q} for q in ("Why?", "Who?", "Where?")]
    joined = Counter()
    answers = [r["answer"] for r in ingest.join_truth(ingest.convert("medical_r1", rows, {})[0], truths, joined)]
    assert answers == ["Mechanism", None, None] and joined == {"medical_r1": 1}
    own = ingest.convert("medical_o1", [GOOD["medical_o1"]], {})[0]
    assert next(ingest.join_truth(own, truths, joined))["answer"] == "Yes", "an answer of its own stays"


def test_every_source_says_whether_its_licence_allows_commercial_use():
    unclear = {name for name, source in sources.SOURCES.items() if source.commercial is None}
    assert unclear == {"medqa", "medqa_bigbio", *sources.OWN_NAMES}
    assert all(source.citation and source.hub_id for name, source in sources.SOURCES.items() if name not in unclear)


def test_the_clinic_reads_the_hubs_words_for_a_split():
    spec = {"name": "medqa"}
    whole = {half: readers.rows(spec | {"split": half}, "clinic") for half in ("train", "test")}
    assert readers.rows(spec | {"split": "train[:7]"}, "clinic") == whole["train"][:7]
    assert readers.rows(spec | {"split": "validation"}, "clinic") == whole["test"]
    assert readers.rows(spec | {"split": "test[-5:]"}, "clinic") == whole["test"][-5:]
    with pytest.raises(ValueError, match=r"no split 'train\[:10%\]': expected train, validation or test"):
        readers.rows(spec | {"split": "train[:10%]"}, "clinic")


@pytest.mark.parametrize("origin", ["clinic", "samples"])
@pytest.mark.parametrize("name", [name for name, source in sources.SOURCES.items() if source.hub_id])
def test_rows_written_here_are_credited_to_this_repository(name, origin):
    entry = {"name": name, "config": next(iter(sources.SOURCES[name].configs), None), "revision": "abc"}
    spec = sources.credited(entry, origin)
    if origin == "clinic" and name == "medical_r1_zh":
        return  # the clinic writes no Chinese
    records, _ = ingest.convert(name, readers.rows(spec, origin), spec)
    assert {record["source"] for record in records} == {f"{origin}, in {name}'s columns"}
    assert {record["licence"] for record in records} == {"MIT"} == {sources.terms(spec)["licence"]}
    assert sources.terms(spec)["commercial"] and f"data/{origin}" in sources.terms(spec)["citation"]
    assert all(record["id"].startswith(f"{origin}, in {name}") for record in records)
    assert curriculum.stages([{"name": name}], {records[0]["source"]}) == [(name, {records[0]["source"]: 1.0})]


def test_rows_of_the_hub_and_of_a_users_file_keep_their_own_credit():
    hub = sources.credited({"name": "medqa_bigbio"}, "hub")
    assert (hub["label"], hub["from"], sources.terms(hub)["licence"]) == ("medqa_bigbio", "bigbio/med_qa", "unknown")
    own = {"name": "jsonl", "path": "data/mine.jsonl", "licence": "CC0", "citation": "me"}
    for origin in ("clinic", "hub"):
        assert sources.terms(sources.credited(own, origin)) == {"licence": "CC0", "commercial": None, "citation": "me"}
        assert sources.credited(own, origin)["label"] == "jsonl"
