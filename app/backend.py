"""One llama-server under this process: started, watched, restarted with back-off, and asked for room.

It listens on a UNIX socket in a folder that only this user may open, wants a random key and dies with this process.
"""

import asyncio
import contextlib
import json
import re
import secrets
import shutil
import tempfile
from collections import deque
from pathlib import Path

import aiohttp

from app.errors import Problem, refusal
from lib.pipeline.commands import environment, held
from lib.pipeline.programs import toolchain

PAUSE_S = (0.5, 30.0)  # first and longest wait before a restart
WATCH_S, DEAF = 5.0, 3  # seconds between two looks at /health; so many without an answer, and it is started anew
IDLE_S = 2.0  # llama-server and uvicorn close what was idle for 5
LOAD_S = 900.0  # 20 billion parameters from a slow disk take minutes
NOBODY_S = 25.0  # a server of somebody else's that has said nothing by then is not there
AWAY = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, ConnectionError, OSError)


class Slots:
    """Places at a server, given out in the order of arrival. `limit` may wait; `take` raises Problem beyond it."""

    def __init__(self, count, limit):
        self.count, self.free, self.limit = count, count, limit
        self.waiting = deque()  # (future, places)

    def spare(self, places):
        """Whether so many places are to be had without waiting."""
        return self.free >= places and not self.waiting

    async def take(self, places):
        """Wait for so many places; a caller that is cancelled gives up its turn."""
        if self.spare(places):
            self.free -= places
            return
        if len(self.waiting) >= self.limit:
            raise Problem(503, f"{len(self.waiting)} requests are waiting already", "queue_full", retry_s=5)
        turn = asyncio.get_running_loop().create_future()
        self.waiting.append((turn, places))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # the turn came in the same moment
                self.give(places)
            else:
                self.waiting.remove((turn, places))
                self._next()
            raise

    def give(self, places):
        """Give places back."""
        self.free += places
        self._next()

    def _next(self):
        while self.waiting and self.free >= self.waiting[0][1]:
            turn, places = self.waiting.popleft()
            self.free -= places
            turn.set_result(None)


