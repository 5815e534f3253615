"""Grading for real: one call per different answer, with the panel's client, retries, deadline, budget and store."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed

import openai

from lib import judge as protocol
from lib import panel, rubric
from lib.endpoint import complete

TOKENS_OUT = {"case": 400, "healthbench": 0, "medsafety": 100}  # for the estimate before a call
TOKENS_PER_CRITERION = 50


def tasks(items, texts):
    """Answers to grade: [(item, model, text)].

    items: from lib.cases. texts: {model: {item id: answer}}; "" for an answer that was cut or never came.
    Raises ValueError when a model has no text, not even an empty one, for an item.
    """
    for model, found in texts.items():
        if missing := [item["id"] for item in items if item["id"] not in found]:
            raise ValueError(f"{model} has no answer to {', '.join(missing[:3])} ({len(missing)} in all): generate it")
    return [(item, model, found[item["id"]]) for item in items for model, found in texts.items()]


def estimate(judge, work):
    """Dollars that asking `judge` for `work` will cost, cache and equal answers aside: tokens by length, no retries."""
    return sum(_call_usd(judge, item, text) for item, _, text in work if rubric.shown(text))


def _call_usd(judge, item, text):
    chars = sum(len(message["content"]) for message in rubric.messages(item, text))
    tokens_out = TOKENS_OUT[item["kind"]] + TOKENS_PER_CRITERION * len(item.get("rubrics", ()))
    return panel._usd(judge, chars / panel.CHARS_PER_TOKEN, tokens_out)


class Session(panel.Session):
    """One judge being asked for one verdict a call; client, limits and what its server takes are the panel's."""

    def call(self, messages, schema):
        """(text, (tokens in, tokens out, dollars), fault or None) of one request, transport faults retried."""
        request = {"model": self.judge.model, "messages": messages}
        extras = {"temperature": 0.0, "response_format": {"type": "json_schema", "json_schema": schema}}
        try:
            reply, _ = complete(self.api, request | (extras if self.strict else {}), self.timeout_s)
        except openai.BadRequestError:
            if not self.strict:
                raise
            reply, _ = complete(self.api, request, self.timeout_s)
            self.strict = False
        choice, usage = reply.choices[0], reply.usage
        tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        fault = "the reply was cut" if choice.finish_reason == "length" else None
        if choice.message.refusal or choice.finish_reason == "content_filter":
            fault = "the judge refused"
        return choice.message.content or "", (*tokens, panel._usd(self.judge, *tokens)), fault

    def ask(self, item, text):
        """(verdict or None, attempt, cause of failure or None, calls made) of one answer.

        Content faults get panel.CONTENT_TRIES replies under fresh codes, then one repair of the last.
        """
        expected, calls, fault, reply = _call_usd(self.judge, item, text), [], None, ""
        for attempt in range(panel.CONTENT_TRIES + 1):
            if attempt < panel.CONTENT_TRIES:
                (code,) = protocol.codes(f"{item['id']} {self.judge.name} {text} {attempt}", 1)
                messages = rubric.messages(item, text, code)
            else:
                again = rubric.REPAIR.format(fault=fault)
                messages += [{"role": "assistant", "content": reply}, {"role": "user", "content": again}]
            if not self.budget.reserve(expected):
                return None, attempt, "budget", calls
            try:
                reply, cost, fault = self.call(messages, rubric.schema(item))
            except (openai.OpenAIError, ValueError) as error:  # the deadline has passed, or no retry would mend it
                self.budget.settle(expected, 0.0)
                return None, attempt, f"transport: {type(error).__name__}", [*calls, ("transport", 0, 0, 0.0)]
            self.budget.settle(expected, cost[2])
            try:
                verdict = None if fault else rubric.parse(reply, item, text)
            except protocol.ContentFault as error:
                fault = str(error)
            calls.append(("content" if fault else "valid", *cost))
            if not fault:
                return verdict, attempt, None, calls
        return None, attempt, "content", calls


def grade(judge, work, store, *, timeout_s, max_usd, progress=None):
    """Ask one judge for all verdicts of `work` that the store does not hold; returns (rows, coverage).

    work: from `tasks`. store: a verdicts.Store. timeout_s: bound of one call with its transport retries. max_usd: cap
    of the store's ledger, the panel's calls included. Equal answers to one item are asked once, empty ones never.
    rows: one per answer with a verdict: question, judge, is_llm_judge, kind, model, empty, the axes of
    rubric.AXES, verdict. coverage: {"asked", "judged", "invalid": {cause: count}, "incomplete", "calls", "usd"}.
    """
    session = Session(judge, panel.Budget(max_usd, store.spent()), timeout_s)
    keys = [(item["id"], judge.name, item["kind"], rubric.content_hash(item, text)) for item, _, text in work]
    answers = {key: (item, text) for key, (item, _, text) in zip(keys, work, strict=True)}
    verdicts, causes, calls_made, spent = {}, {}, 0, store.spent(judge.name)
    for key, (item, text) in answers.items():
        verdicts[key] = store.get(*key) if rubric.shown(text) else rubric.unanswered(item)
    with ThreadPoolExecutor(judge.slots) as pool:
        asked = [key for key, verdict in verdicts.items() if verdict is None]
        pending = {pool.submit(session.ask, *answers[key]): key for key in asked}
        for done, future in enumerate(as_completed(pending), start=len(answers) - len(asked) + 1):
            key = pending[future]
            verdicts[key], attempt, causes[key], calls = future.result()
            calls_made += len(calls)
            store.record_calls(judge.name, calls)
            if verdicts[key]:
                store.put(key, attempt, verdicts[key])
            if progress:
                progress(done, len(answers))
    rows = [_row(judge, *task, verdicts[key]) for key, task in zip(keys, work, strict=True) if verdicts[key]]
    invalid = Counter(causes[key] for key in keys if not verdicts[key])
    coverage = {
        "asked": len(work),
        "judged": len(rows),
        "invalid": dict(sorted(invalid.items())),
        "incomplete": len(work) - len(rows) > protocol.MAX_INVALID * len(work),
        "calls": calls_made,
        "usd": store.spent(judge.name) - spent,
    }
    return sorted(rows, key=lambda row: (row["question"], row["model"])), coverage


def _row(judge, item, model, text, verdict):
    who = {"question": item["id"], "judge": judge.name, "is_llm_judge": True, "kind": item["kind"], "model": model}
    return who | {"empty": not rubric.shown(text)} | rubric.score(verdict, item) | {"verdict": verdict}
