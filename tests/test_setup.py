"""lib/pipeline/setup.py and lib/pipeline/toolchain.py without network and without compiling anything."""

import ast
import contextlib
import hashlib
import http.server
import importlib.metadata
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lib.pipeline import compilers, lock, machine, run, setup, toolchain

ROOT = Path(__file__).resolve().parent.parent
MODULES = ["commands", "compilers", "files", "ranks", "setup", "toolchain"]


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def clone(tmp_path):
    """A fresh clone's files, as far as the set-up reads them, with no requirements and llama.cpp already cached."""
    folder = tmp_path / "clone"
    (folder / "lib" / "pipeline").mkdir(parents=True)
    modules = [
        f"lib/pipeline/{name}.py"
        for name in ("__init__", "commands", "compilers", "files", "ranks", "setup", "toolchain")
    ]
    for name in ("lib/__init__.py", *modules, "pyproject.toml", "toolchain.txt"):
        shutil.copy(ROOT / name, folder / name)
    for name in (*setup.PINS[:2], *setup.LOCKS):
        (folder / name).write_text("")
    toolchain.folder().mkdir(parents=True)
    return folder


def run_setup(folder, *args, **env):
    command = [sys.executable, "-m", "lib.pipeline.setup", *args]
    env = {**os.environ, "PYTHONPATH": "", **env}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


@pytest.mark.parametrize("name", MODULES)
def test_an_old_python_can_read_the_file_and_say_so(name):
    ast.parse((ROOT / "lib" / "pipeline" / f"{name}.py").read_text(), feature_version=(3, 6))


def test_an_old_python_is_one_clear_line(monkeypatch, capsys):
    monkeypatch.setattr(setup.sys, "version_info", (3, 9, 2))
    assert setup.main([]) == 1
    assert capsys.readouterr().err == "setup: Python 3.9 found, 3.11 or later needed: make setup PYTHON3=python3.11\n"


def test_what_would_stop_the_set_up_late_is_said_first(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(setup.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 2**30))
    monkeypatch.setattr(setup, "VENV", ROOT / "no-such-folder")
    assert setup.checks() == [
        "no C++ compiler (no-such-compiler): on Debian or Ubuntu `apt install g++`",
        f"1.0 GiB free at {ROOT}, 8 GiB needed for packages and llama.cpp",
    ]
    toolchain.folder().mkdir(parents=True)
    assert not any("compiler" in problem for problem in setup.checks())


