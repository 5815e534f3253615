"""One GGUF file served by llama-server on this machine, and what it is asked.

Greedy answers repeat bit for bit on one machine with one slot and one thread count: no prompt cache is therefore
reused, and several slots may differ in the last digit of a logit.
"""

import contextlib
import json
import re
import secrets
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from lib.pipeline import machine
from lib.pipeline.commands import ended, environment, held, tail
from lib.pipeline.programs import toolchain

DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy must not see requests to 127.0.0.1


class Address(str):
    """A server's base URL, and the key that it wants."""

    def __new__(cls, url, key):
        made = super().__new__(cls, url)
        made.key = key
        return made


@contextlib.contextmanager
def running(file, slots=1, ctx=2048, threads=1, log=None, adapters=()):
    """Run llama-server on a free port of 127.0.0.1 and yield its Address, "http://127.0.0.1:<port>" with a random key.

    ctx: tokens per slot. log: path for the server's log, which is thrown away by default.
    adapters: LoRA adapter files, loaded and switched off: see `use_adapters`.
    The chat template is the file's own, reasoning stays in the text as generated, prompts are never cached.
    Raises RuntimeError with the log's last lines when the server dies while it loads.
    """
    args = ["-m", file, "--host", "127.0.0.1", "--port", "0", "-np", slots, "-c", ctx * slots, "-no-kvu"]
    args += ["-t", threads, "-tb", threads, "--jinja", "--reasoning-format", "none", "--no-ui", "--offline"]
    args += ["--no-cache-prompt", "--cache-ram", "0", "--no-warmup", "--log-colors", "off"]
    args += ["--cors-origins", "none", "--no-cors-credentials"]
    for adapter in adapters:
        args += ["--lora", adapter]
    machine.release()
    command, key = held(toolchain().server, *args), secrets.token_urlsafe(24)
    known = environment() | {"LLAMA_API_KEY": key}  # no command line shows it
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(log or Path(scratch, "server.log"))
        with open(log, "w", encoding="utf-8") as sink:
            process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env=known)
        try:
            url = Address(_wait_until_healthy(process, log, Path(file).name), key)
            if adapters:
                use_adapters(url, [0.0] * len(adapters))
            yield url
        finally:
            ended(process, 5)


def request(base_url, path, body=None, timeout_s=60):
    """One JSON request to llama-server: GET, or POST when there is a body. Returns the decoded reply."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    headers |= {"Authorization": f"Bearer {base_url.key}"} if isinstance(base_url, Address) else {}
    with DIRECT.open(urllib.request.Request(base_url + path, data, headers), timeout=timeout_s) as reply:
        return json.load(reply)


def use_adapters(base_url, scales):
    """Set the scale of every adapter of a running server, in the order in which `serve` was given them; 0 is off."""
    request(base_url, "/lora-adapters", [{"id": number, "scale": scale} for number, scale in enumerate(scales)])


def tokenize(base_url, text):
    """Token ids that a running server reads for a prompt, its beginning-of-sequence token included where it adds one.

    Special tokens written in the text count as such.
    """
    return request(base_url, "/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]


def _wait_until_healthy(process, log, name, timeout_s=900):
    """Wait for the port in the log, then for /health; returns the base URL."""
    deadline = time.monotonic() + timeout_s  # 20 billion parameters from a slow disk take minutes
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"llama-server ended with status {process.returncode} on {name}:\n{tail(log)}")
        address = re.search(
            r"listening on (http://127\.0\.0\.1:\d+)", log.read_text(encoding="utf-8", errors="replace")
        )
        if address:
            with contextlib.suppress(urllib.error.URLError, TimeoutError):
                request(address[1], "/health", timeout_s=5)
                return address[1]
        time.sleep(0.05)
    raise RuntimeError(f"llama-server was not ready after {timeout_s} s on {name}:\n{tail(log)}")
