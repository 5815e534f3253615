"""Scores of answers against records, and what a model's probabilities say without generating anything."""

import math
import statistics

import torch
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

from lib import answers as reading
from lib import decode, stats
from lib.turns import IGNORE_INDEX

LIKELIHOOD_PROMPT = "{question}\n\nAnswer:"  # plain text, no chat template: a base model was not taught one
LOGITS_AT_ONCE = 2**28  # numbers: one gigabyte in float32, whatever the vocabulary
PROPORTIONS = {  # metric -> field of a scored row; None in a row means that the row has no such fact
    "accuracy": "correct",
    "format_compliance": "compliant",
    "truncated": "truncated",
    "parsed": "parsed",
    "errors": "error",
}
LENGTHS = ("reasoning_tokens", "answer_tokens")


def score(answers, records, fmt, tokenizer=None):
    """Score answers to records, both in the same order: one row per question.

    answers: from lib.generate. fmt: reasoning format of the recipe. tokenizer: counts reasoning and answer in tokens;
    without it both lengths are None.
    A row has id, picked (letter or None), correct (None where the record has no ground truth), compliant (to the
    format), truncated, parsed (None where there are no options), error, reasoning_tokens, answer_tokens, tokens.
    Raises ValueError when an answer belongs to another question than its record.
    """
    if [a["id"] for a in answers] != [r["id"] for r in records]:
        raise ValueError(
            f"{len(answers)} answers do not match {len(records)} records in number and order: generate them again"
        )
    return [_score_one(answer, record, fmt, tokenizer) for answer, record in zip(answers, records, strict=True)]


def _score_one(answer, record, fmt, tokenizer):
    reasoning, text, compliant = reading.split_reasoning(answer["text"], fmt)
    options, picked, correct = record["options"], None, None
    if options:
        picked = reading.choice(text, options)
        correct = picked == record["letter"]
    elif record["answer"]:
        correct = reading.matches(text, record["answer"])

    def length(part):
        return len(tokenizer(part, add_special_tokens=False)["input_ids"]) if tokenizer else None

    return {
        "id": record["id"],
        "picked": picked,
        "correct": correct,
        "compliant": compliant and answer["finish"] == "stop",
        "truncated": answer["finish"] == "length",
        "parsed": picked is not None if options else None,
        "error": answer["finish"] == "error",
        "reasoning_tokens": length(reasoning),
        "answer_tokens": length(text),
        "tokens": answer["tokens"],
    }


def proportion(flags):
    """{"value", "low", "high", "n"} of truth values, with the 95 % Wilson interval; value None when there are none."""
    hits, n = sum(map(bool, flags)), len(flags)
    low, high = stats.wilson(hits, n)
    return {"value": hits / n if n else None, "low": low, "high": high, "n": n}


def summary(rows):
    """Proportions of scored rows with Wilson intervals, and lengths in tokens (median and mean, with a
    question-bootstrap interval of the mean). Times are not among them: see `latency`.
    """
    found = {}
    for name, field in PROPORTIONS.items():
        flags = [row[field] for row in rows if row[field] is not None]
        if flags:
            found[name] = proportion(flags)
    for field in (*LENGTHS, "tokens"):
        values = [row[field] for row in rows if row[field] is not None]
        if values:
            low, high = stats.bootstrap(values)
            mean = statistics.fmean(values)
            found[field] = {
                "value": mean,
                "low": low,
                "high": high,
                "n": len(values),
                "median": statistics.median(values),
            }
    return found


def latency(answers):
    """How long answers took: {"first_s", "seconds", "tokens_per_s"}, each {"median", "p95"}, and "tokens" in all.

    first_s: seconds to the first token; tokens_per_s: of one answer, from its first token to its last. p95 by nearest
    rank; of the rate it is the slow end. Answers that never came ("error") are not among them.
    """
    came = [answer for answer in answers if answer["finish"] != "error"]
    if not came:
        raise ValueError(f"none of the {len(answers)} answers came: there is no latency to take")
    rates = [(a["tokens"] - 1) / (a["seconds"] - a["first_s"]) for a in came if a["seconds"] > a["first_s"]]
    return {
        "first_s": _spread([answer["first_s"] for answer in came]),
        "seconds": _spread([answer["seconds"] for answer in came]),
        "tokens_per_s": _spread(rates, slow=-1) if rates else None,
        "tokens": sum(answer["tokens"] for answer in came),
    }


def _spread(values, slow=1):
    ordered = sorted(values, reverse=slow < 0)
    return {"median": statistics.median(ordered), "p95": ordered[math.ceil(0.95 * len(ordered)) - 1]}


def likelihood(model, tokenizer, records, batch_size=16, progress=None):
    """The option that a model finds most likely, per record with options: rows {"id", "picked", "correct", "scores"}.

    The score of an option is the mean log-probability (nats per token) of " <option text>" after
    LIKELIHOOD_PROMPT with the whole question, options listed in it as the record lists them. The mean, not the sum,
    so that long options are not punished. Nothing is generated, so a model that knows the answer but not the
    format still shows it. The question is read once, its cache shared by its options.
    """
    if missing := [record["id"] for record in records if not record["options"]]:
        raise ValueError(f"{len(missing)} records have no options to compare, the first is {missing[0]}")
    pairs = [_option_ids(tokenizer, record) for record in records]
    order = sorted(range(len(pairs)), key=lambda i: (-len(pairs[i][0]), i))
    rows = [None] * len(records)
    with decode.evaluation(model):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            found = _option_scores(model, [pairs[i] for i in chosen])
            for i, scores in zip(chosen, found, strict=True):
                picked = reading.LETTERS[max(range(len(scores)), key=scores.__getitem__)]
                correct = picked == records[i]["letter"]
                rows[i] = {"id": records[i]["id"], "picked": picked, "correct": correct, "scores": scores}
            if progress:
                progress(min(start + batch_size, len(order)), len(order))
    return rows


