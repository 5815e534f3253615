"""Runs that are killed, stopped or out of disk at a chosen moment end, after the next run, as undisturbed ones do."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys

import pytest
from pipeline import LAUNCH, SHARED, SMALL, STAGES, folder, make, record

from lib.pipeline.files import ROOT, read_jsonl

STEP = "transformers.Trainer.training_step"
AIMS = {  # what the kernel runs before its first cell: (where, at which call, what then, and on which rank)
    "step": (STEP, 2 * 2, "kill"),  # half of step 2, after its first backward pass
    "save": ("transformers.Trainer._save_optimizer_and_scheduler", 1, "kill"),  # the adapter is written, no more
    "second save": ("transformers.Trainer._save_optimizer_and_scheduler", 2, "kill"),
    "stop": (STEP, 2, "stop"),  # inside the first step of this attempt
    "merge": ("lib.model.merging._write_configs", 1, "kill"),
    "quantize": ("lib.export.gguf.quantize", 2, "start and kill"),  # the second file is half written
    "kernel of rank 1": (STEP, 4, "kill", 1),  # step 3 is done, step 2 is saved
    "launcher": (STEP, 1, "stop launcher", 1),
    "worker of rank 1": (STEP, 2, "kill worker", 1),
    "worker of rank 0": (STEP, 1, "stop", 0),
    "nothing": (STEP, 0, "kill"),
}
STARTUP = """
import importlib, os, psutil, signal, threading, time

def aim(owner, name, at, deed, rank=0):
    if rank != int(os.environ.get("RANK", 0)):
        return
    module, _, kind = owner.rpartition(".")
    ours = module.startswith("lib.")
    owner = importlib.import_module(owner) if ours else getattr(importlib.import_module(module), kind)
    real, calls = getattr(owner, name), []
    def call(*args, **kwargs):
        calls.append(1)
        if len(calls) == at:
            if deed == "stop":
                os.kill(os.getppid(), signal.SIGTERM)
            elif deed == "stop launcher":
                psutil.Process(os.getppid()).parent().terminate()
            elif deed == "kill worker":
                os.kill(os.getppid(), signal.SIGKILL)
                time.sleep(60)  # no further step: the kernel ends when it sees that its worker is gone
            elif deed == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            else:
                threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return real(*args, **kwargs)
    setattr(owner, name, call)

