"""The searches of kgrids.py in C, eight groups of weights at once: compiled.c, compiled once for each version of it.

Three to four times as fast as ggml's own quantizer on one core with AVX2, and equal to it in every value. Where there
is no C compiler, torch computes instead.
"""

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from lib.pipeline.files import ROOT, cache_dir, sha256_file
from lib.qat import kgrids

SOURCE = ROOT / "lib" / "qat" / "compiled.c"
FLAGS = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-w"]
TYPES = tuple(kgrids.RANGES)


def fake_quantize(blocks, type, chunk):
    """Quantize and dequantize contiguous (n, 256) float32 on the CPU, in torch's number of threads.

    chunk: weights that one thread takes at a time. Equal in every value to grids.by_torch.
    """
    out, rows = torch.empty_like(blocks), max(1, chunk // kgrids.SUPER)
    parts = list(zip(blocks.split(rows), out.split(rows), strict=True))
    threads = torch.get_num_threads() if len(parts) > 1 else 1
    with ThreadPoolExecutor(threads) as pool:  # C runs without Python's lock
        list(pool.map(lambda part: _convert(*part, type), parts))
    return out


def _convert(x, out, type):
    group, least, largest = kgrids.RANGES[type]
    scale, minimum = kgrids.as_stored(*_searched(x, type, group), type)
    pointers = [tensor.contiguous().data_ptr() for tensor in (x, scale, minimum)]
    library().round_to(*pointers, x.numel() // group, group, least, largest, out.data_ptr())


def _searched(x, type, group):
    """The scale and the minimum of each group, (n,) each, before they are quantized themselves."""
    n, grid = x.numel() // group, kgrids.MIN_GRIDS.get(type)
    scale, minimum = torch.empty(n), torch.zeros(n)
    if type == "q3_k":
        library().improve_scale(x.data_ptr(), n, group, kgrids.Q3_LEVELS, kgrids.TINY, scale.data_ptr())
        return scale, minimum
    tried = kgrids.tried(type)
    numbers = (ctypes.c_float * len(tried))(*tried)
    if grid:
        given = (x.data_ptr(), n, group, grid.levels, numbers, len(tried), grid.absolute)
        library().fit_scale_and_min(*given, scale.data_ptr(), minimum.data_ptr())
    else:
        library().fit_scale(
            x.data_ptr(), n, group, kgrids.Q6_LEVELS, numbers, len(tried), kgrids.TINY, scale.data_ptr()
        )
    return scale, minimum


@functools.cache
def library():
    """The compiled compiled.c with its signatures; None where nothing compiles it."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    file = cache_dir() / "search" / f"{sha256_file(SOURCE)[:16]}.so"
    try:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
                made = Path(scratch, "search.so")
                subprocess.run([compiler, *FLAGS, SOURCE, "-o", made], check=True, capture_output=True, timeout=120)
                made.replace(file)
        found = ctypes.CDLL(str(file))
    except (OSError, TypeError, subprocess.SubprocessError):
        return None
    pointer, count, number, real = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_float
    found.fit_scale_and_min.argtypes = [pointer, count, number, number, pointer, number, number, pointer, pointer]
    found.fit_scale.argtypes = [pointer, count, number, number, pointer, number, real, pointer]
    found.improve_scale.argtypes = [pointer, count, number, number, real, pointer]
    found.round_to.argtypes = [pointer, pointer, pointer, count, number, number, number, pointer]
    for function in (found.fit_scale_and_min, found.fit_scale, found.improve_scale, found.round_to):
        function.restype = None
    return found
