"""Judging for real: one call per question and order, with bounded retries, a deadline, a budget, and a count."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed

import openai

from lib import judge as protocol
from lib.endpoint import client, complete

CONTENT_TRIES = 3  # the first reply and two more with fresh codes; then one repair of the last reply
CHARS_PER_TOKEN = 3.5  # for the estimate before a call; what a call cost is taken from its usage


def tasks(items, orders_per_question=1):
    """Calls to make: [(item, order of its models)], Williams rows dealt to questions in turn.

    Over any run of as many questions as there are rows, each candidate stands equally often at each place.
    """
    models = sorted(items[0]["answers"])
    rows = protocol.williams(len(models))
    dealt = [(i, (i + k) % len(rows)) for i in range(len(items)) for k in range(orders_per_question)]
    return [(items[i], [models[place] for place in rows[row]]) for i, row in dealt]


def estimate(judge, work):
    """Dollars that asking `judge` for `work` will cost, cache aside: tokens by length, no retries."""
    return sum(_call_usd(judge, item, order) for item, order in work)


def _call_usd(judge, item, order):
    messages = protocol.prompt(item, order, ["XX0"] * len(order))
    tokens_in = sum(len(message["content"]) for message in messages) / CHARS_PER_TOKEN
    return _usd(judge, tokens_in, 60 * len(order))


def _usd(judge, tokens_in, tokens_out):
    return (tokens_in * judge.usd_per_mtok[0] + tokens_out * judge.usd_per_mtok[1]) / 1e6


class Budget:
    """Dollars that calls under way and made may add up to; shared by threads."""

    def __init__(self, max_usd, spent):
        self.left, self.lock = max_usd - spent, threading.Lock()

    def reserve(self, usd):
        """Whether the call may be made; if so its estimate is set aside."""
        with self.lock:
            if usd > max(self.left, 0.0):
                return False
            self.left -= usd
            return True

    def settle(self, reserved, actual):
        with self.lock:
            self.left += reserved - actual


class Session:
    """One judge being asked: its client, its limits, and whether its server takes a schema and a temperature."""

    def __init__(self, judge, budget, timeout_s):
        self.judge, self.budget, self.timeout_s = judge, budget, timeout_s
        self.api, self.strict = client(judge.base_url, judge.api_key), True

    def call(self, messages, labels):
        """(text, (tokens in, tokens out, dollars), fault or None) of one request, transport faults retried."""
        request = {"model": self.judge.model, "messages": messages}
        extras = {
            "temperature": 0.0,
            "response_format": {"type": "json_schema", "json_schema": protocol.schema(labels)},
        }
        try:
            reply, _ = complete(self.api, request | (extras if self.strict else {}), self.timeout_s)
        except openai.BadRequestError:
            if not self.strict:
                raise
            reply, _ = complete(self.api, request, self.timeout_s)
            self.strict = False
        choice, usage = reply.choices[0], reply.usage
        tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        fault = None
        if choice.message.refusal or choice.finish_reason == "content_filter":
            fault = "the judge refused"
        elif choice.finish_reason == "length":
            fault = "the reply was cut"
        return choice.message.content or "", (*tokens, _usd(self.judge, *tokens)), fault

    def ask(self, item, order):
        """(verdict or None, attempt, cause of failure or None, calls made) of one question in one order.

        Content faults get CONTENT_TRIES replies under fresh codes, then one repair of the last; a transport fault
        that outlives the deadline ends it.
        """
        expected, calls, fault, reply = _call_usd(self.judge, item, order), [], None, ""
        for attempt in range(CONTENT_TRIES + 1):
            if attempt < CONTENT_TRIES:
                labels = protocol.codes(f"{item['id']} {self.judge.name} {order} {attempt}", len(order))
                messages = protocol.prompt(item, order, labels)
            else:
                again = protocol.REPAIR.format(fault=fault, codes=", ".join(labels))
                messages += [{"role": "assistant", "content": reply}, {"role": "user", "content": again}]
            if not self.budget.reserve(expected):
                return None, attempt, "budget", calls
            try:
                reply, cost, fault = self.call(messages, labels)
            except (openai.OpenAIError, ValueError) as error:  # the deadline has passed, or no retry would mend it
                self.budget.settle(expected, 0.0)
                return None, attempt, f"transport: {type(error).__name__}", [*calls, ("transport", 0, 0, 0.0)]
            self.budget.settle(expected, cost[2])
            try:
                verdict = None if fault else protocol.parse(reply, labels)
            except protocol.ContentFault as error:
                fault = str(error)
            calls.append(("content" if fault else "valid", *cost))
            if not fault:
                return verdict, attempt, None, calls
        return None, attempt, "content", calls


def run(judge, work, store, *, timeout_s, max_usd, progress=None):
    """Ask one judge for all verdicts of `work` that the store does not hold; returns (rows, coverage).

    work: from `tasks`. store: a verdicts.Store. timeout_s: bound of one call with its transport retries.
    rows: one per question, order and model, see _rows. coverage: {"asked", "judged", "invalid": {cause: count},
    "incomplete", "calls", "usd"}; a question without a valid verdict is missing for all models alike.
    """
    session = Session(judge, Budget(max_usd, store.spent()), timeout_s)
    rows, invalid, pending, calls_made, spent = [], Counter(), {}, 0, store.spent(judge.name)
    with ThreadPoolExecutor(judge.slots) as pool:
        for item, order in work:
            key = (item["id"], judge.name, ">".join(order), protocol.content_hash(item, order))
            if verdict := store.get(*key):
                rows += _rows(judge, item, order, verdict)
            else:
                pending[pool.submit(session.ask, item, order)] = (key, item, order)
        for done, future in enumerate(as_completed(pending), start=len(work) - len(pending) + 1):
            key, item, order = pending[future]
            verdict, attempt, cause, calls = future.result()
            calls_made += len(calls)
            store.record_calls(judge.name, calls)
            if verdict:
                store.put(key, attempt, verdict)
                rows += _rows(judge, item, order, verdict)
            else:
                invalid[cause] += 1
            if progress:
                progress(done, len(work))
    missing = sum(invalid.values())
    coverage = {
        "asked": len(work),
        "judged": len(work) - missing,
        "invalid": dict(sorted(invalid.items())),
        "incomplete": missing > protocol.MAX_INVALID * len(work),
        "calls": calls_made,
        "usd": store.spent(judge.name) - spent,
    }
    return sorted(rows, key=lambda row: (row["question"], row["order"], row["model"])), coverage


def _rows(judge, item, order, verdict):
    """One row per model: question, judge, is_llm_judge, order, model, position, score, rank, correct, safety_issue.

    A model whose answer was empty or cut loses whatever the judge says: score 1, last rank.
    """
    rows = []
    for position, (model, v) in enumerate(zip(order, verdict, strict=True)):
        empty = not item["answers"][model].strip()
        rows.append(
            {
                "question": item["id"],
                "judge": judge.name,
                "is_llm_judge": True,
                "order": ">".join(order),
                "model": model,
                "position": position,
                "score": 1 if empty else v["score"],
                "rank": len(order) if empty else v["rank"],
                "correct": "no" if empty else v["correct_vs_reference"],
                "safety_issue": v["safety_issue"],
            }
        )
    return rows
