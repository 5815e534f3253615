"""Colab's set-up: in the order that works, twice if need be, and a restart where a loaded package was replaced."""

import subprocess
import sys
from types import SimpleNamespace

from lib.pipeline import colab


def test_what_does_not_fit_goes_first_and_chapters_run_in_order(monkeypatch):
    seen = []
    monkeypatch.setattr(subprocess, "run", lambda command, cwd, check: seen.append(" ".join(command[1:])))
    colab.main(["01_dataset", "03_sft"])
    assert seen == [
        "-m pip -q uninstall -y torchvision torchaudio", "-m pip -q install -r requirements.txt -e .",
        "-m lib.pipeline.toolchain", "-m lib.execute 01_dataset", "-m lib.execute 03_sft",
    ]  # fmt: skip


def test_a_loaded_package_of_another_version_asks_for_a_restart(monkeypatch):
    monkeypatch.setitem(sys.modules, "numpy", SimpleNamespace(__version__="0.0.1"))
    assert "numpy was replaced" in colab.restart() and colab.restart().startswith("Restart the session")
