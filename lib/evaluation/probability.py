"""What a model's probabilities say without generating anything: likely options, perplexity, what a merge changed."""

import math
from collections import Counter, defaultdict

import torch
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

from lib.chat.turns import IGNORE_INDEX
from lib.dataset import answers as reading
from lib.evaluation import batching

LIKELIHOOD_PROMPT = "{question}\n\nAnswer:"  # plain text, no chat template: a base model was not taught one
LOGITS_AT_ONCE = 2**28  # numbers: one gigabyte in float32, whatever the vocabulary


def likelihood(model, tokenizer, records, batch_size=16, progress=None):
    """The option that a model finds most likely, per record with options: rows {"id", "picked", "correct", "scores"}.

    The score of an option is the mean log-probability (nats per token) of " <option text>" after
    LIKELIHOOD_PROMPT with the whole question, options listed in it as the record lists them. The mean, not the sum,
    so that long options are not punished. Nothing is generated, so a model that knows the answer but not the
    format still shows it. The question is read once, its cache shared by its options.
    """
    if missing := [record["id"] for record in records if not record["options"]]:
        raise ValueError(f"{len(missing)} records have no options to compare, the first is {missing[0]}")
    pairs = [
        (LIKELIHOOD_PROMPT.format(question=record["instruction"]), [f" {option}" for option in record["options"]])
        for record in records
    ]
    rows = []
    found = option_loglikelihoods(model, tokenizer, pairs, batch_size, progress)
    for record, options in zip(records, found, strict=True):
        scores = [option["sum"] / option["tokens"] for option in options]
        picked = reading.LETTERS[max(range(len(scores)), key=scores.__getitem__)]
        correct = picked == record["letter"] if record["letter"] else None
        rows.append({"id": record["id"], "picked": picked, "correct": correct, "scores": scores})
    return rows


def option_loglikelihoods(model, tokenizer, pairs, batch_size=16, progress=None):
    """How likely each continuation of a context is: per pair a list of {"sum", "tokens", "bytes"}, in the order given.

    pairs: (context, [continuations]), plain text; a continuation brings its own leading blank (" B").
    sum: log-probability in nats, over `tokens` tokens: those that context and continuation together have beyond the
    context's. bytes: of the continuation in UTF-8, without its leading blank. A context is read once, its cache shared
    by its continuations. The tokenizer puts the beginning-of-sequence token where it always does. Blanks that end a
    context are counted with the continuation, as in EleutherAI's lm-evaluation-harness, with which sums agree
    (tests/test_lm_eval.py). Raises ValueError when a context or a continuation has no token.
    """
    ids = [_option_ids(tokenizer, context, continuations) for context, continuations in pairs]
    order = sorted(range(len(pairs)), key=lambda i: (-len(ids[i][0]), i))
    found = [None] * len(pairs)
    with batching.evaluation(model):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            for i, sums in zip(chosen, _option_sums(model, [ids[i] for i in chosen]), strict=True):
                found[i] = [
                    {"sum": total, "tokens": len(tokens), "bytes": len(text.lstrip().encode())}
                    for total, tokens, text in zip(sums, ids[i][1], pairs[i][1], strict=True)
                ]
            if progress:
                progress(min(start + batch_size, len(order)), len(order))
    return found


def _option_ids(tokenizer, context, continuations):
    """(context ids, list of continuation ids); a continuation's are those that the whole text has beyond the context's.

    A continuation is not tokenized alone: SentencePiece would begin it with a blank of its own.
    """
    ids = tokenizer(context.rstrip())["input_ids"]
    options = [tokenizer(context + text)["input_ids"][len(ids) :] for text in continuations]
    if not ids or not options or not all(options):
        raise ValueError(f"no token in the context {context[-40:]!r} or in one of its continuations {continuations}")
    return ids, options


def _option_sums(model, pairs):
    """Log-probability of each option in nats: list (questions) of lists (options). pairs: (prompt ids, option ids)."""
    count = max(len(options) for _, options in pairs)
    prompts, mask, positions = batching.left_pad([prompt for prompt, _ in pairs], model.device)
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
    sums = -losses.sum(1).view(len(pairs), count)
    return [sums[i, : len(options)].tolist() for i, (_, options) in enumerate(pairs)]


def perplexity(model, rows, batch_size=32):
    """Perplexity of the labelled tokens: {"perplexity", "loss", "tokens", "rows"}, loss in nats per token.

    rows: (input_ids, labels) of single conversations, as chat.encode gives them; labels hold IGNORE_INDEX where a
    token does not count. All tokens weigh alike, whichever row they stand in.
    Raises ValueError when no token is labelled.
    """
    return _perplexities(model, rows, lambda ids: [("all", 0, len(ids))], batch_size)["all"] | {"rows": len(rows)}


