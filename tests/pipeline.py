"""A smaller tiny recipe through the real runner: what the end-to-end tests and the kill tests share."""

import json
import os
import subprocess
import sys

from lib.pipeline.files import ROOT
from lib.pipeline.recipe import load, parse_set

STAGES = ["01_dataset", "02_baseline", "03_sft", "04_qat", "05_export", "06_judge", "07_preference"]
SMALL = (
    "model.twin.steps=40 sft.max_steps=6 sft.save_steps=2 sft.eval_steps=3 sft.logging_steps=1 "
    "sft.gradient_accumulation_steps=2 qat.max_steps=4 "
    "qat.seeds=[42,43] data.test_questions=8 data.eval_fraction=0.01 chat.max_new_tokens=24 judge.questions=6 "
    "preference.questions=2 preference.samples=2 preference.arms.longer.max_steps=1 preference.arms.dpo.max_steps=1 "
    "preference.arms.longer.logging_steps=1 preference.arms.dpo.logging_steps=1 preference.reward.max_steps=2 "
    "preference.reward.logging_steps=1 "
    "preference.arms.rloo.max_steps=1 preference.arms.rloo.per_device_train_batch_size=8 "
    "preference.data='[{name: clinic, pairs: 4}]'"
)


SHARED = SMALL.replace("accumulation_steps=2", "accumulation_steps=1")  # the same global batch on two ranks
LAUNCH = "torchrun --nproc_per_node 2"


def make(outputs, stage, settings=SMALL, launch="", recipe="tiny", **options):
    """Run one stage as the Makefile does; returns the completed process."""
    launcher = [sys.executable, "-m", "torch.distributed.run", *launch.split()[1:], "--no-python"] if launch else []
    command = [*launcher, sys.executable, "-m", "lib.execute", stage, "--recipe", recipe, "--set", settings]
    environment = os.environ | {"OUTPUTS": str(outputs), "LAUNCH": launch} | options.pop("env", {})
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, **options)


def folder(outputs, settings=SMALL, recipe="tiny"):
    return outputs / load(recipe, parse_set(settings)).run_name


def record(outputs, stage, settings=SMALL, recipe="tiny"):
    return json.loads((folder(outputs, settings, recipe) / stage / "stage.json").read_text())
