"""Rows as people and publishers really have them: each line of cases_data.jsonl is one that once came out wrong.

A line holds what goes in (`rows` or `bytes` of a file, a `text`, a `pair` of questions), what came out (`actual`), what
should (`expected`, in words) and the same for this test (`must`). `kind` says which part of the chapter it is about.
"""

import gzip
import json
from collections import Counter

import pytest

from lib.dataset import choices, entries, ingest, leakage, readers, sources, split
from lib.pipeline.files import ROOT

CASES = [json.loads(line) for line in (ROOT / "tests/cases_data.jsonl").read_text(encoding="utf-8").splitlines()]
TEXTS = {"choices.inside": lambda text: choices.inside(text)[1], "medqa": choices.unquote}
CSV = "instruction,output\nQ1,A1\nQ2,A2\n"


def made(case, folder):
    """The file that a case is about, written into `folder`."""
    path = folder / "mine.jsonl"
    text = case.get("bytes") or "".join(json.dumps(row) + "\n" for row in case["rows"])
    path.write_text(text, encoding="utf-8", newline="")
    return path


def converted(spec, least=0):
    """(records, reasons) of a source, from its file to its records."""
    return ingest.convert(spec["name"], readers.rows(spec, "hub"), spec, least)


def reading(case, folder):
    case = {"spec": {"name": "jsonl"}} | case
    if not sources.lookup(case["spec"]["name"]).hub_id:
        case = case | {"spec": case["spec"] | {"path": str(made(case, folder))}}
        return converted(case["spec"], case.get("recipe", {"data": {}})["data"].get("min_reasoning_chars", 0))
    reasons = Counter()
    stream = ingest.stream(case["spec"]["name"], case["rows"], case["spec"], reasons)
    if "kept" in case["must"].get("reasons", {"kept": 1}):
        return list(stream), reasons
    with pytest.raises(ValueError, match="gave no record"):
        list(stream)
    return [], reasons


def outcome(case, folder):
    """Assert what `must` says of the records or of the reasons."""
    records, reasons = reading(case, folder)
    must = case["must"]
    if "reasons" in must:
        assert dict(reasons) == must["reasons"]
    for record, wanted in zip(records, must.get("records", []), strict="records" in must):
        found = record | {"stem": split.stem(record)}
        assert {key: found[key] for key in wanted} == wanted


def test_every_case_is_here_once():
    assert len(CASES) == 28 == len({case["id"] for case in CASES})


def flags(case):
    """{detector: whether it flags the training question of the pair}."""
    record = {"source": "a", "answer": None, "reasoning": "", "output": ""}
    made = {
        side: record | {"instruction": text, "options": choices.inside(text)[1]} for side, text in case["pair"].items()
    }
    scan = leakage.scan([made["train"]], {"test": [made["evaluation"]]}, 42)
    return {name: bool(by_set["test"][0]) for name, by_set in scan.flags.items() if "test" in by_set}


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_a_case_comes_out_as_it_should(case, tmp_path, monkeypatch):
    own = {
        "own-two-files": two_files,
        "own-utf16-gz-csv": encoded_and_packed,
        "pubmedqa-ids-bom": ids_with_a_mark,
        "local-copy-of-hub-set": a_copy,
        "ch1-json-array-error": no_json_array,
        "bigbio-script": a_script,
    }
    if case["id"] in own:
        own[case["id"]](case, tmp_path, monkeypatch)
    elif "pair" in case:
        found = flags(case)
        assert {name: found[name] for name in case["must"].get("flags", {})} == case["must"].get("flags", {})
        assert any(found.values()) or "flagged" not in case["must"]
    elif "text" in case:
        assert TEXTS[case["area"]](case["text"]) == case["must"]["value"]
    else:
        outcome(case, tmp_path)


def two_files(case, folder, monkeypatch):
    specs = []
    for spec in case["recipe"]["data"]["sources"]:
        path = folder / spec["path"]
        path.write_text("".join(json.dumps({"instruction": f"{path.stem}{n}", "output": "A"}) + "\n" for n in (1, 2)))
        specs.append(spec | {"path": str(path)})
    found = entries.labelled({"sources": specs, "test_sources": [], "truth_sources": []})
    records = [record for _, spec in found.values() for record in converted(spec)[0]]
    assert Counter(record["source"] for record in records) == case["must"]["read"] and len(found) == 2
    assert len({record["id"] for record in records}) == 4


def encoded_and_packed(case, folder, monkeypatch):
    for number, data in enumerate((CSV.encode(), CSV.encode("utf-16"), gzip.compress(CSV.encode()))):
        path = folder / f"{number}.jsonl"
        path.write_bytes(data)
        assert dict(converted(case["spec"] | {"path": str(path)})[1]) == case["must"]["reasons"]


def ids_with_a_mark(case, folder, monkeypatch):
    path = folder / "ids.txt"
    ids = case["bytes"].splitlines()[:1] + [str(10000001 + n) for n in range(1, 500)]
    path.write_text("\n".join(ids), encoding="utf-8")
    monkeypatch.setattr(readers, "PUBMEDQA_FILE", str(path))
    assert case["must"]["first_id"] in readers.pubmedqa_ids(lambda name: path)


def a_copy(case, folder, monkeypatch):
    path = folder / "medical_o1_sft.json"
    path.write_text(json.dumps([{"Question": "Why?", "Complex_CoT": "Because.", "Response": "So."}], indent=2))
    spec = case["spec"] | {"path": str(path)}
    entries.check_spec(spec)
    assert [record["reasoning"] for record in converted(spec)[0]] == ["Because."]


def no_json_array(case, folder, monkeypatch):
    path = folder / "mine.json"
    path.write_text('[\n  {"instruction": "Q1", "output": "A1"},\n]\n')
    with pytest.raises(ValueError, match=r"(?s)mine\.json.*JSON.*line"):
        converted(case["spec"] | {"path": str(path)})


def a_script(case, folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("Dataset scripts are no longer supported, but found med_qa.py")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(ValueError, match=case["must"]["error"]):
        list(readers.rows(case["spec"], "hub"))
