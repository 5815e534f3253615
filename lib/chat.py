"""Records as chat messages, and the proof of which tokens of the rendered conversation carry loss."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from lib.turns import IGNORE_INDEX, control_tokens, encode, end_token, neutralise, render, training_template

__all__ = ["FORMATS", "IGNORE_INDEX", "audit", "dataset", "documents", "encode", "mask_shares", "messages",
           "neutralise", "render", "trained_text", "training_template"]  # fmt: skip
REGIONS = ("prompt", "reasoning", "answer", "end")


@dataclass(frozen=True)
class Format:
    """How a record's reasoning and answer become an assistant message, and the text that encloses the reasoning."""

    assistant: Callable[[str, str], dict]
    opens: str
    closes: str


FORMATS = {
    # Qwen3's key is reasoning_content; under any other key its template drops the reasoning without a word.
    "think": Format(
        lambda reasoning, output: {"reasoning_content": reasoning, "content": output}, "<think>", "</think>"
    ),
}


def format_of(fmt: str) -> Format:
    """The Format of that name. Raises ValueError listing the known ones."""
    if fmt not in FORMATS:
        raise ValueError(f"chat.format is {fmt!r}, known are {', '.join(FORMATS)}: mend the recipe in params/")
    return FORMATS[fmt]


def messages(record: dict, fmt: str, answer: bool = True) -> list[dict]:
    """Chat messages of a record: the question and, with `answer`, the assistant's reasoning and output."""
    form = format_of(fmt)
    turns = [{"role": "user", "content": neutralise(record["instruction"])}]
    if answer:
        content = form.assistant(neutralise(record["reasoning"]), neutralise(record["output"]))
        turns.append({"role": "assistant", **content})
    return turns


def dataset(records: Iterable[dict], fmt: str) -> list[dict]:
    """Rows {"messages": [...]} for datasets.Dataset.from_list and then SFTTrainer with assistant_only_loss=True."""
    return [{"messages": messages(record, fmt)} for record in records]


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

    def __init__(self, tokenizer, fmt: str):
        form, end = format_of(fmt), re.escape(end_token(tokenizer))
        opens, closes = re.escape(form.opens), re.escape(form.closes)
        self.turn = re.compile(rf"({opens}.*?(?:{closes}|\Z))(.*?)({end}|\Z)(\s*)", flags=re.DOTALL)
        self.tokenizer, self.pieces = tokenizer, {}

    def __call__(self, input_ids) -> list[str]:
        """prompt, reasoning (with its tags), answer, end or rest for each of (seq,) token ids.

        "rest" is what the template writes after the end token. A conversation that is cut has no end token.
        """
        ids = [int(token) for token in input_ids]
        for token in set(ids) - self.pieces.keys():
            self.pieces[token] = self.tokenizer.decode([token])
        text, begin, found = "".join(self.pieces[token] for token in ids), 0, []
        marks = ["prompt"] * (len(text) + 1)
        for match in self.turn.finditer(text):
            for group, region in enumerate(("reasoning", "answer", "end", "rest"), start=1):
                start, stop = match.span(group)
                marks[start:stop] = [region] * (stop - start)
        for token in ids:
            found.append(marks[begin])
            begin += len(self.pieces[token])
        return found

    def count(self, input_ids, labels) -> Counter:
        """Number of tokens by (region, carries loss)."""
        trained = (int(label) != IGNORE_INDEX for label in labels)
        return Counter(zip(self(input_ids), trained, strict=True))


def shares(counts: Counter) -> dict[str, float | None]:
    """Share of each region's tokens that carries loss, None where the region has no token."""
    totals = {region: counts[region, True] + counts[region, False] for region in REGIONS}
    return {region: counts[region, True] / total if total else None for region, total in totals.items()}


def mask_shares(input_ids, labels, tokenizer, fmt: str = "think") -> dict[str, float | None]:
    """{"prompt", "reasoning", "answer", "end"}: the share of each region's tokens that carries loss.

    input_ids, labels: (seq,), before the model's shift by one. A sound mask reads 0, 1, 1, 1; None: no such token.
    """
    return shares(Regions(tokenizer, fmt).count(input_ids, labels))


def trained_text(labels, tokenizer) -> str:
    """Decode the tokens of one training row that carry loss.

    labels: (seq,) token ids with IGNORE_INDEX where there is no loss, before the model's shift by one.
    Raises ValueError when no token carries loss.
    """
    trained = [int(label) for label in labels if int(label) != IGNORE_INDEX]
    if not trained:
        raise ValueError(f"0 of {len(labels)} tokens carry loss: check chat.format against the model's template")
    return tokenizer.decode(trained)


def audit(rows: Iterable[tuple], tokenizer, fmt: str = "think") -> dict:
    """Check the loss mask of training rows and return what was found.

    rows: (input_ids, labels) of single conversations, from `encode` or from `documents` of a trainer's batch.
    Returns {"rows", "cut", "tokens", "trained", "shares"}: `cut` counts rows that lost their end token.
    Raises ValueError when the prompt carries loss, when reasoning, answer or end token do not, when the beginning-of-
    sequence token is missing or doubled, or when text of the data became a control token.
    """
    regions, writes = Regions(tokenizer, fmt), Control(tokenizer, fmt)
    counts, cut, number = Counter(), 0, 0
    for number, (ids, labels) in enumerate(rows, start=1):
        one = regions.count(ids, labels)
        is_cut = not one["end", True] + one["end", False]
        cut += is_cut
        counts += one
        writes.check(ids, is_cut, number)
    found = shares(counts)
    wrong = {region: share for region, share in found.items() if share != (region != "prompt")}
    if wrong:
        raise ValueError(
            f"loss mask of {number} rows ({cut} cut): share of tokens with loss is {wrong}, expected prompt 0 and the "
            f"others 1. Check assistant_only_loss, max_length and chat.format in the recipe against the template"
        )
    trained = sum(count for (_, carries), count in counts.items() if carries)
    return {"rows": number, "cut": cut, "tokens": counts.total(), "trained": trained, "shares": found}


class Control:
    """The control tokens that a template writes around one question and answer; a row must hold just these."""

    def __init__(self, tokenizer, fmt: str):
        probe = messages({"instruction": "q", "reasoning": "r", "output": "a"}, fmt)
        ids, _ = encode(probe, tokenizer, training_template(tokenizer))
        self.names = control_tokens(tokenizer)
        self.written = Counter(token for token in ids if token in self.names)
        bos, self.bos_token = tokenizer.bos_token_id, tokenizer.bos_token
        self.first = bos if bos is not None and tokenizer("q")["input_ids"][:1] == [bos] else None

    def check(self, input_ids, is_cut: bool, number: int) -> None:
        """Raise ValueError naming row `number` on a control token too many or too few, or a BOS that is not first."""
        found = Counter(token for token in map(int, input_ids) if token in self.names)
        odd = found - self.written
        if not is_cut:
            odd += self.written - found
        if odd:
            counts = {self.names[token]: (found[token], self.written[token]) for token in odd}
            raise ValueError(
                f"row {number}: control tokens as (found, written by the template) differ: {counts}. "
                f"Add the look-alike to CONTROL_TOKEN in lib/turns.py, or mend the template"
            )
        if self.first is not None and int(input_ids[0]) != self.first:
            raise ValueError(f"row {number} does not begin with {self.bos_token!r}, as this tokenizer's text does")
