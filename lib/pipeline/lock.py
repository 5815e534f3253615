"""`make lock`: write the lock files, every package that the pins need with the hashes of its files.

uv resolves for all systems and Python versions at once, and keeps the versions of the present lock where the pins
allow it. requirements.lock is what every machine installs; what torch needs for CUDA alone stands in
requirements-cuda.lock, what Unsloth adds in requirements-gpu.lock. The package index has no CPU-only torch for Linux:
the hashes of those wheels come from PyTorch's own index.
"""

import re
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from lib.pipeline.files import ROOT

UV = "uv==0.13.8"
INDEX = "https://pypi.org/simple"
CPU_INDEX = "https://download.pytorch.org/whl/cpu/torch/"
CPU_WHEEL = r"torch-{}(?:%2B|\+)cpu-(cp3\d\d)-\1-manylinux\w+\.whl#sha256=([0-9a-f]{{64}})"
CUDA = re.compile(r"(?:nvidia|cuda)-|triton$")  # packages that torch's CUDA build alone needs
PACKAGE = re.compile(r"^([\w.-]+)==(?:.*\\\n)*.*\n", re.MULTILINE)
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def packages(text):
    """[(name, its lines)] of a lock file; a name stands twice where systems need different versions."""
    return [(match[1], match[0]) for match in PACKAGE.finditer(text)]


def compiled(uv, source, known, environment=""):
    """The packages of a requirements file. known: a lock's text, its versions are kept where they fit. environment: a
    marker of the only machines meant.
    """
    folder, out = uv.parent, uv.parent / "out.lock"
    (folder / "pyproject.toml").write_text(f"[tool.uv]\nenvironments = {[environment] if environment else []}\n")
    out.write_text(known, encoding="utf-8")
    options = ["--universal", "--python-version", "3.11", "--generate-hashes", "--no-header", "--no-annotate"]
    options += ["-q", "--default-index", INDEX, ROOT / source, "-o", out]
    subprocess.run([uv, "pip", "compile", *options], check=True, cwd=folder, stdout=subprocess.DEVNULL)
    return packages(out.read_text(encoding="utf-8"))


def with_cpu_wheels(torch, known):
    """torch's lines of a lock with the hashes of the CPU wheels: from PyTorch's index, else from the present lock.

    known: torch's lines there. Raises ValueError where neither has them for this version.
    """
    version = torch.split("==")[1].split()[0]
    found = HASH.findall(known) if known.startswith(f"torch=={version} ") else []
    try:
        with urllib.request.urlopen(CPU_INDEX, timeout=60) as answer:
            page = answer.read().decode("utf-8")
        found = [f"--hash=sha256:{sha}" for _, sha in re.findall(CPU_WHEEL.format(re.escape(version)), page)]
    except OSError as error:
        print(f"{CPU_INDEX} cannot be read ({error}): the hashes of torch's CPU wheels stay as they are")
    if not found:
        raise ValueError(f"no hash of a CPU wheel of torch {version}: run this where {CPU_INDEX} can be read")
    first = torch.partition(" \\\n")[0]
    return " \\\n    ".join([first, *sorted({*HASH.findall(torch), *found})]) + "\n"


def main():
    """Write the three files; each is replaced whole."""
    names = [ROOT / f"requirements{part}.lock" for part in ("", "-cuda", "-gpu")]
    known = "".join(path.read_text(encoding="utf-8") for path in names if path.exists())
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--target", folder, UV]
        subprocess.run(pip, check=True)
        uv = Path(folder, "bin", "uv")
        every = compiled(uv, "requirements.txt", known)
        extras = compiled(uv, "requirements-gpu.txt", "".join(lines for _, lines in every), "sys_platform == 'linux'")
    theirs = dict(packages(known)).get("torch", "")
    every = [(name, with_cpu_wheels(lines, theirs) if name == "torch" else lines) for name, lines in every]
    cuda = [lines for name, lines in every if CUDA.match(name)]
    common = [lines for name, lines in every if not CUDA.match(name)]
    there, pins = {name for name, _ in every}, {lines.split()[0] for _, lines in every}
    if other := [lines.split()[0] for name, lines in extras if name in there and lines.split()[0] not in pins]:
        raise ValueError(f"requirements-gpu.txt needs {', '.join(other)}: pin the same in requirements.txt")
    for path, kept in zip(names, (common, cuda, [lines for name, lines in extras if name not in there]), strict=True):
        path.with_suffix(".tmp").write_text("# Written by `make lock`\n" + "".join(kept), encoding="utf-8")
        path.with_suffix(".tmp").replace(path)


if __name__ == "__main__":
    main()
