"""The API beside llama-server itself and the LiteLLM proxy: first token, tokens a second, many streams for minutes.

Every round asks all of them in turn with the same load from one process, so that what else the machine does falls on
all. The machine's cores are shared by model, server and load: the same is measured before a backend that sends at a
stated rate and costs no time. LiteLLM is started from --litellm (a venv of its own: `pip install "litellm[proxy]"`);
with --guidellm (see benchmarks.guided) its load is put on all of them as well.
"""

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import aiohttp

from app import __main__ as launcher
from app import catalogue, settings
from benchmarks import guided
from lib.export import serve
from lib.pipeline import recipe

LITELLM_KEY = "sk-" + secrets.token_hex(32)  # it does not start without one
LOST = (RuntimeError, aiohttp.ClientError, OSError)
# of the numbers, q keeps 40 from being a fever to the guard
QUESTION = "A 54-year-old has pale skin and is always tired. What is the most likely diagnosis? q{}"


async def stream(session, url, key, model, number, tokens):
    """One streamed answer: (seconds to the first token, pieces, text). Raises on anything but a whole answer."""
    start, first, pieces, text = time.perf_counter(), None, 0, []
    body = {"model": model, "stream": True, "max_tokens": tokens, "temperature": 0, "messages": [
        {"role": "user", "content": QUESTION.format(number)}]}  # fmt: skip
    async with session.post(
        url + "/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"}
    ) as reply:
        if reply.status != 200:
            raise RuntimeError(f"{url}: status {reply.status}: {(await reply.text())[:200]}")
        done = False
        async for line in reply.content:
            if line.startswith(b'data: {"error'):
                raise RuntimeError(f"{url}: {line[:200]!r}")
            if line.startswith(b"data: [DONE]"):
                done = True
            elif line.startswith(b"data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    delta = choice["delta"]
                    piece = delta.get("reasoning_content") or delta.get("content")
                    if piece:
                        first = first or time.perf_counter() - start
                        pieces += 1
                        text.append(piece)
    if not done:
        raise RuntimeError(f"{url}: the stream has no end")
    return first, pieces, "".join(text)


def client():
    """A session of the load: a connection for each request, and no proxy."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True), trust_env=False)


async def load(target, streams, requests, tokens):
    """So many requests through so many streams: {"first": [seconds], "tokens_s", "lost"}."""
    found, lost, todo = [], 0, iter(range(requests))
    async with client() as session:

        async def worker():
            nonlocal lost
            for number in todo:
                try:
                    found.append(await stream(session, *target, number % 50, tokens))
                except LOST as error:
                    lost += 1
                    print(f"  lost: {error}", file=sys.stderr)

        start = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(streams)))
        seconds = time.perf_counter() - start
    first, pieces = [f for f, _, _ in found if f], sum(p for _, p, _ in found)
    return {"first": first, "tokens_s": pieces / seconds, "lost": lost}


def port():
    """A free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def our(url, slots):
    """The API of app/ before a backend that runs: a started Child."""
    here = port()
    how = {
        "backend_url": url,
        "backend_key": getattr(url, "key", ""),
        "port": here,
        "rate": "off",
        "concurrency": 1000,
        "slots": slots,
        "queue": 1000,
        "queue_s": 600,
    }
    env = {f"SERVE_{name.upper()}": str(value) for name, value in (how | {"log_file": os.devnull}).items()}
    child = launcher.Child("API", ["-m", "app.server"], env, launcher.healthy(f"http://127.0.0.1:{here}/ready"))
    child.start()
    return child, f"http://127.0.0.1:{here}"


@contextlib.contextmanager
def paced(rate):
    """A backend that sends so many tokens a second to each stream: (address, process id)."""
    here = port()
    with subprocess.Popen([sys.executable, "-m", "benchmarks.paced", str(here), str(rate)]) as backend:
        try:
            while not launcher.healthy(f"http://127.0.0.1:{here}/health")():
                time.sleep(0.1)
            yield f"http://127.0.0.1:{here}", backend.pid
        finally:
            backend.terminate()


def litellm(program, url, folder):
    """LiteLLM's proxy before the same backend: (process, address)."""
    here, config = port(), Path(folder, f"litellm{port()}.yaml")
    config.write_text(json.dumps({"model_list": [{"model_name": "m", "litellm_params": {
        "model": "openai/m", "api_base": url + "/v1", "api_key": getattr(url, "key", "none")}}],
        "general_settings": {"master_key": LITELLM_KEY}}))  # fmt: skip
    command = [program, "--config", str(config), "--port", str(here), "--host", "127.0.0.1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ready = launcher.healthy(f"http://127.0.0.1:{here}/health/liveliness")
    while not ready():
        if process.poll() is not None:
            raise RuntimeError(f"{program} ended with status {process.returncode}")
        time.sleep(0.5)
    return process, f"http://127.0.0.1:{here}"


async def compare(targets, how):
    """Rounds over all targets: prints a row for each, with ratios to the first."""
    alone, many = {n: [] for n in targets}, {n: [] for n in targets}
    for target in targets.values():
        await load(target, 2, 4, 8)
    for _ in range(how.rounds):
        for name, target in targets.items():
            one = await load(target, 1, how.alone, 8)
            alone[name] += one["first"]
            crowd = await load(target, how.streams, how.requests, how.tokens)
            many[name].append(crowd)
    base = next(iter(targets))
    print("| server | first token, median | 95th percentile | added, median | added, 95th | tokens/s | share | lost |")
    print("|:--|--:|--:|--:|--:|--:|--:|--:|")
    for name in targets:
        q = {n: statistics.quantiles(alone[n], n=20) for n in (base, name)}
        rate = statistics.median(c["tokens_s"] for c in many[name])
        share = statistics.median(c["tokens_s"] / b["tokens_s"] for c, b in zip(many[name], many[base], strict=True))
        added = [1000 * (q[name][at] - q[base][at]) for at in (9, 18)]
        lost = sum(crowd["lost"] for crowd in many[name])
        print(f"| {name} | {1000 * q[name][9]:.2f} ms | {1000 * q[name][18]:.2f} ms", end=" | ")
        print(f"{added[0]:+.2f} ms | {added[1]:+.2f} ms | {rate:,.0f} | {100 * share:.1f} % | {lost} |")


def processor(pid):
    """Milliseconds of processor time, user and system, that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return 1000 * (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def cost(targets, pids, how):
    """Processor time a streamed token, which other load on the machine does not change: {"name": milliseconds}."""
    for name, pid in pids.items():
        before = processor(pid)
        await load(targets[name], how.streams, how.requests, how.tokens)
        took = (processor(pid) - before) / how.requests
        print(f"processor time of {name}: {took:.2f} ms an answer, {1000 * took / how.tokens:.0f} us a token")


def against(url, direct, pid, how):
    """All servers before one backend, of process `pid`, compared."""
    with tempfile.TemporaryDirectory() as folder:
        child, ours = our(url, max(how.streams, 4))
        targets = {direct: (url, getattr(url, "key", "none"), "m"), "the API": (ours, "none", "")}
        other = None
        try:
            if how.litellm:
                other, address = litellm(how.litellm, url, folder)
                targets["LiteLLM proxy"] = (address, LITELLM_KEY, "m")
            asyncio.run(compare(targets, how))
            pids = {direct: pid, "the API": child.process.pid} | ({"LiteLLM proxy": other.pid} if other else {})
            asyncio.run(cost(targets, pids, how))
            if how.guidellm:
                guided.compare(how.guidellm, targets, QUESTION, how)
        finally:
            child.stop()
            if other:
                other.terminate()
                other.wait()


def main(args=None):
    """Measure before the run's model, then before the paced backend."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("rounds", 5), ("alone", 40), ("streams", 64), ("requests", 256), ("tokens", 64), ("rate", 20),
                        ("threads", 1)):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--litellm", default=os.environ.get("LITELLM"), help="path of the program litellm")
    parser.add_argument("--guidellm", default=os.environ.get("GUIDELLM"), help="path of the program guidellm")
    parser.add_argument("--paced-only", action="store_true", help="leave the run's model out")
    how = parser.parse_args(args)
    if not how.paced_only:
        cfg = recipe.chosen(recipe.parser(__doc__).parse_args([]))
        model = catalogue.models(cfg, settings.load())[0]
        print(f"before llama-server with {model.name}, {how.streams} streams of {how.tokens} tokens")
        with serve.running(model.path, slots=max(how.streams, 4), ctx=256, threads=how.threads) as url:
            (pid,) = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            against(url, "llama-server", pid, how)
    with paced(how.rate) as (url, pid):
        print(f"before a backend that sends {how.rate} tokens a second to each stream")
        against(url, "the backend", pid, how)


if __name__ == "__main__":
    main()
