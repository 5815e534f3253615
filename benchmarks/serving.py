"""The API beside llama-server itself and the LiteLLM proxy: first token, tokens a second, many streams for minutes.

Every round asks all of them in turn with the same load from one process, so that what else the machine does falls on
all. The machine's cores are shared by model, server and load: the same is measured before a backend that sends at a
stated rate and costs no time. LiteLLM is started from --litellm (a venv of its own: `pip install "litellm[proxy]"`).
"""

import argparse
import asyncio
import json
import os
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
from lib.export import serve
from lib.pipeline import recipe

QUESTION = "A 54-year-old has pale skin and is always tired. What is the most likely diagnosis? ({})"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


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


async def load(target, streams, requests, tokens):
    """So many requests through so many streams: {"first": [seconds], "tokens_s", "lost", "texts"}."""
    url, key, model = target
    found, lost, todo = [], 0, iter(range(requests))
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True), trust_env=False
    ) as session:

        async def worker():
            nonlocal lost
            for number in todo:
                try:
                    found.append((number, *await stream(session, url, key, model, number % 50, tokens)))
                except (RuntimeError, aiohttp.ClientError, OSError) as error:
                    lost += 1
                    print(f"  lost: {error}", file=sys.stderr)

        start = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(streams)))
        seconds = time.perf_counter() - start
    texts = {number: text for number, _, _, text in found}
    return {"first": [f for _, f, _, _ in found if f], "tokens_s": sum(p for _, _, p, _ in found) / seconds,
            "lost": lost, "texts": texts}  # fmt: skip


async def paced(reader, writer, rate):
    """A backend that answers everything with 64 pieces, `rate` of them a second."""
    try:
        while line := await reader.readline():
            length = 0
            while (header := await reader.readline()).strip():
                if header.lower().startswith(b"content-length:"):
                    length = int(header.split(b":")[1])
            await reader.readexactly(length)
            if b"chat/completions" not in line:
                writer.write(
                    b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n{"status":"ok"}'
                )
                continue
            writer.write(HEAD)
            start = time.perf_counter()
            for number in range(64):
                await asyncio.sleep(max(0.0, start + number / rate - time.perf_counter()))
                _event(writer, {"content": f" w{number}"}, None)
            _event(writer, {}, "length")
            usage = {
                "choices": [],
                "usage": {"prompt_tokens": 20, "completion_tokens": 64, "total_tokens": 84},
                **FRAME,
            }
            _chunk(writer, b"data: " + json.dumps(usage).encode() + b"\n\ndata: [DONE]\n\n")
            writer.write(b"0\r\n\r\n")
            await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


FRAME = {"created": 1, "id": "chatcmpl-x", "model": "paced", "object": "chat.completion.chunk"}


def _event(writer, delta, finish):
    choice = {"choices": [{"finish_reason": finish, "index": 0, "delta": delta}]}
    _chunk(writer, b"data: " + json.dumps(choice | FRAME, separators=(",", ":")).encode() + b"\n\n")


def _chunk(writer, data):
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


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


def litellm(program, url, folder):
    """LiteLLM's proxy before the same backend: (process, address)."""
    here, config = port(), Path(folder, f"litellm{port()}.yaml")
    config.write_text(json.dumps({"model_list": [{"model_name": "m", "litellm_params": {
        "model": "openai/m", "api_base": url + "/v1", "api_key": "none"}}]}))  # fmt: skip
    command = [program, "--config", str(config), "--port", str(here), "--host", "127.0.0.1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ready = launcher.healthy(f"http://127.0.0.1:{here}/health/liveliness")
    while not ready():
        if process.poll() is not None:
            raise RuntimeError(f"{program} ended with status {process.returncode}")
        time.sleep(0.5)
    return process, f"http://127.0.0.1:{here}"


async def compare(targets, how):
    """Rounds over all targets: prints a row for each, ratios to the first; returns nothing lost."""
    alone, many, texts = {n: [] for n in targets}, {n: [] for n in targets}, {}
    for target in targets.values():
        await load(target, 2, 4, 8)
    for _ in range(how.rounds):
        for name, target in targets.items():
            one = await load(target, 1, how.alone, 8)
            alone[name] += one["first"]
            crowd = await load(target, how.streams, how.requests, how.tokens)
            many[name].append(crowd)
            texts.setdefault(name, crowd["texts"])
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
    return all(c["lost"] == 0 for crowds in many.values() for c in crowds)


async def cost(target, pid, how):
    """Processor time that the API takes, which other load on the machine does not change: an answer of 1 and of n."""
    tick, took = os.sysconf("SC_CLK_TCK"), []
    for tokens in (1, how.tokens):
        before = sum(int(n) for n in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])
        found = await load(target, how.streams, how.requests, tokens)
        after = sum(int(n) for n in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])
        took.append((1000 * (after - before) / tick / how.requests, len(found["first"]) and found["tokens_s"]))
    print(
        f"processor time of the API: {took[0][0]:.2f} ms for an answer of 1 token, {took[1][0]:.2f} ms for {how.tokens}"
    )


