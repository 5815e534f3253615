"""llama.cpp, built once per machine from the pinned source archive into the user's cache folder.

Standard library only: setup.py runs this before anything is installed. programs.py finds the result by the same key.
"""

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from lib.pipeline.commands import BuildError, command, locked, say
from lib.pipeline.compilers import gpu_flags, jobs
from lib.pipeline.files import ROOT, cache_dir

PINS = ROOT / "toolchain.txt"
PROGRAMS = ["llama-quantize", "llama-perplexity", "llama-server", "llama-imatrix"]
KEEP = ["convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "conversion", "gguf-py/gguf", "LICENSE"]
KEEP += ["models"]  # real vocabularies and chat templates, for tests
FLAGS = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DCMAKE_CXX_FLAGS_RELEASE=-O1 -DNDEBUG",  # most of the build is C++ that is not hot; ggml gets -O3 below
    "-DCMAKE_BUILD_RPATH_USE_ORIGIN=ON",  # programs find their libraries beside them, wherever the folder is moved
    "-DGGML_NATIVE=OFF",  # AVX2 at most: one cache serves several machines, and AMX kernels crashed in virtual machines
    "-DGGML_CCACHE=OFF",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",  # the default fetches the web page of llama-server from a hub while building
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
]
PATCHES = {  # file: (line, what follows it); each must be found exactly once
    # The log is written by a thread that nobody waits for: on a busy machine one run in four of llama-perplexity ended
    # without its last lines, the result among them.
    "common/log.cpp": (
        "        log = new common_log;\n",
        "        std::atexit([] { common_log_main()->pause(); });\n",
    ),
    "ggml/CMakeLists.txt": (
        'project("ggml" C CXX ASM)\n',
        'set(CMAKE_CXX_FLAGS_RELEASE "-O3 -DNDEBUG")\n',
    ),
}


SLOW = "chapters 5 and 6 answer at a CPU's speed, many times slower than `make plan` says"


