"""One answer from its place in the queue to its last byte; whatever happens to it, its slot is given back."""

import asyncio
import contextlib
import json
import time
from dataclasses import dataclass, field
from functools import cached_property

from starlette.responses import Response

from app.backend import AWAY, Backend
from app.errors import Problem, refusal
from app.guard import Guard
from app.stream import DONE, Broken, Stream
from lib.dataset.answers import split_reasoning

FAIL_S = 5.0  # for telling a client what went wrong
SENT = 3  # turns of the event loop until a request on a kept connection is on its way


@dataclass
class Job:
    """A request that was admitted. body: what the backend is asked."""

    id: str
    backend: Backend
    key: str
    body: dict
    n: int
    streamed: bool
    with_usage: bool
    quiet: bool
    question: str
    guard: Guard
    arrived: float = field(default_factory=time.perf_counter)

    @cached_property
    def hits(self):
        """What the rules find in the question; they take a millisecond, so they are asked when it costs no time."""
        return self.guard.question(self.question)

    @property
    def urgent(self):
        """Whether the question tells of an emergency."""
        return any(hit.kind == "emergency" for hit in self.hits)


class Relay(Response):
    """The response to a job, as an ASGI application: `desk` is the Desk that admitted it."""

    background = None  # FastAPI passes an instance of Response on as it is, and looks at this

    def __init__(self, job, desk):
        self.job, self.desk, self.settings, self.begun = job, desk, desk.settings, False
        model = job.backend.model
        frame = {"id": f"chatcmpl-{job.id}", "model": model.name, "created": int(time.time())}
        self.frame, self.before, self.entries, self.after = frame, "", [], []
        self.stream = Stream(frame, model.form, job.backend.opened, job.n, self._ending)

    async def __call__(self, scope, receive, send):
        work, gone = asyncio.create_task(self._work(send)), asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            left = not work.done()
            work.cancel()
            gone.cancel()
            found = await asyncio.gather(work, gone, return_exceptions=True)
            outcome = "cancelled" if left else found[0] if isinstance(found[0], str) else "fault"
            self.desk.close(self, outcome)
            if isinstance(found[0], Exception):
                raise found[0]

    async def _work(self, send):
        """Answer, or say why not; returns the outcome's name for the meters."""
        try:
            async with asyncio.timeout(self.settings.answer_s):
                await self._answer(send)
            return "ok"
        except Problem as error:
            problem = error
        except TimeoutError:
            problem = Problem(504, f"no whole answer within {self.settings.answer_s:g} s", "answer_timeout", retry_s=5)
        except Broken as error:
            self.desk.log.error("backend_broken", id=self.job.id, error=str(error))
            problem = Problem(502, f"the model's server broke off: {error}", "backend_failed", retry_s=2)
        except AWAY:
            problem = self.job.backend.away()
        with contextlib.suppress(TimeoutError):  # a client that reads nothing is not waited for
            async with asyncio.timeout(FAIL_S):
                await self._fail(problem, send)
        return problem.code

    async def _answer(self, send):
        backend, n = self.job.backend, self.job.n
        at_once = backend.state == "ready" and backend.slots.spare(n) and not self.desk.asks_first
        if not at_once:
            await self._heed(send)
        if self.desk.refuses(self.job):
            for choice in self.stream.choices:
                choice.finish, choice.after = "stop", ""
            self.stream.usage = [{"prompt_tokens": 0, "completion_tokens": 0}]
        else:
            async with self._slot():
                await self._relay(send)
        await self._end(send)

    async def _heed(self, send):
        """What the guard says before the answer; an emergency is told at once and waits for no slot and no model."""
        self.before, self.entries = self.desk.guard.before(self.job.hits)
        if self.job.streamed and self.job.urgent and not self.begun:
            await self._tell(send, b"")

    @contextlib.asynccontextmanager
    async def _slot(self):
        slots, places = self.job.backend.slots, self.job.n
        if self.job.backend.state != "ready":
            raise self.job.backend.away()
        try:
            async with asyncio.timeout(self.settings.queue_s):
                await slots.take(places)
        except TimeoutError:
            raise Problem(503, f"no free slot within {self.settings.queue_s:g} s", "queue_timeout", retry_s=5) from None
        try:
            yield
        finally:
            slots.give(places)

    @contextlib.asynccontextmanager
    async def _asked(self, send):
        """The backend's reply; the guard reads the question while the backend does."""
        asking = asyncio.create_task(self.job.backend.post(self.job.body))
        try:
            for _ in range(SENT):
                await asyncio.sleep(0)
            await self._heed(send)
            reply = await asking
        except BaseException:
            asking.cancel()
            if asking.done() and not asking.cancelled() and not asking.exception():
                asking.result().close()
            raise
        async with reply:
            yield reply

    async def _relay(self, send):
        stream, wait = self.stream, self.settings.first_token_s
        now = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(wait) as patience:
                async with self._asked(send) as reply:
                    if reply.status != 200:
                        raise refusal(reply.status, await _said(reply))
                    async for data in reply.content.iter_any():
                        out = stream.feed(data)
                        if stream.first and patience.when() - now() < wait:  # a timer for each token would cost more
                            patience.reschedule(now() + 1.1 * wait)
                        if self.job.streamed and out:
                            await self._tell(send, out)
        except TimeoutError:
            if patience.expired():
                what = "next" if stream.first else "first"
                raise Problem(504, f"no {what} token within {wait:g} s", "token_timeout", retry_s=5) from None
            raise
        if not stream.done or any(choice.finish is None for choice in stream.choices):
            raise Broken("its stream ended amid an answer")

    async def _tell(self, send, out, more=True):
        """Send a part of the stream; with the first go the headers and what the guard says before the answer."""
        if not self.begun:
            self.begun = True
            headers = [
                (b"content-type", b"text/event-stream"),
                (b"cache-control", b"no-cache"),
                (b"x-accel-buffering", b"no"),
            ]
            await self._start(send, headers)
            out = self.stream.open("" if self.job.quiet else self.before, self.entries) + out
        await send({"type": "http.response.body", "body": out, "more_body": more})

    async def _start(self, send, headers):
        named = self.desk.guard.header(self._rules())
        await send({"type": "http.response.start", "status": 200, "headers": [*headers, named]})

    async def _end(self, send):
        total = self.stream.total()
        usage = (total or {}) | {"guard": {"version": self.desk.guard.version, "rules": self._rules()}}
        if self.job.streamed:
            out = b""
            if self.desk.refuses(self.job):
                out += b"".join(self.stream.event(index, {}, "stop") for index in range(self.job.n))
            if self.job.with_usage:
                body = json.dumps({"choices": [], "usage": usage})[:-1].encode()
                out += b"data: " + body + b", " + self.stream.tail + b"\n\n"
            await self._tell(send, out + DONE, more=False)
            return
        for choice in self.stream.choices:
            choice.before = self.before
        reply = self.frame | {"object": "chat.completion", "choices": self.stream.whole(self.job.quiet), "usage": usage}
        said = self.entries + self.after
        reply |= {"guard": said} if said else {}
        body = json.dumps(reply).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await self._start(send, headers)
        await send({"type": "http.response.body", "body": body})

    async def _fail(self, problem, send):
        self.desk.guard.mark(problem, self.job.hits)
        if not self.begun:
            await problem.send(send)
            return
        body = b"data: " + json.dumps(problem.envelope()).encode() + b"\n\n"
        await send({"type": "http.response.body", "body": body})

    def _ending(self, choice):
        """What the guard says behind a finished answer."""
        form = self.job.backend.model.form
        choice.compliant = split_reasoning("".join(choice.raw), form)[2]
        text, entries = self.desk.guard.after(choice.answer, choice.finish, choice.compliant)
        self.after += entries
        return ("", entries) if self.job.quiet else (text, entries)

    def _rules(self):
        return list(dict.fromkeys([hit.id for hit in self.job.hits] + [entry["id"] for entry in self.after]))


async def _gone(receive):
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _said(reply):
    try:
        return json.loads(await reply.read())
    except ValueError:
        return {}