aim({!r}, {!r}, *{!r})
"""


def aimed(tmp_path, outputs, stage, aim, *how, first=""):
    """Run a stage, `how` as for make, whose kernel meets its fate at the aim; returns the completed process.

    first: Python that the kernel runs before that.
    """
    where, *fate = AIMS[aim]
    startup = tmp_path / aim / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "aim.py").write_text(first + STARTUP.format(*where.rsplit(".", 1), fate))
    return make(outputs, stage, *how, env={"IPYTHONDIR": str(tmp_path / aim)})


def steps(stage):
    """Step numbers of the checkpoints that have a manifest."""
    return sorted(int(path.parent.name.rpartition("-")[2]) for path in stage.glob("checkpoints/*/*/manifest.json"))


@pytest.mark.parametrize(
    ("aims", "resumed"),
    [
        ((("second save", [2]),), 2),
        pytest.param((("save", []), ("stop", [1]), ("merge", [4, 6])), 6, marks=pytest.mark.slow),
        pytest.param((("full", []), ("stop", [1]), ("step", [1, 2])), 2, marks=pytest.mark.slow),
    ],
    ids=["second save", "save, stop, merge", "full, stop, step"],
)
def test_a_training_that_is_disturbed_in_every_way_ends_in_the_same_adapter_and_metrics(run, tmp_path, aims, resumed):
    copy, undisturbed = tmp_path / "outputs", record(run, "03_sft")
    shutil.copytree(folder(run) / "01_dataset", folder(copy) / "01_dataset")
    shutil.copytree(folder(run) / "02_baseline", folder(copy) / "02_baseline")
    stage = folder(copy) / "03_sft"

    limit = (folder(run) / "03_sft" / "adapter" / "adapter_model.safetensors").stat().st_size - 1000
    for aim, left in aims:
        if aim == "full":
            ended = make(copy, "03_sft", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
            assert "the disk is full" in ended.stderr, ended.stderr
        else:
            ended = aimed(tmp_path, copy, "03_sft", aim)
        assert ended.returncode == 1 and not (stage / "stage.json").exists(), f"{aim}: {ended.stdout}"
        assert steps(stage) == left, f"{aim}: {ended.stderr}"
        assert not (stage / "merged").exists() and not (stage / "stage.pending.json").exists()
        assert ("stopped by SIGTERM after saving checkpoint-1" in ended.stderr) == (aim == "stop"), ended.stderr
        assert (stage / "adapter").exists() == (aim == "merge")

    last = make(copy, "03_sft")
    assert last.returncode == 0, last.stderr
    assert f"resuming from checkpoint-{resumed}" in (stage / "03_sft.ipynb").read_text()
    assert record(copy, "03_sft")["metrics"] == undisturbed["metrics"]
    adapter = record(copy, "03_sft")["outputs"]["adapter/adapter_model.safetensors"]
    assert adapter == undisturbed["metrics"]["adapter_sha256"]


@pytest.mark.slow  # test_gguf.py kills a quantization by itself, test_execute.py any stage
def test_a_kill_while_a_file_is_quantized_leaves_no_stage_and_then_the_same_files(run, tmp_path):
    copy = tmp_path / "outputs"
    for name in ("01_dataset", "02_baseline", "03_sft", "04_qat"):
        shutil.copytree(folder(run) / name, folder(copy) / name)
    ended = aimed(tmp_path, copy, "05_export", "quantize")
    assert ended.returncode == 1 and not (folder(copy) / "05_export" / "stage.json").exists()
    assert make(copy, "05_export").returncode == 0
    before, after = record(run, "05_export"), record(copy, "05_export")
    files = {name for name in before["outputs"] if name.endswith(".gguf")}
    assert files and {n: before["outputs"][n] for n in files} == {n: after["outputs"][n] for n in files}
    assert before["metrics"]["perplexity"] == after["metrics"]["perplexity"]


@pytest.mark.slow
def test_two_ranks_of_which_one_is_lost_or_stopped_end_as_undisturbed_ones(pair, tmp_path):
    copy, undisturbed = tmp_path / "outputs", record(pair, "03_sft", SHARED)
    shutil.copytree(folder(pair, SHARED) / "01_dataset", folder(copy, SHARED) / "01_dataset")
    stage = folder(copy, SHARED) / "03_sft"
    for aim, left, said in (
        ("kernel of rank 1", [2], "03_sft.rank1 FAILED"),
        ("launcher", [2, 3], "03_sft       STOPPED: cell"),
        ("worker of rank 1", [3, 4], "Signal 9 (SIGKILL)"),
        ("worker of rank 0", [4, 5], "stopped by SIGTERM after saving checkpoint-5"),
    ):
        ended = aimed(tmp_path, copy, "03_sft", aim, SHARED, LAUNCH)
        assert ended.returncode != 0 and not (stage / "stage.json").exists(), f"{aim}: {ended.stdout}"
        assert steps(stage) == left and said in ended.stderr, f"{aim}: {ended.stderr}"
    last = make(copy, "03_sft", SHARED, LAUNCH)
    assert last.returncode == 0, last.stderr
    assert "resuming from checkpoint-5" in (stage / "03_sft.ipynb").read_text()
    assert record(copy, "03_sft", SHARED)["metrics"] == undisturbed["metrics"]  # the adapter's hash is among them


TIMES = ("first_s", "seconds", "minutes")


def timeless(value):
    """JSON without wall times, at any depth."""
    if isinstance(value, dict):
        return {key: timeless(inner) for key, inner in value.items() if key not in TIMES}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


def outcome(outputs, stage):
    """(metrics, outputs) of a finished stage without wall times, which answers and the model card hold."""
    found, written = record(outputs, stage), {}
    for name, sha in found["outputs"].items():
        rows = read_jsonl(folder(outputs) / stage / name) if name.endswith(".jsonl") else None
        written[name] = sha if rows is None else timeless(rows)
    return timeless(found["metrics"]), written | {name: "" for name in written if name == "gguf/README.md"}


@pytest.mark.slow
def test_twenty_one_kills_at_random_moments_of_all_stages_end_in_the_same_metrics_and_files(run, tmp_path):
    copy, moments = tmp_path / "outputs", random.Random(7)
    for stage in STAGES:
        kills, wall = 0, record(run, stage)["timings"]["wall_s"]
        command = [sys.executable, "-m", "lib.execute", stage, "--set", SMALL]
        while kills < 3:
            runner = subprocess.Popen(
                command, cwd=ROOT, env=os.environ | {"OUTPUTS": str(copy)}, start_new_session=True
            )
            try:
                assert runner.wait(timeout=moments.uniform(2, 6 + wall)) == 0
                shutil.rmtree(folder(copy) / stage)  # finished before its kill: begin again
            except subprocess.TimeoutExpired:
                os.killpg(runner.pid, signal.SIGKILL)
                runner.wait()
                kills += 1
                assert not (folder(copy) / stage / "stage.json").exists()
        done = make(copy, stage)
        assert done.returncode == 0, done.stderr
        assert outcome(copy, stage) == outcome(run, stage), stage


@pytest.fixture
def disk(tmp_path):
    """Folder of a file system of 64 MiB of its own; skips where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "room"),
    [(stage, room) for stage in ("02_baseline", "06_judge") for room in (0, 8, 48, 120)]
    + [("05_export", room) for room in (0, 100, 4000, 20000)],
    ids="{}".format,
)
def test_a_full_disk_is_named_and_leaves_no_stage(run, disk, stage, room):
    there = folder(disk)
    there.mkdir()
    for upstream in STAGES[: STAGES.index(stage)]:
        (there / upstream).symlink_to(folder(run) / upstream)
    filler = disk / "filler"  # room: KiB that it leaves
    filler.write_bytes(bytes(shutil.disk_usage(disk).free - room * 1024))
    ended = make(disk, stage)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr, ended.stderr
    assert "the disk is full" in ended.stderr or "No space left on device. Free space" in ended.stderr, ended.stderr
    assert not (there / stage / "stage.json").exists()
    filler.unlink()
    again = make(disk, stage)
    assert again.returncode == 0, again.stderr
    assert timeless(record(disk, stage)["metrics"]) == timeless(record(run, stage)["metrics"])
