"""Judging for real: one verdict per question and order, with bounded retries, a deadline, a cap, and a count."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from lib.judge import protocol
from lib.judge.asking import Session, expected

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


def collect(judge, work, store, *, timeout_s, max_usd, progress=None):
    """Get all verdicts of `work` that the store does not hold from one judge: ([verdict or None per task], coverage).

    work: tasks with key, usd, messages, schema, parse and repair, as Task has them. store: a verdicts.Store.
    timeout_s: bound of one call with its transport retries. coverage: {"asked", "judged", "invalid": {cause: count},
    "incomplete", "calls", "usd"}; calls: requests, retries included. "fault": why the judge was given up, if it was.
    """
    session, before = Session(judge, store, timeout_s, max_usd), store.spent(judge.name)
    found, invalid, pending = [store.get(task.key(judge)) for task in work], Counter(), {}
    with ThreadPoolExecutor(judge.slots) as pool:
        try:
            pending = {pool.submit(session.verdict, work[i]): i for i, got in enumerate(found) if got is None}
            for done, future in enumerate(as_completed(pending), start=len(work) - len(pending) + 1):
                found[pending[future]], cause = future.result()
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
        "calls": session.requests,
        "usd": store.spent(judge.name) - before,
    } | ({"fault": session.closed} if session.closed else {})
    return found, coverage


def run(judge, work, store, **limits):
    """Listwise verdicts of one judge: (rows, coverage); limits: see `collect`.

    rows: one per question, order, repeat and model, see _rows. A question without a valid verdict is missing for all
    models alike.
    """
    found, coverage = collect(judge, work, store, **limits)
    rows = [row for task, verdict in zip(work, found, strict=True) if verdict for row in _rows(judge, task, verdict)]
    return sorted(rows, key=lambda row: (row["question"], row["order"], row["repeat"], row["model"])), coverage


def heard(judge, work, store, **limits):
    """As `run`; see `refuse_silence`."""
    rows, coverage = run(judge, work, store, **limits)
    refuse_silence(judge, coverage)
    return rows, coverage


def refuse_silence(judge, coverage):
    """Raise ValueError, in the server's own words, where a judge has been given up without any verdict."""
    if "fault" in coverage and not coverage["judged"]:
        raise ValueError(
            f"{judge.name} was asked and gave no verdict ({coverage['fault']}): mend its address, model or key in "
            '.env or the recipe and make 06_judge again, or unset its variables and set SET="judge.judges=[lexical]"'
        )


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
