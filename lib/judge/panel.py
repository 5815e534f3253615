"""Judging for real: one verdict per question and order, with bounded retries, a deadline, a cap, and a count."""

import contextlib
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import openai

from lib.evaluation.endpoint import client, complete
from lib.judge import protocol

CONTENT_TRIES = 3  # the first reply and two more with fresh codes; then one repair of the last reply
CHARS_PER_TOKEN = 3.5  # for the estimate before a call; what a call cost is taken from its usage
TOKENS_PER_VERDICT = 60


@dataclass(frozen=True)
class Task:
    """One verdict to get: an item, the order in which its models are shown, and which repeat of the call it is."""

    item: dict
    order: tuple
    repeat: int = 0

    def key(self, judge):
        return (self.item["id"], judge.name, ">".join(self.order), protocol.content_hash(self.item, self.order),
                self.repeat)  # fmt: skip

    def messages(self, judge, attempt):
        """(messages, codes) of one attempt; every attempt has fresh codes, the same ones when it is made again."""
        labels = protocol.codes(f"{self.item['id']} {judge.name} {self.order} {self.repeat} {attempt}", len(self.order))
        return protocol.prompt(self.item, self.order, labels), labels

    def usd(self, judge):
        """Dollars that one call will cost, by length."""
        return expected(judge, protocol.prompt(self.item, self.order, ["XX0"] * len(self.order)),
                        TOKENS_PER_VERDICT * len(self.order))  # fmt: skip

    def schema(self, labels):
        return protocol.schema(labels)

    def parse(self, text, labels):
        return protocol.parse(text, labels)

    def repair(self, fault, labels):
        return protocol.REPAIR.format(fault=fault, codes=", ".join(labels))