def perplexity_by_part(model, rows, regions, batch_size=32):
    """The perplexity of the reasoning and of the answer, in one pass: {part: what `perplexity` returns}.

    rows: as for `perplexity`. regions: lib.chat.lossmask.Regions of the tokenizer and format.
    Parts are reasoning with its marks, answer, and end with what the template writes after it; "prompt" appears only
    where the prompt is labelled, and a part without labelled tokens does not appear. The parts' losses, weighted by
    their tokens, sum to the loss of `perplexity`. "rows" counts the rows that have the part.
    """
    ends = {"rest": "end"}
    return _perplexities(
        model,
        rows,
        lambda ids: [(ends.get(name, name), start, stop) for name, start, stop in regions.spans(ids)],
        batch_size,
    )


def _perplexities(model, rows, spans, batch_size):
    """{part: perplexity} in the order in which parts first appear. spans: ids -> [(part, first token, one past)]."""
    sums, counts, holders = Counter(), Counter(), defaultdict(set)
    for number, losses in _token_losses(model, rows, batch_size):
        ids, labels = rows[number]
        kept = torch.tensor(labels[1:]) != IGNORE_INDEX
        for name, start, stop in spans(ids):
            inside = slice(max(start - 1, 0), stop - 1)  # losses begin at the second token
            if count := int(kept[inside].sum()):
                sums[name] += float(losses[inside].sum())  # 0 where there is no label
                counts[name] += count
                holders[name].add(number)
    if not counts:
        raise ValueError(f"none of the {len(rows)} rows has a labelled token: look at the chat template's mask")
    means = {name: sums[name] / count for name, count in counts.items()}
    return {
        name: {"perplexity": math.exp(mean), "loss": mean, "tokens": counts[name], "rows": len(holders[name])}
        for name, mean in means.items()
    }


def _token_losses(model, rows, batch_size):
    """Yield (number of the row, losses (seq - 1,) in float64 on the CPU, 0 where there is no label), longest first."""
    order, start = sorted(range(len(rows)), key=lambda i: -len(rows[i][0])), 0
    with batching.evaluation(model):
        while start < len(order):
            width = len(rows[order[start]][0])
            size = max(1, min(batch_size, LOGITS_AT_ONCE // (width * model.config.vocab_size)))
            chosen = order[start : start + size]
            start += size
            ids, labels, mask = batching.right_pad([rows[i] for i in chosen], model.device)
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
            losses = cross_entropy(logits.float().transpose(1, 2), labels[:, 1:], reduction="none").double().cpu()
            for i, row in zip(chosen, losses, strict=True):
                yield i, row[: len(rows[i][0]) - 1]


def next_token_logits(model, rows):
    """A model's logits before each labelled token of (input_ids, labels) rows: (tokens, vocabulary) float32, CPU."""
    found = []
    with batching.evaluation(model):
        for ids, labels in rows:
            kept = torch.tensor(labels[1:]) != IGNORE_INDEX
            logits = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0, :-1]
            found.append(logits.float().cpu()[kept])
    return torch.cat(found)


def changed_by_merging(before, after, limit=0.01):
    """How far a merged model is from the trained one: {"divergence", "largest", "tokens", "flipped", "lead"}.

    before, after: from `next_token_logits`, on the same rows. divergence: mean Kullback-Leibler divergence in nats a
    token; largest: the largest difference of two logits; flipped: tokens before which another one is likeliest; lead:
    the largest lead, in logits, that the trained model's likeliest had over its second before one of them (0 where
    there is none). Rounding to bfloat16 stays far below `limit`; merging an
    adapter into other weights than it was trained on does not. Raises ValueError above it.
    """
    ours, theirs = before.log_softmax(-1), after.log_softmax(-1)
    divergence = float((ours.exp() * (ours - theirs)).sum(-1).mean())
    if divergence > limit:
        raise ValueError(
            f"the merged model is not the trained one: {divergence:.4f} nats a token apart, expected at most {limit}. "
            f"Was the adapter merged into the weights that it was trained on (a 4-bit base dequantized)?"
        )
    first, second = before.topk(2).values.unbind(-1)
    leads = (first - second)[before.argmax(-1) != after.argmax(-1)]
    return {
        "divergence": divergence,
        "largest": float((before - after).abs().max()),
        "tokens": len(before),
        "flipped": len(leads),
        "lead": float(leads.max()) if len(leads) else 0.0,
    }
