"""How much of what tuning changed is left in each file: python -m benchmarks.kept FOLDER [--base NAME] [--tuned NAME].

FOLDER is 05_export/gguf of a finished run. A file that rounds the tuned weights to the grid on which the base's lie can
move them back: it is then near both, and only a comparison with the change itself shows it.
"""

import argparse
from pathlib import Path

import numpy as np

from benchmarks.common import table
from lib.export import gguf

NEAR = 0.01  # relative: a weight of the file is still the base's


def kept(base, tuned, file):
    """What is left in a file: {"left": share, "cosine", "near": share, "weights": number}, over the matrices tuned.

    left: the file's change from the base projected on the tuned model's, over the length of that; 1 where all of it
    is there, 0 where none is. cosine: between the two changes. near: weights within NEAR of the base's.
    Files can have more than all of it: rounding enlarges a small change that takes a weight over the middle of a step.
    All three are paths of GGUF files of one architecture. Raises ValueError where their tensors are not the same.
    """
    at_base, at_tuned = (dict(gguf.dequantize(path)) for path in (base, tuned))
    along = own = whole = near = count = 0
    for name, value in gguf.dequantize(file):
        if name not in at_base or name not in at_tuned:
            raise ValueError(f"{name} of {file} is not in {base} or not in {tuned}: give three files of one model")
        if value.ndim < 2 or np.array_equal(at_base[name], at_tuned[name]):
            continue
        start = at_base[name].astype(np.float64)
        change, moved = at_tuned[name] - start, value - start
        along, own, whole = along + (change * moved).sum(), own + (moved**2).sum(), whole + (change**2).sum()
        near, count = near + (np.abs(moved) <= NEAR * np.abs(start)).sum(), count + start.size
    if not whole:
        raise ValueError(f"no matrix of {tuned} differs from {base}: nothing was tuned, or give the base as --base")
    return {
        "left": along / whole,
        "cosine": along / np.sqrt(own * whole) if own else 0.0,
        "near": near / count,
        "weights": int(count),
    }


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", default="base-bf16.gguf")
    parser.add_argument("--tuned", default="sft-bf16.gguf")
    how = parser.parse_args(argv)
    base, tuned = how.folder / how.base, how.folder / how.tuned
    rows = []
    for file in sorted(how.folder.glob("sft-*.gguf")):
        if "adapter" in file.name or file == tuned:
            continue
        found = kept(base, tuned, file)
        shares = {name: f"{100 * found[name]:.1f} %" for name in ("left", "near")}
        rows.append(
            {"file": file.name, **shares, "cosine": f"{found['cosine']:.3f}", "weights": f"{found['weights']:,}"}
        )
    print(table(rows))


if __name__ == "__main__":
    main()