def tasks(items, orders_per_question=1, repeats=0):
    """Calls to make: Williams rows dealt to questions in turn; then `repeats` of the first calls once more.

    Over as many questions as there are rows, each candidate stands equally often at each place.
    """
    models = sorted(items[0]["answers"])
    rows = protocol.williams(len(models))
    step = max(1, len(rows) // 2)  # the second order of a question has other neighbours and places than the first
    dealt = [
        Task(item, tuple(models[place] for place in rows[(i + k * step) % len(rows)]))
        for i, item in enumerate(items)
        for k in range(min(orders_per_question, len(rows)))
    ]
    return dealt + [Task(task.item, task.order, 1) for task in dealt[:repeats]]


def estimate(judge, work):
    """Dollars that asking `judge` for `work` will cost, cache aside: tokens by length, no retries."""
    return sum(task.usd(judge) for task in work)


def expected(judge, messages, tokens_out):
    """Dollars of a call before it is made: tokens in by length."""
    return cost(judge, sum(len(message["content"]) for message in messages) / CHARS_PER_TOKEN, tokens_out)


def cost(judge, tokens_in, tokens_out):
    return (tokens_in * judge.usd_per_mtok[0] + tokens_out * judge.usd_per_mtok[1]) / 1e6


def request(judge, messages, schema, strict=True):
    """Fields of chat.completions.create for one call. strict: with a schema and temperature 0."""
    form = {"type": "json_schema", "json_schema": schema}
    extras = {"temperature": 0.0, "response_format": form} if strict else {}
    limit = {"max_tokens": judge.max_tokens} if judge.max_tokens else {}
    return {"model": judge.model, "messages": messages} | limit | extras


def read(judge, task, reply, labels):
    """(verdict or None, text, fault or None, (tokens in, tokens out, dollars)) of a chat completion."""
    choice, usage = reply.choices[0], reply.usage
    tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
    text, verdict, fault = choice.message.content or "", None, None
    if choice.message.refusal or choice.finish_reason == "content_filter":
        fault = "the judge refused"
    elif choice.finish_reason == "length":
        fault = "the reply was cut"
    else:
        try:
            verdict = task.parse(text, labels)
        except protocol.ContentFault as error:
            fault = str(error)
    return verdict, text, fault, (*tokens, cost(judge, *tokens))


class Session:
    """One judge being asked: its client, its limits, and whether its server takes a schema and a temperature."""

    def __init__(self, judge, store, timeout_s, max_usd):
        self.judge, self.store, self.timeout_s, self.max_usd = judge, store, timeout_s, max_usd
        self.api, self.strict = client(judge.base_url, judge.api_key), True
        self.lock, self.under_way = threading.Lock(), 0.0  # dollars that calls under way are expected to cost

    @contextlib.contextmanager
    def reserved(self, usd):
        """Whether a call of expected `usd` dollars stays within the cap, beside those under way in other threads."""
        with self.lock:
            granted = usd <= 0 or usd <= self.max_usd - self.store.spent() - self.under_way
            self.under_way += usd * granted
        try:
            yield granted
        finally:
            with self.lock:
                self.under_way -= usd * granted

    def call(self, messages, schema):
        """One completion, transport faults retried until timeout_s."""
        try:
            return complete(self.api, request(self.judge, messages, schema, self.strict), self.timeout_s)[0]
        except openai.BadRequestError:
            if not self.strict:
                raise
            reply, _ = complete(self.api, request(self.judge, messages, schema, False), self.timeout_s)
            self.strict = False
            return reply

    def verdict(self, task):
        """(verdict or None, cause of failure or None, calls made): CONTENT_TRIES replies, then one repair of the last.

        A valid verdict is in the store when this returns.
        """
        fault, text, usd = None, "", task.usd(self.judge)
        for attempt in range(CONTENT_TRIES + 1):
            if attempt < CONTENT_TRIES:
                messages, labels = task.messages(self.judge, attempt)
            else:
                again = task.repair(fault, labels)
                messages += [{"role": "assistant", "content": text}, {"role": "user", "content": again}]
            with self.reserved(usd) as granted:
                if not granted:
                    return None, "budget", attempt
                try:
                    reply = self.call(messages, task.schema(labels))
                except (openai.OpenAIError, ValueError) as error:  # the deadline has passed, or no retry would mend it
                    self.store.record_call(self.judge.name, "transport", 0, 0, 0.0)
                    return None, f"transport: {type(error).__name__}", attempt + 1
                verdict, text, fault, cost = read(self.judge, task, reply, labels)
                self.store.record_call(self.judge.name, "content" if fault else "valid", *cost)
            if verdict:
                self.store.put(task.key(self.judge), attempt, verdict)
                return verdict, None, attempt + 1
        return None, "content", CONTENT_TRIES + 1


def collect(judge, work, store, *, timeout_s, max_usd, progress=None):
    """Get all verdicts of `work` that the store does not hold from one judge: ([verdict or None per task], coverage).

    work: tasks with key, usd, messages, schema, parse and repair, as Task has them. store: a verdicts.Store.
    timeout_s: bound of one call with its transport retries. coverage: {"asked", "judged",
    "invalid": {cause: count}, "incomplete", "calls", "usd"}.
    """
    session, before = Session(judge, store, timeout_s, max_usd), store.spent(judge.name)
    found, invalid, calls_made, pending = [store.get(task.key(judge)) for task in work], Counter(), 0, {}
    with ThreadPoolExecutor(judge.slots) as pool:
        try:
            pending = {pool.submit(session.verdict, work[i]): i for i, got in enumerate(found) if got is None}
            for done, future in enumerate(as_completed(pending), start=len(work) - len(pending) + 1):
                found[pending[future]], cause, calls = future.result()
                calls_made += calls
                invalid[cause] += cause is not None
                if progress:
                    progress(done, len(work))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # an interrupted cell ends after the calls under way
            raise
    missing = sum(verdict is None for verdict in found)
    coverage = {
        "asked": len(work),
        "judged": len(work) - missing,
        "invalid": dict(sorted((cause, n) for cause, n in invalid.items() if n)),
        "incomplete": missing > protocol.MAX_INVALID * len(work),
        "calls": calls_made,
        "usd": store.spent(judge.name) - before,
    }
    return found, coverage


def run(judge, work, store, **limits):
    """Listwise verdicts of one judge: (rows, coverage); limits: see `collect`.

    rows: one per question, order, repeat and model, see _rows. A question without a valid verdict is missing for all
    models alike.
    """
    found, coverage = collect(judge, work, store, **limits)
    rows = [row for task, verdict in zip(work, found, strict=True) if verdict for row in _rows(judge, task, verdict)]
    return sorted(rows, key=lambda row: (row["question"], row["order"], row["repeat"], row["model"])), coverage


def _rows(judge, task, verdict):
    """One row per model: question, judge, is_llm_judge, order, repeat, model, position (from 0), score, rank, correct,
    safety_issue, raw_score, raw_rank, length (words).

    A model whose answer was empty or cut loses whatever the judge says: score 1, last rank. raw_*: what it said.
    """
    rows, answers = [], task.item["answers"]
    for position, (model, v) in enumerate(zip(task.order, verdict, strict=True)):
        empty = not answers[model].strip()
        rows.append(
            {
                "question": task.item["id"],
                "judge": judge.name,
                "is_llm_judge": True,
                "order": ">".join(task.order),
                "repeat": task.repeat,
                "model": model,
                "position": position,
                "score": 1 if empty else v["score"],
                "rank": len(task.order) if empty else v["rank"],
                "correct": "no" if empty else v["correct_vs_reference"],
                "safety_issue": v["safety_issue"],
                "raw_score": v["score"],
                "raw_rank": v["rank"],
                "length": len(answers[model].split()),
            }
        )
    return rows


def bounds(values, missing):
    """(low, high) of the mean share over questions if all `missing` ones had gone against a candidate, or to it.

    values: one in [0, 1] per judged question.
    """
    total = len(values) + missing
    return (sum(values) / total, (sum(values) + missing) / total) if total else (0.0, 1.0)
