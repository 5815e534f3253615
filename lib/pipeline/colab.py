"""Colab: install the project over what is there, and run the chapters that a chapter needs. Standard library only."""

import contextlib
import importlib
import importlib.metadata
import json
import os
import re
import shlex
import subprocess
import sys

from lib.pipeline import setup
from lib.pipeline.files import ROOT


def prepare(stages, recipe, overrides, drive=""):
    """Install, build llama.cpp, then run each stage that is not fresh; returns `restart`'s sentence.

    It may be called again: what is there stays. It runs in the notebook's own kernel, which alone reaches Colab's
    secrets and Drive. drive: a folder of the user's Drive, for what is written; "" leaves it on this machine.
    """
    _key()
    if drive:
        from google.colab import drive as mounted

        mounted.mount("/content/drive")
        os.environ["OUTPUTS"] = f"/content/drive/MyDrive/{drive}"
    # built for the torch that Colab has, not for the pinned one: transformers would load and fail on them
    _python("-m", "pip", "-q", "uninstall", "-y", "torchvision", "torchaudio")
    _python("-m", "pip", "-q", "install", "-r", "requirements.txt", "-e", ".")
    setup.refuse_unseen(sys.executable)
    _python("-m", "lib.pipeline.toolchain")
    given = shlex.join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in overrides.items())
    for stage in stages:
        _python("-m", "lib.execute", stage, "--recipe", recipe, "--set", given)
    return restart()


def _python(*arguments):
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True)


def _key():
    """The hub's key from Colab's secrets into the environment, from which the chapters' own processes have it."""
    from google.colab import userdata

    with contextlib.suppress(userdata.SecretNotFoundError, userdata.NotebookAccessError):  # none, or not given to us
        os.environ["HF_TOKEN"] = userdata.get("HF_TOKEN")


def restart():
    """A sentence on whether this kernel has to be restarted, because it loaded a package before it was replaced."""
    importlib.invalidate_caches()
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    old = sorted(name for name in pinned if _replaced(name))
    if not old:
        return "No restart is needed."
    again = "Restart the session (Runtime > Restart session) and run the cells up to this one again"
    return f"{again}: {', '.join(old)} was replaced."


def _replaced(name):
    """Whether the loaded module of a package says another version than the installed one."""
    loaded = getattr(sys.modules.get(name.replace("-", "_")), "__version__", None)
    try:
        installed = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return loaded is not None and str(loaded).partition("+")[0] != installed.partition("+")[0]  # +cpu, +cu130
