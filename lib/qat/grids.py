"""The number grids of GGUF tensor types as torch functions: what a weight becomes once llama.cpp has stored it.

`fake_quantize` returns exactly the values that dequantizing the file gives (llama-quantize without an imatrix), so that
what is trained is what is served. The formulas follow the `_ref` functions of ggml/src/ggml-quants.c in llama.cpp;
the 256-weight types are in kgrids.py; on a CPU our own C computes those, faster (compiled.py).
Inputs must be finite: llama-quantize refuses others.
"""

import functools
import hashlib

import numpy as np
import torch

from lib.qat import compiled, kgrids
from lib.qat.kgrids import divide, half

CPU_CHUNK = 1 << 17  # weights at a time: stays in the processor's cache
GPU_CHUNK = 1 << 24
HALF_BELOW = 0.49999997  # largest float32 under 1/2: adding it rounds half away from zero, and 0.49999997 to 0


def _inverse(d):
    """1 / d, and 0 where d is zero or so small that the inverse overflows (its fp16 scale is 0 then)."""
    inverse = divide(1.0, d)
    return torch.where(inverse.isfinite(), inverse, 0.0)


def _signed_peak(x):
    """The element of largest magnitude in each row, with its sign; the first of equals, as in C. (n, 32) -> (n, 1)."""
    high, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    peak = torch.where(high > -low, high, low)
    tied = ((high == -low) & (high > 0)).flatten()
    if tied.any():
        rows = x[tied]
        peak[tied] = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    return peak


def _signed(x, levels):
    """Q4_0 (levels 8) and Q5_0 (levels 16): value = fp16(d) * (q - levels), the peak falls on -levels."""
    d = divide(_signed_peak(x), -levels)
    q = (x * _inverse(d)).add_(levels + 0.5).floor_().clamp_(max=2 * levels - 1)
    return q.sub_(levels).mul_(half(d))


def _q5_1(x, levels=31):
    """value = fp16(d) * q + fp16(min)."""
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    d = divide(high - low, levels)
    q = ((x - low) * _inverse(d)).add_(0.5).floor_().clamp_(max=levels)
    return q.mul_(half(d)).add_(half(low))


def _q8_0(x):
    d = divide(x.abs().amax(1, keepdim=True), 127.0)
    q = x * _inverse(d)
    return q.abs().add_(HALF_BELOW).floor_().copysign_(q).mul_(half(d))


def _mxfp4(x):
    """Power-of-two scale of the block, then the nearest 4-bit float; a tie goes to the smaller magnitude, as in C."""
    largest = x.abs().amax(1, keepdim=True).double()
    log = largest.log2().float().floor_().double()  # log2f as C rounds it: just under 2^k may give k
    stored = log >= -125  # the smallest block that the 8-bit exponent can hold; ggml stores zeros below it
    scale = torch.where(stored, torch.exp2(log - 2), 0.0).float()
    magnitude = x.abs() * torch.where(stored, torch.exp2(2 - log), 0.0).float()
    step = torch.where(
        magnitude < 2, 0.5, torch.where(magnitude < 4, 1.0, 2.0)
    )  # spacing of 4-bit floats: 0 .5 1 1.5 2 3 4 6
    value = (magnitude / step).sub_(0.5).ceil_().mul_(step).clamp_(max=6.0).mul_(scale)
    return value.copysign_(x)


def _full_search(x, type):
    return kgrids.round_to(x, *kgrids.search(x, type), type)


GRIDS = {  # GGUF type: (weights a block, function of (n, block) float32)
    "f32": (1, lambda x: x),
    "f16": (1, half),
    "bf16": (1, lambda x: x.to(torch.bfloat16).to(torch.float32)),
    "q4_0": (32, lambda x: _signed(x, 8)),
    "q5_0": (32, lambda x: _signed(x, 16)),
    "q5_1": (32, _q5_1),
    "q8_0": (32, _q8_0),
    "mxfp4": (32, _mxfp4),
    **{type: (kgrids.SUPER, functools.partial(_full_search, type=type)) for type in kgrids.RANGES},
}
FALLBACK = {
    "q2_k": "q4_0",
    "q3_k": "q4_0",
    "q4_k": "q5_0",
    "q5_k": "q5_1",
    "q6_k": "q8_0",
}  # tensor_type_fallback in llama-quant.cpp


def fallback(type, cols):
    """The type that llama.cpp stores instead when a row of `cols` weights does not divide into blocks of `type`."""
    block = _grid(type)[0]
    if cols % block == 0:
        return type.lower()
    smaller = FALLBACK.get(type.lower(), type.lower())
    return smaller if cols % _grid(smaller)[0] == 0 else "f16"


def fake_quantize(w, type):
    """Round weights to the grid of a GGUF type; equal in value to quantizing and dequantizing with ggml.

    w: (..., cols) of any float dtype, rows as in the file; converted to float32 first, as llama-quantize does.
    Returns float32 of the same shape, without gradient.
    Raises ValueError for an unknown type, or when cols is not divisible by the type's block.
    """
    blocks, type = _blocks(w, type), type.lower()
    in_c = blocks.device.type == "cpu" and type in compiled.TYPES and compiled.library() is not None
    return (compiled.fake_quantize if in_c else by_torch)(blocks, type, CPU_CHUNK).view(w.shape)


def _blocks(w, type):
    """The weights as contiguous (n, block) float32."""
    block, cols = _grid(type)[0], w.shape[-1]
    if cols % block:
        raise ValueError(
            f"rows of {cols} weights do not divide into {type} blocks of {block}: "
            f"llama.cpp stores such a tensor as {fallback(type, cols)}; take the type from gguf.type_map"
        )
    return w.detach().to(torch.float32).reshape(-1, block).contiguous()


@torch.no_grad()
def by_torch(blocks, type, chunk=CPU_CHUNK):
    """Quantize and dequantize contiguous (n, block) float32 with the formulas of this module, on any device.

    chunk: weights at a time on a CPU.
    """
    out, function = torch.empty_like(blocks), _grid(type)[1]
    rows = max(1, (chunk if blocks.device.type == "cpu" else GPU_CHUNK) // blocks.shape[1])
    for start in range(0, len(blocks), rows):
        out[start : start + rows] = function(blocks[start : start + rows])
    return out


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w, rounded):
        return rounded

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def straight_through(w, rounded):
    """rounded, with the gradient passed on to w as if nothing had been rounded; both of one shape and dtype."""
    return _StraightThrough.apply(w, rounded)


def sha256(values):
    """Hash of weights as float32, to prove two tensors equal without keeping both; -0 counts as 0.

    values: tensor, or float32 numpy array. Equal hashes mean that no value differs, in the order of the rows.
    """
    if torch.is_tensor(values):
        values = values.detach().to("cpu", torch.float32).numpy()
    return hashlib.sha256((values + np.float32(0)).tobytes()).hexdigest()  # -0 + 0 is +0


def _grid(type):
    """(block, function) of a type; the name may be upper or lower case (ggml prints q4_K)."""
    if type.lower() not in GRIDS:
        raise ValueError(f"no grid for GGUF type {type!r}: known are {', '.join(GRIDS)}")
    return GRIDS[type.lower()]
