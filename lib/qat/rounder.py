"""Rounded weights that are kept until they change, with scales that may be reused while they are trained."""

import torch

from lib.qat import grids, kgrids


class Rounder:
    """The rounded values of one matrix while it is trained, computed when the matrix has changed and kept until then.

    refresh_every: changes of the matrix, i.e. optimizer steps, between two full searches for scales in training; counts
        for the types of 256 weights only.
    A change is found by comparing values, because tensors do not tell: torch's fused AdamW leaves `_version` as it was.
    """

    def __init__(self, type, refresh_every=1):
        self.type, self.refresh_every = type.lower(), refresh_every if type.lower() in kgrids.RANGES else 1
        self.source, self.state = None, 0  # what the matrix is made of, and how often that has changed
        self.scales = self.fitted = None  # of training: the scales, and the state whose search found them
        self.counted, self.age = None, 0  # the last state that was trained, and how many came since the search
        self.key = self.values = None

    def __call__(self, source, weights, dtype, training):
        """The values in dtype, without gradient.

        source: (tag, tensors) that determine the matrix; tags are compared by ==, tensors by value and device.
        weights: function that computes the matrix as it is saved, (rows, cols).
        training: take the scales of an earlier state for up to refresh_every - 1 changes. Otherwise exact.
        """
        if not self._unchanged(source):
            tag, tensors = source
            self.source, self.state = (tag, [t.detach().clone() for t in tensors]), self.state + 1
        with torch.inference_mode(False), torch.no_grad():  # what an evaluation computes, training may meet again
            if training and self.refresh_every > 1:
                self._count(weights)
                key, scales = (self.state, self.fitted, dtype), self.scales
            else:
                key, scales = (self.state, self.state, dtype), None
            if self.key != key:
                self.key, self.values = key, grids.fake_quantize(weights(), self.type, scales).to(dtype)
        return self.values

    def _unchanged(self, source):
        """Whether the matrix is made of the same values as at the last call."""
        if self.source is None or self.source[0] != source[0]:
            return False
        pairs = list(zip(self.source[1], source[1], strict=True))
        return all(old.device == new.device and torch.equal(old, new) for old, new in pairs)

    def _count(self, weights):
        """Search for scales at the first state that is trained and at every refresh_every-th one after it."""
        if self.counted != self.state:
            self.counted, self.age = self.state, self.age + 1
        if self.fitted is None or self.age >= self.refresh_every:
            self.scales, self.fitted, self.age = grids.fit(weights(), self.type), self.state, 0
