"""A model that answers and does not learn, and sequences of unlike length in one batch."""

import contextlib
import os
import time

import torch
from torch.nn.functional import cross_entropy, pad
from transformers import DynamicCache, StoppingCriteria

from lib.chat.turns import IGNORE_INDEX
from lib.model import head
from lib.pipeline import machine

SHARED = 128  # tokens that all sequences begin with, from which on they are worth a pass of their own
LOGITS_AT_ONCE = 2**28  # numbers: one gigabyte in float32, whatever the vocabulary


@contextlib.contextmanager
def evaluation(model):
    """Evaluation mode without gradients.

    A mixture of experts does not balance its router here, which a trainer's flag asks for: decoding would stop at it,
    because the mask then covers more tokens than are passed.
    """
    training = model.training
    balanced = getattr(model.config, "output_router_logits", False)
    model.eval()
    try:
        if balanced:
            model.config.output_router_logits = False
        with torch.inference_mode():
            yield
    finally:
        if balanced:
            model.config.output_router_logits = True
        model.train(training)


def halving(rows, size, work):
    """Yield (part, work(part)) of all rows, `size` at a time; half as many from where a GPU's memory runs out on.

    rows: a list, the most expensive first. Raises torch.OutOfMemoryError where it runs out on a single row.
    """
    start = 0
    while start < len(rows):
        part, done = rows[start : start + size], None
        try:
            done = work(part)
        except torch.OutOfMemoryError:
            if len(part) == 1:
                raise
        if done is None:  # out of the handler, whose traceback holds what the attempt had made
            size = len(part) // 2
            machine.release()
            print(f"The GPU's memory ran out with {len(part)} rows at once: {size} from here on.")
            continue
        yield part, done
        start += len(part)


def left_pad(sequences, device):
    """(input_ids, attention_mask, position_ids), each (rows, longest): token id 0, masked out, fills up on the left."""
    longest = max(map(len, sequences))
    ids = torch.tensor([[0] * (longest - len(s)) + list(s) for s in sequences], device=device)
    mask = torch.tensor([[0] * (longest - len(s)) + [1] * len(s) for s in sequences], device=device)
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)


def shared_cache(model, sequences):
    """A cache of the tokens that all sequences begin with, read once; None where those are fewer than SHARED.

    sequences: lists of token ids, to be padded on the left as `left_pad` does. The cache stands for the first columns
    of that batch: a shorter sequence has its gap in front and less of the common beginning behind it, so that whatever
    follows the cache is tokens, and no padding lies inside a window of attention.
    """
    width, common = max(map(len, sequences)), os.path.commonprefix(sequences)
    gaps, length = [width - len(s) for s in sequences], min(len(common), min(map(len, sequences)) - 1)
    cache = DynamicCache(config=model.config)
    plain = all(type(layer).__name__ in ("DynamicLayer", "DynamicSlidingWindowLayer") for layer in cache.layers)
    if len(sequences) < 2 or length < max(SHARED, max(gaps) + 1) or not plain:
        return None
    read = DynamicCache()  # without a config no layer forgets what lies before its window
    ids = torch.tensor([common[:length]], device=model.device)
    model(input_ids=ids, past_key_values=read, use_cache=True, logits_to_keep=1)
    for number, layer in enumerate(read.layers):
        parts = (layer.keys, layer.values)
        rows = [[pad(part[:, :, : length - gap], (0, 0, gap, 0)) for gap in gaps] for part in parts]
        cache.update(*map(torch.cat, rows), number)
    return cache


def right_pad(rows, device):
    """(input_ids, labels, attention_mask), each (rows, longest), of (ids, labels) pairs, the longest first."""
    width = len(rows[0][0])
    fill = [
        (list(ids) + [0] * gap, list(labels) + [IGNORE_INDEX] * gap, [1] * len(ids) + [0] * gap)
        for ids, labels in rows
        for gap in [width - len(ids)]
    ]
    return tuple(torch.tensor(part, device=device) for part in zip(*fill, strict=True))


def token_losses(model, rows, batch_size):
    """Yield (number of the row, losses (seq - 1,) in float64 on the CPU, 0 where there is no label), longest first.

    rows: (ids, labels) pairs. The vocabulary head computes the tokens before a label only.
    """
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]))
    with evaluation(model):
        while order:
            chosen = _fitting([rows[i] for i in order[:batch_size]], model.config.vocab_size)
            ids, labels, mask = right_pad([rows[i] for i in order[:chosen]], model.device)
            columns, following = head.kept(labels)
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=columns).logits
            found = cross_entropy(logits.float().transpose(1, 2), following, reduction="none").double()
            losses = torch.zeros(ids.shape, dtype=found.dtype).index_copy(1, columns.cpu(), found.cpu())
            for i, row in zip(order[:chosen], losses, strict=True):
                yield i, row[: len(rows[i][0]) - 1]
            order = order[chosen:]


def _fitting(rows, vocab_size):
    """How many of the rows, at least one, have no more than LOGITS_AT_ONCE logits before their labels together."""
    columns = set()
    for count, (_, labels) in enumerate(rows, 1):
        columns |= {place for place, label in enumerate(labels) if label != IGNORE_INDEX}
        if count * len(columns) * vocab_size > LOGITS_AT_ONCE:
            return max(1, count - 1)
    return len(rows)


class Clock(StoppingCriteria):
    """Notes the time of each step, and ends nothing."""

    def __init__(self):
        self.started, self.seconds = time.perf_counter(), []

    def __call__(self, input_ids, scores, **kwargs):
        input_ids[0, -1].item()  # waits for the device
        self.seconds.append(time.perf_counter() - self.started)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
