"""Verdicts for half the price: the Batch API of OpenAI, for whoever can wait up to a day.

One batch holds the first attempt of every call that the store lacks. What comes back without a valid verdict is left
to `panel.run`, which asks it again the ordinary way. The batch's id is kept in the store before anything is awaited,
so that a killed runner goes on waiting for the batch that is already paid.
"""

import json
import time
from types import SimpleNamespace

import openai

from lib.evaluation.endpoint import client
from lib.judge import panel
from lib.pipeline.files import sha256_json

PRICE = 0.5  # of the ordinary price. Source: OpenAI's price list
WINDOW = "24h"
SETTLED = "settled"
OVER = ("completed", "failed", "expired", "cancelled")


def run(judge, work, store, *, max_usd, wait_s=24 * 3600, poll_s=30.0, progress=None):
    """Fill the store with verdicts of one batch: {"asked", "valid", "faulty", "usd", "status"}.

    judge, work, store: as for panel.run. max_usd: cap; a batch whose estimate exceeds what is left is not submitted.
    Raises ValueError for the cap and for a server without batches, TimeoutError after wait_s seconds; the batch then
    goes on, and the next call waits for it.
    """
    missing = [task for task in work if store.get(task.key(judge)) is None]
    found = {"asked": len(missing), "valid": 0, "faulty": 0, "usd": 0.0, "status": "nothing to ask"}
    if not missing:
        return found
    api, by_name = client(judge.base_url, judge.api_key), {_name(task, judge): task for task in missing}
    name = sha256_json(sorted(_name(task, judge) for task in work))  # the same while verdicts are coming in
    batch = store.batch(judge.name, name)
    if batch == SETTLED:
        return found | {"faulty": len(missing), "status": "settled by an earlier run"}
    before = store.spent(judge.name)
    try:
        if batch is None:
            usd = PRICE * panel.estimate(judge, missing)
            if usd > max_usd - store.spent():
                raise ValueError(f"a batch of {len(missing)} calls is expected to cost {usd:.2f} dollars: "
                                 f"{max_usd - store.spent():.2f} are left of judge.max_usd")  # fmt: skip
            batch = store.batch(judge.name, name, _submit(api, judge, missing))
        done = _await(api, batch, wait_s, poll_s, progress)
        replies = api.files.content(done.output_file_id).text if done.output_file_id else ""
    except (openai.NotFoundError, openai.BadRequestError) as error:
        raise ValueError(
            f"{judge.name} takes no batch ({error}): set judge.batch to false, or judge at api.openai.com"
        ) from error
    for line in filter(None, replies.splitlines()):
        found["valid"] += _settle(json.loads(line), by_name, judge, store)
    store.batch(judge.name, name, SETTLED)
    usd = store.spent(judge.name) - before
    return found | {"status": done.status, "faulty": len(missing) - found["valid"], "usd": usd}


def _name(task, judge):
    return sha256_json(task.key(judge))[:32]


def _submit(api, judge, tasks):
    lines = []
    for task in tasks:
        messages, labels = task.messages(judge, 0)
        body = panel.request(judge, messages, task.schema(labels))
        line = {"custom_id": _name(task, judge), "method": "POST", "url": "/v1/chat/completions", "body": body}
        lines.append(json.dumps(line, ensure_ascii=False))
    file = api.files.create(file=("judge.jsonl", "\n".join(lines).encode()), purpose="batch")
    batch = api.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window=WINDOW)
    return batch.id


def _await(api, batch, wait_s, poll_s, progress):
    end = time.monotonic() + wait_s
    while True:
        try:
            state = api.batches.retrieve(batch)
        except (openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError):
            state = None  # the batch does not need us
        if state and progress and state.request_counts:
            progress(state.request_counts.completed, state.request_counts.total)
        if state and state.status in OVER:
            return state
        if time.monotonic() > end:
            raise TimeoutError(f"batch {batch} is not done after {wait_s:.0f} s: run this stage again to go on waiting")
        time.sleep(poll_s)


def _settle(line, by_name, judge, store):
    """Put one reply's verdict into the store; whether it was valid."""
    task = by_name.pop(line.get("custom_id"), None)
    body = (line.get("response") or {}).get("body") or {}
    if task is None or not body.get("choices"):
        return False
    _, labels = task.messages(judge, 0)
    reply = json.loads(json.dumps(body), object_hook=_Fields)
    verdict, _, fault, cost = panel.read(judge, task, reply, labels, PRICE)
    store.record_call(judge.name, "content" if fault else "valid", *cost)
    if verdict:
        store.settle(task.key(judge), 0, verdict)
    return bool(verdict)


class _Fields(SimpleNamespace):
    """A JSON object read by attribute, as the SDK's replies are; what is not there is None."""

    def __init__(self, values):
        super().__init__(**values)

    def __getattr__(self, name):
        return None
