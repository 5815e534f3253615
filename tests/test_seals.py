"""A run's records: what is edited, damaged, removed, put back or added is named; verify writes nothing."""

import json
import random
import shutil

import pytest

from lib.pipeline import records
from lib.pipeline.files import sha256_file

STAGES = ["01_dataset", "02_baseline", "03_sft"]


@pytest.fixture
def finished(tmp_path):
    """A finished run of three stages and its report, written as lib.pipeline.run and lib.report.pages write them."""
    folder, seals = tmp_path / "tiny", {}
    for number, stage in enumerate(STAGES):
        at = folder / stage
        (at / "adapter").mkdir(parents=True)
        files = {f"{stage}.ipynb": "{}", "rows.jsonl": f"{number}\n", "adapter/weights.bin": "w" * number}
        for name, text in files.items():
            (at / name).write_text(text)
        outputs = {name: sha256_file(at / name) for name in files if "ipynb" not in name}
        above = STAGES[number - 1]
        inputs = {f"{above}/rows.jsonl": sha256_file(folder / above / "rows.jsonl")} if number else {}
        (at / f"{stage}.rank1.ipynb").write_text("{}")
        record = {"stage": stage, "run": "tiny", "inputs": inputs, "outputs": outputs, "metrics": {1: 0.5, "b": "é"}}
        record |= {"ranks": 2}
        records.write(at / "stage.json", record | {"executed": sha256_file(at / f"{stage}.ipynb")})
        seals[stage] = records.read(at / "stage.json")["seal"]
    (folder / "report").mkdir()
    (folder / "report" / "index.html").write_text("<p>84.2 %</p>")
    pages = {"index.html": sha256_file(folder / "report" / "index.html")}
    about = {"stage": "report", "run": "tiny", "stages": seals, "outputs": pages}
    records.write(folder / "report" / "record.json", about)
    return folder


def changed(path, **values):
    """Edit a record as a hand does, its seal left as it was."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def resealed(path, **values):
    """Edit a record as one who knows how it is sealed."""
    records.write(path, json.loads(path.read_text()) | values)


DEEDS = {
    "metric": lambda run: changed(run / "02_baseline/stage.json", metrics={"b": 0.99}),
    "metric, sealed again": lambda run: resealed(run / "02_baseline/stage.json", metrics={"b": 0.99}),
    "no seal": lambda run: changed(run / "02_baseline/stage.json", seal=None),
    "no stage.json": lambda run: (run / "02_baseline/stage.json").unlink(),
    "no stage": lambda run: shutil.rmtree(run / "02_baseline"),
    "another stage's": lambda run: shutil.copy(run / "01_dataset/stage.json", run / "02_baseline/stage.json"),
    "another run's": lambda run: resealed(run / "02_baseline/stage.json", run="other"),
    "no JSON": lambda run: (run / "02_baseline/stage.json").write_text("{"),
    "digits": lambda run: (run / "02_baseline/stage.json").write_text('{"a": ' + "9" * 5000 + "}"),
    "no text": lambda run: (run / "02_baseline/stage.json").write_text('{"a": "\\ud800", "seal": "x"}'),
    "nested": lambda run: (run / "02_baseline/stage.json").write_text("[" * 100_000),
    "a list": lambda run: (run / "02_baseline/stage.json").write_text("[]"),
    "added file": lambda run: (run / "02_baseline/model.gguf").write_text("GGUF"),
    "added below": lambda run: (run / "02_baseline/adapter/more.bin").write_text("more"),
    "added beside": lambda run: (run / "02_baseline.gguf").write_text("GGUF"),
    "another folder": lambda run: shutil.copytree(run / "01_dataset", run / "08_02_baseline"),
    "dot file": lambda run: (run / "02_baseline/.hidden").write_text("x"),
    "dot folder": lambda run: shutil.copytree(run / "01_dataset", run / "02_baseline/.hidden"),
    "link to a folder": lambda run: (run / "02_baseline/adapter/more").symlink_to(run / "01_dataset"),
    "another rank's": lambda run: (run / "02_baseline/02_baseline.rank2.ipynb").write_text("{}"),
    "like a rank's": lambda run: (run / "02_baseline/adapter/a.rank1.ipynb").write_text("{}"),
    "a file named as a folder that is kept": lambda run: (run / "02_baseline/logs").write_text("x"),
    "a link named so": lambda run: (run / "02_baseline/logs").symlink_to("/etc"),
    "removed file": lambda run: (run / "02_baseline/rows.jsonl").unlink(),
    "changed file": lambda run: (run / "02_baseline/rows.jsonl").write_text("9\n"),
    "notebook": lambda run: (run / "02_baseline/02_baseline.ipynb").write_text("{ }"),
    "page": lambda run: (run / "report/index.html").write_text("<p>99.9 %</p>"),
    "added page": lambda run: (run / "report/more.html").write_text("<p>"),
    "no page": lambda run: (run / "report/index.html").unlink(),
    "no report": lambda run: shutil.rmtree(run / "report"),
    "report's record": lambda run: changed(run / "report/record.json", outputs={}),
}


@pytest.mark.parametrize("deed", DEEDS)
def test_each_change_is_named(finished, deed):
    assert records.verify(finished, STAGES) == (9, [])
    DEEDS[deed](finished)
    wrong = records.verify(finished, STAGES)[1]
    assert wrong and all("report" in line if "page" in deed or "report" in deed else True for line in wrong)
    assert any(("report" if "page" in deed or "report" in deed else "02_baseline") in line for line in wrong), wrong


def test_of_200_flipped_bits_of_a_record_none_is_silent(finished):
    draw, path = random.Random(7), finished / "02_baseline" / "stage.json"
    whole = path.read_bytes()
    for _ in range(200):
        at, bit = draw.randrange(len(whole)), draw.randrange(8)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        wrong = records.verify(finished, STAGES)[1]
        assert any("02_baseline" in line for line in wrong), (at, bit)


def test_of_200_flipped_bits_of_all_files_of_a_run_none_is_silent(finished):
    draw = random.Random(7)
    kept = [path for path in sorted(finished.rglob("*")) if path.is_file() and "rank1" not in path.name]
    whole = {path: path.read_bytes() for path in kept}
    places = [(path, at) for path in kept for at in range(len(whole[path]))]
    for path, at in draw.sample(places, 200):
        path.write_bytes(whole[path][:at] + bytes([whole[path][at] ^ 1 << draw.randrange(8)]) + whole[path][at + 1 :])
        wrong = records.verify(finished, STAGES)[1]
        path.write_bytes(whole[path])
        assert any(path.parent.relative_to(finished).parts[0] in line for line in wrong), (path, at)


def test_checkpoints_and_caches_are_no_surplus_and_a_read_only_run_can_be_verified(finished):
    for kept in records.KEPT:
        (finished / "03_sft" / kept).mkdir()
        (finished / "03_sft" / kept / "any").write_text("x")
    for name in (*records.LOCKS, "../.hashes.json", "../spotcheck"):
        (finished / "03_sft" / name).touch()
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert records.verify(finished, STAGES) == (9, [])
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before
