"""Rows that the plan counts on this machine: of files by hand, and what it says where it can count none."""

import csv
import gzip
import json
import re

import pandas as pd
import pytest

from lib.pipeline import recipe
from lib.plan import budget, counting, fit, preference

ASSUMED = budget.load()


def rows(number):
    return [{"question": f"Which, of {i}?", "answer": "one line,\nand another" * (1 + i % 7)} for i in range(number)]


def table(path, number):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["question", "answer"])
        writer.writeheader()
        writer.writerows(rows(number))
    return path


def planned(*entries, **over):
    """The counted sections of my_model with these entries, each a path or a dict."""
    entries = [entry if isinstance(entry, dict) else {"name": "own", "path": str(entry)} for entry in entries]
    return counting.counted(recipe.load("my_model", {"data.sources": entries, **over}).sections())


def said(sections):
    return list(counting.lines(sections, ASSUMED))[1:], list(counting.warnings(sections, ASSUMED))


def test_the_rows_of_a_file_make_the_steps(tmp_path):
    """200 of them are the test's, a twentieth of the rest is held out."""
    half, whole = (planned(table(tmp_path / f"{number}.csv", number)) for number in (500, 1000))
    assert [budget.rows(each, ASSUMED) for each in (half, whole)] == [285, 760]
    steps = [budget.tokens(each, ASSUMED)[1] for each in (half, whole)]
    assert steps == [round(285 * 2 / 16), round(760 * 2 / 16)]
    assert said(half) == ([f"  500: 500, counted ({tmp_path}/500.csv)"], [])


def test_every_kind_of_file_is_counted(tmp_path):
    lines = "\n".join(map(json.dumps, rows(30))) + "\n\n{broken\n"  # a broken line is a row, and rejected later
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.json").write_text(json.dumps(rows(31)))
    pd.DataFrame(rows(32)).to_parquet(tmp_path / "c.parquet")
    (tmp_path / "d.csv.gz").write_bytes(gzip.compress(table(tmp_path / "d.csv", 33).read_bytes()))
    for name, count in {"a.jsonl": 31, "b.json": 31, "c.parquet": 32, "d.csv.gz": 33, "*.csv": 33, ".": 160}.items():
        assert budget.counted(planned(tmp_path / name)["data"]["sources"][0], {"rows": {}}) == count, name
    for name in ("a.jsonl", "b.json", "c.parquet", "d.csv"):
        some = planned({"name": "own", "path": str(tmp_path / name), "split": "train[10:25]"})
        assert some["data"]["sources"][0]["rows"] == 15, name


@pytest.mark.parametrize("packed", [False, True])
def test_a_table_that_takes_long_is_estimated(tmp_path, monkeypatch, packed):
    path = table(tmp_path / "long.csv", 20_000)
    if packed:
        path = tmp_path / "long.csv.gz"
        path.write_bytes(gzip.compress((tmp_path / "long.csv").read_bytes()))
    monkeypatch.setattr(counting, "SECONDS", -1)
    found = planned(path)["data"]["sources"][0]
    assert found["told"] == "estimated from its first rows" and found["rows"] == pytest.approx(20_000, rel=0.1)


def test_a_missing_file_is_said_and_its_rows_are_assumed(tmp_path):
    path = tmp_path / "mine.csv"
    sections = planned(path, **{"data.test_sources": [{"name": "own", "path": "data/no_test.csv"}]})
    assert budget.rows(sections, ASSUMED) == 950
    assert said(sections) == ([f"  mine: 1,000, assumed ({path})"], [
        f"{path} is missing: put the file there, or mend its path in the recipe. 1,000 rows are assumed",
        "data/no_test.csv is missing: put the file there, or mend its path in data.test_sources",
    ])  # fmt: skip


BROKEN = {
    "empty.csv": (b"", "empty.csv is empty"),
    "header.csv": (b"question,answer\n", "holds no rows"),
    "quote.csv": (b'question,answer\n"a,b\n', "row that begins on line 2"),
    "cut.parquet": (b"PAR1" + bytes(99), "is a damaged Parquet file"),
    "cut.json": (b'[{"question": "a"}, {"que', "is no valid JSON"),
    "cut.jsonl.gz": (gzip.compress(b'{"question": "a", "answer": "b"}\n' * 99)[:-20], "packed by gzip and damaged"),
    "book.csv": (b"PK\x03\x04" + bytes(99), "is a zip archive or an Excel workbook"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_said_and_its_rows_are_assumed(tmp_path, name):
    content, why = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    sections = planned(tmp_path / name)
    (line,), (warning,) = said(sections)
    assert line.endswith(f": 1,000, assumed ({tmp_path}/{name})") and budget.rows(sections, ASSUMED) == 760
    assert warning.startswith(f"{tmp_path}/{name} ") and why in warning and "1,000 rows are assumed" in warning


def test_a_large_json_document_is_not_held_in_memory(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text(json.dumps(rows(99)))
    monkeypatch.setattr(counting, "WHOLE", 1000)
    assert "one JSON document" in said(planned(tmp_path / "a.json"))[1][0]


def test_copies_of_hub_sets_and_pairs_are_counted_and_the_hubs_are_assumed(tmp_path):
    path = str(table(tmp_path / "copy.csv", 40))
    chosen = {"data": [{"name": "ultramedical"}, {"name": "own", "path": path}, {"name": "clinic"}], "arms": {},
              "reward": {}}  # fmt: skip
    sections = planned({"name": "medreason", "path": path}, {"name": "medical_r1"}, preference=chosen)
    assert said(sections) == ([
        f"  medreason: 40, counted ({path})",
        "  medical_r1: 22,000, assumed, as published (FreedomIntelligence/Medical-R1-Distill-Data)",
        "  chapter 7, ultramedical: 109,400, assumed, as published",
        f"  chapter 7, own: 40, counted ({path})",
    ], [])  # fmt: skip
    assert preference.pairs(sections, ASSUMED)[0]["own"] == 32


def test_the_clinics_rows_are_counted_and_used_by_each_stage():
    sections = counting.counted(recipe.load("llama2_7b_staged@rehearsal").sections())
    seen = {spec["name"]: spec["rows"] for spec in sections["data"]["sources"]}
    assert budget.rows(sections, ASSUMED) == int(0.98 * sum(seen.values())) > 0
    assert all("counted (data/clinic.yaml" in line for line in said(sections)[0])


def test_the_plan_prints_what_it_counted_what_it_assumes_and_what_is_missing(capsys, tmp_path):
    entries = f"[{{name: own, path: {table(tmp_path / 'mine.csv', 500)}}}, {{name: own, path: data/none.csv}}]"
    assert fit.main(["--recipe", "tiny", "--gpu", "L4", "--set", f"'data.sources={entries}'"]) == 0
    out = capsys.readouterr().out
    assert "taken for the test; 320 tokens each, assumed" in out and "Time on one l4" in out
    assert re.search(r"^  mine: 500, counted \(.*mine\.csv\)\n  none: 1,000, assumed \(data/none\.csv\)$", out, re.M)
    assert re.search(r"^WARNING: data/none.csv is missing: .*\. 1,000 rows are assumed$", out, re.M)
    assert len(re.findall("393 answers: 240 test questions, 128 safety prompts, 25 cases", out)) == 2
