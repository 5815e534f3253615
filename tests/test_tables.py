"""Files on a disk are told by what is in them; copies of the hub's sets go through their own converters."""

import codecs
import dataclasses
import gzip
import json
import os

import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict
from pyarrow import parquet

from lib.dataset import folders, ingest, jsonfiles, readers, sources, tables
from lib.pipeline.files import ROOT

ROWS = [{"instruction": f"Which is {n}? ä", "output": f"It is {n}."} for n in range(4)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
CSV = "instruction,output\n" + "".join(f"{row['instruction']},{row['output']}\n" for row in ROWS)
FORMS = {
    "lines": LINES,
    "lines with blanks between": "\n\n" + LINES.replace("\n", "\n \n"),
    "lines of Windows": LINES.replace("\n", "\r\n"),
    "a list on one line": json.dumps(ROWS),
    "a list, pretty": json.dumps(ROWS, indent=2),
    "a list, an object a line": "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n",
    "objects, pretty, one after another": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "a list in an object": json.dumps({"version": "1", "data": ROWS}, indent=1),
    "objects by key": json.dumps({f"k{n}": row for n, row in enumerate(ROWS)}),
    "by column, as pandas writes it": json.dumps({c: {str(n): row[c] for n, row in enumerate(ROWS)} for c in ROWS[0]}),
    "by column, in lists": json.dumps({c: [row[c] for row in ROWS] for c in ROWS[0]}),
    "split into columns, index, data": json.dumps(
        {"columns": list(ROWS[0]), "index": [0, 1, 2, 3], "data": [list(row.values()) for row in ROWS]}
    ),
    "comma": CSV,
    "comma of Windows": CSV.replace("\n", "\r\n"),
    "comma, with Excel's first line": "sep=,\n" + CSV,
    "tab": CSV.replace(",", "\t"),
    "semicolon": CSV.replace(",", ";"),
}
CODES = {
    "utf-8": lambda text: text.encode(),
    "utf-8 with BOM": lambda text: codecs.BOM_UTF8 + text.encode(),
    "utf-16": lambda text: text.encode("utf-16"),
    "utf-16, big end first": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    "utf-16 without BOM": lambda text: text.encode("utf-16-le"),
    "utf-32": lambda text: text.encode("utf-32"),
    "utf-32 without BOM": lambda text: text.encode("utf-32-be"),
    "gzip": lambda text: gzip.compress(text.encode(), mtime=0),
}


def read(path, name="own", **spec):
    spec = {"name": name, "path": str(path), **spec}
    return ingest.convert(name, readers.rows(spec, "hub"), spec)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_in_every_code_gives_the_same_rows(tmp_path, form, code):
    path = tmp_path / "mine.data"  # the name says nothing
    path.write_bytes(CODES[code](FORMS[form]))
    records, reasons = read(path)
    assert reasons == {"kept": 4}
    assert [{key: r[key] for key in ("instruction", "output")} for r in records] == ROWS


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"PK\x03\x04rest", "a zip archive or an Excel workbook: unpack it, or save the sheet as CSV"),
        (b"%PDF-1.7", "a PDF"),
        (b"version https://git-lfs.github.com/spec/v1\noid x", "a Git LFS pointer.*git lfs pull"),
        (b"<!doctype html><html>", "a web page"),
        (b"\x1f\x8bbroken", "packed by gzip and damaged"),
        (gzip.compress(LINES.encode(), mtime=0)[:-12], "packed by gzip and damaged"),
        (b"\x89PNG\r\n\x1a\n" + bytes(9), "is no text"),
        (
            LINES.replace("}\n", "},\n"),
            "4 not_an_object, e.g. mine.data, line 1.*JSON lines have no comma between rows",
        ),
        ('[{"instruction": "a", "output": "b", "output": "c"}]', "the key 'output' stands twice in one object"),
        (LINES.encode("latin-1"), r"mine.data, line 1: byte 0xe4 is not UTF-8.*iconv -f WINDOWS-1252"),
        (CSV.encode("cp1252"), "line 2: byte 0xe4 is not UTF-8"),
        ("[\n" + LINES.replace("}\n", "},\n") + "]", "no valid JSON, line 6: a comma stands before ]"),
        ('[{"instruction": "x",\n "output": "y",\n}]', "no valid JSON, line 3: a comma stands before }"),
        ('[{"instruction": "x"}\n{"output": "y"}]', "line 2: Expecting ',' delimiter"),
        ('[{"instruction": "x", "output": "y"},\n{"instruction"', "no valid JSON, line 2"),
        ('[{"instruction": "x", "output": "y"}', "line 1: it never ends, the file is cut"),
        (json.dumps({"train": ROWS, "test": ROWS[:1]}), "several lists, train, test: say which.*split: train"),
        ("Once upon a time.", "neither JSON nor a table: its first line is 'Once upon a time.'"),
        ("a,b,a\n1,2,3\n", "the header names 'a' twice"),
        ('instruction,output\n"open,x\ny,z\n', "row that begins on line 2"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line_and_what_to_do(tmp_path, data, said):
    path = tmp_path / "mine.data"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(ValueError, match=f"(?s){said}"):
        read(path, split="val" if "several" in said else None)


@pytest.mark.parametrize("name", ["a_truth.json", "z_truth.json"])
def test_one_object_beside_files_of_rows_is_named(tmp_path, name):
    (tmp_path / "rows.jsonl").write_text(LINES)
    (tmp_path / name).write_text(json.dumps({"1237": "yes", "2616": "no"}))
    with pytest.raises(ValueError, match=f"{name} is one object of 2 keys, 1237, 2616, and rows.jsonl beside.*folder/"):
        read(tmp_path)
    (tmp_path / name).write_text(json.dumps(ROWS[0]))
    assert read(tmp_path)[1]["kept"] == len(LINES.splitlines()) + 1, "one row of the same columns is a row"


def test_a_row_whose_cells_are_lists_is_one_row(tmp_path):
    path, row = tmp_path / "mine.jsonl", {"options": [{"key": "A", "value": "x"}], "history": [{"a": "b"}]}
    for cells in (row, {"Options": row["options"]}, {"messages": [{"role": "user", "content": "x"}]}):
        path.write_text(json.dumps(cells | {"question": "What?"}))
        assert len(list(tables.rows(str(path), lambda p: p))) == 1
    path.write_text(json.dumps({"version": "1", "data": ROWS}))
    assert list(tables.rows(str(path), lambda p: p)) == ROWS, "a wrapper is none"


def test_files_of_other_columns_in_one_folder_are_named(tmp_path):
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": []}) + "\n" + json.dumps({"messages": []}))
    (tmp_path / "questions.csv").write_text(CSV)
    with pytest.raises(
        ValueError, match="questions.csv has the columns instruction, output, and chat.jsonl.* messages"
    ):
        list(tables.rows(str(tmp_path), lambda name: name))
    (tmp_path / "chat.jsonl").write_text('{"instruction": "x", "text": "y"}\n' * 2)
    with pytest.raises(ValueError, match="2 missing_column, e.g. row 1, without 'output': "):
        read(tmp_path, columns={"instruction": "instruction", "output": "output", "ignore": "text"})


@pytest.mark.parametrize(
    "document",
    [
        {"k1": {"question": "x", "answer": "y"}, "k2": {"question": "x", "answer": "y"}},
        {"1": {"2": "x", "3": "y"}, "2": {"2": "x", "3": "y"}},
        {"prompt": [{"role": "user", "content": "x"}], "completion": [{"role": "assistant", "content": "y"}]},
        {"contexts": ["x", "y"], "labels": ["x"]},
        {"question": {"0": "x"}, "options": ["x"]},
        {"data": [1, 2]},
        {},
    ],
)
def test_an_object_that_is_no_table_by_column_is_not_taken_for_one(document):
    assert jsonfiles._by_column(document) == []


def test_a_broken_row_is_counted_and_the_others_are_read(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(CSV * 1 + "too,many,cells\n" + CSV.partition("\n")[2])
    assert read(path)[1] == {"kept": 8, "not_an_object": 1}
    path.write_text(LINES + '{"instruction": \n' + LINES)
    assert read(path)[1] == {"kept": 8, "not_an_object": 1}
    path.write_text(LINES + '{"output": "x", "instruction": "y", "output": "z"}\n' + LINES)
    assert read(path)[1] == {"kept": 8, "not_an_object": 1}, "of a key given twice neither value is lost"
    path.write_bytes((LINES * 2).encode() + LINES.splitlines()[0].encode("latin-1"))
    assert read(path)[1] == {"kept": 8, "bad_utf8": 1}, "one damaged row is no other encoding"


def test_folders_and_patterns_are_read_file_by_file_and_recorded(tmp_path):
    (tmp_path / "d" / "deep").mkdir(parents=True)
    (tmp_path / "d" / "a.jsonl").write_text(LINES)
    (tmp_path / "d" / "deep" / "b.csv").write_text(CSV)
    (tmp_path / "d" / "c.json.gz").write_bytes(gzip.compress(json.dumps(ROWS).encode()))
    (tmp_path / "d" / "README.md").write_text("notes")
    (tmp_path / "d" / ".hidden.jsonl").write_text("no")
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "d" / "e.parquet")
    recorded = []
    spec = {"name": "own", "path": str(tmp_path / "d")}
    rows = readers.rows(spec, "clinic", lambda name: recorded.append(name) or ROOT / name)
    assert len(list(rows)) == 16
    assert [os.path.basename(name) for name in recorded] == ["a.jsonl", "c.json.gz", "b.csv", "e.parquet"]
    assert read(tmp_path / "d" / "*.json*")[1] == {"kept": 8} and read(tmp_path / "**" / "*.csv")[1] == {"kept": 4}
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="expected a folder with jsonl, ndjson"):
        read(tmp_path / "empty")
    with pytest.raises(ValueError, match="expected a file"):
        read(tmp_path / "*.tsv")


