"""Pairs of answers to one question, the better one named: which are refused, what they share with a test, their tokens.

A pair is a dict: {"id", "axis", "source", "question", "messages", "chosen", "rejected"}. question: a record's
instruction, with its options; messages: what stood before it, a system prompt or earlier turns; chosen, rejected:
{"reasoning", "output"}. "benchmark" is there where a source says which one the question comes from.
"""

import itertools
import unicodedata

import jinja2
import numpy as np

from lib.chat import encoding, turns
from lib.dataset import answers, choices, framing, leakage
from lib.dataset.choices import Reject

SIDES = ("chosen", "rejected")


def counted(items, make, reasons, failed=None):
    """Yield the pairs that `make(number, item)` gives; reasons counts where every item went, so that it sums to all.

    failed: filled with {reason: (number, item)}, the first of each. Reasons besides those of `make`: see `refuse`.
    """
    seen, failed = set(), {} if failed is None else failed
    for number, item in enumerate(items):
        try:
            pair = make(number, item)
            refuse(pair, seen)
        except Reject as reject:
            reasons[str(reject)] += 1
            failed.setdefault(str(reject), (number, item))
            continue
        reasons["kept"] += 1
        yield pair


def refuse(pair, seen):
    """Raise Reject for a pair that teaches nothing, or the opposite of one in `seen`, to which it is added.

    Reasons: empty_question, empty_answer, equal_sides, equal_after_normalising (case, blanks, forms of one character),
    duplicate, preferred_both_ways.
    """
    if not pair["question"].strip():
        raise Reject("empty_question")
    if not all(pair[side]["output"].strip() for side in SIDES):
        raise Reject("empty_answer")
    chosen, rejected = (f"{pair[side]['reasoning']}\0{pair[side]['output']}" for side in SIDES)
    if chosen == rejected:
        raise Reject("equal_sides")
    asked, *sides = (_folded(text) for text in (pair["question"], chosen, rejected))
    if sides[0] == sides[1]:
        raise Reject("equal_after_normalising")
    for order, reason in ((sides, "duplicate"), (sides[::-1], "preferred_both_ways")):
        if hash((asked, *order)) in seen:
            raise Reject(reason)
    seen.add(hash((asked, *sides)))


def _folded(text):
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def tokens(pair, tokenizer, cfg, max_length=None):
    """{"prompt_ids", "chosen_ids", "rejected_ids"} of a pair, lists of int, as chapter 3 renders and trains them.

    The names are those of trl's DPOTrainer and RewardTrainer. Each side ends as an answer does in training, with the
    end token, whatever token pads. max_length: tokens of prompt and side together, sft.max_length when None; a longer
    pair would lose its ends. Raises Reject: prompt_too_long, pair_too_long; ValueError for a chat template that cannot
    render the pair, or ends no turn.
    """
    limit = max_length or cfg.sft.get("max_length", 1024)  # 1024 is trl's own default
    fmt, day, effort = cfg.chat["format"], cfg.chat["date"], cfg.chat["reasoning_effort"]
    found = {}
    for side in SIDES:
        record = {"instruction": pair["question"], "history": pair["messages"], **pair[side]}
        try:
            ids, labels = encoding.encode(encoding.messages(record, fmt), tokenizer, day, effort)
            end = tokenizer.convert_tokens_to_ids(turns.end_token(tokenizer))
        except jinja2.TemplateError as error:
            raise ValueError(
                f"the chat template of {tokenizer.name_or_path!r} cannot render pair {pair['id']!r}: {error}. Leave "
                "such pairs out, or set model.base to a model whose template takes its turns"
            ) from error
        at = labels.count(encoding.IGNORE_INDEX)
        found |= {"prompt_ids": ids[:at], f"{side}_ids": ids[at:]}
        if end not in ids[at:]:
            raise ValueError(f"pair {pair['id']!r}: its {side} side lacks the end token {turns.end_token(tokenizer)!r}")
    if len(found["prompt_ids"]) >= limit:
        raise Reject("prompt_too_long")
    if len(found["prompt_ids"]) + max(len(found[f"{side}_ids"]) for side in SIDES) > limit:
        raise Reject("pair_too_long")
    return found


def whole(rows):
    """[{"chosen_ids", "rejected_ids"}], prompt and side in one, of rows from `tokens`: what a reward model reads."""
    return [{f"{side}_ids": row["prompt_ids"] + row[f"{side}_ids"] for side in SIDES} for row in rows]


def without_leaks(pairs, evaluation, seed, drop, banned=()):
    """(the pairs that no detector of `drop` flags, the ledger): chapter 1's detectors, of lib.dataset.leakage.

    evaluation: {name: list of records}, the frozen test. drop: cfg.data["drop_overlaps"]; the others are counted only.
    The ledger has a row for each source and evaluation set, a column for each detector. Both sides of a pair are read.
    """
    read = [_record(pair) for pair in pairs]
    frames = framing.learn(read, *evaluation.values())
    scan = leakage.scan(frames.bare(read), {name: list(frames.bare(r)) for name, r in evaluation.items()}, seed, banned)
    gone = scan.flagged(drop)
    ledger = scan.table(drop, np.ones(len(gone), bool))
    return [pair for pair, leaks in zip(pairs, gone, strict=True) if not leaks], ledger


def _record(pair):
    """A pair as the detectors read a training record."""
    try:
        stem, options = choices.inside(pair["question"])
    except Reject:
        stem, options = pair["question"], []
    said = {part: "\n".join(pair[side][part] for side in SIDES) for part in ("reasoning", "output")}
    return {"source": pair["source"], "instruction": choices.listed(stem, options) if options else pair["question"],
            "options": options, "answer": None, "history": pair["messages"], "benchmark": pair.get("benchmark"),
            **said}  # fmt: skip


def from_samples(sampled, key, fmt, reasons):
    """Yield a pair for each question that a model answers well and badly: the best sample against the worst.

    sampled: [(record, its samples)], samples as lib.evaluation.generate gives them. key: (record, sample) -> a score,
    such as whether it is right, or None for none. fmt: chat.format. Of equally good ones those of nearest length are
    taken. Samples that were cut or have not the taught form are left out. reasons: counts no_contrast where all are
    alike.
    """

    def made(number, item):
        record, scored = item[0], []
        for sample in item[1]:
            thought, said, compliant = answers.split_reasoning(sample["text"], fmt)
            whole = answers.kept(thought, compliant, record) and sample["finish"] == "stop"
            if whole and (score := key(record, sample)) is not None:
                scored.append((score, {"reasoning": thought, "output": said}))
        chosen, rejected = contrast(scored)
        return {"id": f"samples:{record['id']}", "axis": "samples", "source": "own samples",
                "question": record["instruction"], "messages": record.get("history") or [], "chosen": chosen,
                "rejected": rejected}  # fmt: skip

    return counted(sampled, made, reasons)


def contrast(scored):
    """(best, worst) of [(score, side)], of nearest length. Raises Reject, no_contrast, where no score differs."""
    scores = [score for score, _ in scored]
    if len(set(scores)) < 2:
        raise Reject("no_contrast")
    best, worst = ([side for score, side in scored if score == end] for end in (max(scores), min(scores)))

    def apart(two):
        return abs(len("".join(two[0].values())) - len("".join(two[1].values())))

    return min(itertools.product(best, worst), key=apart)
