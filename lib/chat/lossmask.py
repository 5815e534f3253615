"""Which tokens of a training row carry loss: measured from the trainer's own batch, region by region, and drawn."""

import itertools
from collections import Counter
from collections.abc import Iterable

import numpy as np

from lib.chat.encoding import Frame, documents, encode, messages
from lib.chat.turns import IGNORE_INDEX, control_tokens, end_token, render

ASKED, SAID = "\ue0005\ue001", "\ue0006\ue001"  # stand for a question and for what stood before it
BATCHES = 16  # of a trainer that are looked at for a row with all of its parts
REGIONS = ("prompt", "reasoning", "answer", "end")


class Regions:
    """Names, for one tokenizer and format, the part of a conversation that each of its tokens belongs to."""

    def __init__(self, tokenizer, fmt: str, date=None, effort=None):
        self.tokenizer, self.pieces = tokenizer, {}
        self.frames = []
        for reasons in (True, False):
            try:
                self.frames.append(Frame.of(tokenizer, fmt, date, effort, reasons))
            except ValueError:
                if reasons:
                    raise
        _, self.opens = openings(tokenizer, date, effort)
        self.last = fmt == "instruction"  # there a blank line may stand inside the reasoning
        self.end = end_token(tokenizer)
        self.anchor = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        self.before = len(tokenizer.decode(self.anchor))

    def __call__(self, input_ids) -> list[str]:
        """prompt, reasoning (with its tags), answer, end or rest for each of (seq,) token ids.

        "rest" is what the template writes after the end token. A conversation that is cut has no end token.
        """
        return [name for name, start, stop in self.spans(input_ids) for _ in range(stop - start)]

    def spans(self, input_ids) -> list[tuple[str, int, int]]:
        """[(region, first token, one past the last)] in order; together they cover the row."""
        ids = np.asarray(input_ids, dtype=np.int64)
        ids_list = ids.tolist()
        for token in set(ids_list) - self.pieces.keys():  # beside another token: alone, some lose a leading blank
            self.pieces[token] = self.tokenizer.decode([*self.anchor, token])[self.before :]
        pieces = [self.pieces[token] for token in ids_list]
        begins = np.cumsum([0, *map(len, pieces)])[:-1]
        borders = self._borders("".join(pieces))
        stops = np.searchsorted(begins, [stop for _, stop in borders])
        starts = [0, *stops[:-1]]
        return [(name, int(i), int(j)) for (name, _), i, j in zip(borders, starts, stops, strict=True) if j > i]

    def _borders(self, text):
        """[(region, end position)] in order; the last one reaches beyond the text."""
        frame = self.frames[0]  # data cannot hold what opens or ends a turn: control tokens are broken
        said = text.removesuffix(self.end) if self.opens == frame.tail else text  # DialoGPT's: only the end marks turns
        start = text.find(frame.tail, max(0, said.rfind(self.opens)))
        if start < 0:
            return [("prompt", len(text) + 1)]
        start += len(frame.tail)
        turn = text[start:]
        stop = turn.find(self.end)
        stop = stop if stop >= 0 else len(turn) + 1
        plain = self.frames[-1] if len(self.frames) > 1 else None
        if not self.last and plain and plain.between and turn.startswith(plain.between):
            inner = 0  # the template's form of an empty reasoning
        else:
            inner = (turn.rfind if self.last else turn.find)(frame.between, 0, stop)
            inner = inner + len(frame.between) if inner >= 0 else (0 if self.last else stop)
        after = stop + len(self.end)
        cuts = [("prompt", 0), ("reasoning", inner), ("answer", stop), ("end", after), ("rest", len(turn) + 1)]
        return [(name, start + at) for name, at in cuts] + [("rest", len(text) + 2)]

    def count(self, input_ids, labels) -> Counter:
        """Number of tokens by (region, carries loss)."""
        trained, counts = np.asarray(labels) != IGNORE_INDEX, Counter()
        for name, start, stop in self.spans(input_ids):
            carry = int(trained[start:stop].sum())
            counts[name, True] += carry
            counts[name, False] += stop - start - carry
        return counts


