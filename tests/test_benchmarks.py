"""The benchmarks run at a small size, and their own sums hold."""

import json
import math
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gguf import GGUFWriter

from benchmarks import autoround, common, evaluation, gpu_qat, gpu_train, guided, kept, targets, train
from lib.model import loading, saving, shapes
from lib.pipeline import recipe
from lib.pipeline.files import ROOT, write_jsonl
from lib.qat import grids


def test_the_data_benchmark_accounts_for_every_row(tmp_path):
    sizes = "--rows 1500 --compare-rows 200 --malformed 1000".split()
    command = [sys.executable, "-m", "benchmarks.data", *sizes]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"OUTPUTS": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "bench" / "data.json").read_text())
    full = found["full"]["found"]
    assert full["read"] == 1500 and 1400 < full["kept"] < 1500 and full["duplicate"] > 20 and full["leaked"] > 0
    assert found["near"]["share_of_its_flags"] >= 0.95 and found["near"]["ratio"] > 1
    malformed = found["malformed"]
    assert malformed["crashes"] == 0 and malformed["accounted"] == 2000 and malformed["kinds"] >= 20
    assert [path.name for path in (tmp_path / "bench").iterdir()] == ["data.json"]


SMALL = (
    "model.twin.steps=4 model.twin.hidden_size=64 model.twin.intermediate_size=64 model.twin.num_hidden_layers=2 "
    "model.twin.num_attention_heads=2 model.twin.head_dim=32 model.twin.block_size=64 lora.r=2 chat.max_new_tokens=6 "
    "sft.logging_steps=1"
)


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """Outputs and caches of this test alone."""
    monkeypatch.setenv("OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "outputs"


def test_training_arms_train_the_same_conversations_and_a_bare_loop_ends_at_our_weights(scratch, monkeypatch, capsys):
    arms = [part for name in ("bare loop", "trl sft", "naive tutorial, gc") for part in ("--arm", name)]
    monkeypatch.setattr(sys, "argv", ["train", "--set", SMALL, "--conversations", "12", "--rounds", "1", *arms])
    train.main()
    found = json.loads((scratch / "bench" / "train.json").read_text())
    steps = {row["arm"]: row["steps"] for row in found["arms"]}
    assert list(steps) == ["ours", *arms[1::2]] and found["conversations"] == 12
    assert 12 / 3 <= steps["ours"] < 12  # two or three conversations a row
    assert steps["bare loop"] == steps["trl sft"] == steps["ours"]
    assert abs(steps["naive tutorial, gc"] - steps["ours"]) <= 1
    assert found["difference_from_bare"] == 0.0 < 1e-3 < found["moved_by_training"]
    assert 0.2 < found["trained"] / found["tokens"] < 0.6
    printed = capsys.readouterr().out
    assert all(re.search(rf"\| {name} +\| {count} ", printed) for name, count in steps.items())


def test_the_evaluation_benchmark_compares_answers_and_says_what_is_missing(scratch, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluation", "--set", SMALL, "--questions", "5", "--rounds", "2"])
    assert evaluation.main() == 1
    assert "01_dataset/test.jsonl is missing" in capsys.readouterr().err
    cfg = recipe.load("tiny", recipe.parse_set(SMALL))
    run = scratch / cfg.run_name
    write_jsonl(run / "01_dataset" / "test.jsonl", train.conversations(cfg, 8))
    saving.save(loading.base(cfg), loading.tokenizer(cfg), run / "03_sft" / "merged")
    assert evaluation.main() == 0
    found = json.loads((scratch / "bench" / "evaluation.json").read_text())
    assert found["questions"] == 5 and len(found["rounds"]) == 2 and found["equal"] == 5 - len(found["apart"])
    assert all(row["gap"] < 1e-3 for row in found["apart"])
    assert re.search(r"\| 5 +\|", capsys.readouterr().out)


def test_where_two_answers_part_the_gap_of_their_tokens_is_told(scratch):
    cfg = recipe.load("tiny", recipe.parse_set(SMALL))
    model, tokenizer = loading.base(cfg), loading.tokenizer(cfg)
    prompt = {"id": "q", "messages": [{"role": "user", "content": "Which test?"}]}
    found = evaluation.gap(model, tokenizer, prompt, cfg.chat, "fever and cough", "fever")
    assert found["id"] == "q" and found["gap"] > 0
    assert found["token"] == len(tokenizer("fever")["input_ids"])


def test_a_spread_and_a_table_of_measurements():
    assert common.spread([3.0, 1.234, 2.0], 1) == {"median": 2.0, "low": 1.2, "high": 3.0}
    assert common.spread_text({"median": 2000, "low": 1, "high": 3}) == "2,000 (1-3)"
    lines = common.table([{"a": "x|y", "b": 1}, {"a": None, "c": 0.5}]).splitlines()
    assert [[cell.strip() for cell in line.split(" | ")] for line in lines[2:]] == [
        ["| x\\|y", "1.0", "|"], ["|", "", "0.5 |"],
    ]  # fmt: skip


def test_the_comparison_of_adapters_sees_a_small_change_and_a_nan():
    one = {"a": torch.zeros(2), "b": torch.ones(2)}
    assert train.farthest(one, one) == 0.0
    assert abs(train.farthest(one, one | {"b": torch.tensor([1.0, 1.001])}) - 0.001) < 1e-6
    assert math.isnan(train.farthest(one, one | {"b": torch.tensor([math.nan, 1.0])}))


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
    monkeypatch.setattr(grids, "by_torch", lambda blocks, type, *more: real(blocks, type, *more) + (type == "q4_k"))
    jobs = dict(gpu_qat.exactness(SimpleNamespace(device="cpu"), []))
    found = {type: next(jobs[type]()) for type in ("q4_k", "q8_0")}
    assert found["q4_k"]["differing"] and found["q4_k"]["reached"] is False and found["q8_0"]["reached"]


def test_targets_say_on_which_side_a_trained_file_is_and_a_page_takes_them_whole():
    """Differences and their intervals by hand; a page without marks is refused, before anything is written."""
    share = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10}

    def row(name, mib, value, stderr=0.001):
        return {"name": name, "mib": mib, "value": value, "stderr": stderr, "same_top": 0.9, "accuracy": share}

    values = {"q2_k": (1, 0.03, 0.02), "q3_k_m": (2, 0.01, 0.004), "q4_0": (3, 0.005, 0.001)}
    rows = [row(f"{way} {kind}", mib, value) for kind, (mib, *both) in values.items()
            for way, value in zip(("control", "qat"), both, strict=True)]  # fmt: skip
    far, level = targets.sentences(rows)
    assert "trained on q2_k (1.00 MiB) is further away than the control rounded to q3_k_m (2.00 MiB)" in far
    assert "0.01 nats a token (0.007228-0.01277)" in far  # 1.96 * sqrt(2) * 0.001
    assert "trained on q3_k_m (2.00 MiB) is not told apart from the control rounded to q4_0" in level
    (nearer,) = targets.sentences(rows[:1] + [row("qat q2_k", 1, 0.001), *rows[2:4]])
    free = [row("control-imatrix q2_k", 1, 0.03), row("auto-round q2_k", 1, 0.01)]
    said = targets.sentences(rows + free)
    assert said[:3] == [far, said[1], level] and len(said) == 5
    assert "AutoRound's file of q2_k (1.00 MiB) is not told apart from the control rounded to q3_k_m" in said[1]
    assert "The file trained on q2_k (1.00 MiB) is nearer than the one rounded with the matrix to q2_k" in said[3]
    assert "trained on q2_k (1.00 MiB) is further away than AutoRound's file of q2_k (1.00 MiB): 0.01 " in said[4]
    assert "is nearer than the control rounded to q3_k_m" in nearer
    text = f"before\n{targets.BEGIN}\nformer\n{targets.END}\nafter\n"
    made = targets.page(text, rows, "Measured here.")
    assert made.startswith(f"before\n{targets.BEGIN}\nMeasured here.") and made.endswith(f"{targets.END}\nafter\n")
    assert "former" not in made and "0.02000 ± 0.00100" in made and made.count("\n- ") == 2
    assert targets.page(made, rows, "Measured here.") == made
    with pytest.raises(ValueError, match="quantization.md should hold the lines <!-- targets: begin -->"):
        targets.page("none", rows, "")
    assert targets.page(targets.PAGE.read_text(encoding="utf-8"), rows, "x").count("# What do four bits cost") == 1


def test_autoround_is_calibrated_on_whole_rows_and_says_what_is_missing(tmp_path):
    """Texts one after the other, cut into rows of equal length; a folder without the package, and one that breaks."""
    word = autoround.TOKENS - 28  # a text's tokens: the first row ends 28 tokens into the second text

    def tokenizer(text, **_):
        return {"input_ids": torch.full((1, word), int(text))}

    rows = autoround.chunks([str(number) for number in range(20)], tokenizer)
    assert len(rows) == 20 * word // autoround.TOKENS and {len(row) for row in rows} == {autoround.TOKENS}
    assert rows[0].tolist() == [0] * word + [1] * 28
    with pytest.raises(ValueError, match="300 tokens of calibration texts make 2 rows of 128; give 8 rows"):
        autoround.chunks(["1", "2", "3"], tokenizer)
    with pytest.raises(FileNotFoundError, match="has no auto_round in it: pip install --no-deps --target"):
        autoround.file(tmp_path, tmp_path, [], "q4_0", tmp_path / "out.gguf")
    package = tmp_path / "auto_round" / "__init__.py"
    package.parent.mkdir()
    package.write_text("raise ImportError('made for another torch')")
    with pytest.raises(RuntimeError, match="AutoRound wrote 0 files of q4_0:(?s:.)*made for another torch"):
        autoround.file(tmp_path, tmp_path, [], "q4_0", tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_guidellm_is_read_by_what_succeeded_and_its_failure_is_told(tmp_path):
    """Failed requests are counted and are in no time; a program that ends badly is quoted."""
    first = {"successful": {"median": 5.0, "percentiles": {"p95": 9.0}}, "errored": {"median": 100.0}}
    count = {"successful": 30, "errored": 1, "incomplete": 1, "total": 32}
    metrics = {"request_totals": count, "time_to_first_token_ms": first,
               "output_tokens_per_second": {"successful": {"mean": 165.0}}}  # fmt: skip
    found = guided.read({"benchmarks": [{"metrics": metrics}]})
    assert found == {"median": 5.0, "p95": 9.0, "tokens_s": 165.0, "failed": 2}
    program = tmp_path / "guidellm"
    program.write_text("#!/bin/sh\necho no such backend >&2\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(RuntimeError, match="ended with status 3:(?s:.)*no such backend"):
        guided.load(program, ("http://127.0.0.1:1", "none", ""), 1, ["?"], 4)


def test_what_is_left_of_a_change_is_its_projection(tmp_path):
    """A file with half of the change in one matrix, none in the other; what was not tuned does not count."""
    start, moved = np.ones((2, 32), "float32"), np.full((2, 32), 2.0, "float32")

    def file(name, **tensors):
        writer = GGUFWriter(tmp_path / name, "llama")
        for tensor, value in tensors.items():
            writer.add_tensor(tensor, value)
        for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
            write()
        writer.close()
        return tmp_path / name

    base = file("base.gguf", a=start, b=start, norm=start[0], embedding=start)
    tuned = file("tuned.gguf", a=moved, b=moved, norm=moved[0], embedding=start)
    half = file("half.gguf", a=start + 0.5, b=start, norm=moved[0], embedding=moved)
    found = kept.kept(base, tuned, half)
    assert found["left"] == 0.25 and found["near"] == 0.5 and found["weights"] == 128
    assert found["cosine"] == pytest.approx(0.5**0.5)
    assert kept.kept(base, tuned, tuned)["left"] == 1 and kept.kept(base, tuned, base)["near"] == 1
    with pytest.raises(ValueError, match="c of .*other.gguf is not in .*: give three files of one model"):
        kept.kept(base, tuned, file("other.gguf", c=start))
    with pytest.raises(ValueError, match="no matrix of .*base.gguf differs from .*base.gguf: nothing was tuned"):
        kept.kept(base, base, half)
