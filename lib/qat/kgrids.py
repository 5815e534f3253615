"""The 256-weight grids of GGUF (Q2_K, Q3_K, Q4_K, Q5_K, Q6_K) in torch, equal in value to ggml's reference quantizer.

Quantizing is two steps: `search` finds a scale and a minimum for each group of weights, which is nearly all the work;
`round_to` rounds the weights to them.

Source: ggml/src/ggml-quants.c of llama.cpp, the `_ref` functions that llama-quantize runs without an imatrix.
Exactness rests on four habits: sums run left to right like the C loop (`running_sum`), a division stays a division
(`divide`), square roots go through double, and the search of `fit_scale_and_min` goes on from its own best minimum.
"""

from dataclasses import dataclass

import numpy as np
import torch

Q3_LEVELS, Q6_LEVELS = 4, 32
TINY = 1e-15  # GROUP_MAX_EPS: ggml stores zeros below it
SUPER = 256  # weights that share one fp16 scale
RANGES = {
    "q2_k": (16, 0, 3),
    "q3_k": (16, -4, 3),
    "q4_k": (32, 0, 15),
    "q5_k": (32, 0, 31),
    "q6_k": (16, -32, 31),
}  # group, least, largest q


@dataclass(frozen=True)
class MinGrid:
    """One grid with scale and minimum: value = scale * q - minimum, 0 <= q <= levels."""

    group: int  # weights that share a scale and a minimum
    levels: int  # largest q
    scale_levels: int  # largest quantized scale or minimum
    first: float  # first offset that the search adds to `levels`
    steps: int  # further offsets, 0.1 apart
    absolute: bool  # weights |x| and absolute error; otherwise rms + |x| and squared error


MIN_GRIDS = {
    "q2_k": MinGrid(group=16, levels=3, scale_levels=15, first=-0.5, steps=15, absolute=True),
    "q4_k": MinGrid(group=32, levels=15, scale_levels=63, first=-1.0, steps=20, absolute=False),
    "q5_k": MinGrid(group=32, levels=31, scale_levels=63, first=-0.5, steps=15, absolute=False),
}


def divide(a, b):
    """a / b in IEEE float32; either may be a number, which torch alone would turn into a product with a reciprocal."""
    device = (a if torch.is_tensor(a) else b).device
    a, b = (t if torch.is_tensor(t) else torch.full((), t, dtype=torch.float32, device=device) for t in (a, b))
    return a / b


def running_sum(terms):
    """Sum over the first axis from left to right, rounding after each addition as a C loop does."""
    first, *rest = terms.unbind(0)
    total = first.clone()
    for term in rest:
        total += term
    return total


def nearest_int(x):
    """ggml's nearest_int: round half to even through the mantissa, with its wrap-around beyond 2^22."""
    return ((x + 12582912.0).view(torch.int32) & 0x007FFFFF) - 0x00400000


def half(x):
    """Round float32 to fp16 and back."""
    return x.to(torch.float16).to(torch.float32)


def candidates(start, levels, steps):
    """The numerators start + 0.1 * step + levels of ggml's scale searches, rounded as C floats."""
    tenth, start, levels = np.float32(0.1), np.float32(start), np.float32(levels)
    return [float(start + tenth * np.float32(step) + levels) for step in steps]


def _tried_with_min(grid):
    return candidates(grid.first, grid.levels, range(grid.steps + 1))


def tried(type):
    """The numerators that the search of a type tries, in order."""
    grid = MIN_GRIDS.get(type)
    return _tried_with_min(grid) if grid else candidates(0.0, Q6_LEVELS, [0, *range(-9, 0), *range(1, 10)])


