"""`python3 -m lib.pipeline.setup`: everything a fresh clone needs, with the system's Python and its standard library.

Checks first, then .venv with the packages of requirements.lock, whose hashes pip checks, and llama.cpp built beside it
into the user's cache. A second run with nothing changed only compares a marker and ends. `--gpu` adds
requirements-gpu.lock. PIP_ARGS in the environment goes to pip, for example an index of CPU-only wheels.
This file stays readable to Python 3.6, so that an old interpreter gets one clear line instead of a syntax error.
"""

import contextlib
import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

from lib.pipeline import compilers, toolchain
from lib.pipeline.commands import BuildError, command, say
from lib.pipeline.toolchain import ROOT

VENV = ROOT / ".venv"
READY = VENV / ".ready"
LOGS = ROOT / "outputs"
PYTHON = VENV / "bin" / "python"
MINIMUM = (3, 11)
PINS = ("requirements.txt", "requirements-gpu.txt", "toolchain.txt", "pyproject.toml")
LOCKS = ("requirements.lock", "requirements-cuda.lock", "requirements-gpu.lock")  # written by lib/pipeline/lock.py
# What packages and llama.cpp are built with; the last two are what scikit-build-core itself needs.
FIRST = ("setuptools", "cmake", "ninja", "scikit-build-core", "packaging", "pathspec")
VENV_GIB, BUILD_GIB = 6, 2  # measured: CPU wheels 2 GiB installed, CUDA wheels about three times that; build 1 GiB


def main(args):
    """Run the set-up; returns the exit status."""
    if sys.version_info < MINIMUM:
        return fail("Python {}.{} found, 3.11 or later needed: make setup PYTHON3=python3.11".format(*sys.version_info))
    gpu = "--gpu" in args
    if is_ready(gpu):
        return 0
    problems = checks()
    if problems:
        return fail("\nsetup: ".join(problems))
    start = time.monotonic()
    try:
        LOGS.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            READY.unlink()  # from here on .venv is neither what it was nor what it will be
        with open(LOGS / "setup.log", "w", encoding="utf-8", buffering=1) as sink:
            steps(sink, gpu)
    except KeyboardInterrupt:
        return fail("interrupted; run the same command again, finished steps are kept")
    except (BuildError, OSError) as error:
        return fail(
            f"{error}\nFull log: outputs/setup.log. Mend the cause named above (often the network, the disk, or"
            " an index in PIP_ARGS) and run the same command again: finished steps are kept."
        )
    READY.write_text(fingerprint(gpu), encoding="utf-8")
    say(f"ready ({time.monotonic() - start:.0f} s)")
    return 0


def fail(text):
    """Print one problem; returns exit status 1."""
    print("setup: " + text, file=sys.stderr, flush=True)
    return 1


def fingerprint(gpu):
    """What .venv was made from: the pins, the project file, the Python version, the folder, GPU extras or not."""
    content = b"\0".join((ROOT / name).read_bytes() for name in (*PINS, *LOCKS))
    parts = ["gpu" if gpu else "cpu", hashlib.sha256(content).hexdigest(), sys.version.split()[0], str(ROOT)]
    return " ".join(parts)


def is_ready(gpu):
    """Whether nothing is to be done. A plain set-up is content with a .venv that has the GPU extras."""
    try:
        marker = READY.read_text(encoding="utf-8")
    except OSError:
        return False
    return marker in {fingerprint(gpu), fingerprint(True)} and PYTHON.exists() and toolchain.ready()


def checks():
    """What would stop the set-up late, after long downloads: one-line problems, none when all is well."""
    built, problems = toolchain.ready(), []
    if unlocked():
        problems.append(", ".join(unlocked()) + " not in the lock files: run `make lock` after an edit of the pins")
    if importlib.util.find_spec("ensurepip") is None:  # Debian splits it off Python
        problems.append("no module ensurepip: on Debian or Ubuntu `apt install python3-venv`")
    compilers = os.environ.get("CXX", "c++ g++ clang++").split()  # as cmake looks for them
    if not built and not any(map(shutil.which, compilers)):
        problems.append(f"no C++ compiler ({', '.join(compilers)}): on Debian or Ubuntu `apt install g++`")
    free, need = shutil.disk_usage(str(ROOT)).free / 2**30, (0 if VENV.is_dir() else VENV_GIB) + (not built) * BUILD_GIB
    if free < need:
        problems.append(f"{free:.1f} GiB free at {ROOT}, {need} GiB needed for packages and llama.cpp")
    return problems + [
        f"{host}, named by PIP_ARGS, cannot be reached: leave that index out, or mend the network"
        for host in unreachable(shlex.split(os.environ.get("PIP_ARGS", "")))
    ]


