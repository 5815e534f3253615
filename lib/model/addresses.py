"""What was done to an array whose numbers were their own addresses: turned, permuted, split, shifted.

Each axis of the result counts through the parameter in digits: (dimension, how many, how far apart). Rotary pairs, for
example, are the digits (rows, heads, head_dim), (rows, head_dim / 2, 1), (rows, 2, head_dim / 2) of one axis.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

LOW = 2**20  # addresses below it are one float32, times STEP, exactly
STEP = 4  # between neighbouring addresses: what is added to a weight, 0 to 3, does not look like another address
HIGH = 64


def written(number, shape):
    """(high, low) halves of the addresses of parameter `number`, float32 of that shape."""
    index = torch.arange(math.prod(shape))
    if len(index) > LOW * HIGH:
        raise ValueError(f"a parameter of {tuple(shape)} is too large for addresses: choose a smaller model.base")
    high, low = number * HIGH + index // LOW, index % LOW
    return tuple((STEP * half).float().view(shape) for half in (high, low))


def places(names, shapes, tensors):
    """{parameter name: {tensor name: place}} of converted halves, {tensor: (high, low)}.

    A place is {"shape": of the small parameter, "axes": digits of each axis of the tensor, "start": where it begins in
    each dimension, "shift": what is added}, or {"why": what stands against it}. What is no parameter's address, because
    it is made of something else or multiplied, leaves its parameter without a place.
    """
    found = {name: {} for name in names}
    for tensor, (high, low) in tensors.items():
        with np.errstate(invalid="ignore"):  # Mamba's decay is an exponential: infinite, and nobody's
            owners = np.unique(high // (STEP * HIGH)).astype(int)
        number = int(owners[0])
        if owners[0] < 0 or owners[-1] >= len(names):
            continue
        if len(owners) > 1:
            place = {"why": f"shares {tensor} with {len(owners) - 1} other parameters"}
        else:
            place = _place(shapes[number], high, low) or {"why": f"is rearranged in {tensor} in a way of its own"}
        for number in owners:
            found[names[number]][tensor] = place
    return found


def _place(shape, high, low):
    shift = float(low.flat[0] % STEP)
    if np.any(low % STEP != shift) or np.any(high % STEP != shift):
        return None
    where = (high // STEP).astype(np.int64) % HIGH * LOW + (low // STEP).astype(np.int64)
    start, axes = int(where.flat[0]), []
    for axis in range(where.ndim):
        line = where[tuple(slice(None) if at == axis else 0 for at in range(where.ndim))] - start
        digits = _digits(line)
        if digits is None:
            return None
        axes.append([part for size, stride in digits for part in _dimensions(shape, size, stride)])
    place = {"shape": list(shape), "axes": axes, "start": [int(n) for n in np.unravel_index(start, shape)]}
    form = Form(tuple(shape), axes, tuple(place["start"]), 0.0)
    same = np.array_equal(form.read(torch.arange(math.prod(shape)).view(shape)).numpy(), where)
    return place | {"shift": shift} if same else None


def _digits(line):
    """[(size, stride)], the outermost first, of numbers that count in digits from 0; None where they do not."""
    found = []
    while len(line) > 1:
        stride = int(line[1])
        breaks = np.flatnonzero(line != stride * np.arange(len(line)))
        size = int(breaks[0]) if len(breaks) else len(line)
        if len(line) % size or not np.array_equal(line, (line[::size, None] + stride * np.arange(size)).reshape(-1)):
            return None
        found.insert(0, (size, stride))
        line = line[::size]
    return found


def _dimensions(shape, size, stride):
    """A digit as [dimension, size, step] parts, the outermost first: one that runs over a border is two."""
    parts, inner = [], 1
    for dimension in reversed(range(len(shape))):
        here, reach = inner, inner * shape[dimension]
        inner = reach
        if stride >= reach or size == 1:
            continue
        step = stride // here
        count = min(size, -(-shape[dimension] // step))
        parts.insert(0, [dimension, count, step])
        size, stride = size // count, reach
    return parts


@dataclass(frozen=True)
class Form:
    """How a tensor of the file is read out of a parameter of `shape`. axes, start: as `places` gives them."""

    shape: tuple
    axes: list
    start: tuple
    shift: float

    @classmethod
    def scaled(cls, place, shape):
        """The Form of a parameter of another size. In a dimension that grew, what its prime divides grew with it.

        Raises ValueError where the place says that there is none, or where the numbers do not fit the size.
        """
        if "why" in place:
            raise ValueError(place["why"])
        if len(place["shape"]) != len(shape):
            raise ValueError(f"has {len(shape)} dimensions, and {len(place['shape'])} in a small model")

        def grown(dimension, number):
            small, large = place["shape"][dimension], shape[dimension]
            prime = max((p for p in range(11, 72) if small % p == 0 and all(p % q for q in range(2, p))), default=0)
            if small == large or not prime or number % prime:
                return number
            if number * large % small:
                raise ValueError(f"cannot be cut at {number} of {small} as its size is {large}")
            return number * large // small

        axes = [[[d, grown(d, size), grown(d, step)] for d, size, step in axis] for axis in place["axes"]]
        start = tuple(grown(d, number) for d, number in enumerate(place["start"]))
        return cls(tuple(shape), axes, start, place["shift"])

    def read(self, weight):
        """The tensor, of a weight of `shape`."""
        strides = [math.prod(self.shape[d + 1 :]) for d in range(len(self.shape))]
        digits = [(size, step * strides[d]) for axis in self.axes for d, size, step in axis]
        offset = sum(at * stride for at, stride in zip(self.start, strides, strict=True))
        view = weight.contiguous().as_strided([s for s, _ in digits], [s for _, s in digits], offset)
        read = view.reshape([math.prod(size for _, size, _ in axis) for axis in self.axes])
        return read + self.shift if self.shift else read

    def row(self):
        """The dimension that the last axis runs along, whole and in order; None where it does not."""
        (dimension, size, step), *more = self.axes[-1] or [(0, 0, 0)]
        whole = not more and step == 1 and size == self.shape[dimension] and not self.start[dimension]
        return dimension if whole else None
