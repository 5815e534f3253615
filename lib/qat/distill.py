"""Distillation: the loss is how far the model's next-token probabilities are from a teacher's, not from the labels.

Source: Hinton et al. (2015), arXiv:1503.02531; for quantization-aware training, Liu et al. (2023), arXiv:2305.17888.
"""

import torch
from torch.nn.functional import kl_div

from lib.chat.turns import IGNORE_INDEX
from lib.model.head import HeadTrainer, kept


def divergence(ours, theirs):
    """Kullback-Leibler divergence of a model from its teacher, in nats, summed over tokens.

    ours, theirs: (tokens, vocabulary) logits of the model and of the teacher for the same tokens.
    """
    ours, theirs = (logits.float().log_softmax(-1) for logits in (ours, theirs))
    return kl_div(ours, theirs, log_target=True, reduction="sum")


class DistillTrainer(HeadTrainer):
    """HeadTrainer with the Kullback-Leibler divergence of the model from a teacher, over the labelled tokens.

    teacher: a model with the same tokenizer, on the same device, never trained here. With the model itself as teacher
    the loss is zero, and its gradient but for rounding errors: what moves the weights is only what the model is made to
    do differently. The logged loss is in nats a token, 0 for equal probabilities.
    """

    def __init__(self, *args, teacher, **kwargs):
        super().__init__(*args, compute_loss_func=self._divergence, **kwargs)
        self.teacher, self._target, self._following = teacher.eval(), None, None

    def compute_loss(self, model, inputs, *args, **kwargs):
        columns, self._following = kept(inputs["labels"])
        inputs = inputs | {"logits_to_keep": columns, "shift_labels": self._following}
        with torch.no_grad():
            shown = {k: value for k, value in inputs.items() if "labels" not in k and not k.startswith("_")}
            self._target = self.teacher(**shown, use_cache=False).logits
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _divergence(self, outputs, labels, num_items_in_batch=None):
        counted = self._following != IGNORE_INDEX
        total = divergence(outputs.logits[counted], self._target[counted])
        return total / (counted.sum() if num_items_in_batch is None else num_items_in_batch)
