"""The events of llama-server's stream turned into ours: reasoning told from the answer, everything counted.

Most events are one token of one section. Their token is taken out of the bytes and put into our own frame as it is;
only what may hold a mark of the format is decoded and cut.
"""

import json
import time

from app.sections import ANSWER, REASONING, Sections

HEAD = b'data: {"choices":[{"finish_reason":null,"index":'
CONTENT = b',"delta":{"content":'
TAIL = b'}}],"created":'
DONE = b"data: [DONE]\n\n"
KEY = {ANSWER: (b'"content":',), REASONING: (b'"reasoning_content":', b',"reasoning":')}


class Broken(Exception):
    """The backend's stream is not what its protocol promises."""


class Choice:
    """One answer on its way: raw text, its two sections, pieces counted, how it finished."""

    def __init__(self, form, opened):
        self.sections, self.raw = Sections(form, opened), ["<think>\n" if opened else ""]
        self.texts = {ANSWER: [], REASONING: []}
        self.pieces, self.thinking, self.finish, self.before = 0, 0, None, ""

    @property
    def answer(self):
        return "".join(self.texts[ANSWER])

    @property
    def reasoning(self):
        return "".join(self.texts[REASONING])


class Stream:
    """Reads `feed`'s bytes into choices and returns the events that go on to the client.

    frame: {"id", "model", "created"}. ending(choice): notices to put behind an answer: (text, [guard entries]).
    """

    def __init__(self, frame, form, opened, n, ending):
        self.tail = json.dumps(frame | {"object": "chat.completion.chunk"})[1:].encode()
        self.choices = [Choice(form, opened) for _ in range(n)]
        self.ending, self.rest, self.usage = ending, b"", []
        self.first, self.last, self.done = None, None, False
        self.read = 0  # tokens of the prompt that the backend says it has read so far

    def open(self, text="", entries=()):
        """The first events: the role, and with it what the guard has to say before the answer."""
        out = []
        for index, choice in enumerate(self.choices):
            choice.before = text
            extra = {"guard": list(entries)} if entries else {}
            out.append(self.event(index, {"role": "assistant", "content": text}, **extra))
        return b"".join(out)

    def event(self, index, delta, finish=None, **extra):
        """One event of ours."""
        choice = [{"finish_reason": finish, "index": index, "delta": delta}]
        return b"data: " + json.dumps({"choices": choice} | extra).encode()[:-1] + b", " + self.tail + b"\n\n"

    def feed(self, data):
        """Events for the client out of bytes from the backend, which may end anywhere."""
        *events, self.rest = (self.rest + data).split(b"\n\n")
        return b"".join(part for event in events for part in self._read(event))

    def _read(self, event):
        if not event or event.startswith(b":"):
            return ()
        if event == b"data: [DONE]":
            self.done = True
            return ()
        try:
            if event.startswith(HEAD) and (found := self._token(event)) is not None:
                return found
            data = json.loads(event.removeprefix(b"data: "))
            if "error" in data:
                raise Broken(str(data["error"].get("message", data["error"]))[:200])
            return self._whole(data)
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            raise Broken(f"it sent {event[:60]!r}") from error

    def _token(self, event):
        """A piece of text in the shape that nearly all events have; None for any other."""
        at = event.find(CONTENT, len(HEAD), len(HEAD) + 24)
        end = event.rfind(TAIL)
        if at < 0 or end < 0:
            return None
        token = event[at + len(CONTENT) : end]
        if token[:1] != b'"' or token.find(b'"', 1) != len(token) - 1:  # null, or more than one field, or a quote in it
            return None
        index = int(event[len(HEAD) : at])
        return self._piece(index, json.loads(token), token)

    def _whole(self, data):
        if data.get("usage"):
            self.usage.append(data["usage"])
        if progress := data.get("prompt_progress"):
            self.read = max(self.read, int(progress["processed"]))
        out = []
        for choice in data.get("choices") or ():
            index, delta = choice["index"], choice.get("delta") or {}
            for key in ("reasoning_content", "reasoning"):  # a backend that splits them itself
                if delta.get(key):
                    out += self._own(index, delta[key])
                    break
            if delta.get("content"):
                out += self._piece(index, delta["content"])
            if choice.get("finish_reason"):
                out += self._finish(index, choice["finish_reason"])
        return out

    def _own(self, index, text):
        choice = self.choices[index]
        if not choice.texts[REASONING]:
            choice.raw.append("<think>\n")
        self._count(choice, REASONING)
        choice.raw.append(text)
        return self._section(index, REASONING, text)

    def _count(self, choice, section):
        self.last = time.perf_counter()
        self.first = self.first or self.last
        choice.pieces += 1
        choice.thinking += section != ANSWER

    def _piece(self, index, text, token=None):
        choice = self.choices[index]
        sections = choice.sections
        before = sections.section
        self._count(choice, before)
        choice.raw.append(text)
        if token and sections.plain and "<" not in text and "#" not in text and not text[-1:].isspace():
            return self._section(index, sections.section, text, token)
        out = [part for section, piece in sections.feed(text) for part in self._section(index, section, piece)]
        if before == ANSWER != sections.section:  # the mark's own pieces count as reasoning, wherever it was cut
            choice.thinking = choice.pieces if not choice.texts[ANSWER] else choice.thinking + 1
        return out

    def _section(self, index, section, text, token=None):
        self.choices[index].texts[section].append(text)
        token = token or json.dumps(text).encode()
        body = b"".join(part for key in KEY[section] for part in (key, token))
        return [HEAD, str(index).encode(), b',"delta":{', body, b"}}], ", self.tail, b"\n\n"]

    def _finish(self, index, reason):
        choice = self.choices[index]
        choice.finish = reason
        out = [p for section, text in choice.sections.close() for p in self._section(index, section, text)]
        text, entries = self.ending(choice)
        if entries:
            out.append(self.event(index, {"content": text}, guard=entries))
        choice.after = text
        return [*out, self.event(index, {}, reason)]

    def total(self):
        """Usage over all choices, reasoning tokens among it: pieces of reasoning, scaled to the backend's own count."""
        if not self.usage:
            return None
        prompt, completion = self.usage[0]["prompt_tokens"], sum(u["completion_tokens"] for u in self.usage)
        pieces = sum(choice.pieces for choice in self.choices)
        thinking = sum(choice.thinking for choice in self.choices)
        scale = (
            completion / pieces if pieces and completion > pieces + len(self.choices) else 1
        )  # a stop token is no piece
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "completion_tokens_details": {"reasoning_tokens": min(completion, round(thinking * scale))},
        }

    def spent(self):
        """Tokens that the answer took, up to where it ended: what was read of its prompt, and its pieces."""
        total = self.total()
        return total["total_tokens"] if total else self.read + sum(choice.pieces for choice in self.choices)

    def whole(self, quiet):
        """The choices of an answer that is not streamed. quiet: without the guard's notices in the text."""
        found = []
        for index, choice in enumerate(self.choices):
            text = choice.answer if quiet else choice.before + choice.answer + choice.after
            message = {"role": "assistant", "content": text}
            if choice.reasoning:
                message |= {"reasoning_content": choice.reasoning, "reasoning": choice.reasoning}
            found.append({"index": index, "finish_reason": choice.finish, "message": message, "logprobs": None})
        return found
