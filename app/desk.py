"""Where a request becomes a job: model and adapter found, room checked, control tokens made harmless, guard asked."""

import asyncio
import contextlib

import aiohttp

from app.access import Access
from app.backend import Backend
from app.errors import Problem
from app.guard import Guard, plain
from app.logs import hashed, logger
from app.meters import Meters
from app.relay import Job, Relay
from lib.chat.turns import neutralise

FRAME_TOKENS = 64  # what a template writes around one message, at most: checked exactly where it matters
SECOND_S = 2.0  # how long a guard model is waited for


class Desk:
    """The state of one API process."""

    def __init__(self, models, settings):
        self.settings, self.log = settings, logger(settings)
        self.guard = Guard(settings.out_of_scope, log=self.log)
        self.guard.compile()
        self.access, self.meters = Access(settings), Meters()
        self.backends = {model.name: Backend(model, settings, self.log) for model in models}
        self.default = models[0].name
        self.outside = None
        self.counting = set()  # tasks that count tokens against a day

    @contextlib.asynccontextmanager
    async def open(self):
        """The backends up, for the time of the block."""
        await self.access.check()
        if self.settings.guard_url:
            self.outside = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SECOND_S))
        try:
            await asyncio.gather(*(backend.start() for backend in self.backends.values()))
            yield
        finally:
            await asyncio.gather(*(backend.stop() for backend in self.backends.values()))
            if self.outside:
                await self.outside.close()

    def backend(self, name):
        """The backend that a request names; without a name, the first. Raises Problem."""
        found = self.backends.get(name or self.default)
        if not found:
            raise Problem(404, f"no model {name!r} here: {', '.join(self.backends)}", "model_not_found", "model")
        return found

    @property
    def asks_first(self):
        """Whether what the guard says decides if the model is asked, or another model has to be heard."""
        return bool(self.outside) or self.settings.out_of_scope == "refuse"

    def refuses(self, job):
        """Whether the model is not asked at all."""
        return self.settings.out_of_scope == "refuse" and any(hit.kind == "scope" for hit in job.hits)

    async def admit(self, ask, rid, key):
        """The Relay that will answer a request. Raises Problem where it may not be asked, or has no room."""
        backend = self.backend(ask.model)
        n = ask.n or 1
        if n > self.settings.slots:
            raise Problem(422, f"n is {n} and there are {self.settings.slots} slots", "too_many", "n")
        question = ask.messages[-1].text
        await self.access.admit(key)  # before anything is spent on it
        try:
            try:
                body = await self._body(ask, backend, n)
            except Problem as problem:
                self.guard.mark(problem, self.guard.question(question))
                raise
            quiet = bool(ask.response_format and ask.response_format.type != "text")
            usage = bool(ask.stream_options and ask.stream_options.include_usage)
            job = Job(rid, backend, key, body, n, bool(ask.stream), usage, quiet, question, self.guard)
            if self.outside and not job.urgent:
                job.hits = await self.guard.second(self.outside, self.settings, plain(question)) + job.hits
        except BaseException:
            self.access.leave(key)
            raise
        return Relay(job, self)

    async def _body(self, ask, backend, n):
        model = backend.model
        body = {
            "messages": [self._turn(message) for message in ask.messages],
            "n": n,
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": await self._room(ask, backend),
            "top_k": 0,  # llama-server's own defaults would narrow the choice
            "min_p": 0.0,
            "return_progress": True,  # a word for each batch of the prompt, so that a client's leaving is seen
            **model.drawn,
        }
        for name in ("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "stop"):
            if (value := getattr(ask, name)) is not None:
                body[name] = value
        if ask.adapter is not None and ask.adapter not in model.adapters:
            known = ", ".join(model.adapters) or "none with this model"
            raise Problem(404, f"no adapter {ask.adapter!r}: {known}", "adapter_not_found", "adapter")
        if model.adapters:
            body["lora"] = [
                {"id": number, "scale": float(name == ask.adapter)} for number, name in enumerate(model.adapters)
            ]
        return body

    def _turn(self, message):
        role = "system" if message.role == "developer" else message.role
        text = self.guard.strip(message.text) if role == "assistant" else message.text
        return {"role": role, "content": neutralise(text)}

    async def _room(self, ask, backend):
        """Tokens that the answer may have. A token has a byte at least, so that most prompts need not be counted."""
        model, asked = backend.model, ask.max_completion_tokens or ask.max_tokens
        most = sum(len(message.text.encode(errors="replace")) + FRAME_TOKENS for message in ask.messages)
        if most + (asked or model.max_tokens) > model.context and backend.state == "ready":
            turns = [self._turn(message) for message in ask.messages]
            most = await backend.count(turns)
            if most >= model.context:
                told = f"the prompt has {most} tokens and the context {model.context}: nothing is left for an answer"
                raise Problem(400, told, "context_length_exceeded", "messages")
            return min(asked or model.max_tokens, model.context - most)  # clients ask 1000 for a title of five words
        return asked or model.max_tokens

    def close(self, relay, outcome):
        """An answer has ended: its key is free again, what it took is counted and logged."""
        job = relay.job
        self.access.leave(job.key)
        self.meters.finished(relay, outcome, job.key)
        total = relay.stream.total() or {}
        told = {"question": hashed(job.question), "answer": hashed(relay.stream.choices[0].answer)}
        if self.settings.log_text:
            told |= {"question_text": job.question, "answer_text": [choice.answer for choice in relay.stream.choices]}
        self.log.info("answer", id=job.id, key=job.key, model=job.backend.model.name, outcome=outcome,
                      tokens=total.get("total_tokens"), guard=relay._rules(), **told)  # fmt: skip
        if self.access.day and (spent := relay.stream.spent()):
            task = asyncio.ensure_future(self.access.spend(job.key, spent))
            self.counting.add(task)
            task.add_done_callback(lambda done: self.counting.discard(done) or done.cancelled() or done.exception())