class Backend:
    """A model being served; state is starting, ready or down.

    `session` opens a connection for each request; `kept`, for answers, uses them again, for opening one takes time.
    """

    def __init__(self, model, settings, log):
        self.model, self.settings, self.log = model, settings, log
        self.slots = Slots(settings.slots, settings.queue)
        self.state, self.restarts, self.opened = "starting", 0, False
        self.session, self.kept, self.process, self.lines = None, None, None, deque(maxlen=30)
        self.key = settings.backend_key if settings.backend_url else secrets.token_urlsafe(24)
        self.url = settings.backend_url.rstrip("/") or "http://llama"
        self._tasks = []

    async def start(self):
        """Come up, then keep watch. Raises RuntimeError, in one line, where there is nothing that answers."""
        if not self.settings.backend_url:
            self.folder = Path(tempfile.mkdtemp(prefix="medtune-"))  # mode 700
            await self._spawn()
        else:
            await self._connect(aiohttp.TCPConnector)
        await self._healthy()
        self._tasks = [asyncio.create_task(self._watch())]

    async def stop(self):
        """End the server and forget it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._end()
        await _close(self.session, self.kept)
        if not self.settings.backend_url:
            shutil.rmtree(self.folder, ignore_errors=True)

    async def _connect(self, connector, *where):
        before = self.session, self.kept
        how = {"timeout": aiohttp.ClientTimeout(total=None), "read_bufsize": 2**16,
               "headers": {"Authorization": f"Bearer {self.key}"} if self.key else {}}  # fmt: skip
        self.session = aiohttp.ClientSession(connector=connector(*where, limit=0, force_close=True), **how)
        self.kept = aiohttp.ClientSession(connector=connector(*where, limit=0, keepalive_timeout=IDLE_S), **how)
        await _close(*before)

    def command(self, socket):
        """The command line of llama-server; its key goes through the environment, which other users cannot read."""
        model, slots = self.model, self.settings.slots
        room = -(-model.context // 256) * 256  # llama-server rounds a slot's context up
        args = ["-m", model.path, "--host", socket, "-np", slots, "-c", room * slots, "-no-kvu", "-a", model.name]
        args += ["-t", model.threads, "-tb", model.threads, "--threads-http", slots + 4]
        args += ["--jinja", "--reasoning-format", "none", "--skip-chat-parsing", "--no-ui", "--offline", "--no-warmup"]
        args += ["-b", 512]  # a prompt is read in these steps: the longest that a client who left still holds a slot
        args += ["--cache-ram", "0", "--cors-origins", "none", "--no-cors-credentials", "--log-colors", "off"]
        for adapter in model.adapters.values():
            args += ["--lora", adapter]
        args += ["--lora-init-without-apply"] if model.adapters else []
        return held(toolchain().server, *args)

    async def _spawn(self):
        socket = self.folder / f"{secrets.token_hex(4)}.sock"  # a killed server leaves its socket behind
        self.process = await asyncio.create_subprocess_exec(
            *self.command(socket), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            env=environment() | {"LLAMA_API_KEY": self.key}, start_new_session=True,
        )  # fmt: skip
        await self._connect(aiohttp.UnixConnector, str(socket))
        self._reader = asyncio.create_task(self._drain(self.process.stdout))

    async def _drain(self, pipe):
        async for line in pipe:
            self.lines.append(line.decode(errors="replace").rstrip())

    async def _end(self):
        self.state = "down"
        if self.process and self.process.returncode is None:
            self.process.terminate()
            try:
                await asyncio.wait_for(self.process.wait(), 3)
            except TimeoutError:
                self.process.kill()
                await self.process.wait()

    async def _healthy(self):
        """Wait until it answers; then learn whether its template opens the reasoning itself."""
        now = asyncio.get_running_loop().time
        start = now()
        while (status := await self.health(5)) != 200:
            if self.process and self.process.returncode is not None:
                await self._reader
                ended = f"llama-server ended with status {self.process.returncode} on {self.model.path.name}"
                raise RuntimeError(f"{ended}: {_cause(self.lines)}")
            if now() - start > (LOAD_S if self.process or status == 503 else NOBODY_S):  # 503: it loads
                where = f"on {self.model.path.name}" if self.process else f"at {self.url}"
                raise RuntimeError(f"no server answers {where}" + (f": /health has status {status}" if status else ""))
            await asyncio.sleep(0.05)
        with contextlib.suppress(Problem):  # not every server has this address
            prompt = await self.ask("/apply-template", {"messages": [{"role": "user", "content": "?"}]})
            self.opened = prompt.get("prompt", "").rstrip().endswith("<think>")
        self.state = "ready"

    async def health(self, seconds):
        """The status of /health within this time, or None."""
        try:
            async with asyncio.timeout(seconds), self.session.get(self.url + "/health") as reply:
                return reply.status
        except (*AWAY, TimeoutError):
            return None

    async def _watch(self):
        deaf, pause = 0, PAUSE_S[0]
        while True:
            ended = await self._wait(WATCH_S)
            deaf = 0 if not ended and await self.health(WATCH_S) == 200 else deaf + 1
            if not ended and deaf < DEAF:
                self.state = "ready" if deaf == 0 else self.state
                pause = PAUSE_S[0] if deaf == 0 else pause
                continue
            self.state, self.restarts = "down", self.restarts + 1
            self.log.error("backend_down", model=self.model.name, ended=ended, last=list(self.lines)[-3:])
            await asyncio.sleep(pause)
            pause, deaf = min(2 * pause, PAUSE_S[1]), 0
            if self.process:
                await self._end()
                await self._spawn()
            with contextlib.suppress(RuntimeError):
                await self._healthy()
                self.log.info("backend_up", model=self.model.name, restarts=self.restarts)

    async def _wait(self, seconds):
        """Whether our process ended within so many seconds."""
        if not self.process:
            await asyncio.sleep(seconds)
            return False
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.process.wait(), seconds)
            return True
        return False

    async def ask(self, path, body=None):
        """One JSON request: the decoded reply. Raises Problem where it does not come."""
        try:
            method = "GET" if body is None else "POST"
            async with asyncio.timeout(10), self.session.request(method, self.url + path, json=body) as reply:
                data = json.loads(await reply.read())
        except (*AWAY, TimeoutError, ValueError) as error:
            raise self.away() from error
        if reply.status >= 400:
            raise refusal(reply.status, data)
        return data

    async def post(self, body):
        """The reply to a chat request, for `async with`. A kept connection may close as it is used: then anew."""
        url = self.url + "/v1/chat/completions"
        try:
            return await self.kept.post(url, json=body)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            return await self.session.post(url, json=body)

    async def count(self, turns):
        """Tokens of a conversation as the model reads it; 0 where the server, not being llama-server, does not say."""
        prompt = (await self.ask("/apply-template", {"messages": turns})).get("prompt", "")
        asked = {"content": prompt, "add_special": True, "parse_special": True}
        return len((await self.ask("/tokenize", asked)).get("tokens", ()) if prompt else ())

    def away(self):
        """The error of a request that finds nobody here."""
        return Problem(
            503, f"the model {self.model.name} is not ready, it is being started again", "backend_down", retry_s=2
        )


def _cause(lines):
    """What a log says of its program's end: the first error, else the last line."""
    faults = [line for line in lines if re.match(r"[\d.]+ E ", line)]
    line = (faults[:1] or list(lines)[-1:] or ["its log is empty"])[0]
    return re.sub(r"^[\d.]+ [A-Z] +", "", line)


async def _close(*sessions):
    for session in filter(None, sessions):
        await session.close()