@pytest.mark.parametrize("name", ["a.jsonl.bz2", "a.json.zst", "a.XLSX", "a.arrow", "a.jsonl.bak", "a.csv~", "rows"])
def test_a_file_of_rows_that_nothing_reads_in_a_folder_is_named(tmp_path, name):
    (tmp_path / "b.jsonl").write_text(LINES)
    for note in ("README.md", "LICENSE", "SHA256SUMS", "make.py", "figure.png"):
        (tmp_path / note).write_bytes(b"# {\x89 notes, and more\n")
    assert read(tmp_path)[1] == {"kept": 4}
    (tmp_path / name).write_text(LINES)
    with pytest.raises(ValueError, match=f"holds {name}, which nothing reads in a folder.*jsonl"):
        read(tmp_path)
    assert read(tmp_path / "*.jsonl")[1] == {"kept": 4}


def test_of_a_folder_the_split_is_read_that_the_names_of_its_files_say(tmp_path):
    names = ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "val.jsonl", "US/test_1.jsonl"]
    (tmp_path / "US").mkdir()
    for name in names:
        (tmp_path / name).write_text(LINES)
    chosen = {split: [file.name for file in folders.files(str(tmp_path), split)] for split in ("train", "dev", "test")}
    assert chosen == {"train": names[:2], "dev": names[2:3], "test": ["test_1.jsonl"]}
    assert read(tmp_path, split="train[1:7]")[1] == {"kept": 6} and read(tmp_path / "*.jsonl")[1] == {"kept": 12}
    with pytest.raises(
        ValueError, match="several splits.*train .train-00000.*validation .val.jsonl.*set split to one of them"
    ):
        read(tmp_path)
    with pytest.raises(ValueError, match="several splits.*test .test_1.*, or name files"):
        folders.files(str(tmp_path), "fold1")
    (tmp_path / "more.jsonl").write_text(LINES)
    with pytest.raises(ValueError, match="none .more.jsonl"):
        read(tmp_path, split="train")


