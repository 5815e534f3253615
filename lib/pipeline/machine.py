"""The machine a stage runs on: silenced libraries, seeds and threads, and what to record about it."""

import contextlib
import gc
import importlib.metadata
import logging
import os
import platform
import random
import re
import resource
import subprocess
import sys
import time
import warnings

from lib.pipeline import compilers
from lib.pipeline.files import ROOT

PACKAGES = (
    "torch transformers trl peft unsloth bitsandbytes datasets torchao accelerate tokenizers gguf openai numpy pandas "
    "papermill"
)
REVISIONS = {}  # hub id: the commit that this process read, whatever branch or none the recipe names
LOGITS_BYTES = 4 * 2**30  # of disk, for probabilities of one file: 20,000 tokens of a vocabulary of 100,000
TIMED = 10  # questions that a served file answers once more, alone on the machine


def quiet():
    """Keep the libraries' progress bars and advice out of the notebook; the checks of this project say what matters."""
    os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_DISABLE_PROGRESS_BARS="1", TRANSFORMERS_VERBOSITY="error")
    os.environ.update(UNSLOTH_DISABLE_STATISTICS="1")  # it would fetch a file of the hub to be counted
    os.environ.update(HF_HUB_DISABLE_TELEMETRY="1")  # every trainer of TRL's would report itself to the hub
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message="IProgress not found")  # bars are lib.pipeline.terminal's
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch|transformers|trl|peft|datasets|torchao")
    for name in ("torchao", "torch.utils._pytree", "trl", "peft", "datasets", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)


def refuse_unseen():
    """Raise RuntimeError where nvidia-smi sees a GPU and torch does not, after a change of driver or machine say."""
    import torch

    if not torch.cuda.is_available() and (why := compilers.unseen(torch.__version__)):
        raise RuntimeError(why)


def seed(seed, threads):
    """Seed Python, NumPy and torch, and fix the CPU threads: sums then add up in one order."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # denormals slow a CPU down by orders of magnitude and change no metric


@contextlib.contextmanager
def random_state():
    """Whatever draws random numbers inside the block leaves the generators of Python, NumPy and torch as they were."""
    import numpy
    import torch

    python, arrays = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(arrays)


def free_bytes():
    """Bytes that a model could take now: free memory of the GPU, or without one what the system can give away."""
    import psutil
    import torch

    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else psutil.virtual_memory().available


def release():
    """Give back memory that no name refers to any more, also what torch keeps of the GPU for itself; returns None.

    Another process, llama-server say, gets only what torch does not keep.
    """
    gc.collect()
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()


def resident_bytes():
    """Largest resident size of this process so far; Linux counts KiB, macOS bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak_bytes():
    """Most memory in use so far: what torch allocated on the GPU, or without one the whole process's."""
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resident_bytes()


def describe():
    """The time (UTC), versions, commits (ours, and those read from the hub), hardware and peak memory, as of now."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES.split():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": versions,
        "git": _commit(),
        "revisions": dict(REVISIONS),
        "hardware": _hardware(),
        "peak_memory_mib": round(resident_bytes() / 2**20),
    }


def _commit():
    """{"commit", "dirty"}; "" and False where the project lies in no checkout of its own, but inside another say."""
    own = os.path.realpath(_git("rev-parse", "--show-toplevel") or "/") == os.path.realpath(ROOT)
    return {"commit": _git("rev-parse", "HEAD") if own else "", "dirty": own and bool(_git("status", "--porcelain"))}


def _git(*args):
    try:
        return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _hardware():
    import torch

    cpu = platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        found = re.search(r"model name\s*:\s*(.+)", file.read())
        cpu = found.group(1) if found else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_gib": round(memory, 1), "gpu": gpu}
