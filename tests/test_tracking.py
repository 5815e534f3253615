"""What a tracker is told about a training, read back from TensorBoard's own event file."""

import itertools
import json
import os
from types import SimpleNamespace

import pytest
from tiny_qwen import tiny_trainer

from lib.sft import tracking


def trained(folder, report_to):
    """A trainer after four steps, tracked below folder/logs."""
    told = tracking.fields({"report_to": report_to}, folder / "logs")
    made = tiny_trainer(folder, (9, 40, 17, 33, 12, 21), logging_steps=2, **told)
    tracking.attach(made, folder / "logs" / "all").train()
    return made


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME",
                 "TRACKIO_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "MLFLOW_DISABLE_TELEMETRY"):  # fmt: skip
        monkeypatch.setenv(name, "")  # so that what a test sets is gone after it
        monkeypatch.delenv(name)


def test_tensorboard_has_the_curves_throughput_memory_and_hyperparameters(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(tracking, "time", SimpleNamespace(perf_counter=itertools.count().__next__))  # a second a step
    made = trained(tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "logs" / "all")).Reload()
    names = ("loss", "learning_rate", "grad_norm", "tokens_per_s", "memory_gib")
    found = {name: [(e.step, e.value) for e in events.Scalars(f"train/{name}")] for name in names}
    logged = [entry for entry in made.state.log_history if "loss" in entry]
    for name in names[:3]:
        assert found[name] == [(e["step"], pytest.approx(e[name])) for e in logged] and len(logged) == 2
    tokens = [0, *(e["num_tokens"] for e in logged)]
    assert [value for _, value in found["tokens_per_s"]] == [(b - a) / 2 for a, b in itertools.pairwise(tokens)]
    assert 0.05 < found["memory_gib"][0][1] < 100
    told = events.Tensors("args/text_summary")[0].tensor_proto.string_val[0].decode()
    assert json.loads(told)["learning_rate"] == 1e-2


def test_tracking_changes_no_training(tmp_path):
    logs = []
    for report_to in ("tensorboard", "none"):
        made = trained(tmp_path / report_to, report_to)
        logs.append([{k: v for k, v in e.items() if k in ("loss", "grad_norm")} for e in made.state.log_history])
        assert not any("tokens_per_s" in entry or "memory_gib" in entry for entry in made.state.log_history)
    assert logs[0] == logs[1] and not (tmp_path / "none" / "logs").exists()


def test_stores_are_local_and_offline_unless_the_environment_says_otherwise(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    tracking.fields({"report_to": "none"}, tmp_path)
    assert (
        os.environ["WANDB_MODE"] == "online" and os.environ["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path}/mlflow.db"
    )
    monkeypatch.delenv("WANDB_MODE")
    tracking.fields({"report_to": []}, tmp_path)
    assert os.environ["WANDB_MODE"] == "offline" and not any("KEY" in k and "WANDB" in k for k in os.environ)


def test_a_missing_or_unknown_tracker_is_named_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    for name in tracking.TRACKERS:
        with pytest.raises(ValueError, match=f"pip install {name}"):
            tracking.fields({"report_to": [name]}, tmp_path)
    with pytest.raises(ValueError, match="unknown tracker 'tensorbord'; valid are none, tensorboard, wandb"):
        tracking.fields({"report_to": "tensorbord"}, tmp_path)
