"""The API of app/ in a thread of this process, before a real llama-server or before a loopback that misbehaves."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time

import httpx
import uvicorn

from app import edge, server, settings
from app.__main__ import healthy
from app.catalogue import Model
from app.desk import Desk
from benchmarks.serving import port
from lib.pipeline.files import ROOT

ASK = {"messages": [{"role": "user", "content": "What is a fever?"}], "max_tokens": 8}


def model(path=None, name="tiny/x", form="think", context=256, **more):
    drawn = {"temperature": 0.0, "top_p": 1.0}
    return Model(name, path, form, context, 16, 1, drawn, **more)


@contextlib.contextmanager
def api(*models, **over):
    """Yields an httpx client of the running API; `client.desk` is its Desk."""
    how = settings.load(**{"rate": "off", "log_file": "/dev/null"} | over)
    desk = Desk(models or [model()], how)
    config = uvicorn.Config(
        server.build(desk), how.host, 0, http=edge.protocol(how.header_s), ws="none", log_level="error",
        h11_max_incomplete_event_size=32768, timeout_graceful_shutdown=1,
    )  # fmt: skip
    running = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.run(desk, running)))
    thread.start()
    try:
        wait(lambda: running.started or not thread.is_alive())
        port = running.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            client.desk, client.port = desk, port
            yield client
    finally:
        running.should_exit = True
        thread.join()


@contextlib.contextmanager
def site(api_url):
    """Yields the address of the page before an API, in a process of its own."""
    here = port()
    process = subprocess.Popen(
        [sys.executable, "-m", "app.site", str(here)], cwd=ROOT, env=os.environ | {"MEDTUNE_API": str(api_url)}
    )
    try:
        wait(healthy(f"http://127.0.0.1:{here}/_stcore/health"), 90)
        yield f"http://127.0.0.1:{here}"
    finally:
        process.terminate()
        process.wait()


def wait(until, seconds=30):
    """Wait for something to become true; the assertion is that it does."""
    end = time.monotonic() + seconds
    while not (found := until()):
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)
    return found


def stretch():
    """How much longer a second of computing takes here because other programs compute too; 1 where none does."""
    start, end = time.perf_counter(), time.thread_time() + 0.1
    while time.thread_time() < end:
        pass
    return (time.perf_counter() - start) / 0.1


def soon(until):
    """Wait for what comes true within a second, stretched by the load before it or after it."""
    limit, start = stretch(), time.perf_counter()
    wait(until)
    took = time.perf_counter() - start
    assert took < max(1, limit) or took < stretch(), f"it took {took:.1f} s"


def llama(backend, path, key=None, **headers):
    """What the llama-server of a backend replies on its own socket."""
    (socket_,) = backend.folder.glob("*.sock")
    headers |= {"Authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket_)), timeout=60) as direct:
        return direct.get(f"http://llama{path}", headers=headers)


def events(text):
    """The JSON of a stream's events, [DONE] left out."""
    parts = [part.removeprefix("data: ") for part in text.split("\n\n") if part]
    return [json.loads(part) for part in parts if part != "[DONE]"]


def said(found, field="content", index=0):
    """What the events say in one field of one choice."""
    choices = [choice for event in found for choice in event.get("choices", ()) if choice["index"] == index]
    return "".join(choice["delta"].get(field) or "" for choice in choices)


def raw(client, data, wait_s=5):
    """What the API sends back to raw bytes, until it closes the connection or says nothing for so long."""
    with socket.create_connection(("127.0.0.1", client.port)) as link:
        link.settimeout(wait_s)
        link.sendall(data)
        found = b""
        try:
            while part := link.recv(65536):
                found += part
        except TimeoutError:
            return found, False
        return found, True


class Backend:
    """A raw TCP server in the place of llama-server: `script(writer, body)` writes what it likes.

    Health and unknown paths are answered as a good server would.
    """

    def __init__(self, script):
        self.script, self.asked, self.left = script, [], 0

    def __enter__(self):
        self.loop, up = asyncio.new_event_loop(), threading.Event()

        async def main():
            self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
            up.set()

        def run():
            asyncio.set_event_loop(self.loop)
            self.loop.run_until_complete(main())
            self.loop.run_forever()

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        up.wait()
        return self

    def __exit__(self, *error):
        self.loop.call_soon_threadsafe(self.server.close)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()

    async def _serve(self, reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while line := await reader.readline():
                length = 0
                while (header := await reader.readline()).strip():
                    if header.lower().startswith(b"content-length:"):
                        length = int(header.split(b":")[1])
                body = json.loads(await reader.readexactly(length) or b"null")
                if b"/v1/chat/completions" not in line:
                    writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"status":"ok"}')
                    continue
                self.asked.append(body)
                gone = asyncio.ensure_future(reader.read())
                work = asyncio.ensure_future(self.script(writer, body))
                await asyncio.wait({gone, work}, return_when=asyncio.FIRST_COMPLETED)
                self.left += not work.done()
                work.cancel()
                break
        writer.close()


HEADERS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def piece(text, index=0):
    """An event of llama-server with one piece of text."""
    token = json.dumps(text, ensure_ascii=False)
    return (
        f'data: {{"choices":[{{"finish_reason":null,"index":{index},"delta":{{"content":{token}}}}}],"created":1,'
        f'"id":"x","model":"m","object":"chat.completion.chunk"}}\n\n'
    ).encode()


def ending(tokens, reason="stop", index=0):
    """Its last events."""
    last = {"choices": [{"finish_reason": reason, "index": index, "delta": {}}]}
    usage = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": tokens}}
    return b"".join(f"data: {json.dumps(event)}\n\n".encode() for event in (last, usage)) + b"data: [DONE]\n\n"


def writes(*parts, pause=0.0):
    """A script that writes these parts one by one."""

    async def script(writer, body):
        for part in (HEADERS, *parts):
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause)

    return script
