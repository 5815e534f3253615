"""Colab's set-up for real: a kernel of its own with the versions that Colab has, the cell, a restart, a chapter."""

import json
import os
import re
import shlex
import subprocess
import sys
from importlib import metadata

import nbformat
import pytest
from nbclient import NotebookClient
from pipeline import SMALL, folder

from lib.pipeline.files import ROOT
from lib.pipeline.recipe import parse_set

TORCH = ("torch==2.11.0", "torchaudio==2.11.0", "torchvision==0.26.0", "accelerate==1.13.0", "peft==0.19.1")
SECRETS = """
class SecretNotFoundError(Exception): ...
class NotebookAccessError(Exception): ...
def get(name): raise SecretNotFoundError(name)
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """(folder of the clone, Python) of a machine as Colab's: its packages, its module, and a kernel named colab."""
    python, pip = tmp_path / "venv" / "bin" / "python", ["-m", "pip", "-qq", "install"]
    given = shlex.split(os.environ.get("PIP_ARGS", ""))
    for command in (
        [sys.executable, "-m", "venv", tmp_path / "venv"],
        [python, *pip, *given, "-r", ROOT / "tests" / "colab.txt"],
        [python, *pip, *given, "--no-deps", *TORCH],  # without CUDA's gigabytes, which they would bring
        ["git", "clone", "-q", ROOT, tmp_path / "medtune"],
    ):
        subprocess.run(command, check=True)
    (site,) = (tmp_path / "venv" / "lib").glob("python3*/site-packages")
    module = site / "google" / "colab"
    module.mkdir(parents=True)
    (module / "__init__.py").touch()
    (module / "userdata.py").write_text(SECRETS)
    (site / "sitecustomize.py").write_text("import google.colab")  # Colab's kernel has loaded it
    kernel = tmp_path / "share" / "kernels" / "colab"
    kernel.mkdir(parents=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Colab", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share"))
    monkeypatch.setenv("OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("PIP_ARGS", os.environ.get("PIP_ARGS", ""))
    for name in ("PYTHONPATH", "VIRTUAL_ENV", "MEDTUNE_STAGE_NONCE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "medtune", python


@pytest.mark.slow  # downloads a gigabyte
def test_a_chapter_runs_on_a_machine_with_colabs_versions(machine, tmp_path, monkeypatch):
    home, python = machine
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # where it is set, ipykernel shows nothing that a child prints
    notebook = nbformat.read(ROOT / "notebooks" / "02_baseline.ipynb", as_version=4)
    tagged = {tag: cell for cell in notebook.cells for tag in cell.metadata.get("tags", [])}
    tagged["parameters"].source = f'recipe = "tiny"\noverrides = {parse_set(SMALL)!r}'
    tagged["colab"].source = tagged["colab"].source.replace("/content/medtune", str(home))
    (tmp_path / "content").mkdir()
    place = {"metadata": {"path": str(tmp_path / "content")}}

    first = nbformat.v4.new_notebook()
    loaded = nbformat.v4.new_code_cell("import numpy, pandas")  # as Colab's own kernel has
    first.cells = [loaded, tagged["parameters"], tagged["colab"]]
    NotebookClient(first, kernel_name="colab", resources=place, timeout=None).execute()
    told = "".join(output.get("text", "") for output in first.cells[-1].outputs)
    assert re.search(r"Restart the session .* up to this one again: ipykernel, numpy, pandas was replaced", told), told

    NotebookClient(notebook, kernel_name="colab", resources=place, timeout=None).execute()
    told = "".join(output.get("text", "") for output in tagged["colab"].outputs)
    assert "No restart is needed" in told and "fresh" in told, told
    done = json.loads((folder(tmp_path / "outputs") / "02_baseline" / "stage.json").read_text())
    assert done["interactive"] and done["versions"]["numpy"] == metadata.version("numpy")
    kept = subprocess.run([python, "-m", "pip", "list", "--format=json"], check=True, capture_output=True, text=True)
    versions = {row["name"].lower(): row["version"] for row in json.loads(kept.stdout)}
    assert "torchvision" not in versions and versions["ipykernel"] == metadata.version("ipykernel")