def openings(tokenizer, date=None, effort=None) -> tuple[str, str]:
    """What a template writes before a system prompt, and between an answer and a further question, as it is decoded:
    Llama-2's has a blank after each control token."""
    turns = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": SAID},
        {"role": "user", "content": ASKED},
    ]
    told = _decoded([{"role": "system", "content": SAID}, *turns[:1]], tokenizer, True, date, effort)
    two = _decoded(turns, tokenizer, True, date, effort)
    return told.partition(SAID)[0].strip(), two.partition(SAID)[2].partition(ASKED)[0].strip()


def _decoded(turns, tokenizer, *style):
    return tokenizer.decode(tokenizer(render(turns, tokenizer, *style), add_special_tokens=False)["input_ids"])


def shares(counts: Counter) -> dict[str, float | None]:
    """Share of each region's tokens that carries loss, None where the region has no token."""
    totals = {region: counts[region, True] + counts[region, False] for region in REGIONS}
    return {region: counts[region, True] / total if total else None for region, total in totals.items()}


def final_only(input_ids, labels, tokenizer, fmt: str, date=None, effort=None) -> list[int]:
    """Labels that a mask from the final answer on would have left: the reasoning is context and is never learnt.

    This is what training on responses with the final channel's opening as the response mark does (gpt-oss notebooks).
    """
    regions = Regions(tokenizer, fmt, date, effort)(input_ids)
    return [IGNORE_INDEX if region == "reasoning" else label for region, label in zip(regions, labels, strict=True)]


def audit_batches(batches: Iterable, tokenizer, records, fmt="think", date=None, effort=None) -> dict:
    """The audit of a trainer's own first batches: one, or more where the first holds only rows without their end.

    batches: of a training dataloader. It goes on, to at most BATCHES, until it has seen answer, end token and, where
    any of the training records has some, reasoning. Returns and raises as `Audit.result`.
    """
    check = Audit(tokenizer, fmt, date, effort, any(record["reasoning"] for record in records))
    for batch in itertools.islice(batches, BATCHES):
        for ids, labels in documents(batch):
            check.add(ids, labels)
        if None not in [share for region, share in shares(check.counts).items() if region != check.optional]:
            break
    return check.result()


class Audit:
    """A check of the loss mask, one row at a time: `add` every row, then ask for the `result`.

    Both raise ValueError: where the prompt carries loss, or reasoning, answer or end token do not; where the
    beginning-of-sequence token is missing or doubled; where text of the data became a control token.
    reasoned: False where no row has reasoning, so that none can be trained; it may be set until the result is asked.
    """

    def __init__(self, tokenizer, fmt: str = "think", date=None, effort=None, reasoned: bool = True):
        self.regions, self.writes = Regions(tokenizer, fmt, date, effort), Control(tokenizer, fmt, date, effort)
        self.counts, self.cut, self.number = Counter(), 0, 0
        self.fmt, self.reasoned = fmt, reasoned

    @property
    def optional(self):
        """The region that need not be there: what a format does not mark, or the data does not teach."""
        return "reasoning" if self.fmt == "instruction" or not self.reasoned else None

    def add(self, input_ids, labels) -> Counter:
        """Check one row; returns its number of tokens by (region, carries loss). Raises ValueError, see above."""
        one = self.regions.count(input_ids, labels)
        is_cut = not one["end", True] + one["end", False]
        self.number += 1
        self.cut += is_cut
        self.counts += one
        self.writes.check(input_ids, is_cut, self.number)
        return one

    def result(self, max_cut: float = 1.0, left_out: int = 0) -> dict:
        """{"rows", "cut", "tokens", "trained", "shares", "regions"} of all rows that were added.

        `cut` counts rows that lost their end token, `regions` the tokens of each part, `shares` those with loss.
        left_out: rows that were not added, because the cut leaves nothing to learn. Raises ValueError, see above, and
        when more than max_cut of all rows are cut or left out.
        """
        found = shares(self.counts)
        wrong = {region: share for region, share in found.items() if share != (region != "prompt")}
        if self.optional and found[self.optional] is None:
            del wrong[self.optional]
        if wrong:
            raise ValueError(
                f"loss mask of {self.number} rows ({self.cut} cut): share of tokens with loss is {wrong}, expected "
                f"prompt 0 and the others 1. Check assistant_only_loss, max_length and chat.format in the recipe "
                f"against the template"
            )
        cut, number = self.cut + left_out, self.number + left_out
        if cut > max_cut * number:
            raise ValueError(
                f"{cut} of {number} rows lose their end to sft.max_length, {cut / number:.1%} "
                f"where data.max_cut allows {max_cut:.1%}: a model trained on them learns not to stop. "
                f"Raise sft.max_length or drop the long rows"
            )
        trained = sum(count for (_, carries), count in self.counts.items() if carries)
        parts = {region: self.counts[region, True] + self.counts[region, False] for region in REGIONS}
        return {
            "rows": self.number, "cut": self.cut, "tokens": self.counts.total(), "trained": trained,
            "shares": found, "regions": parts,
        }  # fmt: skip


