"""Asking a server that speaks the OpenAI protocol: one deadline, one reply parser and retries of our own on its SDK."""

import contextlib
import functools
import json
import re
import time
from dataclasses import dataclass
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2  # the client library that openai 3 is built on
import openai

from lib.evaluation.connection import Transport
from lib.pipeline import credentials

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SHORTEST_S = 0.05  # less than this is no attempt
PAUSE_S = (0.5, 8.0)  # first and longest wait between two attempts
MOST_CHARS = 200_000  # of the text in a reply
ENDS = {"eos": "stop", "end": "stop", "end_turn": "stop", "max_tokens": "length"}  # finish reasons in other words
REFUSALS = {  # what a server may refuse of a request, and the words by which it says so
    "sampling": r"temperature|top_p|\bseed\b",
    "limit": r"max_(?:completion_)?tokens",
    "schema": r"response_format|schema|grammar",
    "system": r"\bsystem\b|\broles?\b",
}


def client(base_url, api_key="none"):
    """An OpenAI client without its own retries and ten-minute timeout. A bare host gets the usual /v1 path.

    base_url: None for api.openai.com; an Address of lib.export.serve holds its key. A server on this machine is reached
    past any proxy of the environment. A timeout bounds the whole answer, from the connection to the last byte; the
    look-up of the host's name aside. No redirect is followed: key and question go to the server that was named.
    """
    api_key = getattr(base_url, "key", api_key)
    if base_url and not urlsplit(base_url).path.strip("/"):
        base_url = base_url.rstrip("/") + "/v1"
    host, known = urlsplit(base_url or "https://api.openai.com"), getproxies()
    past = host.hostname in LOOPBACK or proxy_bypass(host.hostname or "")
    proxy = None if past else known.get(host.scheme) or known.get("all")
    proxy = f"http://{proxy}" if proxy and "://" not in proxy else proxy
    http = openai.DefaultHttpxClient(transport=Transport(proxy), trust_env=False, follow_redirects=False)
    return openai.OpenAI(base_url=base_url, api_key=api_key, max_retries=0, timeout=60.0, http_client=http)


class Dialect:
    """What a server refuses of a request (keys of REFUSALS): found once, and left out of what it is asked later."""

    def __init__(self, refused=()):
        self.refused, self.sent = frozenset(refused), None

    def fit(self, request):
        """The request without what this server refuses; a system turn goes to the head of the user's first one."""
        request, turns = dict(request), request["messages"]
        left_out = {"sampling": ("temperature", "top_p", "seed"), "schema": ("response_format",)}
        for name in (name for what in self.refused for name in left_out.get(what, ())):
            request.pop(name, None)
        if "limit" in self.refused:
            for old, new in (("max_tokens", "max_completion_tokens"), ("max_completion_tokens", "max_tokens")):
                if old in request:
                    request[new] = request.pop(old)
                    break
        if "system" in self.refused and turns[0]["role"] == "system":
            head = {"role": "user", "content": "\n\n".join(turn["content"] for turn in turns[:2])}
            request["messages"] = [head, *turns[2:]]
        self.sent = request
        return request

    def mend(self, error):
        """Whether a refusal can be met by a plainer request; `fit` then gives that one."""
        if not self.sent or (error.status_code not in (400, 422) and error.status_code < 500):
            return False
        there = {what for what in REFUSALS.keys() - self.refused if Dialect([what]).fit(self.sent) != self.sent}
        new = {what for what in there if re.search(REFUSALS[what], sentence(error).lower())}
        if not new and "schema" in there and error.status_code < 500:  # the commonest one, where the server names none
            new = there & {"schema", "sampling"}
        self.refused |= new
        return bool(new)


@functools.cache
def dialect(base_url, model):
    """The Dialect of a model at an address, one for the whole process."""
    return Dialect()


def sentence(error, key="none"):
    """What the server itself said of a fault, else what the SDK says, without the key: at most 300 characters."""
    said = _at(getattr(error, "body", None), "message")
    said = said if isinstance(said, str) and said else str(error)
    return (said if key in ("", "none") else said.replace(key, "***"))[:300]


@dataclass(frozen=True)
class Reply:
    """What came of a request. text: "" where there is none; fault: why it is no answer, or None.

    tokens: (in, out) as the server states them, 0 where it states no whole number above 0.
    """

    text: str = ""
    fault: str | None = None
    tokens: tuple = (0, 0)


def read_reply(body):
    """The bytes of a chat completion as a Reply, whatever they hold; it never raises."""
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError) as error:
        return Reply(fault=f"the reply is no JSON: {str(error)[:80]}")
    tokens = tuple(_count(_at(reply, "usage", name)) for name in ("prompt_tokens", "completion_tokens"))
    choice = _at(reply, "choices", 0)
    text, finish = _at(choice, "message", "content"), _at(choice, "finish_reason")
    text, fault = whole(text)[:MOST_CHARS] if isinstance(text, str) else "", None
    if _at(choice, "message", "refusal") or finish == "content_filter":
        fault = "the model refused"
    elif finish in ("length", "max_tokens"):
        fault = "the reply was cut"
    elif not text.strip():
        fault = "the reply has no text"
    return Reply(text, fault, tokens)


