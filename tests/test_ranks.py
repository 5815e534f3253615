"""Several ranks under torchrun: who writes, what is gathered, and what a lost or missing one does."""

import os
import subprocess
import sys

import pytest
from test_execute import FINISH, Project

from lib.pipeline import ranks
from lib.pipeline.files import ROOT


def launched(project, *args, processes=2):
    """Run a stage as `make LAUNCH="torchrun --nproc_per_node 2"` does."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--no-python"]
    environment = project.environment() | {"LAUNCH": f"torchrun --nproc_per_node {processes}"}
    return subprocess.run(
        [*command, *project.command(*args)], cwd=project.root, env=environment, capture_output=True, text=True
    )


def test_ranks_share_gather_and_leave_writing_to_the_first(tmp_path):
    project = Project(tmp_path)
    project.notebook(
        "01_a",
        "from lib.pipeline import files, ranks\nmine = ranks.share(list(range(5)))\nfound = ranks.gather(mine)",
        "@ranks.led\ndef deed(path):\n    path.write_text(str(ranks.rank()))\n    return ranks.gather(1), path.name",
        'said = deed(stage.dir / "led.txt")\nfiles.write_json(stage.dir / "all.json", [ranks.rank(), found, said])',
        'with ranks.first():\n    seen = (stage.dir / "built").exists()\n    (stage.dir / "built").write_text("")',
        "stage.finish({'seen': ranks.gather(seen)})",
    )
    done = launched(project, "01_a")
    assert done.returncode == 0, done.stdout + done.stderr
    folder, record = project.outputs / "tiny" / "01_a", project.record("01_a")
    assert (folder / "led.txt").read_text() == "0" and record["ranks"] == 2
    assert record["metrics"] == {"seen": [False, True]} and set(record["outputs"]) == {"led.txt", "all.json", "built"}
    assert "".join((folder / "all.json").read_text().split()) == '[0,[[0,2,4],[1,3]],[[1],"led.txt"]]'
    assert (folder / "01_a.rank1.ipynb").exists()
    assert "fresh" in launched(project, "01_a").stdout and "fresh" in project.execute("01_a").stdout


def test_a_lost_rank_fails_the_stage(tmp_path):
    project = Project(tmp_path)
    lose = "import os, signal\nif ranks.rank() == 1: os.kill(os.getpid(), signal.SIGKILL)"
    project.notebook("01_a", "from lib.pipeline import ranks\nranks.gather(0)", lose, FINISH)
    done = launched(project, "01_a")
    assert done.returncode != 0 and "01_a.rank1 " in done.stderr, done.stderr
    assert project.record("01_a") is None


@pytest.mark.parametrize(("launch", "size"), [("", None), ("nice -n 5", None), ("torchrun --nproc_per_node 2", "2")])
def test_a_launch_that_is_none_or_torchruns_is_let_in(monkeypatch, launch, size):
    monkeypatch.setenv("WORLD_SIZE", size) if size else monkeypatch.delenv("WORLD_SIZE", raising=False)
    ranks.check(launch)


@pytest.mark.parametrize(("given", "size", "left"), [(None, None, "0"), ("2,3", None, "2"), ("2,3", "2", "2,3")])
def test_a_process_without_a_launcher_sees_one_gpu(monkeypatch, given, size, left):
    for name, value in (("CUDA_VISIBLE_DEVICES", given), ("WORLD_SIZE", size)):
        monkeypatch.setenv(name, value or "")
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    ranks.one_device()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == left


def test_the_runner_refuses_before_anything_runs(tmp_path):
    project = Project(tmp_path)
    project.notebook("01_a", FINISH)
    environment = project.environment() | {"LAUNCH": "accelerate launch --num_processes 2"}
    environment.pop("WORLD_SIZE", None)
    done = subprocess.run(project.command("01_a"), cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "WORLD_SIZE is unset: use torchrun" in done.stderr
    assert not os.path.exists(project.outputs / "tiny")


def test_each_rank_learns_where_parameters_lie_though_transformers_saves_on_the_first_alone(tmp_path):
    """Chapters 4 and 7 ended on every other rank where the small model was not kept yet."""
    program = tmp_path / "probe.py"
    program.write_text(
        "import pathlib, sys\n"
        "from lib.pipeline import ranks\n"
        "ranks.join()\n"
        "from transformers import Qwen3Config\n"
        "from lib.model import layout\n"
        "layout.cache_dir = lambda: pathlib.Path(sys.argv[1], f'rank{ranks.rank()}')  # each finds nothing\n"
        "config = Qwen3Config(num_hidden_layers=1, vocab_size=64, hidden_size=64, intermediate_size=96,\n"
        "                     num_attention_heads=4, num_key_value_heads=2, head_dim=16)\n"
        "for folder in ('a', 'b'):\n"
        "    config._name_or_path = folder\n"
        "    found = layout._probed(config)\n"
        "print('places', len(found))\n"
        "ranks.leave()\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", program, tmp_path]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("places 14") == 2, done.stdout + done.stderr
    assert len(list(tmp_path.glob("rank*/layout/*.json"))) == 2, "a model in another folder has the same places"