@pytest.mark.parametrize(
    ("names", "split", "read"),
    [
        (["train.csv", "more.csv"], None, 2),  # nothing else than training
        (["contest.csv", "evaluated.csv", "device.csv"], "validation", 3),  # no word of a split
        (["test.csv"], None, 1),
        (["train_prefs.csv", "train_sft.csv", "test_prefs.csv"], "train_prefs", 1),
    ],
)
def test_names_of_files_that_say_no_other_split(tmp_path, names, split, read):
    for name in names:
        (tmp_path / name).write_text(CSV)
    assert len(folders.files(str(tmp_path), split)) == read


def test_of_a_folder_without_its_card_the_config_is_asked_for(tmp_path):
    rows = list(readers.rows({"name": "medical_o1", "config": "en"}, "clinic"))[:4]
    for name in ("sft.json", "sft_Chinese.json"):
        (tmp_path / name).write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="needs one of the configs en, zh.*found None"):
        read(tmp_path, "medical_o1")
    with pytest.raises(ValueError, match="sft.json, sft_Chinese.json, and without the README.md .* config zh"):
        read(tmp_path, "medical_o1", config="zh")
    (tmp_path / "zh").mkdir()
    for number in range(2):
        (tmp_path / "zh" / f"train-0000{number}-of-00002.json").write_text(json.dumps(rows))
    assert read(tmp_path, "medical_o1", config="zh")[1] == {"kept": 8}


