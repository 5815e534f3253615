"""Which checkpoint is resumed: the newest whose manifest, written last, matches key and bytes."""

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from tiny_qwen import tiny_trainer

from lib.pipeline import recipe, run
from lib.sft import checkpoint


def saved(folder, step, key="k"):
    path = folder / f"checkpoint-{step}"
    (path / "nested").mkdir(parents=True)
    (path / "weights.bin").write_bytes(bytes([step]))
    (path / "nested" / "state.json").write_text("{}")
    args, state = SimpleNamespace(output_dir=str(folder)), SimpleNamespace(global_step=step)
    checkpoint.Manifests(key).on_save(args, state, None)
    return path


def test_the_newest_verified_one_wins_and_the_rest_is_removed(tmp_path):
    old, good = saved(tmp_path, 5), saved(tmp_path, 10)
    torn = saved(tmp_path, 20)
    (torn / "weights.bin").write_bytes(b"torn")
    half = tmp_path / "checkpoint-30"
    half.mkdir()
    (half / "weights.bin").write_bytes(b"half written, killed before its manifest")
    assert checkpoint.newest(tmp_path, "k") == str(good)
    assert old.exists() and not torn.exists() and not half.exists()


def test_what_has_other_values_bytes_or_a_broken_manifest_is_not_trusted(tmp_path):
    other = saved(tmp_path, 10, key="another learning rate")
    extra, broken = saved(tmp_path, 1), saved(tmp_path, 2)
    (extra / "more.bin").write_bytes(b"")
    (broken / checkpoint.MANIFEST).write_text("{")
    assert checkpoint.newest(tmp_path, "k") is None and not other.exists()
    assert checkpoint.newest(tmp_path / "none", "k") is None


def trainer(folder):
    fields = {"per_device_train_batch_size": 1, "save_strategy": "steps", "save_steps": 2}
    return tiny_trainer(folder, range(9, 30), {}, [checkpoint.Manifests("k")], **fields)


def test_a_checkpoint_of_the_last_step_is_the_end_of_training(tmp_path):
    whole, found = trainer(tmp_path), []
    checkpoint.train(whole, None)
    for resume in ("checkpoint-2", "checkpoint-4"):  # of 21 steps in an epoch
        resumed = trainer(tmp_path)
        checkpoint.train(resumed, str(tmp_path / resume))
        assert resumed.state.global_step == 4
        pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        found.append([e["loss"] for e in resumed.state.log_history if "loss" in e])
    assert found == [[e["loss"] for e in whole.state.log_history if "loss" in e]] * 2


def test_the_best_adapter_is_loaded_after_a_kill_behind_the_last_checkpoint(tmp_path):
    held_out = Dataset.from_list([{"input_ids": [9, 10, 11], "labels": [9, 10, 11]}])
    fields = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2}
    fields |= {"save_strategy": "steps", "save_steps": 2, "eval_dataset": held_out}
    fields |= {"metric_for_best_model": "eval_num_tokens", "greater_is_better": False}  # so that the first one is
    made = [tiny_trainer(tmp_path, range(9, 30), {}, [checkpoint.Manifests("k")], **fields) for _ in range(2)]
    checkpoint.train(made[0], None)
    assert made[0].state.best_model_checkpoint.endswith("checkpoint-2")
    checkpoint.train(made[1], str(tmp_path / "checkpoint-4"))
    pairs = zip(made[0].model.parameters(), made[1].model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_loss_that_would_never_be_logged_is_refused_before_training(tmp_path):
    made = tiny_trainer(tmp_path, range(9, 30), {}, [checkpoint.Manifests("k")], logging_steps=5)
    with pytest.raises(ValueError, match="set logging_steps to 4 or less .found 5"):
        checkpoint.train(made, None)
    assert made.state.global_step == 0


def test_only_what_training_computes_with_decides_whether_a_checkpoint_is_resumed():
    def key(**overrides):
        cfg = recipe.load("tiny", {name.replace("__", "."): value for name, value in overrides.items()})
        cfg.used |= {"run", "data", "chat", "lora", "sft", "export"}
        return run.Stage.resume_key(SimpleNamespace(recipe=cfg, code={}, inputs={}, files={}))

    idle = {"data__screens": 9, "chat__max_new_tokens": 7, "sft__logging_steps": 3, "export__slots": 2}
    assert {key(**{name: value}) for name, value in idle.items()} == {key()}
    felt = {
        "run__seed": 9,
        "chat__format": "instruction",
        "sft__learning_rate": 0.5,
        "lora__r": 3,
        "data__eval_fraction": 0.2,
    }
    assert len({key(**{name: value}) for name, value in felt.items()} | {key()}) == 6
