"""Records as chat messages and as training rows, and the proof of which of their tokens carry loss.

The loss mask needs no template of its own: a conversation is rendered twice by the model family's template, without and
with the assistant's turn, and what the second text has beyond the first is what the model learns to write.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from lib.turns import IGNORE_INDEX, control_tokens, end_token, neutralise, prepare, render

__all__ = ["FORMATS", "IGNORE_INDEX", "Audit", "audit", "documents", "encode", "final_only", "mask_shares", "messages",
           "neutralise", "prepare", "render", "rows", "tokenize", "trained_text"]  # fmt: skip
REGIONS = ("prompt", "reasoning", "answer", "end")
BATCH, CHECKED = 1000, 1000  # rows tokenised at once; every so many rows the fast rendering is compared with the slow
Q, R, A = "\ue0001\ue001", "\ue0002\ue001", "\ue0003\ue001"  # stand for question, reasoning and answer in a Frame


def _plain(reasoning, output):
    return {"content": f"{reasoning}\n\n{output}" if reasoning else output}


# How reasoning and answer become an assistant message. The key differs by family, and under any other key its template
# drops the reasoning without a word.
FORMATS: dict[str, Callable[[str, str], dict]] = {
    "think": lambda reasoning, output: {"reasoning_content": reasoning, "content": output},  # Qwen3
    "harmony": lambda reasoning, output: {"thinking": reasoning, "content": output},  # gpt-oss
    "thinking_response": lambda reasoning, output: {
        "content": f"## Thinking\n\n{reasoning}\n\n## Final Response\n\n{output}"
    },
    "instruction": _plain,
}


def messages(record: dict, fmt: str, answer: bool = True) -> list[dict]:
    """Chat messages of a record: the question and, with `answer`, the assistant's reasoning and output.

    Raises ValueError for an unknown format.
    """
    if fmt not in FORMATS:
        raise ValueError(f"chat.format is {fmt!r}, known are {', '.join(FORMATS)}: mend the recipe in params/")
    turns = [{"role": "user", "content": neutralise(record["instruction"])}]
    if answer:
        content = FORMATS[fmt](neutralise(record["reasoning"]), neutralise(record["output"]))
        turns.append({"role": "assistant", **content})
    return turns


def _sides(turns, tokenizer, date, effort) -> tuple[str, str]:
    """(prompt, the assistant's turn): what is context, and what is learnt."""
    prompt = render(turns[:-1], tokenizer, True, date, effort)
    full = render(turns, tokenizer, False, date, effort)
    if not full.startswith(prompt):
        at = next((i for i, pair in enumerate(zip(prompt, full, strict=False)) if pair[0] != pair[1]), len(full))
        raise ValueError(
            f"the chat template of {tokenizer.name_or_path!r} writes another text before an answer than before "
            f"generating, from character {at} on: {full[at : at + 60]!r} against {prompt[at : at + 60]!r}; a model "
            f"trained on it is never asked what it was trained on"
        )
    return prompt, full[len(prompt) :]


@dataclass(frozen=True)
class Frame:
    """What a template writes around one record: head Q tail, opens R between A close, by format and tokenizer.

    opens, between: "" where there is no reasoning. The prompt is head, question, tail.
    """

    head: str
    tail: str
    opens: str
    between: str
    close: str

    @classmethod
    def of(cls, tokenizer, fmt, date=None, effort=None, reasons=True):
        """Raises ValueError where the template loses the question, the reasoning or the answer."""
        turns = messages({"instruction": Q, "reasoning": R if reasons else "", "output": A}, fmt)
        prompt, turn = _sides(turns, tokenizer, date, effort)
        for mark, what, text in ((Q, "question", prompt), (A, "answer", turn), (R, "reasoning", turn)):
            if text.count(mark) != (1 if reasons or mark != R else 0):
                raise ValueError(
                    f"the chat template of {tokenizer.name_or_path!r} writes the {what} {text.count(mark)} times under "
                    f"chat.format {fmt!r}: set a format that the family knows (think: Qwen3; harmony: gpt-oss; "
                    f"thinking_response or instruction: any)"
                )
        opens, _, rest = turn.partition(R) if reasons else ("", "", turn)
        between, _, close = rest.partition(A)
        return cls(*prompt.split(Q), opens, between, close)

    def texts(self, record) -> tuple[str, str]:
        """(prompt, the assistant's turn) of a record."""
        answer = f"{self.between}{neutralise(record['output'])}{self.close}"
        reasoning = f"{self.opens}{neutralise(record['reasoning'])}" if record["reasoning"] else ""
        return f"{self.head}{neutralise(record['instruction'])}{self.tail}", reasoning + answer


def encode(turns: list[dict], tokenizer, date=None, effort: str | None = None) -> tuple[list[int], list[int]]:
    """(input_ids, labels) of one conversation; labels hold IGNORE_INDEX on all but the assistant's turn.

    turns: from `messages`. Not truncated. Raises ValueError where the prompt is no beginning of the conversation, in
    text or in tokens.
    """
    return next(_encoded([_sides(turns, tokenizer, date, effort)], tokenizer))


def _encoded(pairs, tokenizer):
    batch = tokenizer([prompt + turn for prompt, turn in pairs], add_special_tokens=False, return_attention_mask=False)
    for number, (prompt, _) in enumerate(pairs):
        ids, at = batch["input_ids"][number], batch.char_to_token(number, len(prompt))
        if at is None or batch.token_to_chars(number, at).start != len(prompt):
            raise ValueError(
                f"a token of {tokenizer.name_or_path!r} reaches over the border between prompt and answer, after "
                f"{prompt[-20:]!r}: the prompt ends in other tokens in training than before generating"
            )
        yield ids, [IGNORE_INDEX] * at + ids[at:]


def tokenize(records: Iterable[dict], tokenizer, fmt: str, date=None, effort=None) -> Iterator[tuple]:
    """(input_ids, labels) of every record, in order, as `encode` gives them, BATCH at a time.

    The template is rendered once around placeholders, and the records are put in their places; the first row and every
    CHECKED-th are rendered by the template too. Where they differ, because a template changes what it is given, all
    rows are rendered by the template. Raises ValueError as `encode` and Frame.of do.
    """
    frames, pairs, direct = {}, [], False
    for number, record in enumerate(records):
        reasons = bool(record["reasoning"])
        if reasons not in frames:
            frames[reasons] = Frame.of(tokenizer, fmt, date, effort, reasons)
            check = True
        else:
            check = number % CHECKED == 0
        pair = frames[reasons].texts(record)
        if direct or check:
            rendered = _sides(messages(record, fmt), tokenizer, date, effort)
            direct = direct or rendered != pair
            pair = rendered
        pairs.append(pair)
        if len(pairs) == BATCH:
            yield from _encoded(pairs, tokenizer)
            pairs = []
    if pairs:
        yield from _encoded(pairs, tokenizer)


def rows(records: Iterable[dict], tokenizer, fmt: str, date=None, effort=None, assistant_only: bool = True):
    """A datasets.Dataset with the columns input_ids and labels, for SFTTrainer, which leaves such rows as they are.

    SFTConfig must not ask for assistant_only_loss then: the labels say it. assistant_only: False trains every token.
    """
    import pyarrow as pa
    from datasets import Dataset

    schema = pa.schema([("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32()))])
    batches, pending = [], []

    def close():
        columns = [pa.array(column, pa.list_(pa.int32())) for column in zip(*pending, strict=True)]
        batches.append(pa.record_batch(columns, schema=schema))
        pending.clear()

    for ids, labels in tokenize(records, tokenizer, fmt, date, effort):
        pending.append((ids, labels if assistant_only else ids))
        if len(pending) == BATCH:
            close()
    if pending:
        close()
    return Dataset(pa.Table.from_batches(batches, schema=schema))


def documents(batch) -> Iterator[tuple[list[int], list[int]]]:
    """(input_ids, labels) of each conversation in a batch as TRL collates it, packed or padded.

    batch: tensors "input_ids", "labels" of (rows, seq), with "position_ids" that restart at 0 where a packed
        conversation begins, or "attention_mask" that is 0 on padding.
    """
    for index, (ids, labels) in enumerate(zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True)):
        if "position_ids" in batch:
            starts = [at for at, position in enumerate(batch["position_ids"][index].tolist()) if position == 0]
        else:
            used = sum(batch["attention_mask"][index].tolist())
            starts, ids, labels = [0], ids[:used], labels[:used]
        for begin, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            yield ids[begin:end], labels[begin:end]


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
        frame = self.frames[0]
        start = text.find(frame.tail)  # data cannot hold it: its control tokens are broken
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


def shares(counts: Counter) -> dict[str, float | None]:
    """Share of each region's tokens that carries loss, None where the region has no token."""
    totals = {region: counts[region, True] + counts[region, False] for region in REGIONS}
    return {region: counts[region, True] / total if total else None for region, total in totals.items()}


def mask_shares(input_ids, labels, tokenizer, fmt: str = "think", date=None, effort=None) -> dict[str, float | None]:
    """{"prompt", "reasoning", "answer", "end"}: the share of each region's tokens that carries loss.

    input_ids, labels: (seq,), before the model's shift by one. A sound mask reads 0, 1, 1, 1; None: no such token.
    """
    return shares(Regions(tokenizer, fmt, date, effort).count(input_ids, labels))


def final_only(input_ids, labels, tokenizer, fmt: str, date=None, effort=None) -> list[int]:
    """Labels that a mask from the final answer on would have left: the reasoning is context and is never learnt.

    This is what training on responses with the final channel's opening as the response mark does (gpt-oss notebooks).
    """
    regions = Regions(tokenizer, fmt, date, effort)(input_ids)
    return [IGNORE_INDEX if region == "reasoning" else label for region, label in zip(regions, labels, strict=True)]


def trained_text(labels, tokenizer) -> str:
    """Decode the tokens of one training row that carry loss.

    labels: (seq,) token ids with IGNORE_INDEX where there is no loss, before the model's shift by one.
    Raises ValueError when no token carries loss.
    """
    trained = [int(label) for label in labels if int(label) != IGNORE_INDEX]
    if not trained:
        raise ValueError(f"0 of {len(labels)} tokens carry loss: check chat.format against the model's template")
    return tokenizer.decode(trained)


def audit(rows: Iterable[tuple], tokenizer, fmt: str = "think", date=None, effort=None, max_cut: float = 1.0) -> dict:
    """Check the loss mask of training rows and return what was found.

    rows: (input_ids, labels) of single conversations, from `tokenize` or from `documents` of a trainer's batch.
    max_cut: share of the rows that may have lost their end token to a cut-off.
    Returns {"rows", "cut", "tokens", "trained", "shares", "regions"}: `cut` counts rows that lost their end token,
    `regions` the tokens of each part.
    Raises ValueError when the prompt carries loss, when reasoning, answer or end token do not, when more than max_cut
    of the rows are cut, when the beginning-of-sequence token is missing or doubled, or when text of the data became a
    control token.
    """
    check = Audit(tokenizer, fmt, date, effort)
    for ids, labels in rows:
        check.add(ids, labels)
    return check.result(max_cut)


class Audit:
    """The audit of `audit`, one row at a time, for rows that are too many to keep."""

    def __init__(self, tokenizer, fmt: str = "think", date=None, effort=None):
        self.regions, self.writes = Regions(tokenizer, fmt, date, effort), Control(tokenizer, fmt, date, effort)
        self.counts, self.cut, self.number, self.fmt = Counter(), 0, 0, fmt

    def add(self, input_ids, labels) -> Counter:
        """Check one row; returns its number of tokens by (region, carries loss). Raises ValueError, see `audit`."""
        one = self.regions.count(input_ids, labels)
        is_cut = not one["end", True] + one["end", False]
        self.number += 1
        self.cut += is_cut
        self.counts += one
        self.writes.check(input_ids, is_cut, self.number)
        return one

    def result(self, max_cut: float = 1.0) -> dict:
        """What was found, as `audit` returns it. Raises ValueError, see there."""
        found = shares(self.counts)
        wrong = {region: share for region, share in found.items() if share != (region != "prompt")}
        if found["reasoning"] is None and self.fmt == "instruction":
            del wrong["reasoning"]  # answers without reasoning are what such a data set teaches
        if wrong:
            raise ValueError(
                f"loss mask of {self.number} rows ({self.cut} cut): share of tokens with loss is {wrong}, expected "
                f"prompt 0 and the others 1. Check assistant_only_loss, max_length and chat.format in the recipe "
                f"against the template"
            )
        if self.cut > max_cut * self.number:
            raise ValueError(
                f"{self.cut} of {self.number} rows lose their end to sft.max_length, {self.cut / self.number:.1%} "
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
            self.written.append(Counter(token for token in ids if token in self.names))
        bos, self.bos_token = tokenizer.bos_token_id, tokenizer.bos_token
        self.first = bos if bos is not None and ids[0] == bos else None

    def check(self, input_ids, is_cut: bool, number: int) -> None:
        """Raise ValueError naming row `number` on a control token too many or too few, or a BOS that is not first."""
        found = Counter(token for token in np.asarray(input_ids).tolist() if token in self.names)
        odd = [(found - written) + (Counter() if is_cut else written - found) for written in self.written]
        if all(odd):
            written = self.written[0]
            counts = {self.names[token]: (found[token], written[token]) for token in odd[0]}
            raise ValueError(
                f"row {number}: control tokens as (found, written by the template) differ: {counts}. "
                f"Add the look-alike to CONTROL_TOKEN in lib/turns.py, or mend the template"
            )
        if self.first is not None and int(input_ids[0]) != self.first:
            raise ValueError(f"row {number} does not begin with {self.bos_token!r}, as this tokenizer's text does")