def key(gpu=None):
    """16 hex digits of what decides the binaries: archive hash, cmake flags, GPU, system, machine and C library.

    gpu: its cmake flags; None for those that the set-up built with, so that no other process asks for GPUs: one that
    sees none, on a login node say, finds the same folder.
    """
    gpu = (recorded() or {"built": gpu_flags()})["built"] if gpu is None else gpu
    pin = re.search(r"sha256:([0-9a-f]{64})", PINS.read_text(encoding="utf-8"))
    if pin is None:
        raise ValueError(f"{PINS.name} holds no line with --hash=sha256:<64 hex digits>; restore it from git")
    libc = os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", {}) else ""
    parts = [
        pin.group(1),
        *FLAGS,
        *gpu,
        *PROGRAMS,
        *KEEP,
        repr(PATCHES),
        platform.system(),
        platform.machine(),
        libc or "",
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def folder(gpu=None):
    """Where the built toolchain is, or will be. It appears by one rename: if the folder exists, it is complete."""
    return cache_dir() / "llama.cpp" / key(gpu)


def recorded():
    """{"wanted", "built"}: the GPU flags of the machine that the set-up ran on, and those it could build with."""
    try:
        return json.loads(folder([]).with_suffix(".json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def ready():
    """Whether nothing is to be built here: there is a build, and no GPU that it was not tried for."""
    found = recorded()
    return folder().is_dir() and (not found or gpu_flags() in ([], found["wanted"]))


def build(log, pip_args=()):
    """Download, unpack, compile and install llama.cpp; returns the folder. Does nothing when it is there already.

    log: path of the full log. pip_args: index options for pip, as a list.
    Runs with the Python of .venv, where cmake, ninja and scikit-build-core are installed. Raises BuildError; where only
    the GPU's part cannot be compiled, a line says so and the build is one for the CPU.
    """
    wanted = gpu_flags()
    home = folder(wanted)
    home.parent.mkdir(parents=True, exist_ok=True)
    with locked(home.with_suffix(".lock")):
        if home.is_dir():
            return record(wanted, wanted)
        for stale in home.parent.glob(home.name + ".tmp-*"):  # left by a builder that was killed
            shutil.rmtree(stale, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=home.name + ".tmp-", dir=home.parent))
        try:
            with open(log, "w", encoding="utf-8", buffering=1) as sink:
                source = fetch(work, sink, pip_args)
                patch(source)
                built = compiled(source, work, sink, wanted)
            if not folder(built).is_dir():
                (work / "done").rename(folder(built))
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return record(wanted, built)


def record(wanted, built):
    """Keep which GPU flags were wanted and built with; returns the folder."""
    path = folder([]).with_suffix(".json")
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    partial.write_text(json.dumps({"wanted": wanted, "built": built}), encoding="utf-8")
    partial.replace(path)
    return folder(built)


def compiled(source, work, sink, gpu):
    """Compile and install into work/done, for the CPU where the GPU's part fails; returns the GPU flags built with."""
    try:
        compile_programs(source, work / "build", sink, gpu)
        install(source, work / "build", work / "done", sink)
        return gpu
    except BuildError as error:
        if not gpu:
            raise
        reason = str(error).partition("\n")[0]
        say(f"llama.cpp could not be built for the GPU ({reason}; {sink.name}), so it is built for the CPU: {SLOW}")
    for name in ("build", "done"):
        shutil.rmtree(work / name, ignore_errors=True)
    return compiled(source, work, sink, [])


def fetch(work, sink, pip_args):
    """Let pip download and hash-check the pinned archive, unpack vendor/llama.cpp; returns its folder."""
    start = time.monotonic()
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python", "--require-hashes"]
    # Without build isolation pip reads the archive's metadata in seconds instead of a minute.
    command(pip + ["--no-build-isolation", *pip_args, "-d", str(work), "-r", str(PINS)], sink, "download llama.cpp")
    [archive] = work.glob("*.tar.gz")
    unpack(archive, work / "source")
    archive.unlink()
    say(f"download llama.cpp, check its hash ({time.monotonic() - start:.0f} s)")
    return work / "source"


def unpack(archive, target):
    """Extract the members of <name>/vendor/llama.cpp/ into target, without the folders that the build never reads."""
    unused = ("docs/", "media/", "benches/", "examples/", "tests/", "tools/ui/src/", "tools/ui/static/")
    safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # absent before Python 3.11.4
    with tarfile.open(archive) as tar:
        for member in tar:
            inner = member.name.partition("/vendor/llama.cpp/")[2]
            if inner and not inner.startswith(unused):
                member.name = inner
                tar.extract(member, target, **safe)


def patch(source):
    """Apply PATCHES to the unpacked tree. Raises BuildError when a new pin no longer has the line."""
    for name, (line, addition) in PATCHES.items():
        text = (source / name).read_text(encoding="utf-8")
        if text.count(line) != 1:
            raise BuildError(f"patch of {name}: {line.strip()!r} found {text.count(line)} times, not once; see PATCHES")
        (source / name).write_text(text.replace(line, line + addition), encoding="utf-8")


def compile_programs(source, build_dir, sink, gpu):
    """cmake, then ninja, with a line of progress and of the time that is left at each quarter."""
    start = time.monotonic()
    command(
        ["cmake", "-G", "Ninja", "-S", str(source), "-B", str(build_dir), *FLAGS, *gpu],
        sink,
        "configure llama.cpp",
    )
    quarter = 1

    def report(line):
        nonlocal quarter
        found = re.match(r"\[(\d+)/(\d+)\]", line)
        done, total = map(int, found.groups()) if found else (0, 1)
        if 4 * done >= quarter * total:
            quarter, spent = quarter + 1, time.monotonic() - start
            left = spent / done * (total - done)
            say(f"llama.cpp: {done} of {total} files compiled ({spent:.0f} s, about {left:.0f} s to go)")

    command(["ninja", "-C", str(build_dir), "-j", str(jobs()), *PROGRAMS], sink, "compile llama.cpp", report)


def install(source, build_dir, target, sink):
    """Copy programs, libraries and converter into target and run one program from there."""
    target.mkdir()
    for item in (build_dir / "bin").iterdir():
        if item.name in PROGRAMS or item.name.startswith("lib"):
            shutil.copy2(item, target / item.name, follow_symlinks=False)
    for name in KEEP:
        copy = shutil.copytree if (source / name).is_dir() else shutil.copy2
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        copy(source / name, target / name)
    command([str(target / "llama-server"), "--version"], sink, "start llama-server")


def main():
    """`python -m lib.pipeline.toolchain [LOG [pip arguments]]`: build at low priority; exit status 1 on failure."""
    log = sys.argv[1] if len(sys.argv) > 1 else "toolchain.log"
    with contextlib.suppress(AttributeError, OSError):
        os.nice(5)  # the pip install beside it should not wait
    try:
        build(log, sys.argv[2:])
    except BuildError as error:
        print(error, f"Full log: {log}", sep="\n", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