def unreachable(pip_args):
    """Hosts of the indexes in pip's arguments that no name server knows or that do not answer.

    pip itself would ask each of them several times for every package. Where pip goes through a proxy of its own, it may
    reach what this process cannot, and nothing is said.
    """
    urls = re.findall(r"https?://[^\s,]+", " ".join(pip_args))
    config = [sys.executable, "-m", "pip", "config", "list"]
    own = subprocess.run(config, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout.decode() if urls else ""
    if "proxy" in " ".join([own, *pip_args]):  # what is in PIP_PROXY is listed too
        return []
    found = []
    for url in re.findall(r"https?://[^\s,]+", " ".join(pip_args)):
        try:
            urllib.request.urlopen(url, timeout=10).close()
        except urllib.error.HTTPError:  # it is there
            pass
        except (urllib.error.URLError, TimeoutError) as error:
            if isinstance(getattr(error, "reason", error), (socket.gaierror, ConnectionError, TimeoutError)):
                found.append(urllib.parse.urlsplit(url).hostname)
    return found


def pins(name):
    """["torch==2.13.0", ...] of a requirements or lock file, names in the index's spelling."""
    found = re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
    return [re.sub("[-_.]+", "-", package).lower() + "==" + version for package, version in found]


def unlocked():
    """Pins that the lock files lack, because a requirements file was edited and not locked again."""
    locked = {pin for name in LOCKS for pin in pins(name)}
    return [pin for name in PINS[:2] for pin in pins(name) if pin not in locked]


def steps(sink, gpu):
    """.venv, build tools, then pip install with the llama.cpp build beside it. Raises BuildError."""
    pip_args = shlex.split(os.environ.get("PIP_ARGS", ""))
    install = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", *pip_args]
    locked = [*install, "--no-deps", "--no-build-isolation", "--require-hashes", "-r"]  # a build fetches nothing either
    make_venv(sink)
    with contextlib.ExitStack() as stack:
        timed([*locked, build_tools()], sink, "install " + ", ".join(FIRST))
        build = None
        if not toolchain.ready():
            if compilers.missing():
                say(f"no nvcc beside this GPU: llama.cpp is built for the CPU, and {toolchain.SLOW}. Install the CUDA "
                    "toolkit and run `make setup` again")  # fmt: skip
            build = stack.enter_context(background_build(pip_args))
        say("installing packages; the first time this downloads 0.6 GB for a CPU, gigabytes for CUDA")
        if own_torch(pip_args):
            timed([*install, own_torch(pip_args)], sink, "install torch from PIP_ARGS, whose hash no lock knows")
        timed([*locked, str(ROOT / LOCKS[0])], sink, "install " + LOCKS[0])
        if "+" not in torch_version():
            timed([*locked, str(ROOT / LOCKS[1])], sink, "install " + LOCKS[1])
        if gpu:
            timed([*locked, str(ROOT / LOCKS[2])], sink, "install " + LOCKS[2])
        refuse_unseen(PYTHON)
        timed([*install, "--no-deps", "--no-build-isolation", "-e", str(ROOT)], sink, "install this project")
        if build and build.wait() != 0:
            ending = f"signal {-build.returncode}" if build.returncode < 0 else f"status {build.returncode}"
            raise BuildError(f"the build of llama.cpp ended with {ending}; see outputs/toolchain.log.")


def own_torch(pip_args):
    """torch's pin where PIP_ARGS names PyTorch's index of another build than the CPU's (cu126, rocm6.4), else ""."""
    named = re.search(r"/whl/(?!cpu\b)\w", " ".join(pip_args))
    return next((pin for pin in pins(LOCKS[0]) if pin.startswith("torch==")), "") if named else ""


def torch_version():
    """torch's version in .venv: 2.13.0 is the package index's, which on Linux needs CUDA, and 2.13.0+cpu does not."""
    code = "import importlib.metadata as m; print(m.version('torch'))"
    return subprocess.run([str(PYTHON), "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout.decode()


def refuse_unseen(python):
    """Raise BuildError where nvidia-smi sees a GPU and the torch of this Python does not."""
    if not compilers.nvidia():
        return
    code = "import torch; print(torch.__version__, torch.cuda.is_available())"
    said = subprocess.run([str(python), "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout.decode()
    if said.split()[1:] != ["True"]:
        raise BuildError(compilers.unseen(said.split()[0] if said else ""))


def make_venv(sink):
    """Create .venv, or make it anew when it cannot run pip, has another Python, or was moved with its folder."""
    config = VENV / "pyvenv.cfg"
    if PYTHON.exists() and config.exists() and str(VENV) in config.read_text(encoding="utf-8"):
        probe = "import pip, sys; print(*sys.version_info[:2])"
        result = subprocess.run([str(PYTHON), "-c", probe], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        if result.stdout.decode().split() == [str(number) for number in sys.version_info[:2]]:
            return
    if VENV.is_symlink():
        VENV.unlink()  # --clear would empty the folder that it leads to, which is somebody else's
    timed([sys.executable, "-m", "venv", "--clear", str(VENV)], sink, "create .venv")


def build_tools():
    """Path of a file with those lines of the lock that the builds need before anything else."""
    text, path = (ROOT / LOCKS[0]).read_text(encoding="utf-8"), VENV / "build-tools.lock"
    names = "|".join(map(re.escape, FIRST))
    blocks = re.finditer(r"^(?:" + names + r")==(?:.*\\\n)*.*\n", text, re.MULTILINE)
    path.write_text("".join(block.group() for block in blocks), encoding="utf-8")
    return str(path)


def timed(args, sink, step):
    """Run one logged command and say how long it took."""
    start = time.monotonic()
    command(args, sink, step)
    say(f"{step} ({time.monotonic() - start:.0f} s)")


@contextlib.contextmanager
def background_build(pip_args):
    """Build llama.cpp in a process of its own; it ends with this block, also when pip fails or the user interrupts."""
    args = [str(PYTHON), "-m", "lib.pipeline.toolchain", str(LOGS / "toolchain.log"), *pip_args]
    process = subprocess.Popen(args, cwd=str(ROOT), start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