@pytest.mark.parametrize("data", ["instruction,output\n", "[]", "[ ]\n"])
def test_a_file_without_rows_is_named_and_its_columns_are_not_blamed(tmp_path, data):
    (tmp_path / "x").write_text(data)
    with pytest.raises(ValueError, match="own gave no record: 0 rows read, .*\nTo do: check its entry in the recipe"):
        read(tmp_path / "x")


def test_damage_behind_the_first_bytes_is_named(tmp_path):
    text = "".join(
        json.dumps({"instruction": f"{n} {os.urandom(99).hex()}", "output": "x"}) + "\n" for n in range(9999)
    )
    whole, path = gzip.compress(text.encode(), 1), tmp_path / "x.jsonl.gz"
    for data in (whole[:-999], whole[:1200000] + bytes(200) + whole[1200200:]):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="x.jsonl.gz is damaged or cut .*: copy it again"):
            read(path)
    path = tmp_path / "x.parquet"
    parquet.write_table(pa.Table.from_pylist(ROWS * 999), path, use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[40:400] = b"\xff" * 360
    path.write_bytes(data)
    with pytest.raises(ValueError, match="(?s)x.parquet is damaged or cut .*: copy it again"):
        read(path)


def test_a_path_below_the_root_is_recorded_from_there_on():
    outside = ROOT.parent / "x"
    assert folders.named(ROOT / "data" / "x.csv") == "data/x.csv" and folders.named(outside) == str(outside)


def test_a_slice_or_a_list_of_a_file_is_chosen_by_split(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"train": ROWS, "val": ROWS[:1]}))
    assert read(path, split="train[1:3]")[0][0]["instruction"] == ROWS[1]["instruction"]
    assert read(path, split="val")[1] == {"kept": 1}
    with pytest.raises(ValueError, match="several lists, train, val: say which.*split: train"):
        read(path)
    with pytest.raises(ValueError, match="split 'train.:10%.'.*expected e.g. train or train.:500"):
        read(path, split="train[:10%]")