def _at(value, *path):
    """What stands at a path of keys and places within JSON, or None."""
    for step in path:
        try:
            value = value[step]
        except (TypeError, LookupError):
            return None
    return value


def _count(value):
    return value if type(value) is int and 0 < value < 10**9 else 0


def whole(text):
    """The text without half characters (lone surrogates), which no file and no request can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def post(api, request, timeout_s):
    """One chat completion, asked for once: a Reply. request: fields of chat.completions.create."""
    return read_reply(api.with_options(timeout=timeout_s).chat.completions.with_raw_response.create(**request).content)


def stream(api, request, deadline_s, dialect=None, attempt=lambda: contextlib.nullcontext({})):
    """A chat completion, as `persist`: {"content", "reasoning", "tokens_in", "tokens", "finish", "first_s", "seconds"}.

    Times: to the first token and to the last, of the attempt that succeeded. tokens: as the server counts them, else
    the number of pieces. finish: the server's, see ENDS. attempt: around each one, gives the dict for its reply.
    """

    def once(timeout_s, fit):
        with attempt() as reply:
            try:
                reply.update(_read_stream(api, fit(request), timeout_s))
            except (AttributeError, TypeError, RecursionError) as error:
                raise ValueError(f"{shown(api)} sent what is no piece of a chat completion: {error}") from error
        return reply

    return persist(once, deadline_s, dialect)


def shown(api):
    """The address of a client, without a password that it may hold."""
    return credentials.scrub(str(api.base_url))


def _read_stream(api, request, timeout_s):
    start, first, finish, counts, pieces = time.monotonic(), None, None, (0, 0), 0
    parts, options = {"content": "", "reasoning": ""}, {"stream": True, "stream_options": {"include_usage": True}}
    with api.with_options(timeout=timeout_s).chat.completions.create(**request, **options) as chunks:
        for chunk in chunks:
            counts = (chunk.usage.prompt_tokens, chunk.usage.completion_tokens) if chunk.usage else counts
            for choice in chunk.choices or []:
                finish = choice.finish_reason or finish
                extra = choice.delta.model_extra or {}
                reasoning = extra.get("reasoning_content") or extra.get("reasoning") or ""
                if reasoning or choice.delta.content:
                    first, pieces = first or time.monotonic() - start, pieces + 1
                    parts["reasoning"] += reasoning
                    parts["content"] += choice.delta.content or ""
    if not isinstance(finish, str):
        raise ValueError(f"{shown(api)} ended its stream without a finish_reason")
    seconds = time.monotonic() - start
    parts = {name: whole(text) for name, text in parts.items()}
    parts |= {"tokens_in": _count(counts[0]), "tokens": _count(counts[1]) or pieces}
    return parts | {"finish": ENDS.get(finish, finish), "first_s": first or seconds, "seconds": seconds}


def persist(once, deadline_s, dialect=None):
    """Call once(timeout_s, fit) until it returns or the deadline has passed; returns its value.

    fit: makes a request one that the server takes, see Dialect. Retried are time-outs, lost connections, HTTP 408, 409,
    429 and 5xx, a ValueError of `once`, and what a plainer request may mend. One attempt may take half of the time that
    is left, so that a hung connection is tried again.
    Raises the last fault when the deadline has passed, a time-out only where there was nothing else, and at once what
    no retry mends (bad key, unknown model, spent quota).
    """
    end, attempts, fault, known = time.monotonic() + deadline_s, 0, None, dialect or Dialect()
    own = Dialect(known.refused)  # told to the others once it has led to a reply
    while True:
        attempts, wait, mended = attempts + 1, 0.0, False
        try:
            found = once(max((end - time.monotonic()) / 2, SHORTEST_S), own.fit)
            known.refused |= own.refused
            return found
        except openai.APIStatusError as error:
            mended = own.mend(error)
            if not mended and (final(error) or error.status_code in (400, 422)):
                raise
            fault, wait = error, _seconds(error.response.headers.get("retry-after"))
        except openai.APITimeoutError as error:  # of the last, short attempts: what came before says more
            fault = fault or error
        except (openai.APIConnectionError, openai.APIResponseValidationError, ValueError) as error:
            fault = error
        except httpx2.TransportError as error:  # a stream that broke off
            fault = openai.APIConnectionError(request=error.request)
        left = end - time.monotonic()
        if left <= 2 * SHORTEST_S:
            raise fault
        if not mended:
            time.sleep(min(max(wait, min(PAUSE_S[0] * 2 ** (attempts - 1), PAUSE_S[1])), left / 2))


def final(error):
    """Whether the server would refuse every other request too: a bad key, no such model or page, a spent quota."""
    if not isinstance(error, openai.APIStatusError) or error.status_code in (400, 408, 409, 422):
        return False
    spent = "insufficient_quota" in (_at(error.body, "code"), _at(error.body, "type"))
    return spent or (error.status_code < 500 and error.status_code != 429)


def free(error):
    """Whether no model can have worked on a request that failed: refused by the server, or never connected."""
    refused = isinstance(error, openai.APIStatusError) and error.status_code < 500
    return refused or isinstance(error.__cause__, (httpx2.ConnectError, httpx2.ConnectTimeout))


def _seconds(header):
    try:
        return min(max(0.0, float(header)), 30.0)  # a server that asks for ten minutes is asked again sooner; nan: 0
    except (TypeError, ValueError):
        return 0.0
