"""Which option a model finds likely: its log-probability after the question, without generating anything."""

import torch
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

from lib.chat.turns import IGNORE_INDEX
from lib.evaluation import batching
from lib.evaluation.opponents import picked

LIKELIHOOD_PROMPT = "{question}\n\nAnswer:"  # plain text, no chat template: a base model was not taught one


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
        rows.append(picked(record, max(range(len(scores)), key=scores.__getitem__)) | {"scores": scores})
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
    cache = batching.shared_cache(model, [prompt for prompt, _ in pairs]) or DynamicCache(config=model.config)
    known = cache.get_seq_length()
    first = model(
        input_ids=prompts[:, known:],
        attention_mask=mask,
        position_ids=positions[:, known:],
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
