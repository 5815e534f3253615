"""Curves of a training for TensorBoard, Weights & Biases, MLflow or Trackio: local and offline unless told otherwise.

`sft.report_to` names one or several of them. What they write goes to logs/ below the stage and is no artifact: times
differ from run to run. Keys and servers are read from the environment, by the trackers themselves, and never written.
"""

import importlib.util
import os
import sys
import time

from transformers import TrainerCallback

from lib.pipeline import machine, ranks

PROJECT = "medtune"
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")


def fields(settings, folder):
    """The trl.SFTConfig fields for the trackers of `settings`; puts their stores into `folder` if not set.

    Raises ValueError for a tracker that is unknown or not installed.
    """
    names = settings.get("report_to") or "none"
    names = [name for name in ([names] if isinstance(names, str) else names) if name != "none"]
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"sft.report_to: unknown tracker {name!r}; valid are none, {', '.join(TRACKERS)}")
        if importlib.util.find_spec(name) is None:
            raise ValueError(
                f"sft.report_to is {name} and the package is not installed: .venv/bin/pip install {name}, or "
                'SET="sft.report_to=none"'
            )
    for variable, value in {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(folder),
        "WANDB_CACHE_DIR": str(folder / "wandb-cache"),
        "WANDB_DATA_DIR": str(folder / "wandb-cache"),
        "WANDB_PROJECT": PROJECT,
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "MLFLOW_EXPERIMENT_NAME": PROJECT,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "TRACKIO_DIR": str(folder / "trackio"),
    }.items():
        os.environ.setdefault(variable, value)
    if names and ranks.leads():
        folder.mkdir(parents=True, exist_ok=True)
    return {"report_to": names or "none", "project": PROJECT}


def attach(trainer, folder):
    """Let a trainer's trackers log throughput and memory too; returns the trainer.

    folder: logs/<name> of a stage, for TensorBoard's files; with the others the run is called run/stage/name.
    """
    trainer.args.run_name = "/".join(part for part in folder.parts[-4:] if part != "logs")
    for callback in trainer.callback_handler.callbacks:
        if type(callback).__name__ == "TensorBoardCallback":
            callback.logging_dir = str(folder)
    trainer.callback_handler.callbacks.insert(0, Meter())  # before the trackers, which read what it adds
    return trainer


class Meter(TrainerCallback):
    """Adds tokens_per_s (all ranks, time spent in steps) and memory_gib (peak, this rank) to what trackers log.

    The trainer's own log_history is left alone: it is compared between runs.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        self.seconds, self.tokens = 0.0, 0 if state.global_step == 0 else None
        wandb = sys.modules.get("wandb")
        if wandb and wandb.run and "wandb" in args.report_to:  # an earlier training's: each has a run of its own
            wandb.finish()

    def on_step_begin(self, args, state, control, **kwargs):
        self.begun = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds += time.perf_counter() - self.begun

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in logs or "num_tokens" not in logs:
            return
        if self.tokens is not None and self.seconds:
            logs["tokens_per_s"] = (logs["num_tokens"] - self.tokens) / self.seconds
        self.seconds, self.tokens = 0.0, logs["num_tokens"]
        logs["memory_gib"] = machine.peak_bytes() / 2**30
