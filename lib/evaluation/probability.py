"""How surprised a model is by a text, and how far two are apart, merged or not, quantized or not.

Two bases are never in memory together: 8 billion parameters take 16 GB in 16 bits. What is kept of each is its logits.
"""

import math
import time
from collections import Counter, defaultdict

import torch

from lib.chat.turns import IGNORE_INDEX
from lib.evaluation import batching
from lib.model import loading, shapes
from lib.pipeline import machine

MIB = 2**20


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
    for number, losses in batching.token_losses(model, rows, batch_size):
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


def next_token_logits(model, rows):
    """A model's logits before each labelled token of (input_ids, labels) rows: (tokens, vocabulary) float32, CPU."""
    return torch.cat(_forward(model, rows)["logits"]).float()


def changed_by_merging(before, after, limit=0.01):
    """How far a merged model is from the trained one: {"divergence", "largest", "tokens", "flipped", "lead"}.

    before, after: from `next_token_logits`, on the same rows. divergence: mean Kullback-Leibler divergence in nats a
    token; largest: the largest difference of two logits; flipped: tokens before which another one is likeliest; lead:
    the largest lead, in logits, that the trained model's likeliest had over its second before one of them (0 where
    there is none). Rounding to bfloat16 stays far below `limit`; merging an
    adapter into other weights than it was trained on does not. Raises ValueError above it.
    """
    size, total, largest = max(1, batching.LOGITS_AT_ONCE // before.shape[-1]), 0.0, 0.0
    for one, other in zip(before.split(size), after.split(size), strict=True):
        ours, theirs = one.log_softmax(-1), other.log_softmax(-1)
        total += float((ours.exp() * (ours - theirs)).sum())
        largest = max(largest, float((one - other).abs().max()))
    divergence = total / len(before)
    if divergence > limit:
        raise ValueError(
            f"the merged model is not the trained one: {divergence:.4f} nats a token apart, expected at most {limit}. "
            f"Was the adapter merged into the weights that it was trained on (a 4-bit base dequantized)?"
        )
    first, second = before.topk(2).values.unbind(-1)
    leads = (first - second)[before.argmax(-1) != after.argmax(-1)]
    return {
        "divergence": divergence,
        "largest": largest,
        "tokens": len(before),
        "flipped": len(leads),
        "lead": float(leads.max()) if len(leads) else 0.0,
    }


def kind(quantization):
    """The name of a recipe's model.quantization: nf4, fp4 or int8."""
    return "int8" if quantization.get("load_in_8bit") else quantization.get("bnb_4bit_quant_type", "fp4")


def read(model, rows):
    """What a model makes of rows: {"logits", "targets", "seconds": one entry a row, "mib"}.

    rows: (input_ids, labels) pairs. logits: (labelled tokens, vocabulary) in the model's dtype, on the CPU; targets:
    the tokens that followed. seconds: of one forward pass over the whole row, alone in its batch. mib: of all weights,
    the scales of quantized ones included and shared ones once.
    """
    return _forward(model, rows) | {"mib": _mib(model)}


def _forward(model, rows):
    found = {"logits": [], "targets": [], "seconds": []}
    with batching.evaluation(model):
        for ids, labels in rows:
            following = torch.tensor(labels[1:])
            kept = following != IGNORE_INDEX
            given, columns = torch.tensor([ids], device=model.device), kept.nonzero()[:, 0].to(model.device)
            _wait()
            started = time.perf_counter()
            logits = model(input_ids=given, use_cache=False, logits_to_keep=columns).logits
            _wait()
            found["seconds"].append(time.perf_counter() - started)
            found["logits"].append(logits[0].cpu())
            found["targets"].append(following[kept])
    return found


def obstacle(cfg):
    """Why the recipe's base cannot be loaded unquantized here, in words; None where it can.

    Call it when the quantized one has been given up: what no name refers to any more is freed first.
    """
    machine.release()
    config = loading.config(cfg)
    if getattr(config, "quantization_config", None):
        return f"{cfg.model['base']} is kept quantized itself: the weights that it was made from are not at hand"
    count = sum(shapes.parts(shapes.model(config)).values())
    size = count * getattr(torch, loading.precision(cfg)).itemsize
    free = machine.free_bytes()
    if size <= loading.KEPT_FREE * free:
        return None
    return (
        f"in {loading.precision(cfg)} its {count:,} parameters take {size / MIB:,.0f} MiB, more than "
        f"{loading.KEPT_FREE:.0%} of the {free / MIB:,.0f} MiB that are free on this device"
    )


def _mib(model):
    held = {tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict().values() if torch.is_tensor(tensor)}
    return sum(held.values()) / MIB


def _wait():
    if torch.cuda.is_available():
        torch.cuda.synchronize()
