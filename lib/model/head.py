"""The vocabulary head on the tokens that are trained only.

The head is the largest matrix of a small model, and most tokens of a conversation are context without loss. TRL's
"chunked_nll" leaves those out as well; it reads the stored weights, past rounded or adapted ones, computes each
chunk of 256 tokens twice to save memory, and fills up the last chunk. With loss_type "nll" this computes each once.
"""

import torch
from trl import SFTTrainer

from lib.chat.turns import IGNORE_INDEX


def kept(labels):
    """(columns before which some row has a label, the labels after them): (kept,) and (rows, kept).

    labels: (rows, seq), not shifted. One column is kept where none has a label.
    """
    following = torch.nn.functional.pad(labels, (0, 1), value=IGNORE_INDEX)[:, 1:]
    columns = (following != IGNORE_INDEX).any(0)
    columns[0] |= not columns.any()
    columns = columns.nonzero()[:, 0]
    return columns, following[:, columns]


class HeadTrainer(SFTTrainer):
    """SFTTrainer whose loss_type "nll" computes logits at the `kept` columns only; the loss is the same."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        own = self.args.loss_type == "nll" and not self.args.use_liger_kernel  # which has a loss that writes no logits
        if own and "logits_to_keep" not in inputs:
            columns, following = kept(inputs["labels"])
            inputs = inputs | {"logits_to_keep": columns, "shift_labels": following}
        return super().compute_loss(model, inputs, *args, **kwargs)