async def soak(target, pid, seconds, streams):
    """`streams` for so long: answers, lost ones, mixed-up ones, and the API's memory at the start and the end."""
    end, first, lost, mixed, answers, memory = time.monotonic() + seconds, {}, 0, 0, 0, []
    while time.monotonic() < end:
        found = await load(target, streams, 5 * streams, 32)
        lost += found["lost"]
        for number, text in found["texts"].items():
            answers += 1
            mixed += first.setdefault(number % 50, text) != text
        status = Path(f"/proc/{pid}/status").read_text()
        memory.append(int(status.split("VmRSS:")[1].split()[0]) / 1024)
    print(
        f"{streams} streams for {seconds} s: {answers} answers, {lost} lost, {mixed} other than the first to the same"
    )
    print(f"question; memory {memory[0]:.0f} MiB after the first round, {memory[-1]:.0f} MiB at the end")


def against(url, direct, how, pid_wanted=False):
    """All servers before one backend, compared."""
    with tempfile.TemporaryDirectory() as folder:
        child, ours = our(url, max(how.streams, 4))
        targets = {direct: (url, "none", "m"), "the API": (ours, "none", "")}
        other = None
        try:
            if how.litellm:
                other, address = litellm(how.litellm, url, folder)
                targets["LiteLLM proxy"] = (address, "none", "m")
            asyncio.run(compare(targets, how))
            asyncio.run(cost(targets["the API"], child.process.pid, how))
            if how.soak:
                asyncio.run(soak(targets["the API"], child.process.pid, how.soak, how.soak_streams))
        finally:
            child.stop()
            if other:
                other.terminate()
                other.wait()


def main(args=None):
    """Measure before the run's model, then before the paced backend."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("rounds", 5), ("alone", 40), ("streams", 64), ("requests", 256), ("tokens", 64), ("rate", 20),
                        ("soak", 0), ("soak-streams", 200), ("threads", 1)):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--litellm", default=os.environ.get("LITELLM"), help="path of the program litellm")
    parser.add_argument("--paced-only", action="store_true", help="leave the run's model out")
    how = parser.parse_args(args)
    if not how.paced_only:
        cfg = recipe.chosen(recipe.parser(__doc__).parse_args([]))
        model = catalogue.models(cfg, settings.load())[0]
        print(f"before llama-server with {model.name}, {how.streams} streams of {how.tokens} tokens")
        with serve.running(model.path, slots=max(how.streams, 4), ctx=256, threads=how.threads) as url:
            against(url, "llama-server", how)
    here = port()
    code = f"import asyncio; from benchmarks import serving; asyncio.run(serving.pace({here}, {how.rate}))"
    with subprocess.Popen([sys.executable, "-c", code]) as backend:
        while not launcher.healthy(f"http://127.0.0.1:{here}/health")():
            time.sleep(0.1)
        print(f"before a backend that sends {how.rate} tokens a second to each stream")
        try:
            against(f"http://127.0.0.1:{here}", "the backend", how)
        finally:
            backend.terminate()


async def pace(here, rate):
    """Serve `paced` until it is ended."""
    server = await asyncio.start_server(lambda r, w: paced(r, w, rate), "127.0.0.1", here, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    main()
