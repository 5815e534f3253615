"""What a data set writes around all of its questions, learnt from its rows: no evidence that two of them are the same.

An order before every question ("If you are a doctor, please answer ..."), a label, a closing order, a greeting that
opens every conversation. Taken off both sides before questions are compared; what is trained and asked keeps it.
"""

import re
from collections import Counter
from dataclasses import dataclass

from lib.dataset import split

SAMPLE = 2000  # rows of a source that are looked at
REACH = 1200  # characters from either end of a question in which its frame may end
LEAST = 5  # rows with the same words: fewer are chance
SHARES = {"head": 0.1, "clause": 0.5, "tail": 0.9}  # of a source's rows that begin or end so, from which on it is frame
SAME = 0.99  # of the different questions have to be different without their frames too
EDGE = re.compile(r"(?<=[.!:?])\s+|(?<=[。！：？])\s*|\s*\n\s*|(?P<clause>(?<=[,，])\s*)")
ASKS = re.compile(r"[?？]")
COLUMNS = ["source", "instruction", "options", "history"]  # what is read of a record: the others need not be loaded


@dataclass(frozen=True)
class Frames:
    """heads, tails: texts around questions. openings: first turns of conversations."""

    heads: frozenset = frozenset()
    tails: frozenset = frozenset()
    openings: frozenset = frozenset()

    @property
    def said(self) -> str:
        """What is taken off, as it is printed; "" for nothing."""
        heads = {
            head for head in self.heads if not any(other.startswith(head) and other != head for other in self.heads)
        }
        parts = sorted(set(map(_short, {*heads, *self.tails, *self.openings})))
        return "Taken off before questions are compared: " + "; ".join(parts) if parts else ""

    def bare(self, records):
        """Yield the records, of their instructions only the question, of their history what follows a greeting."""
        for record in records:
            asked, history = split.stem(record), record.get("history")
            found = self.stripped(asked)
            if history and self.openings and _opening(record)[0] in self.openings:
                history = _after_opening(history)
            if found != asked or history is not record.get("history"):
                listed = record["instruction"][len(asked) :]
                record = record | {"instruction": found + listed, "history": history}
            yield record

    def stripped(self, text: str) -> str:
        """A question without the longest head and the longest tail that it has; never empty."""
        head = max((end for head, end, _ in _heads(text) if head in self.heads), default=0) if self.heads else 0
        text = text[head:]
        tail = min((start for tail, start in _tails(text) if tail in self.tails), default=None) if self.tails else None
        return text[:tail].rstrip()


def learn(*parts) -> Frames:
    """The Frames of all sources. parts: iterables of records, read once; of each source the first SAMPLE count."""
    texts, follows = {}, {}
    for records in parts:
        for record in records:
            mine = texts.setdefault(record["source"], [])
            if len(mine) < SAMPLE:
                mine.append(split.stem(record))
                if split.earlier(record):
                    first, second = _opening(record)
                    follows.setdefault(record["source"], {}).setdefault(first, set()).add(second)
    found = [_learnt(list(dict.fromkeys(mine))) for mine in texts.values()]
    openings = {first for by_first in follows.values() for first, seconds in by_first.items()
                if len(seconds) >= max(LEAST, SHARES["head"] * sum(map(len, by_first.values())))}  # fmt: skip
    heads, tails = (frozenset().union(*(pair[place] for pair in found)) for place in (0, 1))
    return Frames(heads, tails, frozenset(openings))


def _learnt(texts):
    """(heads, tails) of the different questions of one source: all that are common, else what nearly all have."""
    heads, tails, clauses = Counter(), Counter(), set()
    for text in texts:
        found = {head: clause for head, _, clause in _heads(text)}
        heads.update(found.keys())
        clauses |= {head for head, clause in found.items() if clause}
        tails.update({tail for tail, _ in _tails(text)})
    for shares in (SHARES, dict.fromkeys(SHARES, max(SHARES.values()))):
        least = {kind: max(LEAST, share * len(texts)) for kind, share in shares.items()}
        kept = Frames(
            frozenset(head for head, n in heads.items() if n >= least["clause" if head in clauses else "head"]),
            frozenset(tail for tail, n in tails.items() if n >= least["tail"]),
        )
        if len({split.normalise_question(kept.stripped(text)) for text in texts}) >= SAME * len(texts):
            return kept.heads, kept.tails
    return frozenset(), frozenset()


def _heads(text):
    """[(beginning of a text, where the rest begins, whether within a sentence)], none of which asks something."""
    found = []
    for edge in EDGE.finditer(text, 0, REACH):
        head = text[: edge.start()].strip()
        if ASKS.search(head):
            break
        if head and text[edge.end() :].strip():
            found.append((head, edge.end(), edge["clause"] is not None))
    return found


def _tails(text):
    """[(end of a text, where it begins)], of none that asks something."""
    first = max(0, len(text) - REACH)
    edges = [edge for edge in EDGE.finditer(text, first) if edge["clause"] is None]
    ends = [(text[edge.end() :].strip(), edge.start()) for edge in edges]
    return [(tail, start) for tail, start in ends if tail and text[:start].strip() and not ASKS.search(tail)]


def _opening(record):
    """(first turn of the user, the next one) of a conversation's further turn."""
    asked = [turn["content"].strip() for turn in record["history"] if turn["role"] == "user"]
    return tuple([*asked, record["instruction"].strip()][:2]) if asked else ("", record["instruction"].strip())


def _after_opening(history):
    """The turns from the user's second one on."""
    asked = [place for place, turn in enumerate(history) if turn["role"] == "user"]
    return history[asked[1] :] if len(asked) > 1 else []


def _short(text):
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
