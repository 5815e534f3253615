"""What this machine can compile llama.cpp with: flags for the GPUs it has, and compilers at once.

Standard library only, as toolchain.py, which uses it before anything is installed.
"""

import functools
import os
import re
import shutil
import subprocess

GIB_PER_COMPILER = 1.0  # measured peak of one compiler process is below this; more jobs than memory means swapping
GIB_PER_GPU_COMPILER = 3.0  # nvcc and hipcc, assumed


@functools.cache
def gpu_flags():
    """cmake flags for the GPUs of this machine; none where there is no GPU, or not its compiler (nvcc, hipcc).

    Only for the GPUs that are here: kernels for every kind take an hour to compile. Programs built so put as many
    layers on the GPU as fit, of their own accord. Written from llama.cpp's build notes; never run, for want of a GPU.
    Flash attention stays in: llama-server takes it of its own accord, and what answering costs without it is not
    measured. Its kernels for every pair of quantized caches (GGML_CUDA_FA_ALL_QUANTS) are left out by default.
    """
    nvcc, hipcc = (_program(name, home) for name, home in (("nvcc", "/usr/local/cuda"), ("hipcc", "/opt/rocm")))
    if nvcc:
        kinds = re.findall(
            r"^(\d+)\.(\d+)$", _says("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"), re.M
        )
        if kinds:
            kinds = ";".join(sorted({major + minor for major, minor in kinds}))
            return ["-DGGML_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={nvcc}", f"-DCMAKE_CUDA_ARCHITECTURES={kinds}"]
    if hipcc:
        kinds = re.findall(r"^gfx[1-9]\w*$", _says(_program("rocm_agent_enumerator", "/opt/rocm") or ""), re.M)
        if kinds:
            return ["-DGGML_HIP=ON", f"-DGPU_TARGETS={';'.join(sorted(set(kinds)))}"]
    return []


def nvidia():
    """Names of the GPUs that nvidia-smi lists; [] without one, and where CUDA_VISIBLE_DEVICES hides them all."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return []
    return re.findall(r"^GPU \d+: (.+?)(?: \(|$)", _says("nvidia-smi", "-L"), re.M)


def unseen(version):
    """What to do where nvidia-smi sees a GPU and torch, of this version, sees none; "" where neither does.

    All training would otherwise run on the CPU unasked.
    """
    found = nvidia()
    if not found:
        return ""
    return (
        f"nvidia-smi sees {found[0]}, and torch {version} does not: install a driver as new as this torch needs (580 "
        "for CUDA 13), or give PIP_ARGS the index of a torch for yours (https://pytorch.org/get-started/locally) at "
        "set-up. To stay on the CPU set CUDA_VISIBLE_DEVICES to nothing: CUDA_VISIBLE_DEVICES= make ..."
    )


def _program(name, home):
    """Path of a program: on PATH, or where its vendor installs it."""
    return shutil.which(name) or shutil.which(name, path=f"{home}/bin")


def _says(*command):
    """What a program prints; nothing where it is missing, fails or hangs."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def missing():
    """The compiler of CUDA, where a GPU of NVIDIA's is here without it; None where nothing is missing."""
    return "nvcc" if nvidia() and not _program("nvcc", "/usr/local/cuda") else None


def jobs():
    """Parallel compilers: one per core, fewer where memory is short."""
    memory_gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    each = GIB_PER_GPU_COMPILER if gpu_flags() else GIB_PER_COMPILER
    return max(1, min(os.cpu_count() or 1, int(memory_gib / each)))
