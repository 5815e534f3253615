"""ggml's own quantizer through ctypes, one thread or several: what lib/qat/compiled.py is measured against."""

import ctypes
import functools
from concurrent.futures import ThreadPoolExecutor

import torch

from lib.pipeline import programs
from lib.qat.kgrids import SUPER

TYPES = {  # number in enum ggml_type, name of the function that reads it back
    "q2_k": (10, "dequantize_row_q2_K"),
    "q3_k": (11, "dequantize_row_q3_K"),
    "q4_k": (12, "dequantize_row_q4_K"),
    "q5_k": (13, "dequantize_row_q5_K"),
    "q6_k": (14, "dequantize_row_q6_K"),
}


def fake_quantize(blocks, type, chunk):
    """Quantize and dequantize contiguous (n, 256) float32 on the CPU, in torch's number of threads.

    chunk: weights that one call of the C library is given. Equal in every value to grids.by_torch.
    """
    number, reader = TYPES[type]
    stored = torch.empty(len(blocks), library().ggml_row_size(number, SUPER), dtype=torch.uint8)  # the file's bytes
    out, read = torch.empty_like(blocks), getattr(library(), reader)

    def convert(start, rows):
        bytes = stored[start].data_ptr()
        library().ggml_quantize_chunk(number, blocks[start].data_ptr(), bytes, 0, rows, SUPER, None)  # no imatrix
        read(bytes, out[start].data_ptr(), rows * SUPER)

    rows, threads = max(1, chunk // SUPER), torch.get_num_threads()
    starts = range(0, len(blocks), rows)
    sizes = [min(rows, len(blocks) - start) for start in starts]
    if min(len(starts), threads) < 2:
        threads = 1
    with ThreadPoolExecutor(threads) as pool:  # C runs without Python's lock
        list(pool.map(convert, starts, sizes))
    return out


@functools.cache
def library():
    """The built library of ggml with its signatures; None where `make setup` has not built it: torch computes then."""
    try:
        found = ctypes.CDLL(str(programs.toolchain().ggml_base))
    except OSError:
        return None
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    found.ggml_row_size.restype = found.ggml_quantize_chunk.restype = ctypes.c_size_t
    found.ggml_row_size.argtypes = [ctypes.c_int, count]
    found.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]
    for _, reader in TYPES.values():
        getattr(found, reader).argtypes = [pointer, pointer, count]
    return found