HUB = [name for name, source in sources.SOURCES.items() if source.hub_id]
COPY = {"medical_o1": "en", "reasonmed": "reasonmed", "pubmedqa": "pqa_artificial", "medqa_bigbio": "med_qa_en_source"}


@pytest.mark.parametrize("form", ["json", "lines", "parquet", "saved", "folder", "csv"])
@pytest.mark.parametrize("name", HUB)
def test_every_hub_set_is_read_from_a_copy_through_its_own_converter(tmp_path, name, form):
    source, spec = sources.lookup(name, COPY.get(name)), {"name": name, "config": COPY.get(name)}
    good = list(readers.rows(spec | {"name": name.removesuffix("_zh")}, "clinic"))[:30]
    folder, columns = tmp_path / "copy", source.columns + source.optional
    good = [{key: row[key] for key in columns if key in row} for row in good]
    folder.mkdir()
    path = folder / (source.files or {}).get(spec["config"], "train.json")
    text = json.dumps(good, indent=1) if form in ("json", "folder") else "".join(json.dumps(r) + "\n" for r in good)
    if form == "parquet":
        path = folder / "train.parquet"
        parquet.write_table(pa.Table.from_pylist(good), path)
    elif form == "saved":
        DatasetDict({"train": Dataset.from_list(good)}).save_to_disk(folder)
    elif form == "csv":  # as pandas and datasets write it: lists as numpy shows them
        Dataset.from_list(good).to_csv(path := folder / "train.csv")
    else:
        path.write_text(text)
    spec["path"] = str(folder if form in ("saved", "folder") else path)
    copied = ingest.convert(name, readers.rows(spec, "hub"), spec)
    assert copied[1] == {"kept": 30}
    direct = ingest.convert(name, good, spec)[0]
    assert copied[0] == direct and {record["source"] for record in copied[0]} == {name}


