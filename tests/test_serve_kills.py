"""kill -9 of each of the three processes of `make serve` under load, and Ctrl-C: nothing stays behind."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from served import ASK, wait
from test_gguf import bf16, twin  # noqa: F401 (fixtures)

from benchmarks.serving import port
from lib.pipeline import records
from lib.pipeline.files import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's"),
]


def parents():
    """{process id: its parent's} of this machine."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    return found


def below(pid):
    """Process ids of all descendants, by what they run: {"API", "page", "llama-server"}."""
    tree, found, todo = parents(), {}, [pid]
    while todo:
        one = todo.pop()
        todo += [child for child, parent in tree.items() if parent == one]
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{one}/cmdline").read_text()
            launching = command.split("\0")[1:2] == ["-c"]  # about to become what it names
            for name, mark in (("llama-server", "llama-server\0-m"), ("API", "app.server"), ("page", "app.site")):
                if mark in command and not launching:
                    found[name] = one
    return found


@pytest.fixture
def up(bf16, tmp_path, request):  # noqa: F811
    folder = tmp_path / "tiny" / "05_export" / "gguf"
    folder.mkdir(parents=True)
    shutil.copy(bf16, folder / "qat-q4_0.gguf")
    records.write(folder.parent / "stage.json", {"stage": "05_export", "outputs": {"gguf/qat-q4_0.gguf": "0"}})
    api, page = port(), port()
    env = {"OUTPUTS": str(tmp_path), "SERVE_PORT": str(api), "SERVE_UI_PORT": str(page), "SERVE_RATE": "off",
           "SERVE_LOG_FILE": "/dev/null", "SERVE_CONTEXT": "512"}  # fmt: skip
    ignored = getattr(request, "param", signal.SIG_DFL)  # what a shell does to SIGINT of what it runs behind nohup
    process = subprocess.Popen([sys.executable, "-m", "app"], cwd=ROOT, env=os.environ | env, stdout=subprocess.PIPE,
                               text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, ignored))  # fmt: skip
    url, stop, said = f"http://127.0.0.1:{api}", threading.Event(), ""
    while "messages" not in (line := process.stdout.readline()):
        assert line, "it ended"
        said += line
    assert f"API   {url}/v1 " in said and f"page  http://127.0.0.1:{page}\n" in said
    assert f"curl {url}/v1/chat/completions" in said

    def asks():
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
            while not stop.is_set():
                with contextlib.suppress(httpx.HTTPError):
                    client.post("/v1/chat/completions", json=ASK | {"max_tokens": 100})

    load = [threading.Thread(target=asks) for _ in range(4)]
    for thread in load:
        thread.start()
    yield process, url
    stop.set()
    for thread in load:
        thread.join()
    process.kill()
    process.wait()


def answers(url):
    with contextlib.suppress(httpx.HTTPError):
        reply = httpx.post(f"{url}/v1/chat/completions", json=ASK, timeout=30, trust_env=False)
        return reply.status_code == 200
    return False


def gone(pids):
    return lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids.values())


def test_each_of_them_killed_in_turn(up):
    process, url = up
    for name in ("llama-server", "page", "API"):
        before = below(process.pid)
        assert set(before) == {"API", "page", "llama-server"}
        os.kill(before[name], signal.SIGKILL)
        if name == "API":
            wait(gone({"llama-server": before["llama-server"]}))
        wait(lambda: below(process.pid).get(name, before[name]) != before[name], 60)  # noqa: B023
        wait(lambda: answers(url), 60)
        wait(lambda: set(below(process.pid)) == {"API", "page", "llama-server"}, 60)
    last = below(process.pid)
    process.kill()
    process.wait()
    wait(gone(last))


@pytest.mark.parametrize(
    ("up", "number"),
    [(signal.SIG_DFL, signal.SIGINT), (signal.SIG_DFL, signal.SIGTERM), (signal.SIG_IGN, signal.SIGTERM)],
    indirect=["up"],
    ids=["Ctrl-C", "SIGTERM", "SIGTERM behind nohup"],
)
def test_a_signal_ends_all_of_it(up, number):
    process, _ = up
    pids = below(process.pid)
    process.send_signal(number)
    assert process.wait(30) == 0
    wait(gone(pids))