def test_an_index_that_cannot_be_reached_is_said_first_and_one_that_refuses_is_not(monkeypatch):
    """Nobody listens on the first port; the second refuses; a proxy of pip's own may reach what we cannot."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    shut = ["--extra-index-url", f"http://user:secret@127.0.0.1:{port}/whl/cpu"]
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)  # 501 to all
    threading.Thread(target=server.serve_forever, daemon=True).start()
    assert setup.unreachable(shut) == ["127.0.0.1"]
    assert setup.unreachable(["-i", f"http://127.0.0.1:{server.server_port}/simple", "--no-cache-dir"]) == []
    server.shutdown()
    assert setup.unreachable([*shut, "--proxy", "http://proxy.example:1"]) == []
    monkeypatch.setenv("PIP_ARGS", " ".join(shut))
    [problem] = [found for found in setup.checks() if "PIP_ARGS" in found]
    assert "127.0.0.1, named by PIP_ARGS, cannot be reached" in problem and "secret" not in problem


def test_nothing_is_made_when_a_check_fails(clone):
    shutil.rmtree(toolchain.cache_dir())
    result = run_setup(clone, CXX="no-such-compiler")
    assert result.returncode == 1
    assert result.stderr.startswith("setup: no C++ compiler (no-such-compiler)")
    assert not (clone / ".venv").exists() and not (clone / "outputs").exists()


def test_a_linked_environment_is_not_emptied(monkeypatch, tmp_path):
    """A .venv that leads to another checkout's does not fit this one; making it anew took the other one away."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "kept").touch()
    (tmp_path / ".venv").symlink_to(tmp_path / "other")
    monkeypatch.setattr(setup, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(setup, "PYTHON", tmp_path / ".venv" / "bin" / "python")
    with open(tmp_path / "log", "w") as sink:
        setup.make_venv(sink)
    assert (tmp_path / "other" / "kept").exists() and not (tmp_path / ".venv").is_symlink() and setup.PYTHON.exists()


def test_requirements_are_exact_pins_and_all_are_locked():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = [line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()]
    assert all(pin.count("==") == 1 and " " not in pin for pin in pins)
    assert len(setup.pins("requirements.txt")) == len(pins) and setup.unlocked() == []


def test_every_package_of_the_lock_files_has_hashes_and_nothing_else_stands_there():
    common, cuda, gpu = (lock.packages((ROOT / name).read_text()) for name in setup.LOCKS)
    for name, found in zip(setup.LOCKS, (common, cuda, gpu), strict=True):
        text = (ROOT / name).read_text()  # no index, no address: where the files lie is the reader's pip's business
        assert text == "# Written by `make lock`\n" + "".join(lines for _, lines in found)
        for _, lines in found:
            first, *hashes = lines.rstrip("\n").split(" \\\n")
            assert re.fullmatch(r"[a-z\d-]+==[\w.]+( ; [\w.<>!=' ()]+)?", first), first
            assert hashes and all(lock.HASH.fullmatch(line.strip()) for line in hashes), first
    names = [[name for name, _ in found] for found in (common, cuda, gpu)]
    assert not set(names[0]) & set(names[1]) and not set(names[2]) & {*names[0], *names[1]}
    assert len(set(names[0])) > 180 and "nvidia-cublas" in " ".join(names[1]) and "unsloth" in names[2]
    assert set(setup.FIRST) <= set(names[0])


def test_what_is_installed_first_needs_nothing_that_comes_later():
    """On a machine with empty caches a source package is built before anything else of the lock is there."""
    for name in setup.FIRST:
        for requirement in map(Requirement, importlib.metadata.requires(name) or ()):
            if not requirement.marker or requirement.marker.evaluate({"extra": ""}):
                assert canonicalize_name(requirement.name) in setup.FIRST, f"{name} needs {requirement.name}"


def test_the_lock_takes_torch_from_the_package_index_and_from_pytorchs(monkeypatch):
    known, new = "--hash=sha256:" + "1" * 64, "--hash=sha256:" + "2" * 64
    page = f'<a href="/torch-9.1.0%2Bcpu-cp311-cp311-manylinux_2_28_x86_64.whl#sha256={"3" * 64}">torch</a>'
    page += page.replace("9.1.0", "9.2.0").replace("3" * 64, "4" * 64) + page.replace("cpu", "cu130").replace("3", "5")
    monkeypatch.setattr(lock.urllib.request, "urlopen", lambda *args, **kw: io.BytesIO(page.encode()))
    locked = lock.with_cpu_wheels(f"torch==9.1.0 \\\n    {new}\n", f"torch==9.1.0 \\\n    {known}\n")
    assert locked == f"torch==9.1.0 \\\n    {new} \\\n    --hash=sha256:{'3' * 64}\n"

    def closed(*args, **kw):
        raise OSError("no route")

    monkeypatch.setattr(lock.urllib.request, "urlopen", closed)
    locked = lock.with_cpu_wheels(f"torch==9.1.0 \\\n    {new}\n", f"torch==9.1.0 \\\n    {known}\n")
    assert locked == f"torch==9.1.0 \\\n    {known} \\\n    {new}\n"
    with pytest.raises(ValueError, match="no hash of a CPU wheel of torch 9.2.0"):
        lock.with_cpu_wheels(f"torch==9.2.0 \\\n    {new}\n", f"torch==9.1.0 \\\n    {known}\n")


def test_only_another_build_of_torch_comes_without_a_hash():
    [pin] = [pin for pin in setup.pins("requirements.lock") if pin.startswith("torch==")]
    index = "https://download.pytorch.org/whl/"
    for args, found in (([], ""), (["-i", "https://mirror.example/simple"], ""), (["-i", index + "cpu"], ""),
                        (["--extra-index-url", index + "rocm6.4"], pin), (["-i", index + "cu126"], pin)):  # fmt: skip
        assert setup.own_torch(args) == found


def test_what_is_not_as_locked_is_not_installed(clone, tmp_path):
    (clone / ".venv").mkdir(exist_ok=True)
    (clone / ".venv/.ready").write_text("of other pins: back to these, it would be believed")
    wheel, about = tmp_path / "small-1-py3-none-any.whl", "small-1.dist-info/"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr(about + "METADATA", "Metadata-Version: 2.1\nName: small\nVersion: 1\n")
        file.writestr(about + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(about + "RECORD", "")
    args = {"PIP_ARGS": f"--no-index --find-links {tmp_path}", "PIP_FIND_LINKS": ""}
    for pin, sha, said in (
        ("absent==1", "0" * 64, "No matching distribution found for absent==1"),
        ("small==1", "0" * 64, "DO NOT MATCH THE HASHES"),
        ("small==1", hashlib.sha256(wheel.read_bytes()).hexdigest(), "step 'install this project' failed"),
    ):
        (clone / "requirements.lock").write_text(f"{pin} --hash=sha256:{sha}\n")
        failed = run_setup(clone, **args)
        assert failed.returncode == 1 and said in failed.stderr and "outputs/setup.log" in failed.stderr
        assert not (clone / ".venv/.ready").exists()
    (clone / "requirements.txt").write_text("Small_Er==2  # a reader's edit\n")
    assert "small-er==2 not in the lock files: run `make lock`" in run_setup(clone, **args).stderr


def test_second_run_only_compares_the_marker_which_follows_every_pin_file(clone, monkeypatch):
    monkeypatch.setattr(setup, "ROOT", clone)
    (clone / ".venv/bin").mkdir(parents=True)
    (clone / ".venv/bin/python").touch()
    (clone / ".venv/.ready").write_text(setup.fingerprint(gpu=False))
    result = run_setup(clone)  # there is no pip in that folder that it could call
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    for change in (*setup.PINS, *setup.LOCKS):
        before = setup.fingerprint(gpu=False)
        (clone / change).write_text((clone / change).read_text() + "# changed\n")
        assert setup.fingerprint(gpu=False) != before


def test_the_cache_key_follows_pin_and_flags(monkeypatch, tmp_path):
    first = toolchain.key()
    assert toolchain.folder() == tmp_path / "cache/medtune/llama.cpp" / first
    monkeypatch.setattr(toolchain, "FLAGS", [*toolchain.FLAGS, "-DGGML_CUDA=ON"])
    second = toolchain.key()
    pins = tmp_path / "toolchain.txt"
    pins.write_text("llama-cpp-python==0.3.36 --hash=sha256:" + "0" * 64)
    monkeypatch.setattr(toolchain, "PINS", pins)
    assert len({first, second, toolchain.key()}) == 3
    pins.write_text("llama-cpp-python==0.3.36")
    with pytest.raises(ValueError, match="restore it from git"):
        toolchain.key()


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Put a program that prints a text on a PATH that holds nothing else."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(compilers, "_program", lambda name, home: shutil.which(name))
    (tmp_path / "bin").mkdir()

    def add(name, text):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n/bin/cat <<'END'\n{text}\nEND\n")
        (tmp_path / "bin" / name).chmod(0o755)
        compilers.gpu_flags.cache_clear()

    compilers.gpu_flags.cache_clear()
    yield add
    compilers.gpu_flags.cache_clear()


def test_llama_cpp_is_built_for_the_gpus_there_are_and_cached_apart(program):
    without = toolchain.key()
    assert compilers.gpu_flags() == []
    program("nvcc", "")
    assert compilers.gpu_flags() == [] and toolchain.key() == without  # a compiler, and no GPU
    program("nvidia-smi", "9.0\n8.6\n9.0")
    cuda = toolchain.key()
    assert compilers.gpu_flags()[::2] == ["-DGGML_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=86;90"]
    program("nvidia-smi", "NVIDIA-SMI has failed because it could not communicate with the driver.")
    program("hipcc", "")
    program("rocm_agent_enumerator", "gfx000\ngfx942\ngfx942")
    assert compilers.gpu_flags() == ["-DGGML_HIP=ON", "-DGPU_TARGETS=gfx942"]
    assert len({without, cuda, toolchain.key()}) == 3


def test_the_build_says_how_long_it_will_take(monkeypatch, capsys):
    def command(args, sink, step, report=None):
        for line in ("[0/8] start", "[1/8] a", "[2/8] b", "c", "[4/8] d", "[8/8] e") if report else ():
            report(line)

    clock = iter([0, 30, 70, 100])  # seconds: the start, then each quarter that a line reaches
    monkeypatch.setattr(toolchain, "command", command)
    monkeypatch.setattr(toolchain.time, "monotonic", lambda: next(clock))
    toolchain.compile_programs("source", "build", None, [])
    assert re.findall(r"\((.+)\)", capsys.readouterr().out) == [
        "30 s, about 90 s to go", "70 s, about 70 s to go", "100 s, about 0 s to go"
    ]  # fmt: skip


def archive(path, *names):
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    return path


def test_only_what_the_build_reads_is_unpacked(tmp_path):
    inner = "llama_cpp_python-1/vendor/llama.cpp/"
    names = [*(inner + name for name in ("CMakeLists.txt", "docs/a.md", "src/models/qwen3.cpp")), "other/setup.py"]
    toolchain.unpack(archive(tmp_path / "a.tar.gz", *names), tmp_path / "out")
    files = [path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert sorted(map(str, files)) == ["CMakeLists.txt", "src/models/qwen3.cpp"]


@pytest.mark.skipif(not hasattr(tarfile, "data_filter"), reason="tarfile filters came with Python 3.11.4")
def test_an_archive_cannot_write_outside_its_folder(tmp_path):
    evil = archive(tmp_path / "a.tar.gz", "x/vendor/llama.cpp/../../evil")
    with pytest.raises(tarfile.FilterError):
        toolchain.unpack(evil, tmp_path / "deep/out")


def test_a_patch_that_no_longer_fits_stops_the_build(tmp_path):
    for name, (line, _) in toolchain.PATCHES.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(f"a\n{line}b\n")
    toolchain.patch(tmp_path)
    for name, (line, addition) in toolchain.PATCHES.items():
        assert (tmp_path / name).read_text() == f"a\n{line}{addition}b\n"
    (tmp_path / name).write_text("another version\n")
    with pytest.raises(toolchain.BuildError, match="found 0 times"):
        toolchain.patch(tmp_path)


def test_a_failed_build_leaves_nothing_behind_and_shows_the_log(monkeypatch, tmp_path):
    def fetch(work, sink, pip_args):
        (work / "half").touch()
        toolchain.command(
            [sys.executable, "-c", "print('THESE PACKAGES DO NOT MATCH THE HASHES'); exit(1)"], sink, "get"
        )

    monkeypatch.setattr(toolchain, "fetch", fetch)
    with pytest.raises(toolchain.BuildError, match=r"step 'get' failed with exit status 1(.|\n)*DO NOT MATCH"):
        toolchain.build(tmp_path / "log")
    assert [path.suffix for path in toolchain.folder().parent.iterdir()] == [".lock"]


def test_a_gpu_build_that_fails_becomes_one_for_the_cpu_and_every_process_finds_it(
    program, monkeypatch, tmp_path, capsys
):
    program("nvcc", "")
    program("nvidia-smi", "9.0")
    wanted, tried = compilers.gpu_flags(), []

    def compiles(source, build_dir, sink, gpu):
        tried.append(gpu)
        if gpu:
            raise toolchain.BuildError("step 'compile llama.cpp' failed with exit status 1.\nnvcc fatal: compute_90")

    monkeypatch.setattr(toolchain, "fetch", lambda work, sink, pip_args: work)
    monkeypatch.setattr(toolchain, "patch", lambda source: None)
    monkeypatch.setattr(toolchain, "compile_programs", compiles)
    monkeypatch.setattr(toolchain, "install", lambda source, build, done, sink: done.mkdir())
    home = toolchain.build(tmp_path / "log")
    assert tried == [wanted, []] and home == toolchain.folder([]) == toolchain.folder() and home.is_dir()
    said = capsys.readouterr().out
    assert "could not be built for the GPU (step 'compile llama.cpp' failed with exit status 1." in said
    assert toolchain.ready()  # it is not tried again by each `make`
    program("nvidia-smi", "")  # a login node
    assert toolchain.folder() == home and toolchain.ready()
    program("nvidia-smi", "8.0")  # another machine with the same home, or an nvcc that came later
    assert not toolchain.ready()


def test_a_gpu_without_its_compiler_or_without_a_torch_that_sees_it_is_said(program, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert compilers.missing() is None and setup.refuse_unseen("none") is None and machine.refuse_unseen() is None
    program("nvidia-smi", "GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-1)")
    assert compilers.missing() == "nvcc" and compilers.nvidia() == ["NVIDIA A100-SXM4-80GB"]
    for sees, how in (("True", contextlib.nullcontext()), ("False", pytest.raises(setup.BuildError, match="driver"))):
        program("python", f"2.12.0 {sees}")
        with how:
            setup.refuse_unseen(tmp_path / "bin" / "python")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="nvidia-smi sees NVIDIA A100-SXM4-80GB, and torch .* driver"):
        run.start("01_dataset")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # asked for
    setup.refuse_unseen(tmp_path / "bin" / "python")
    machine.refuse_unseen()
    program("nvcc", "")
    assert compilers.missing() is None


def test_of_two_builders_at_once_one_builds(tmp_path):
    code = (
        "import sys\nfrom lib.pipeline import toolchain\n"
        "def fetch(work, sink, pip_args):\n    print('built', flush=True); sys.stdin.read(); return work\n"
        "toolchain.fetch = fetch\ntoolchain.patch = toolchain.compile_programs = lambda *args: None\n"
        "toolchain.install = lambda source, build, done, sink: done.mkdir()\n"
        "assert toolchain.build(sys.argv[1]).is_dir()"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    commands = [[sys.executable, "-c", code, str(tmp_path / f"log{n}")] for n in range(2)]
    how = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": env}
    first = subprocess.Popen(commands[0], **how)
    assert "built" in first.stdout.readline()  # and builds until it is told to end
    second = subprocess.Popen(commands[1], **how)
    assert "waiting" in second.stdout.readline()
    assert "built" not in first.communicate()[0] + second.communicate()[0]
    assert (first.returncode, second.returncode) == (0, 0)


def test_the_build_ends_when_the_install_fails(monkeypatch, tmp_path):
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\nsleep 30 & echo $! > {tmp_path}/child\nwait\n")
    script.chmod(0o755)
    monkeypatch.setattr(setup, "PYTHON", script)
    with pytest.raises(toolchain.BuildError), setup.background_build([]) as process:
        while not (tmp_path / "child").exists() or not (tmp_path / "child").read_text().strip():
            time.sleep(0.01)
        raise toolchain.BuildError("pip failed")
    assert process.returncode == -15
    child = Path("/proc", (tmp_path / "child").read_text().strip(), "stat")
    for _ in range(100):  # the signal takes a moment
        gone = not child.exists() or child.read_text().split()[2] == "Z"
        time.sleep(0 if gone else 0.1)
    assert gone
