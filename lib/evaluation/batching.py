"""A model that answers and does not learn, and sequences of unlike length in one batch."""

import contextlib

import torch

from lib.chat.turns import IGNORE_INDEX


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


def left_pad(sequences, device):
    """(input_ids, attention_mask, position_ids), each (rows, longest): token id 0, masked out, fills up on the left."""
    longest = max(map(len, sequences))
    ids = torch.tensor([[0] * (longest - len(s)) + list(s) for s in sequences], device=device)
    mask = torch.tensor([[0] * (longest - len(s)) + [1] * len(s) for s in sequences], device=device)
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)


def right_pad(rows, device):
    """(input_ids, labels, attention_mask), each (rows, longest), of (ids, labels) pairs, the longest first."""
    width = len(rows[0][0])
    fill = [
        (list(ids) + [0] * gap, list(labels) + [IGNORE_INDEX] * gap, [1] * len(ids) + [0] * gap)
        for ids, labels in rows
        for gap in [width - len(ids)]
    ]
    return tuple(torch.tensor(part, device=device) for part in zip(*fill, strict=True))
