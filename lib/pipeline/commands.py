"""What other programs are run with: logged commands, one builder at a time, programs that end with their starter.

Standard library only, for toolchain.py uses it before anything is installed.
"""

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

# Names of secrets, and a password within an address.
VARIABLE = re.compile(
    r"(.*_)?(TOKENS?|KEYS?|SECRETS?|CREDENTIALS?|PASS|PAT|AUTH)(_\w+)?|.*(PASSWORD|PASSWD|APIKEY).*", re.I
)
USER_INFO = re.compile(r"(?<=://)[^/\s\"<>]+@")  # up to the last @: a password may hold one
HELD = (  # it dies with the thread that started it, even by SIGKILL (PR_SET_PDEATHSIG is 1)
    "import ctypes, os, signal, sys\n"
    "if sys.platform == 'linux': ctypes.CDLL(None).prctl(1, signal.{end})\n"
    "os.execv(sys.argv[1], sys.argv[1:])"
)


class BuildError(Exception):
    """A step of the build failed; the message names the step, the log and its last lines."""


def say(text):
    """One short line of progress for the terminal."""
    print(f"setup: {text}", flush=True)


def tail(log, lines=20):
    """Last lines of a log file, for an error message."""
    return "\n".join(Path(log).read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def held(*command, end="SIGKILL"):
    """The command of a program, given by its path, that ends with the thread that starts it, by a signal."""
    return [sys.executable, "-c", HELD.replace("{end}", end), *map(str, command)]


def ended(process, wait_s):
    """Ask a program to end, and kill it where it does not in time."""
    process.terminate()
    try:
        process.wait(timeout=wait_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def environment():
    """This process's environment without what would change llama.cpp's behaviour behind our back, and without keys."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LLAMA_", "GGML_"))}
    secret = {name for name, value in kept.items() if VARIABLE.fullmatch(name) or USER_INFO.search(value)}
    return {**{name: value for name, value in kept.items() if name not in secret}, "HF_HUB_OFFLINE": "1"}


@contextlib.contextmanager
def locked(path):
    """Hold an exclusive lock on a file; a second builder waits here, then finds the work done."""
    import fcntl  # not on Windows, where nothing but this line needs it

    with open(path, "w", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("another process is building llama.cpp; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def command(args, sink, step, report=None):
    """Run one command with its output in the log; report is called with each line. Raises BuildError."""
    bin_dir = str(Path(sys.executable).parent)
    env = {**os.environ, "PATH": bin_dir + os.pathsep + os.environ.get("PATH", "")}
    sink.write("$ " + " ".join(args) + "\n")
    text = {"encoding": "utf-8", "errors": "replace"}
    with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, **text) as process:
        for line in process.stdout:
            sink.write(line)
            if report:
                report(line)
    sink.flush()
    if process.returncode != 0:
        raise BuildError(f"step '{step}' failed with exit status {process.returncode}.\n{tail(sink.name)}")
