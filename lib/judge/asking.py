"""Asking one judge: what a request costs, how often a reply is asked for again, and when a judge is given up."""

import contextlib
import functools
import threading

import openai

from lib.evaluation import connection, endpoint

CONTENT_TRIES = 3  # the first reply and two more with fresh codes; then one repair of the last reply
PATIENCE = 3  # calls in a row that fail before a judge that has answered is given up
CHARS_PER_TOKEN = 3.5  # for the estimate before a call, which is also the least that it is charged


def expected(judge, messages, tokens_out):
    """Dollars of a call before it is made: tokens in by length."""
    return cost(judge, sum(len(message["content"]) for message in messages) / CHARS_PER_TOKEN, tokens_out)


def cost(judge, tokens_in, tokens_out):
    return (tokens_in * judge.usd_per_mtok[0] + tokens_out * judge.usd_per_mtok[1]) / 1e6


class Stopped(Exception):
    """No further request is made of a judge; the text says why."""


class Session:
    """One judge being asked: its client, its cap, and whether it still answers."""

    def __init__(self, judge, store, timeout_s, max_usd):
        self.judge, self.store, self.timeout_s, self.max_usd = judge, store, timeout_s, max_usd
        self.api = endpoint.client(judge.base_url, judge.api_key)
        self.dialect = endpoint.dialect(judge.base_url, judge.model)
        self.lock, self.under_way = threading.Lock(), 0.0  # dollars that calls under way are expected to cost
        self.requests, self.heard, self.lost, self.closed = 0, False, 0, None

    @contextlib.contextmanager
    def reserved(self, usd):
        """For one request of expected `usd` dollars, which is within the cap beside those under way in other threads.

        Raises Stopped where it is not.
        """
        with self.lock:
            if usd > 0 and usd > self.max_usd - self.store.spent() - self.under_way:
                raise Stopped("budget")
            self.under_way += usd
            self.requests += 1
        try:
            yield
        finally:
            with self.lock:
                self.under_way -= usd

    def once(self, task, messages, labels, timeout_s, fit):
        """One request, in the ledger whatever comes of it: (verdict or None, text, fault or None).

        It is charged what its reply states, and at least what was expected: a server may state nothing, or nonsense.
        """
        form = {"type": "json_schema", "json_schema": task.schema(labels)}
        fields = {"model": self.judge.model, "messages": messages, "temperature": 0.0, "response_format": form}
        fields |= {"max_tokens": self.judge.max_tokens} if self.judge.max_tokens else {}
        usd = task.usd(self.judge) + expected(self.judge, messages[2:], 0)
        outcome, tokens, charged = "transport", (0, 0), usd
        with self.reserved(usd):
            try:
                reply = endpoint.post(self.api, fit(fields), timeout_s)
                tokens, charged = reply.tokens, max(usd, cost(self.judge, *reply.tokens))
                verdict, fault = read(task, reply, labels)
                outcome = "content" if fault else "valid"
                return verdict, reply.text, fault
            except connection.TooLong as error:  # the judge is there, and this is what it says
                outcome = "content"
                return None, "", str(error)
            except openai.OpenAIError as error:
                charged = 0.0 if endpoint.free(error) else usd
                raise
            finally:
                self.store.record_call(self.judge.name, outcome, *tokens, charged)

    def verdict(self, task):
        """(verdict or None, cause of failure or None): CONTENT_TRIES replies, then one repair of the last.

        A valid verdict is in the store when this returns. Where the judge has been given up nothing is asked; a call
        that was under way before goes on to its own deadline, so that its cause is what happened to it.
        """
        if self.closed:
            return None, "not asked"
        fault, text = None, ""
        for attempt in range(CONTENT_TRIES + 1):
            if attempt < CONTENT_TRIES:
                messages, labels = task.messages(self.judge, attempt)
            else:
                again = task.repair(fault, labels)
                messages += [{"role": "assistant", "content": text}, {"role": "user", "content": again}]
            try:
                once = functools.partial(self.once, task, messages, labels)
                verdict, text, fault = endpoint.persist(once, self.timeout_s, self.dialect)
            except Stopped as stop:
                return None, str(stop)
            except (openai.OpenAIError, ValueError) as error:  # the deadline has passed, or no retry would mend it
                self.lose(error)
                return None, f"transport: {type(error).__name__}"
            self.heard, self.lost = True, 0
            if verdict:
                self.store.put(task.key(self.judge), attempt, verdict)
                return verdict, None
        return None, "content"

    def lose(self, error):
        """Note a call that failed, and give the judge up where the next ones would fail alike.

        That is: a refusal of every request, a server that never answered, or PATIENCE failed calls in a row.
        """
        with self.lock:
            self.lost += 1
            dead = isinstance(error, openai.APIConnectionError) and not self.heard  # time-outs among them
            if not self.closed and (endpoint.final(error) or dead or self.lost >= PATIENCE):
                self.closed = endpoint.sentence(error, self.judge.api_key)


class Candidate(Session):
    """A hosted model whose answers are judged: paid for within the cap, and given up, as a judge is."""

    @contextlib.contextmanager
    def attempt(self, messages, most):
        """One request for at most `most` tokens, in the ledger whatever comes of it: gives a dict for its reply.

        It is charged what the reply states (see endpoint.stream), and at least its length; all where none came.
        """
        usd, reply = expected(self.judge, messages, most), {}
        outcome, tokens, charged = "transport", (0, 0), usd
        with self.reserved(usd):
            try:
                yield reply
                self.heard, self.lost = True, 0
                outcome, tokens = reply["finish"], (reply["tokens_in"], reply["tokens"])
                written = len(reply["content"] + reply["reasoning"]) / CHARS_PER_TOKEN
                least = expected(self.judge, messages, max(tokens[1], written))
                charged = max(least, cost(self.judge, tokens[0], max(tokens[1], written)))
            except openai.OpenAIError as error:
                charged = 0.0 if endpoint.free(error) else usd
                raise
            finally:
                self.store.record_call(self.judge.name, outcome, *tokens, charged)


def read(task, reply, labels):
    """(verdict, None) of an endpoint.Reply, or (None, fault): a reply is read or refused, whatever stands in it."""
    if reply.fault:
        return None, reply.fault
    try:
        return task.parse(reply.text, labels), None
    except (ValueError, RecursionError) as error:
        return None, str(error)[:500]