def test_a_snapshot_folder_is_read_as_its_card_says(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = list(readers.rows({"name": "medical_o1", "config": "en"}, "clinic"))[:9]
    columns = sources.SOURCES["medical_o1"].columns
    rows = [{key: row[key] for key in columns} for row in rows]
    (tmp_path / "hub").mkdir()
    for config, some in (("en", rows), ("zh", rows[:2])):
        (tmp_path / "hub" / f"{config}.json").write_text(json.dumps(some))
    card = "".join(f"- config_name: {config}\n  data_files: {config}.json\n" for config in ("en", "zh"))
    (tmp_path / "hub" / "README.md").write_text(f"---\nconfigs:\n{card}---\n")
    for config, count in (("en", 9), ("zh", 2)):
        assert read(tmp_path / "hub", "medical_o1", config=config)[1] == {"kept": count}
    assert read(tmp_path / "hub", "medical_o1", config="en", split="train[:3]")[1] == {"kept": 3}


def test_a_wrong_copy_is_named(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(LINES)
    with pytest.raises(ValueError, match="missing_column: medreason.*x.jsonl is no copy of that data set.*name: own"):
        read(path, "medreason")
    none = Dataset.from_list(ROWS).select([])
    DatasetDict({"train": Dataset.from_list(ROWS), "test": none}).save_to_disk(tmp_path / "saved")
    for split in (None, "validation"):
        with pytest.raises(
            ValueError, match=f"saved has the splits train, test: set split in its entry, now '?{split}"
        ):
            read(tmp_path / "saved", split=split)
    with pytest.raises(ValueError, match="test, a folder of save_to_disk, holds no rows"):
        read(tmp_path / "saved", split="test")
    assert read(tmp_path / "saved", split="train[1:]")[1] == {"kept": 3}


@pytest.mark.parametrize("form", ["snapshot", "saved"])
def test_a_pointer_in_the_place_of_a_copied_file_is_named(tmp_path, monkeypatch, form):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "copy"
    if form == "saved":
        Dataset.from_list(ROWS).save_to_disk(folder)
        file = next(folder.glob("*.arrow"))
    else:
        folder.mkdir()
        (folder / "README.md").write_text("---\nlicense: mit\n---\n")
        file = folder / "train-00000-of-00001.parquet"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ValueError, match=f"{file.name} is a Git LFS pointer, not the file itself: .*git lfs pull"):
        read(folder, "medmcqa")


def test_pubmedqa_is_read_from_a_folder_that_holds_its_ids(tmp_path):
    decisions = {str(n): answer for n, answer in enumerate(["yes"] * 276 + ["no"] * 169 + ["maybe"] * 55)}
    row = {"question": "q", "context": {"contexts": ["it's 'one'", 'a "b" array([']}, "long_answer": "Why."}
    rows = [row | {"pubid": n, "final_decision": decisions.get(str(n), "yes")} for n in range(1000)]
    for file in ("copy/pqa_labeled/train.jsonl", "copy/pqa_artificial/train.jsonl"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "copy" / "test_ground_truth.json").write_text(json.dumps(decisions))
    for split in ("train", "test"):
        records, reasons = read(tmp_path / "copy", "pubmedqa", config="pqa_labeled", split=split)
        assert reasons == {"kept": 500}
        assert ({record["row_id"] for record in records} == set(decisions)) == (split == "test")


REAL = os.environ.get("REAL")
real = pytest.mark.skipif(not REAL, reason="REAL names no folder with the published PubMedQA (pqa_labeled.jsonl)")


@real
def test_the_published_pubmedqa_from_a_copy():
    truth = json.load(open(os.path.join(REAL, "test_ground_truth.json"), encoding="utf-8"))
    counts = {}
    for split in ("train", "test"):
        spec = {"config": "pqa_labeled", "split": split}
        records, reasons = read(os.path.join(REAL, "pqa_labeled.jsonl"), "pubmedqa", **spec)
        counts[split] = len(records)
        assert dict(reasons) == {"kept": 500}
        decided = {record["row_id"]: record["answer"] for record in records}
        assert decided == truth if split == "test" else not set(decided) & set(truth)
    assert counts == {"train": 500, "test": 500}


@real
def test_the_published_pubmedqa_as_a_file_of_ones_own_and_from_a_folder(tmp_path):
    path = os.path.join(REAL, "pqa_labeled.jsonl")
    records, reasons = read(path)
    assert dict(reasons) == {"kept": 1000} and {record["source"] for record in records} == {"own"}
    rows = [json.loads(line) for line in open(path, encoding="utf-8")]
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "test_ground_truth.json").write_bytes(
        open(os.path.join(REAL, "test_ground_truth.json"), "rb").read()
    )
    assert read(tmp_path / "saved", "pubmedqa", config="pqa_labeled", split="test")[1] == {"kept": 500}


def test_a_copy_of_pubmedqa_that_is_not_whole_is_named(tmp_path):
    row = {"pubid": 1, "question": "q", "context": {"contexts": ["c"]}, "long_answer": "", "final_decision": "yes"}
    (tmp_path / "pqa.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"pubid": 2}) + "\n")
    (tmp_path / "test_ground_truth.json").write_text(json.dumps({str(n): "yes" for n in range(500)}))
    with pytest.raises(ValueError, match=r"pick {'yes': 2} of 2 rows, expected {'yes': 276"):
        read(tmp_path / "pqa.jsonl", "pubmedqa", config="pqa_labeled", split="test")


def test_the_hubs_id_is_not_asked_where_a_path_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **kwargs: pytest.fail("the hub was asked"))
    monkeypatch.setitem(
        sources.SOURCES, "medreason", dataclasses.replace(sources.SOURCES["medreason"], hub_id="no/such")
    )
    rows = list(readers.rows({"name": "medreason"}, "clinic"))[:5]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read(tmp_path / "x.jsonl", "medreason")[1] == {"kept": 5}