def fit_scale_and_min(x, weights, grid):
    """Weighted fit of x by scale * q + low (ggml: make_qkx2_quants).

    x, weights: (group, n) float32, one column a group. Returns scale (n,) and -low (n,), both >= 0.
    """
    low, high = x.amin(0).clamp_(max=0), x.amax(0)
    sum_w, sum_x = running_sum(weights), running_sum(weights * x)

    def quantized(inverse):
        return ((x - low) * inverse).round_().clamp_(0, grid.levels)

    def error(scale, low, q):
        miss = (scale * q).add_(low).sub_(x)
        return running_sum((miss.abs_() if grid.absolute else miss.mul_(miss)).mul_(weights))

    inverse = divide(grid.levels, high - low)
    scale = divide(1.0, inverse)
    best = error(scale, low, quantized(inverse))
    terms = torch.empty(len(x), 3, x.shape[1], dtype=x.dtype, device=x.device)
    for numerator in _tried_with_min(grid):
        q = quantized(divide(numerator, high - low))  # low is the best so far, not the group's own minimum
        torch.mul(weights, q, out=terms[:, 0])
        torch.mul(terms[:, 0], q, out=terms[:, 1])
        torch.mul(terms[:, 0], x, out=terms[:, 2])
        sum_q, sum_qq, sum_qx = running_sum(terms)
        det = sum_w * sum_qq - sum_q * sum_q
        new_low = (sum_qq * sum_x - sum_q * sum_qx) / det
        new_scale = torch.where(new_low > 0, sum_qx / sum_qq, (sum_w * sum_qx - sum_x * sum_q) / det)
        new_low = new_low.clamp_(max=0)
        miss = error(new_scale, new_low, q)
        better = (det > 0) & (miss < best)
        best, scale, low = (
            torch.where(better, new, old) for new, old in ((miss, best), (new_scale, scale), (new_low, low))
        )
    return scale, -low


def quantize_sub_scales(values, levels, per_super):
    """Quantize the scales (or minima) of each super-block to 0..levels steps of one fp16 number.

    values: (n,) of all groups in order. Returns what the file can hold, (n,): fp16(top / levels) * integer.
    """
    values = values.view(-1, per_super)
    top = values.amax(1, keepdim=True).clamp_(min=0)
    step = half(divide(top, levels))
    inverse = torch.where(step > 0, divide(levels, top), 0.0)
    return (step * (nearest_int(inverse * values) & 0xFF).clamp_(max=levels)).flatten()


def _search_with_min(x, grid):
    """The scales and minima of (group, n) columns (ggml: quantize_row_q2_K/q4_K/q5_K_ref)."""
    weights = x.abs()
    if not grid.absolute:
        mean_square = running_sum(x * x) / 32.0
        weights += mean_square.double().sqrt_().float()  # the float square root on a CPU is not correctly rounded
    return fit_scale_and_min(x, weights, grid)


def fit_scale(x, levels=Q6_LEVELS):
    """Weighted fit of x by scale * q, -levels <= q < levels, weights x^2 (ggml: make_qx_quants, rmse_type 1).

    x: (group, n) float32, one column a group. Returns the signed scale, (n,).
    """
    largest, where = x.abs().max(0)
    peak = x.gather(0, where[None])[0]  # the first of equals, as in C
    weights, weighted = x * x, x * x * x
    scale = best = torch.zeros_like(peak)
    for numerator in tried("q6_k"):
        q = (divide(-numerator, peak) * x).round_().clamp_(-levels, levels - 1)
        sum_qx, sum_qq = running_sum(weighted * q), running_sum((weights * q).mul_(q))
        ratio = sum_qx / sum_qq
        better = (sum_qq > 0) & (sum_qx * sum_qx > best * sum_qq)
        best, scale = torch.where(better, ratio * sum_qx, best), torch.where(better, ratio, scale)
    return torch.where(largest < TINY, 0.0, scale)


