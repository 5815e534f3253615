"""Colab: install the project over what is there, and run the chapters that a chapter needs. Standard library only."""

import importlib
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main(stages):
    """Install, build llama.cpp, then run each stage that is not fresh. It may be called again: what is there stays."""
    pip = ("-m", "pip", "-q")
    for command in (
        # built for the torch that Colab has, not for the pinned one: transformers would load and fail on them
        (*pip, "uninstall", "-y", "torchvision", "torchaudio"),
        (*pip, "install", "-r", "requirements.txt", "-e", "."),
        ("-m", "lib.pipeline.toolchain"),
        *(("-m", "lib.execute", stage) for stage in stages),
    ):
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


def restart():
    """A sentence on whether this kernel has to be restarted, because it loaded a package before it was replaced."""
    importlib.invalidate_caches()
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    old = sorted(name for name in pinned if _replaced(name))
    if not old:
        return "No restart is needed."
    return f"Restart the session (Runtime > Restart session) and run this cell again: {', '.join(old)} was replaced."


def _replaced(name):
    """Whether the loaded module of a package says another version than the installed one."""
    loaded = getattr(sys.modules.get(name.replace("-", "_")), "__version__", None)
    try:
        installed = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return loaded is not None and str(loaded).partition("+")[0] != installed.partition("+")[0]  # +cpu, +cu130


if __name__ == "__main__":
    main(sys.argv[1:])
