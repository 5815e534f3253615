"""Records as chat messages and as training rows of token ids with labels.

The loss mask needs no template of its own: a conversation is rendered twice by the model family's template, without and
with the assistant's turn, and what the second text has beyond the first is what the model learns to write.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from lib.chat.turns import IGNORE_INDEX, neutralise, prepare, render

__all__ = ["FORMATS", "IGNORE_INDEX", "documents", "encode", "messages", "neutralise", "prepare", "render", "rows",
           "tokenize"]  # fmt: skip
BATCH, CHECKED = 1000, 1000  # rows tokenised at once; every so many rows the fast rendering is compared with the slow
EMPTY = {"instruction": "", "reasoning": "", "output": ""}
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

    Before the question stands the record's `history`, a system prompt or earlier turns, where it has one. Raises
    ValueError for an unknown format.
    """
    if fmt not in FORMATS:
        raise ValueError(f"chat.format is {fmt!r}, known are {', '.join(FORMATS)}: mend the recipe in params/")
    turns = [{"role": t["role"], "content": neutralise(t["content"])} for t in record.get("history") or ()]
    turns.append({"role": "user", "content": neutralise(record["instruction"])})
    if answer:
        content = FORMATS[fmt](neutralise(record["reasoning"]), neutralise(record["output"]))
        turns.append({"role": "assistant", **content})
    return turns


def _sides(turns, tokenizer, date, effort) -> tuple[str, str]:
    """(prompt, the assistant's turn): what is context, and what is learnt."""
    prompt = render(turns[:-1], tokenizer, True, date, effort)
    full = render(turns, tokenizer, False, date, effort)
    at = 0
    for turn in turns[:-2]:
        if (at := prompt.find(turn["content"], at)) < 0:
            raise ValueError(
                f"the chat template of {tokenizer.name_or_path!r} does not write a conversation's {turn['role']} turn "
                f"{turn['content'][:60]!r} as it stands: the conversation cannot be trained on this base"
            )
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
    return next(_encoded([(*_sides(turns, tokenizer, date, effort), None)], tokenizer))


class Border:
    """Where prompts end, told by the special tokens that a template writes after the question, without offsets.

    No such token can stand in the question, `neutralise` has seen to that: the first ones are the prompt's end.
    Templates that write none there (Llama-2's) have `count` 0.
    """

    def __init__(self, frame: Frame, tokenizer):
        specials = set(tokenizer.all_special_ids)
        tail, whole = tokenizer([frame.tail, "".join(frame.texts(EMPTY))], add_special_tokens=False)["input_ids"]
        self.tail = tail[next((place for place, token in enumerate(tail) if token in specials), len(tail)) :]
        self.count = len(self.ends(whole))

    def ends(self, ids: list[int]) -> list[int]:
        """Places after every run of the tail's tokens in `ids`."""
        ends, at = [], -1
        for _ in range(ids.count(self.tail[0]) if self.tail else 0):
            at = ids.index(self.tail[0], at + 1)
            if ids[at : at + len(self.tail)] == self.tail:
                ends.append(at + len(self.tail))
        return ends

    def find(self, ids: list[int]) -> int | None:
        """Number of prompt tokens; None where the tokens around the border are not those of the frame."""
        ends = self.ends(ids)
        return ends[0] if ends and len(ends) == self.count else None


def _encoded(rows, tokenizer):
    """(input_ids, labels) of (prompt, assistant's turn, Border or None for by characters)."""
    texts, done = [prompt + turn for prompt, turn, _ in rows], {}
    quick = [number for number, (_, _, border) in enumerate(rows) if border and border.count]
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    fast = tokenizer.backend_tokenizer.encode_batch_fast([texts[n] for n in quick], add_special_tokens=False)
    for number, encoding in zip(quick, fast, strict=True):
        ids = encoding.ids
        if (at := rows[number][2].find(ids)) is not None:
            done[number] = ids, at
    slow = [number for number in range(len(rows)) if number not in done]
    batch = tokenizer([texts[n] for n in slow], add_special_tokens=False) if slow else None
    for place, number in enumerate(slow):
        prompt = rows[number][0]
        at = batch.char_to_token(place, len(prompt))
        if at is None or batch.token_to_chars(place, at).start != len(prompt):
            raise ValueError(
                f"a token of {tokenizer.name_or_path!r} reaches over the border between prompt and answer, after "
                f"{prompt[-20:]!r}: the prompt ends in other tokens in training than before generating"
            )
        done[number] = batch["input_ids"][place], at
    for number in range(len(rows)):
        ids, at = done[number]
        yield ids, [IGNORE_INDEX] * at + ids[at:]


def tokenize(records: Iterable[dict], tokenizer, fmt: str, date=None, effort=None) -> Iterator[tuple]:
    """(input_ids, labels) of every record, in order, as `encode` gives them, BATCH at a time.

    The template is rendered once around placeholders, and the records are put in their places; the first row, every
    CHECKED-th and all with a history are rendered by the template, and cut by character. Where they differ, because it
    changes what it is given, all rows are done so. Raises ValueError as `encode` and Frame.of do.
    """
    frames, batch, direct = {}, [], False
    for number, record in enumerate(records):
        reasons, spoken = bool(record["reasoning"]), bool(record.get("history"))
        check = direct or spoken or number % CHECKED == 0 or reasons not in frames
        if reasons not in frames:
            frame = Frame.of(tokenizer, fmt, date, effort, reasons)
            frames[reasons] = frame, Border(frame, tokenizer)
        frame, border = frames[reasons]
        pair = frame.texts(record)
        if check:
            rendered = _sides(messages(record, fmt), tokenizer, date, effort)
            direct = direct or (rendered != pair and not spoken)
            pair = rendered
        batch.append((*pair, None if check else border))
        if len(batch) == BATCH:
            yield from _encoded(batch, tokenizer)
            batch = []
    if batch:
        yield from _encoded(batch, tokenizer)


def rows(records: Iterable[dict], tokenizer, fmt: str, date=None, effort=None, assistant_only: bool = True):
    """A datasets.Dataset with the columns input_ids and labels, for SFTTrainer, which leaves such rows as they are.

    SFTConfig must not ask for assistant_only_loss then: the labels say it. assistant_only: False trains every token.
    """
    from datasets import Dataset, Features, List, Value
    from datasets.arrow_writer import ArrowWriter
    from pyarrow import BufferOutputStream

    numbers, table = List(Value("int32")), BufferOutputStream()
    columns = Features(input_ids=numbers, labels=numbers)
    with ArrowWriter(features=columns, stream=table, writer_batch_size=BATCH) as writer:
        for ids, labels in tokenize(records, tokenizer, fmt, date, effort):
            writer.write({"input_ids": ids, "labels": labels if assistant_only else ids})
        writer.finalize()
    return Dataset.from_buffer(table.getvalue())


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
