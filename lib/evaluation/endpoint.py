"""Asking a server that speaks the OpenAI protocol: deadlines and retries of our own, through the openai SDK."""

import time
from urllib.parse import urlsplit

import httpx2  # the client library that openai 3 is built on
import openai

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SHORTEST_S = 0.05  # less than this is no attempt
PAUSE_S = (0.5, 8.0)  # first and longest wait between two attempts


class _Deadline(httpx2.SyncByteStream):
    """A body that must arrive before a moment, however often a few bytes of it do."""

    def __init__(self, stream, end):
        self.stream, self.end = stream, end

    def __iter__(self):
        for part in self.stream:
            if time.monotonic() > self.end:
                raise httpx2.ReadTimeout("the answer took longer than its deadline")
            yield part

    def close(self):
        self.stream.close()


class _Transport(httpx2.HTTPTransport):
    def handle_request(self, request):
        end = time.monotonic() + request.extensions["timeout"]["read"]
        response = super().handle_request(request)
        response.stream = _Deadline(response.stream, end)
        return response


def client(base_url, api_key="none"):
    """An OpenAI client without its own retries and ten-minute timeout. A bare host gets the usual /v1 path.

    base_url: None for api.openai.com. A server on this machine is reached past any proxy of the environment. A timeout
    bounds the whole answer, not the wait for its next bytes (behind a proxy of the environment it is the latter).
    """
    host = urlsplit(base_url or "")
    if base_url and not host.path.strip("/"):
        base_url = base_url.rstrip("/") + "/v1"
    http = openai.DefaultHttpxClient(transport=_Transport(), trust_env=host.hostname not in LOOPBACK)
    return openai.OpenAI(base_url=base_url, api_key=api_key, max_retries=0, timeout=60.0, http_client=http)


def complete(api, request, deadline_s):
    """One chat completion; transport faults are retried until deadline_s seconds have passed: (completion, attempts).

    api: from `client`. request: fields of chat.completions.create. Transport faults are time-outs, lost connections,
    HTTP 408, 409, 429 and 5xx, and a body that is not the protocol's JSON. One attempt may take half of the time that
    is left, so that a hung connection is tried again.
    Raises the last fault when the deadline has passed, a time-out only where there was nothing else, and at once what
    no retry mends (bad key, unknown model).
    """

    def once(timeout_s):
        reply = api.with_options(timeout=timeout_s).chat.completions.create(**request)
        if getattr(reply, "choices", None):
            return reply
        raise ValueError(f"{api.base_url} answered without choices: {str(reply)[:80]!r}")

    return persist(once, deadline_s)


def stream(api, request, deadline_s):
    """One chat completion, read as it is written: {"content", "reasoning", "tokens", "finish", "first_s", "seconds"}.

    As `complete`, with the time to the first token and to the last, both of the attempt that succeeded. tokens: as the
    server counts them, else the number of pieces that came. finish: the server's finish_reason.
    """

    def once(timeout_s):
        start, first, finish, tokens, pieces = time.monotonic(), None, None, None, 0
        parts = {"content": "", "reasoning": ""}
        options = {"stream": True, "stream_options": {"include_usage": True}}
        with api.with_options(timeout=timeout_s).chat.completions.create(**request, **options) as chunks:
            for chunk in chunks:
                tokens = chunk.usage.completion_tokens if chunk.usage else tokens
                for choice in chunk.choices or []:
                    finish = choice.finish_reason or finish
                    extra = choice.delta.model_extra or {}
                    reasoning = extra.get("reasoning_content") or extra.get("reasoning") or ""
                    if reasoning or choice.delta.content:
                        first, pieces = first or time.monotonic() - start, pieces + 1
                        parts["reasoning"] += reasoning
                        parts["content"] += choice.delta.content or ""
        if finish is None:
            raise ValueError(f"{api.base_url} ended its stream without a finish_reason")
        seconds = time.monotonic() - start
        return parts | {"tokens": tokens or pieces, "finish": finish, "first_s": first or seconds, "seconds": seconds}

    return persist(once, deadline_s)[0]


def persist(once, deadline_s):
    """Call once(timeout_s) until it returns or the deadline has passed: (its value, attempts). See `complete`."""
    end, attempts, fault = time.monotonic() + deadline_s, 0, None
    while True:
        attempts += 1
        try:
            return once(max((end - time.monotonic()) / 2, SHORTEST_S)), attempts
        except openai.APIStatusError as error:
            if error.status_code not in (408, 409, 429) and error.status_code < 500:
                raise
            fault, wait = error, _seconds(error.response.headers.get("retry-after"))
        except openai.APITimeoutError as error:  # of the last, short attempts: what came before says more
            fault, wait = fault or error, 0.0
        except (openai.APIConnectionError, openai.APIResponseValidationError, ValueError) as error:
            fault, wait = error, 0.0
        except httpx2.TransportError as error:  # a stream that broke off
            fault, wait = openai.APIConnectionError(request=error.request), 0.0
        left = end - time.monotonic()
        if left <= 2 * SHORTEST_S:
            raise fault
        time.sleep(min(max(wait, min(PAUSE_S[0] * 2 ** (attempts - 1), PAUSE_S[1])), left / 2))


def _seconds(header):
    try:
        return min(float(header), 30.0)  # a server that asks for ten minutes is asked again sooner
    except (TypeError, ValueError):
        return 0.0