class Control:
    """The control tokens that a template writes around one question and answer; a row must hold just these."""

    def __init__(self, tokenizer, fmt: str, date=None, effort=None):
        self.names, self.written = control_tokens(tokenizer), []
        for reasoning in ("r", ""):
            probe = messages({"instruction": "q", "reasoning": reasoning, "output": "a"}, fmt)
            ids, _ = encode(probe, tokenizer, date, effort)
            self.written.append(self._counted(ids))
        said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
        told = [{"role": "system", "content": "s"}]
        self.tokenizer, self.openings = tokenizer, openings(tokenizer, date, effort)
        texts = [_decoded(turns, tokenizer, False, date, effort) for turns in (said, told + said, said + said)]
        *self.opened, twice = [text.count(self.openings[1]) for text in texts]  # without and with a system turn
        self.each = twice - self.opened[0]
        self.more = [  # control tokens of a system turn, and of one exchange before the question
            self._counted(encode([*turns, *probe], tokenizer, date, effort)[0]) - self.written[-1]
            for turns in (told, said)
        ]
        bos, self.bos_token = tokenizer.bos_token_id, tokenizer.bos_token
        self.first = bos if bos is not None and ids[0] == bos else None

    def _counted(self, ids) -> Counter:
        return Counter(token for token in ids if token in self.names)

    def _conversation(self, input_ids) -> list[Counter]:
        """What the template writes around a conversation of as many turns as this row opens."""
        text, (told, opens) = self.tokenizer.decode(np.asarray(input_ids).tolist()), self.openings
        is_told = "".join(text.split()).startswith("".join(told.split()))
        further = -((self.opened[is_told] - text.count(opens)) // self.each)  # rounded up: what is cut lacks an end
        counts = int(is_told), max(0, further)
        more = Counter(itertools.chain(*(list(kind.elements()) * n for kind, n in zip(self.more, counts, strict=True))))
        return [written + more for written in self.written]

    def check(self, input_ids, is_cut: bool, number: int) -> None:
        """Raise ValueError naming row `number` on a control token too many or too few, or a BOS that is not first."""
        found = self._counted(np.asarray(input_ids).tolist())
        for whole in (self.written, None):  # one exchange; where that does not fit, a conversation
            whole = whole or self._conversation(input_ids)
            odd = [(found - written) + (Counter() if is_cut else written - found) for written in whole]
            if not all(odd):
                break
        else:
            written = self.written[0]
            counts = {self.names[token]: (found[token], written[token]) for token in odd[0]}
            raise ValueError(
                f"row {number}: control tokens as (found, written by the template) differ: {counts}. "
                f"Add the look-alike to CONTROL_TOKEN in lib/chat/turns.py, or mend the template"
            )
        if self.first is not None and int(input_ids[0]) != self.first:
            raise ValueError(f"row {number} does not begin with {self.bos_token!r}, as this tokenizer's text does")
