"""The benchmarks run at a small size, and their own sums hold."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch

from benchmarks import evaluation, train
from lib.model import loading, saving
from lib.pipeline import recipe
from lib.pipeline.files import ROOT, write_jsonl


def test_the_data_benchmark_accounts_for_every_row(tmp_path):
    command = [
        sys.executable,
        "-m",
        "benchmarks.data",
        "--rows",
        "1500",
        "--compare-rows",
        "200",
        "--malformed",
        "1000",
    ]
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
    "model.twin.num_attention_heads=2 model.twin.head_dim=32 model.twin.block_size=64 lora.r=2 chat.max_new_tokens=6"
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
    assert all(f"| {name} | {count} |" in printed for name, count in steps.items())


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
    assert "| 5 |" in capsys.readouterr().out


def test_where_two_answers_part_the_gap_of_their_tokens_is_told(scratch):
    cfg = recipe.load("tiny", recipe.parse_set(SMALL))
    model, tokenizer = loading.base(cfg), loading.tokenizer(cfg)
    prompt = {"id": "q", "messages": [{"role": "user", "content": "Which test?"}]}
    found = evaluation.gap(model, tokenizer, prompt, cfg.chat, "fever and cough", "fever")
    assert found["id"] == "q" and found["gap"] > 0
    assert found["token"] == len(tokenizer("fever")["input_ids"])


def test_the_comparison_of_adapters_sees_a_small_change_and_a_nan():
    one = {"a": torch.zeros(2), "b": torch.ones(2)}
    assert train.farthest(one, one) == 0.0
    assert abs(train.farthest(one, one | {"b": torch.tensor([1.0, 1.001])}) - 0.001) < 1e-6
    assert math.isnan(train.farthest(one, one | {"b": torch.tensor([math.nan, 1.0])}))
