"""Colab's set-up: in the order that works, twice if need be, and a restart where a loaded package was replaced."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from lib.pipeline import colab, recipe, setup
from lib.pipeline.files import ROOT
from lib.pipeline.overrides import parse_set


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A stand-in for Colab: its modules, an environment to write into, and (commands that were run, calls of Drive)."""
    ran, mounted = [], []

    def run(command, **options):
        ran.append(" ".join(command[1:]))
        if command[:2] == ["git", "clone"]:
            Path(command[-1]).mkdir()
        return SimpleNamespace(stdout=b"")

    class Missing(Exception): ...

    secrets = SimpleNamespace(get={"HF_TOKEN": "of this notebook"}.get, SecretNotFoundError=Missing,
                              NotebookAccessError=Missing)  # fmt: skip
    google, found = ModuleType("google"), ModuleType("google.colab")
    found.userdata, found.drive = secrets, SimpleNamespace(mount=mounted.append)
    for name, module in (("google", google), ("google.colab", found)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(os, "environ", {"CUDA_VISIBLE_DEVICES": ""})
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(subprocess, "run", run)
    return SimpleNamespace(ran=ran, mounted=mounted, home=tmp_path / "medtune", secrets=secrets, missing=Missing)


def cell(machine, **changed):
    """The set-up cell of chapter 3, run below its parameters with other values than the notebook's own."""
    cells = json.loads((ROOT / "notebooks" / "03_sft.ipynb").read_text())["cells"]
    tagged = {tag: "".join(c["source"]) for c in cells for tag in c["metadata"].get("tags", [])}
    code = tagged["colab"].replace("/content/medtune", str(machine.home))
    for name in set(changed) & {"drive"}:
        code = code.replace(f'{name} = ""', f"{name} = {changed.pop(name)!r}")
    names = {}
    exec(tagged["parameters"], names)
    exec(code, names | changed)


def test_the_cell_sets_up_with_the_recipe_above_it_and_clones_once(machine, capsys):
    over = {"sft.learning_rate": 1e-05, "chat": {"format": "a 'b' é"}, "qat": None, "data.sources": [{"name": "own"}]}
    cell(machine, recipe="llama31_8b_t4", overrides=over)
    cell(machine, drive="my runs")
    first, again = machine.ran[:5], machine.ran[5:]
    assert first[0].startswith("clone --depth 1 https://") and first[1:4] == again[:3] == [
        "-m pip -q uninstall -y torchvision torchaudio", "-m pip -q install -r requirements.txt -e .",
        "-m lib.pipeline.toolchain",
    ]  # fmt: skip
    before, _, given = first[4].partition(" --set ")
    assert before == "-m lib.execute 01_dataset --recipe llama31_8b_t4" and parse_set(given) == recipe.nest(over)
    assert again[3:] == ["-m lib.execute 01_dataset --recipe tiny --set "]
    assert os.environ["HF_TOKEN"] == "of this notebook" and "No restart is needed" in capsys.readouterr().out
    assert machine.mounted == ["/content/drive"] and os.environ["OUTPUTS"] == "/content/drive/MyDrive/my runs"


def test_a_chapter_that_runs_for_another_and_one_elsewhere_set_nothing_up(machine, monkeypatch):
    os.environ["MEDTUNE_STAGE_NONCE"] = "1"
    cell(machine)
    del os.environ["MEDTUNE_STAGE_NONCE"]
    monkeypatch.delitem(sys.modules, "google.colab")
    cell(machine)
    assert machine.ran == []


def test_no_secret_is_no_fault_and_a_gpu_that_torch_does_not_see_ends_the_set_up(machine, monkeypatch):
    def refuse(name):
        raise machine.missing

    machine.secrets.get = refuse
    monkeypatch.setattr(setup.compilers, "nvidia", lambda: ["Tesla T4"])
    with pytest.raises(setup.BuildError, match="nvidia-smi sees Tesla T4"):
        colab.prepare(["01_dataset"], "tiny", {})
    assert "HF_TOKEN" not in os.environ and not any("toolchain" in command for command in machine.ran)


def test_a_loaded_package_of_another_version_asks_for_a_restart(monkeypatch):
    monkeypatch.setitem(sys.modules, "numpy", SimpleNamespace(__version__="0.0.1"))
    assert "numpy was replaced" in colab.restart() and colab.restart().startswith("Restart the session")
