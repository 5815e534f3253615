"""What goes wrong behind and before the API: a bad backend, clients that leave, slow and hostile requests."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import time

import pytest
from limits.errors import StorageError
from served import (
    ASK,
    HEADERS,
    Backend,
    api,
    ending,
    events,
    llama,
    model,
    piece,
    raw,
    said,
    soon,
    stretch,
    wait,
    writes,
)
from test_gguf import bf16, twin  # noqa: F401 (fixtures)

from app import backend as backends
from app import logs, settings, stream
from app.access import Access
from app.errors import Problem

LONG = "qwen3.context_length=int:32768"  # the twin was trained for 512
STREAM = ASK | {"stream": True}


def ask(script, body=ASK, **over):
    with Backend(script) as backend, api(backend_url=backend.url, **over) as client:
        return client.post("/v1/chat/completions", json=body), backend


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("cut", [1, 2, 3, 7, 50, 10**6])
def test_reasoning_and_answer_are_told_apart_however_the_bytes_are_cut(cut, streamed):
    parts = ["<th", "ink>", "\n", "Naïve ", "体温", " 🩺", "\n</", "think>\n\n", 'It is "38.5"', " °C <", " 40."]
    whole = b"".join(piece(part) for part in parts)
    data = whole + ending(11)
    parts = [data[at : at + cut] for at in range(0, len(data), cut)]
    reply, _ = ask(writes(*parts), ASK | {"stream": streamed, "stream_options": {"include_usage": True}})
    if streamed:
        found = events(reply.text)
        got = said(found, "reasoning_content"), said(found, "reasoning"), said(found), found[-1]["usage"]
    else:
        message = reply.json()["choices"][0]["message"]
        got = message["reasoning_content"], message["reasoning"], message["content"], reply.json()["usage"]
    assert got[:3] == ("Naïve 体温 🩺", "Naïve 体温 🩺", 'It is "38.5" °C < 40.')
    assert got[3]["completion_tokens"] == 11 and got[3]["completion_tokens_details"]["reasoning_tokens"] == 8
    assert got[3]["guard"]["rules"] == []


async def five_hundred(writer, body):
    writer.write(b"HTTP/1.1 500 Oops\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")


async def resets(writer, body):
    writer.write(HEADERS + piece("a"))
    await writer.drain()
    await asyncio.sleep(0.1)
    writer.transport.abort()


async def closes_at_once(writer, body):
    writer.close()


async def stalls(writer, body):
    writer.write(HEADERS)
    await asyncio.sleep(60)


async def stalls_amid(writer, body):
    writer.write(HEADERS + piece("a"))
    await writer.drain()
    await asyncio.sleep(60)


BAD = {
    "500s": (five_hundred, (502,)),
    "resets": (resets, (502, 503)),
    "half an event": (writes(piece("a"), piece("b")[:40]), (502,)),
    "no end": (writes(piece("a")), (502,)),
    "no JSON": (writes(b"data: {oops\n\n"), (502,)),
    "an error event": (writes(piece("a"), b'data: {"error":{"message":"boom"}}\n\n'), (502,)),
    "an unknown choice": (writes(piece("a", index=4)), (502,)),
    "closes at once": (closes_at_once, (503,)),
    "stalls": (stalls, (504,)),
    "stalls amid": (stalls_amid, (504,)),
}


@pytest.mark.parametrize("name", BAD)
def test_a_backend_that_misbehaves_is_told_of_and_frees_its_slot(name):
    script, status = BAD[name]
    plain = model(form="instruction")
    with Backend(script) as backend, api(plain, backend_url=backend.url, first_token_s=0.5, slots=1) as client:
        reply = client.post("/v1/chat/completions", json=ASK)
        assert reply.status_code in status and reply.json()["error"]["type"] == "server_error"
        assert "retry-after" in reply.headers
        streamed = client.post("/v1/chat/completions", json=STREAM)
        if "a" in said(events(streamed.text)) and streamed.status_code == 200:
            assert "error" in events(streamed.text)[-1] and "[DONE]" not in streamed.text
        else:
            assert streamed.status_code in status
        backend.script = writes(piece("fine"), ending(1))
        again = client.post("/v1/chat/completions", json=ASK)
        assert again.json()["choices"][0]["message"]["content"] == "fine"
        slots = client.desk.backends["tiny/x"].slots
        wait(lambda: slots.free == 1 and not client.desk.access.busy["local"])


def test_every_refusal_is_metered_once(monkeypatch):
    how = {"keys": "a:x", "rate": "2/hour", "body_bytes": 2048}
    with Backend(five_hundred) as backend, api(backend_url=backend.url, **how) as client:
        key = {"Authorization": "Bearer x"}
        client.get("/v1/models")
        for body in ({}, ASK, ASK | {"model": "gpt-9"}):
            client.post("/v1/chat/completions", json=body, headers=key)
        wait(lambda: not client.desk.access.busy["a"])
        monkeypatch.setattr(client.desk.guard, "before", None)
        client.post("/v1/chat/completions", json=ASK, headers=key)
        client.post("/v1/chat/completions", json=ASK, headers=key)
        head = b"POST /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer x\r\nContent-Length: 9999\r\n\r\n"
        assert b"413" in raw(client, head)[0][:20]
        found = re.findall(r'medtune_errors_total\{code="(\w+)"\} (\S+)', client.get("/metrics", headers=key).text)
    codes = "invalid_api_key invalid_field backend_failed model_not_found internal rate_limit body_too_large".split()
    assert dict(found) == dict.fromkeys(codes, "1.0")


def test_an_answer_has_a_whole_time_limit():
    reply, _ = ask(writes(*[piece("a")] * 100, pause=0.05), answer_s=0.5)
    assert reply.status_code == 504 and reply.json()["error"]["code"] == "answer_timeout"


def test_the_queue_is_bounded_in_length_and_time():
    with Backend(stalls) as backend, api(backend_url=backend.url, slots=1, queue=1, queue_s=0.3) as client:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(3) as pool:
            first = pool.submit(client.post, "/v1/chat/completions", json=ASK, timeout=3)
            wait(lambda: backend.asked)
            second = pool.submit(client.post, "/v1/chat/completions", json=ASK)
            wait(lambda: client.desk.backends["tiny/x"].slots.waiting)
            third = client.post("/v1/chat/completions", json=ASK)
            assert (third.status_code, third.json()["error"]["code"]) == (503, "queue_full")
            assert second.result().json()["error"]["code"] == "queue_timeout"
            assert first.exception() is not None
        wait(lambda: client.desk.backends["tiny/x"].slots.free == 1)


def test_requests_at_once_are_bounded_and_one_that_is_refused_counts_for_nothing(monkeypatch):
    with Backend(stalls) as backend, api(backend_url=backend.url, concurrency=1, rate="9/second") as client:
        access, link = client.desk.access, leave(client, json.dumps(STREAM).encode())
        wait(lambda: backend.asked)
        second = client.post("/v1/chat/completions", json=ASK)
        assert (second.status_code, second.json()["error"]["code"]) == (429, "concurrency_limit")
        assert second.headers["retry-after"] == "1"
        link.close()
        wait(lambda: not access.busy["local"])

        async def slow(*given):
            await asyncio.sleep(0.01)
            return given[-1] != "late"

        async def together(*names):
            return await asyncio.gather(*map(access.admit, names), return_exceptions=True)

        monkeypatch.setattr(access.rates, "hit", slow)
        first, second = asyncio.run(together("a", "a"))
        assert first is None and second.code == "concurrency_limit"
        assert asyncio.run(together("late"))[0].code == "rate_limit" and not access.busy["late"]
        monkeypatch.setattr(access.rates, "hit", lost)
        away = client.post("/v1/chat/completions", json=ASK)
        assert (away.status_code, away.json()["error"]["code"]) == (503, "limits_unavailable")
        monkeypatch.undo()
        backend.script = writes(piece("fine"), ending(1))
        assert client.post("/v1/chat/completions", json=ASK).status_code == 200


async def lost(*given):
    raise StorageError(ConnectionError())


def leave(client, raw_body):
    """Send a request on a socket of its own, and return the socket."""
    link = socket.create_connection(("127.0.0.1", client.port))
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(raw_body)}\r\n\r\n"
    link.sendall(head.encode() + raw_body)
    return link


@pytest.mark.parametrize("where", ["queued", "before the first token", "amid the stream"])
def test_a_client_that_leaves_frees_its_slot(where):
    script = stalls if where == "before the first token" else stalls_amid
    with Backend(script) as backend, api(backend_url=backend.url, slots=1) as client:
        slots = client.desk.backends["tiny/x"].slots
        links = [leave(client, json.dumps(STREAM).encode())]
        wait(lambda: backend.asked)
        if where == "queued":
            links.insert(0, leave(client, json.dumps(STREAM).encode()))
            wait(lambda: slots.waiting)
        if where == "amid the stream":
            assert b"200 OK" in links[0].recv(100)
        links[0].close()
        if where == "queued":
            soon(lambda: not slots.waiting)
            assert slots.free == 0 and backend.left == 0
        else:
            soon(lambda: slots.free == 1 and backend.left == 1)
        for link in links:
            link.close()
        wait(lambda: slots.free == 1)
        assert 'medtune_cancelled_total{model="tiny/x"}' in client.get("/metrics").text


def test_a_client_that_does_not_read_gives_its_place_back(monkeypatch):
    monkeypatch.setattr("app.relay.FAIL_S", 0.5)
    much = writes(*[piece("word " * 12000)] * 1000)
    with Backend(much) as backend, api(model(form="instruction"), backend_url=backend.url, answer_s=1) as client:
        link = leave(client, json.dumps(STREAM).encode())
        wait(lambda: backend.asked)
        wait(lambda: not client.desk.access.busy["local"], 20)
        assert client.desk.backends["tiny/x"].slots.free == 4
        link.close()


def test_a_killed_llama_server_is_started_again_and_answers(bf16, monkeypatch):  # noqa: F811
    with api(model(bf16, context=1024), slots=2) as client:
        backend = client.desk.backends["tiny/x"]
        old = backend.process.pid
        body = STREAM | {"max_tokens": 900, "messages": [{"role": "user", "content": "fever"}]}
        with client.stream("POST", "/v1/chat/completions", json=body) as reply:
            lines = reply.iter_lines()
            next(lines)
            os.kill(old, signal.SIGKILL)
            rest = "\n".join(lines)
        assert '"error"' in rest or "[DONE]" in rest  # an answer may have been whole by then
        wait(lambda: backend.state != "ready" or backend.process.pid != old)
        reply = client.post("/v1/chat/completions", json=ASK)
        assert reply.status_code in (200, 503) and (reply.status_code == 200 or reply.headers["retry-after"])
        wait(lambda: backend.state == "ready" and backend.process.pid != old)
        assert client.post("/v1/chat/completions", json=ASK).status_code == 200 and backend.restarts == 1


def test_the_pauses_before_a_restart_double_and_begin_anew_after_health(bf16, monkeypatch):  # noqa: F811
    command, health, sleep = backends.Backend.command, backends.Backend.health, asyncio.sleep
    broken, pauses, heard = [], [], []

    async def hurried(seconds):
        pauses.extend([seconds] if seconds >= 0.5 else [])
        await sleep(0)

    async def listened(self, seconds):
        status = await health(self, seconds)
        heard.append(status == 200)
        return status

    async def until(what):
        async with asyncio.timeout(60):
            while not what():
                await sleep(0.02)

    async def main():
        how = settings.load(slots=1, log_file=os.devnull)
        backend = backends.Backend(model(bf16), how, logs.logger(how))
        await backend.start()
        try:
            broken.append(True)
            backend.process.kill()
            await until(lambda: len(pauses) >= 8)
            broken.clear()
            await until(lambda: backend.state == "ready")
            heard.clear()
            await until(lambda: any(heard[:-1]))  # what the first look found is known by the second
            told = len(pauses)
            backend.process.kill()
            await until(lambda: len(pauses) > told and backend.state == "ready")
            return told
        finally:
            await backend.stop()

    monkeypatch.setattr(backends, "WATCH_S", 1.0)
    monkeypatch.setattr(backends.Backend, "command", lambda *a: ["false"] if broken else command(*a))
    monkeypatch.setattr(backends.Backend, "health", listened)
    monkeypatch.setattr(asyncio, "sleep", hurried)
    told = asyncio.run(main())
    assert pauses[:8] == [0.5, 1, 2, 4, 8, 16, 30, 30] and pauses[told:] == [0.5]


@pytest.mark.parametrize("where", ["queued", "in prefill", "amid the stream"])
def test_a_slot_of_the_real_server_is_free_within_a_second_of_its_client(bf16, monkeypatch, where):  # noqa: F811
    command, made = backends.Backend.command, model(bf16, context=32768)
    monkeypatch.setattr(backends.Backend, "command", lambda *a: [*command(*a), "--override-kv", LONG])
    made.drawn["ignore_eos"] = True
    body = STREAM | {"max_tokens": 20_000}  # many seconds, if nobody stops it
    if where == "in prefill":
        body["messages"] = [{"role": "user", "content": "Is it a fever? " * 1900}]
    read, whole = [], stream.Stream._whole

    def noted(self, data):
        found = whole(self, data)
        read.append(self.read)
        return found

    monkeypatch.setattr(stream.Stream, "_whole", noted)
    with api(made, slots=1, tokens_per_day=10**6) as client:
        backend, access = client.desk.backends["tiny/x"], client.desk.access

        def slot():
            return llama(backend, "/slots", backend.key).json()[0]

        link = leave(client, json.dumps(body).encode())
        if where == "in prefill":
            wait(lambda: any(read))
        else:
            assert b"200 OK" in link.recv(50)
        if where == "queued":
            queued = leave(client, json.dumps(body).encode())
            wait(lambda: backend.slots.waiting)
            queued.close()
            soon(lambda: not backend.slots.waiting)
        found = slot()
        assert found["is_processing"], "it is still at work for the one who stays"
        assert where != "in prefill" or not found["next_token"][0]["n_decoded"], "its prompt is still being read"
        link.close()
        soon(lambda: not slot()["is_processing"])
        soon(lambda: backend.slots.free == 1)
        wait(lambda: not client.desk.counting)
        left = asyncio.run(access.days.get_window_stats(access.day, "day", "local")).remaining
        assert left < 10**6, "what was read for it counts, though no usage ever came"


def test_slow_headers_slow_bodies_huge_ones_and_smuggled_ones():
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with Backend(stalls) as backend, api(backend_url=backend.url, header_s=0.5, body_s=0.5, body_bytes=2048) as client:
        assert raw(client, b"GET /health HTTP/1.1\r\nHost:") == (b"", True)
        found, closed = raw(client, head + b"Content-Length: 100\r\n\r\n{")
        assert b"408" in found[:20] and b"body_timeout" in found and closed
        assert b"413" in raw(client, head + b"Content-Length: 9999\r\n\r\n")[0][:20]
        chunk = b"800\r\n" + b" " * 2048 + b"\r\n"
        assert b"413" in raw(client, head + b"Transfer-Encoding: chunked\r\n\r\n" + 2 * chunk)[0][:20]
        both = head + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        assert b"400" in raw(client, both, 1)[0][:20]
        twice = head + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde"
        assert b"400" in raw(client, twice, 1)[0][:20]
        assert b"431" in raw(client, b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 40000 + b"\r\n\r\n", 1)[0][:20]
        assert client.get("/health").status_code == 200 and not backend.asked


def dribbled(link, data):
    """(seconds until the API closes a connection on which a byte comes every 0.1 s, what it says)."""
    start, found = time.monotonic(), b""
    for byte in data:
        with contextlib.suppress(TimeoutError):
            link.settimeout(5)
            try:
                link.sendall(bytes([byte]))
                link.settimeout(0.1)
                if not (part := link.recv(65536)):
                    break
                found += part
            except ConnectionError:
                break
    else:
        pytest.fail("it was never closed")
    return time.monotonic() - start, found


@pytest.mark.parametrize("where", ["headers", "headers of a second request", "a body"])
def test_a_request_that_dribbles_is_closed_when_its_time_is_over(where):
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 200\r\n"
    with Backend(stalls) as backend, api(backend_url=backend.url, header_s=0.5, body_s=0.5) as client:
        with socket.create_connection(("127.0.0.1", client.port)) as link:
            if where == "headers of a second request":
                link.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                answer = b""
                while b'{"status":"ok"}' not in answer:
                    answer += (part := link.recv(65536))
                    assert part, answer
            if where == "a body":
                link.sendall(head + b"\r\n")
            took, found = dribbled(link, b"x" * 150 if where == "a body" else head)
        assert 0.4 < took < 1.5 * max(1, stretch()) and (b"408" in found[:20]) is (where == "a body")
        assert client.get("/health").status_code == 200 and not backend.asked


def test_a_full_disk_loses_lines_of_the_log_and_nothing_else():
    with (
        Backend(writes(piece("fine"), ending(1))) as backend,
        api(backend_url=backend.url, log_file="/dev/full") as client,
    ):
        assert client.post("/v1/chat/completions", json=ASK).status_code == 200
        wait(lambda: client.desk.log._logger._file.lost > 0)


@pytest.mark.parametrize("days", [-1, 1])
def test_a_clock_that_is_set_moves_no_limit(monkeypatch, days):
    clock, access = time.time, Access(settings.load(rate="1/second", tokens_per_day=5))

    async def asked():
        found = []
        for pause in (0, 0, 1.1):
            await asyncio.sleep(pause)
            try:
                found.append(await access.admit("a"))
            except Problem as problem:
                assert 0 < problem.retry_s <= (1 if problem.code == "rate_limit" else 86400)
                found.append(problem.code)
            monkeypatch.setattr(time, "time", lambda: clock() + days * 86400)
        await access.spend("a", 6)
        with pytest.raises(Problem, match="tokens in a day"):
            await asyncio.sleep(1.1)
            await access.admit("a")
        return found

    assert asyncio.run(asked()) == [None, "rate_limit", None]


def test_a_clock_that_jumps_neither_cuts_an_answer_nor_lets_one_stall(monkeypatch):
    clock, ahead = time.time, [0]
    monkeypatch.setattr(time, "time", lambda: clock() + ahead[0])

    async def jumping(writer, body):
        parts = [HEADERS, *[piece("a")] * 11, b"" if len(backend.asked) > 1 else ending(11)]
        for number, part in enumerate(parts):
            ahead[0] = (0, 86400, -86400)[number // 5]
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.1)
        await asyncio.sleep(60 if len(backend.asked) > 1 else 0)

    plain = model(form="instruction")
    with Backend(jumping) as backend, api(plain, backend_url=backend.url, answer_s=4, first_token_s=1) as client:
        whole = client.post("/v1/chat/completions", json=ASK).json()
        assert whole["choices"][0]["message"]["content"] == 11 * "a"
        sums = r'duration_seconds_sum{model="tiny/x",outcome="ok"} (\S+)'
        wait(lambda: re.search(sums, client.get("/metrics").text))  # it is counted after its last byte
        spent = re.search(sums, client.get("/metrics").text)
        assert 1 < float(spent[1]) < 4
        ahead[0] = 0
        stalled = client.post("/v1/chat/completions", json=ASK)
        assert (stalled.status_code, stalled.json()["error"]["code"]) == (504, "token_timeout"), "while it is yesterday"
