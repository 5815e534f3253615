"""Batched decoding with a key-value cache: what stands between token ids and token ids.

transformers' own generate() costs up to a third more per step on a small model on a CPU, and keeps rows that have
ended in the batch. Two things make the loop below quick: ended rows are dropped, and in the decoding step the query
heads that share a key-value head are attended together instead of copying keys and values for each of them.
"""

import contextlib
import time

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

GROUPED = "sdpa_grouped_decode"
DROP_SHARE = 0.25  # copying the cache without its ended rows pays off when this share of rows has ended


def _grouped(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """Attention of one new token: query (batch, heads, 1, dim), key and value (batch, kv_heads, length, dim).

    Same numbers as sdpa_attention_forward up to rounding; anything but a plain decoding step is passed to it.
    """
    groups = query.shape[1] // key.shape[1]
    if query.shape[2] > 1 or groups == 1 or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    batch, heads, _, dim = query.shape
    mask = None if attention_mask is None else attention_mask.expand(-1, -1, groups, -1)
    grouped = query.reshape(batch, heads // groups, groups, dim)
    out = scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scaling)
    return out.reshape(batch, 1, heads, dim), None


AttentionInterface.register(GROUPED, _grouped)
AttentionMaskInterface.register(GROUPED, sdpa_mask)


@contextlib.contextmanager
def evaluation(model):
    """Evaluation mode without gradients, and the quick attention where the model uses sdpa on a CPU.

    A mixture of experts does not balance its router here, which a trainer's flag asks for: decoding would stop at it,
    because the mask then covers more tokens than are passed.
    """
    training, attention = model.training, model.config._attn_implementation
    quick = attention == "sdpa" and model.device.type == "cpu"
    balanced = getattr(model.config, "output_router_logits", False)
    model.eval()
    try:
        if balanced:
            model.config.output_router_logits = False
        if quick:
            model.set_attn_implementation(GROUPED)
        with torch.inference_mode():
            yield
    finally:
        if quick:
            model.set_attn_implementation(attention)
        if balanced:
            model.config.output_router_logits = True
        model.train(training)


def sampler(temperature, seed, device, top_p=1.0):
    """A function from logits (rows, vocabulary) to the next token ids (rows,): greedy at temperature 0.

    top_p: draw among the likeliest tokens, as few as hold this share together (Holtzman et al. 2019, arXiv:1904.09751).
    """
    if not temperature:
        return lambda logits: logits.argmax(-1)
    generator = torch.Generator(device=device).manual_seed(seed)

    def draw(logits):
        shares = torch.softmax(logits.float() / temperature, dim=-1)
        if top_p < 1:
            ordered, tokens = shares.sort(dim=-1, descending=True)
            ordered[ordered.cumsum(-1) - ordered >= top_p] = 0  # what likelier tokens hold already
            return tokens.gather(-1, torch.multinomial(ordered, 1, generator=generator))[:, 0]
        return torch.multinomial(shares, 1, generator=generator)[:, 0]

    return draw


def left_pad(sequences, device):
    """(input_ids, attention_mask, position_ids), each (rows, longest): token id 0, masked out, fills up on the left."""
    longest = max(map(len, sequences))
    ids = torch.tensor([[0] * (longest - len(s)) + list(s) for s in sequences], device=device)
    mask = torch.tensor([[0] * (longest - len(s)) + [1] * len(s) for s in sequences], device=device)
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)


def batch(model, prompts, stops, max_new_tokens, pick):
    """Continue prompts until each has produced a stop token or max_new_tokens tokens.

    prompts: lists of token ids, best of similar length. stops: set of token ids. pick: from `sampler`.
    Returns one (generated ids, the stop token included; seconds until its first token; until its last) per prompt. Call
    it inside `evaluation`.
    """
    started = time.perf_counter()
    tokens, mask, positions = left_pad(prompts, model.device)
    cache = DynamicCache(config=model.config)
    shrinkable = all(isinstance(layer, DynamicLayer) for layer in cache.layers)
    generated, first, seconds = [[] for _ in prompts], 0.0, [0.0] * len(prompts)
    rows, live = list(range(len(prompts))), set(range(len(prompts)))  # rows: prompts in the batch; live: not ended
    for step in range(max_new_tokens):
        output = model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        following = pick(output.logits[:, -1])
        chosen, now = following.tolist(), time.perf_counter() - started  # tolist waits for the device
        first = first or now
        for row, token in zip(rows, chosen, strict=True):
            if row in live:
                generated[row].append(token)
                if token in stops or step == max_new_tokens - 1:
                    live.discard(row)
                    seconds[row] = now
        if not live:
            break
        if shrinkable and len(live) <= (1 - DROP_SHARE) * len(rows):
            kept = torch.tensor([i for i, row in enumerate(rows) if row in live], device=model.device)
            rows = [row for row in rows if row in live]
            cache.batch_select_indices(kept)
            following, mask, positions = following[kept], mask[kept], positions[kept]
        tokens, positions = following[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
    return [(ids, first, last) for ids, last in zip(generated, seconds, strict=True)]