def _option_ids(tokenizer, record):
    """(prompt ids, list of option ids); an option's ids are those that the whole text has beyond the prompt's."""
    prompt = LIKELIHOOD_PROMPT.format(question=record["instruction"])
    ids = tokenizer(prompt)["input_ids"]
    wholes = [tokenizer(f"{prompt} {option}")["input_ids"] for option in record["options"]]
    options = [whole[len(ids) :] for whole in wholes]
    if not all(options):
        raise ValueError(f"an option of {record['id']} has no text: {record['options']}")
    return ids, options


def _option_scores(model, pairs):
    """Mean log-probability of each option: list (questions) of lists (options). pairs: (prompt ids, option ids)."""
    count = max(len(options) for _, options in pairs)
    prompts, mask, positions = decode.left_pad([prompt for prompt, _ in pairs], model.device)
    cache = DynamicCache(config=model.config)
    first = model(
        input_ids=prompts,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits
    cache.batch_repeat_interleave(count)
    flat = [option for _, options in pairs for option in options + [options[0]] * (count - len(options))]
    width = max(map(len, flat))
    targets = torch.full((len(flat), width), IGNORE_INDEX, device=model.device)
    for row, option in enumerate(flat):
        targets[row, : len(option)] = torch.tensor(option, device=model.device)
    logits = first.repeat_interleave(count, 0)
    if width > 1:
        used = (targets != IGNORE_INDEX).long()
        tokens, offsets = targets.clamp(min=0)[:, :-1], torch.arange(1, width, device=model.device)
        rest = model(
            input_ids=tokens,
            attention_mask=torch.cat([mask.repeat_interleave(count, 0), used[:, :-1]], dim=1),
            position_ids=positions[:, -1:].repeat_interleave(count, 0) + offsets,
            past_key_values=cache,
            use_cache=True,
        ).logits
        logits = torch.cat([logits, rest], dim=1)
    losses = cross_entropy(logits.float().transpose(1, 2), targets, ignore_index=IGNORE_INDEX, reduction="none")
    means = -(losses.sum(1) / (targets != IGNORE_INDEX).sum(1)).view(len(pairs), count)
    return [means[i, : len(options)].tolist() for i, (_, options) in enumerate(pairs)]


def perplexity(model, rows, batch_size=32):
    """Perplexity of the labelled tokens: {"perplexity", "loss", "tokens", "rows"}, loss in nats per token.

    rows: (input_ids, labels) of single conversations, as chat.encode gives them; labels hold IGNORE_INDEX where a
    token does not count. All tokens weigh alike, whichever row they stand in.
    """
    order = sorted(rows, key=lambda row: -len(row[0]))
    total, count, start = 0.0, 0, 0
    with decode.evaluation(model):
        while start < len(order):
            width = len(order[start][0])
            size = max(1, min(batch_size, LOGITS_AT_ONCE // (width * model.config.vocab_size)))
            ids, labels, mask = _right_pad(order[start : start + size], model.device)
            start += size
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
            total += float(cross_entropy(logits.float().transpose(1, 2), labels[:, 1:], reduction="sum"))
            count += int((labels[:, 1:] != IGNORE_INDEX).sum())
    if not count:
        raise ValueError(f"none of the {len(rows)} rows has a labelled token: look at the chat template's mask")
    return {"perplexity": math.exp(total / count), "loss": total / count, "tokens": count, "rows": len(rows)}


def next_token_logits(model, rows):
    """A model's logits before each labelled token of (input_ids, labels) rows: (tokens, vocabulary) float32, CPU."""
    found = []
    with decode.evaluation(model):
        for ids, labels in rows:
            kept = torch.tensor(labels[1:]) != IGNORE_INDEX
            logits = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0, :-1]
            found.append(logits.float().cpu()[kept])
    return torch.cat(found)


def changed_by_merging(before, after, limit=0.01):
    """How far a merged model is from the trained one: {"divergence", "largest", "tokens"}.

    before, after: from `next_token_logits`, on the same rows. divergence: mean Kullback-Leibler divergence in nats a
    token; largest: the largest difference of two logits. Rounding to bfloat16 stays far below `limit`; merging an
    adapter into other weights than it was trained on does not. Raises ValueError above it.
    """
    ours, theirs = before.log_softmax(-1), after.log_softmax(-1)
    divergence = float((ours.exp() * (ours - theirs)).sum(-1).mean())
    if divergence > limit:
        raise ValueError(
            f"the merged model is not the trained one: {divergence:.4f} nats a token apart, expected at most {limit}. "
            f"Was the adapter merged into the weights that it was trained on (a 4-bit base dequantized)?"
        )
    return {"divergence": divergence, "largest": float((before - after).abs().max()), "tokens": len(before)}


def _right_pad(rows, device):
    """(input_ids, labels, attention_mask), each (rows, longest), of (ids, labels) pairs, the longest first."""
    width = len(rows[0][0])
    fill = [
        (list(ids) + [0] * gap, list(labels) + [IGNORE_INDEX] * gap, [1] * len(ids) + [0] * gap)
        for ids, labels in rows
        for gap in [width - len(ids)]
    ]
    return tuple(torch.tensor(part, device=device) for part in zip(*fill, strict=True))
