"""Asking a server that speaks the OpenAI protocol: deadlines and retries of our own, through the openai SDK."""

import time
from urllib.parse import urlsplit

import openai

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PAUSE_S = (0.5, 8.0)  # first and longest wait between two attempts


def client(base_url, api_key="none"):
    """An OpenAI client without its own retries and ten-minute timeout. A bare host gets the usual /v1 path.

    base_url: None for api.openai.com. A server on this machine is reached past any proxy of the environment.
    """
    host = urlsplit(base_url or "")
    if base_url and not host.path.strip("/"):
        base_url = base_url.rstrip("/") + "/v1"
    direct = openai.DefaultHttpxClient(trust_env=False) if host.hostname in LOOPBACK else None
    return openai.OpenAI(base_url=base_url, api_key=api_key, max_retries=0, timeout=60.0, http_client=direct)


def complete(api, request, deadline_s):
    """One chat completion; transport faults are retried until deadline_s seconds have passed.

    api: from `client`. request: fields of chat.completions.create. Transport faults are time-outs, lost connections,
    HTTP 408, 409, 429 and 5xx, and a body that is not the protocol's JSON. Returns (completion, attempts).
    Raises the last fault when the deadline has passed, and at once what no retry mends (bad key, unknown model).
    """
    end, attempts = time.monotonic() + deadline_s, 0
    while True:
        attempts += 1
        left = max(end - time.monotonic(), 0.05)
        try:
            reply = api.with_options(timeout=left).chat.completions.create(**request)
            if getattr(reply, "choices", None):
                return reply, attempts
            raise ValueError(f"{api.base_url} answered without choices: {str(reply)[:80]!r}")
        except openai.APIStatusError as error:
            if error.status_code not in (408, 409, 429) and error.status_code < 500:
                raise
            fault, wait = error, _seconds(error.response.headers.get("retry-after"))
        except (openai.APIConnectionError, openai.APIResponseValidationError, ValueError) as error:  # time-outs too
            fault, wait = error, 0.0
        pause = max(wait, min(PAUSE_S[0] * 2 ** (attempts - 1), PAUSE_S[1]))
        if time.monotonic() + pause >= end:
            raise fault
        time.sleep(pause)


def _seconds(header):
    try:
        return min(float(header), 30.0)  # a server that asks for ten minutes is asked again sooner
    except (TypeError, ValueError):
        return 0.0