def improve_scale(x, levels=Q3_LEVELS, passes=5):
    """Weighted fit of x by scale * q, -levels <= q < levels, weights x^2, one q after another (ggml: make_q3_quants).

    x: (group, n) float32, one column a group. Returns the signed scale, (n,). A q is moved where that raises
    (sum w x q)^2 / sum w q^2, with the others as they then are; after a pass that moves none, none moves again.
    """
    largest, where = x.abs().max(0)
    inverse = divide(-levels, x.gather(0, where[None])[0])
    q = nearest_int(inverse * x).clamp_(-levels, levels - 1).float()
    weights = x * x
    weighted = weights * x
    sum_qx, sum_qq = running_sum(weighted * q), running_sum(weights * q * q)
    for i in [*range(len(x))] * passes:
        rest_qx, rest_qq = sum_qx - weighted[i] * q[i], sum_qq - weights[i] * q[i] * q[i]
        new = nearest_int(x[i] * rest_qq / rest_qx).clamp_(-levels, levels - 1).float()
        new_qx, new_qq = rest_qx + weighted[i] * new, rest_qq + weights[i] * new * new
        better = (rest_qx > 0) & (new != q[i]) & (new_qq > 0) & (new_qx * new_qx * sum_qq > sum_qx * sum_qx * new_qq)
        q[i] = torch.where(better, new, q[i])
        sum_qx, sum_qq = torch.where(better, new_qx, sum_qx), torch.where(better, new_qq, sum_qq)
    return torch.where((largest < TINY) | (sum_qq <= 0), 0.0, sum_qx / sum_qq)


def _stored_q3_k(scales):
    """The scales of groups, (n,), as the file holds them (ggml: quantize_row_q3_K_ref)."""
    scales = scales.view(-1, 16)
    scales = torch.where(scales.isnan(), 0.0, scales)  # no comparison in C finds one the largest
    top = scales.gather(1, scales.abs().argmax(1, keepdim=True))
    inverse = divide(-32.0, top)
    step = torch.where(top == 0, 0.0, half(divide(1.0, inverse)))
    return (step * nearest_int(inverse * scales).clamp_(-32, 31)).flatten()


def _stored_q6_k(scales):
    """The scales of groups, (n,), as the file holds them (ggml: quantize_row_q6_K_ref)."""
    scales = scales.view(-1, 16)
    top = scales.gather(1, scales.abs().argmax(1, keepdim=True))
    inverse = divide(-128.0, top)
    step = torch.where(top.abs() < TINY, 0.0, half(divide(1.0, inverse)))
    return (step * nearest_int(inverse * scales).clamp_(max=127)).flatten()


def as_stored(scale, minimum, type):
    """Scales and minima of groups, (n,) each, as the file holds them."""
    if type not in MIN_GRIDS:
        return {"q3_k": _stored_q3_k, "q6_k": _stored_q6_k}[type](scale), minimum
    grid = MIN_GRIDS[type]
    return tuple(quantize_sub_scales(values, grid.scale_levels, SUPER // grid.group) for values in (scale, minimum))


def search(x, type):
    """The scale and the minimum of every group, as the file will hold them.

    x: (n, 256) float32 super-blocks. Returns two (n, 256 / group) float32.
    """
    columns = x.view(-1, RANGES[type][0]).t().contiguous()
    if type in MIN_GRIDS:
        scale, minimum = _search_with_min(columns, MIN_GRIDS[type])
    else:
        scale = {"q3_k": improve_scale, "q6_k": fit_scale}[type](columns)
        minimum = torch.zeros_like(scale)
    return tuple(values.view(len(x), -1) for values in as_stored(scale, minimum, type))


def round_to(x, scale, minimum, type):
    """The values scale * q - minimum nearest to x, with q in the range of the type.

    x: (n, 256) float32 super-blocks; scale, minimum: (n, 256 / group), from `search` on x.
    """
    group, least, largest = RANGES[type]
    groups, scale, minimum = x.view(-1, group), scale.reshape(-1, 1), minimum.reshape(-1, 1)
    q = nearest_int((groups + minimum) / torch.where(scale == 0, 1.0, scale)).clamp_(least, largest)
    return (q * scale).sub_(minimum).view(x.shape)
