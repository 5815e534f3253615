"""The GPU checks on a CPU, at tiny shapes: every row is written, and what fails is told and hides nothing else."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu, gpu_qat, gpu_train
from lib.model import shapes
from lib.pipeline.files import ROOT
from lib.qat import grids

STAGES = [path.stem for path in sorted((ROOT / "notebooks").glob("0*.ipynb"))]


def script(tmp_path, *arguments):
    """(the finished process, {(part, what): row} of its JSON) of a try-out on a CPU, with a cache of its own."""
    environment = os.environ | {"OUTPUTS": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--shape", "tiny", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    rows = json.loads((tmp_path / "bench" / "gpu.json").read_text())["rows"]
    return done, {(row["part"], row["what"]): row for row in rows}


@pytest.mark.slow
def test_the_whole_script_on_a_cpu_fills_the_table_and_tells_what_failed(tmp_path):
    (tmp_path / "bench").mkdir()
    other = {"where": "another machine", "when": "", "rows": [{"part": "qat", "what": "of another machine"}]}
    (tmp_path / "bench" / "gpu.json").write_text(json.dumps(other))
    before = gpu.PAGE.read_text()
    small = ["--rows", "1", "--length", "16", "--steps", "1", "--checkpointing"]
    done, rows = script(tmp_path, *small, "--set", "'data.sources=[{name: nowhere}]'")
    assert done.returncode == 1, done.stderr
    expected = [("exactness", type) for type in grids.GRIDS] + [("qat", f"tiny, {arm}") for arm in gpu_qat.ARMS]
    expected += [("train", what) for what in (gpu_train.PRODUCTS, *gpu_train.CASES, "memory planned against measured")]
    expected += [("recipe", stage) for stage in STAGES]
    assert list(rows) == expected and len(STAGES) == 6
    assert [what for what, row in rows.items() if "error" in row] == [("recipe", stage) for stage in STAGES]
    assert "nowhere" in rows["recipe", "01_dataset"]["error"]
    assert rows["recipe", "06_judge"]["error"].endswith("not run: 01_dataset failed")
    assert all(rows["exactness", type]["reached"] for type in grids.GRIDS)
    assert rows["qat", "tiny, q4_0"]["ratio"] > 0
    for name in gpu_train.CASES:
        row = rows["train", name]
        assert row["tokens"] == 64 and row["tokens_per_s"] > 0 and row["mfu"] > 0 and row["plan_gib"] > 0.25
        assert row["peak_gib"] is row["plan_error"] is None and row["aim"] == ""
    text = (tmp_path / "bench" / "benchmarks.md").read_text()
    assert all(f"| {part} | {what} |" in text for part, what in rows) and "of another machine" not in text
    assert text.count("| failed |") == 6 and "a try-out of the program" in text
    assert text.partition(gpu.BEGIN)[0] == before.partition(gpu.BEGIN)[0] and gpu.PAGE.read_text() == before


@pytest.mark.slow
def test_the_recipe_runs_stage_after_stage_and_stops_where_one_fails(tmp_path):
    wrong = "model.twin.steps=2 model.attn_implementation=flash_attention_2"  # chapter 1 needs no model; a CPU has none
    done, rows = script(tmp_path, "--part", "recipe", "--set", wrong)
    assert done.returncode == 1 and list(rows) == [("recipe", stage) for stage in STAGES]
    first, second, third = (rows["recipe", stage] for stage in STAGES[:3])
    assert "error" not in first and first["seconds"] > 0 and first["measured"].startswith(f"{first['seconds']:.0f} s")
    assert "flash" in second["error"].lower() and "seconds" not in second
    assert third["error"].endswith("not run: 02_baseline failed")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory"),
        (RuntimeError("CUDA error: out of memory"), "out of memory"),
        (
            ModuleNotFoundError("No module named 'trl'", name="trl"),
            "the package trl is missing here (requirements.txt)",
        ),
        (ValueError("one\ntwo"), "ValueError: one"),
        (ValueError(), "ValueError: "),
    ],
)
def test_an_error_is_told_in_a_line_and_what_was_measured_before_stays(error, text):
    def job():
        yield {"measured": "5 tokens/s"}
        raise error

    row, kept = {"part": "train", "what": "x"}, []
    gpu.attempt(row, job, lambda: kept.append(dict(row)))
    assert row["error"] == text and gpu.cells(row)[2] == f"5 tokens/s; {text}"
    assert [entry.get("error") for entry in kept] == [None, text]


def test_a_missing_package_is_named_also_where_a_library_wraps_the_error(monkeypatch):
    try:
        try:
            raise ModuleNotFoundError("No module named 'dill'", name="dill")
        except ModuleNotFoundError as error:
            raise RuntimeError("Failed to import trl.trainer") from error
    except RuntimeError as error:
        assert gpu.said(error) == "the package dill is missing here (requirements.txt)"
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.delitem(sys.modules, "benchmarks.gpu_train")
    rows = [{"part": "train", "what": "earlier"}, {"part": "qat", "what": "stays"}]
    gpu.run("train", None, rows, lambda: None)
    assert [row["what"] for row in rows] == ["stays", "all of it"] and "trl" in rows[1]["error"]


def test_the_table_goes_between_its_markers():
    one = {"mfu": 48.25, "peak_gib": 20.0, "reserved_gib": 21.5, "plan_gib": 19.0, "plan_error": -5.0, "reached": False}
    two = {"part": "exactness", "what": "a|b", "error": "out of memory"}
    rows = [{"part": "train", "what": "b"} | one, two]
    found = {"where": "a GPU", "when": "2026-01-01", "rows": rows}
    text = gpu.page(f"one\n{gpu.BEGIN}\nold\n{gpu.END}\ntwo\n", found)
    assert text.startswith(f"one\n{gpu.BEGIN}\n| part |") and text.endswith(f"a GPU, 2026-01-01.\n{gpu.END}\ntwo\n")
    assert "| train | b |  | 48.2 | 20.00 (reserved 21.50) | 19.00 | -5.0 |  | no |" in text and "old" not in text
    assert text.index("| exactness | a\\|b | out of memory |") < text.index("| train |")  # in the order of the parts
    with pytest.raises(ValueError, match="table: begin"):
        gpu.page("no markers", found)


def test_flops_of_a_token_by_hand():
    shape = shapes.config("gpt-oss-20b")
    lora = {"r": 2, "target_modules": ["q_proj"], "target_parameters": ["mlp.experts.down_proj"]}
    model = shapes.adapted(shapes.model(shape), lora)
    passed = 3.6e9  # active parameters, as its card says; embedding included there, but not multiplied
    trained = 24 * (2 * (2880 + 4096) + 4 * 2 * (2880 + 2880))  # of 32 experts a token passes four
    attention = 3 * 4 * 24 * 64 * 64 * (128 + 1024) / 2  # every other layer sees 128 tokens, the rest half of 2,048
    found = gpu_train.flops_per_token(model, shape, 2048)
    assert found == pytest.approx(6 * trained + 4 * passed + attention, rel=0.2)
    exact = 4 * shapes.active(shape, shapes.parts(shapes.model(shape)))
    assert found - exact == pytest.approx(6 * trained + attention)


def test_the_plan_is_judged_by_its_mean_error_and_its_largest_under_prediction():
    def verdict(*errors):
        pairs = zip(gpu_train.CASES, errors, strict=False)
        return next(gpu_train.planned([{"what": what, "plan_error": error} for what, error in pairs]))

    assert verdict(4, 4, -4, 4)["reached"] and verdict(0, 0, 0, 0)["reached"]
    assert not verdict(1, 1, -6, 1)["reached"] and not verdict(9, 9, 1, 9)["reached"] and not verdict(1, 1)["reached"]
    assert "mean error 2.2 %, largest under-prediction 6.0 %" in verdict(1, 1, -6, 1)["measured"]
    assert "reached" not in verdict()


def test_a_value_that_differs_is_counted_and_not_reached(monkeypatch):
    real = grids.by_torch
    monkeypatch.setattr(grids, "by_torch", lambda blocks, type: real(blocks, type) + (type == "q4_k"))
    jobs = dict(gpu_qat.exactness(SimpleNamespace(device="cpu"), []))
    found = {type: next(jobs[type]()) for type in ("q4_k", "q8_0")}
    assert found["q4_k"]["differing"] and found["q4_k"]["reached"] is False and found["q8_0"]["reached"]


def test_the_first_step_warms_up_and_is_left_out():
    assert gpu_qat.typical([9, 1, 3, 2]) == 2
