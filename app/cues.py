"""A learned score of how urgent a question is: weights of runs of letters and of words (cues.npz).

The rules know phrases; this knows which runs the messages of data/redflags*.jsonl have in common. A run has no name in
the file: its weight lies in a bucket that its hash picks (feature hashing, Weinberger et al. 2009).
`python -m benchmarks.cues` fits the weights.
"""

import zlib
from functools import lru_cache
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

CUES = Path(__file__).with_name("cues.npz")
WINDOW, STEP = 60, 15  # words that are scored together: a red flag in a long message counts as in a short one
BITS = 19  # of a bucket's number
LETTERS, WORDS, GAPS = (2, 3, 4, 5, 6), (1, 2, 3), (2, 3)  # sizes of runs; how far the second word of a pair stands
PRIME, MIX = np.uint64(0x100000001B3), np.uint64(0x9E3779B97F4A7C15)


def buckets(text):
    """(buckets [letters, 5] of the runs of letters, [words, 5] of the runs and pairs of words), by where a run begins.

    Runs of letters cross from word to word; what would reach beyond the end is filled with zeros.
    """
    found = text.split() or [""]
    code = "".join(f"{word} " for word in found).encode("utf-32-le", "surrogatepass")
    letters = np.frombuffer(code, np.uint32).astype(np.uint64)
    words = np.array([_number(word) for word in found], np.uint64)
    gaps = [(0, gap) for gap in GAPS]
    return (_hashed(letters, [range(size) for size in LETTERS], 1),
            _hashed(words, [range(size) for size in WORDS] + gaps, 2))  # fmt: skip


@lru_cache(2**12)
def _number(word):
    return zlib.crc32(word.encode("utf-8", "surrogatepass"))


def _hashed(items, runs, seed):
    """A column of buckets for each run, which is given by the offsets of its items. FNV's step, then a mix."""
    padded, columns = np.concatenate([items, np.zeros(8, np.uint64)]), []
    for run in runs:
        found = np.full(len(items), seed * 31 + len(run) * 7 + run[-1], np.uint64)
        for at in run:
            found = (found ^ padded[at : at + len(items)]) * PRIME
            found ^= found >> np.uint64(32)
        columns.append(found * MIX >> np.uint64(64 - BITS))
    return np.stack(columns, 1).astype(np.int64)


class Cues:
    """The weights of a file, from benchmarks.cues. path: .npz of letters and words (int8 [2**BITS]), and their numbers.

    A question is urgent above the threshold, or above `ruled`, which is lower, where a rule fires as well,
    or where one of the `certain` rules fires, whatever the score.
    Raises ValueError where the file is none of these.
    """

    def __init__(self, path=CUES):
        try:
            with np.load(path) as file:
                self.letters, self.words = file["letters"], file["words"]
                self.unit, self.bias, self.threshold, self.ruled = (float(value) for value in file["numbers"])
                self.certain = frozenset(file["certain"].tolist())
            if not self.letters.shape == self.words.shape == (2**BITS,):
                raise ValueError(f"shapes {self.letters.shape} and {self.words.shape}")
        except (OSError, ValueError, KeyError, BadZipFile, EOFError) as error:
            raise ValueError(f"{path} does not hold the score of red flags ({error}): expected letters, words "
                             f"[{2**BITS}], numbers [4], certain. Take it from git or fit it: python -m benchmarks.cues"
                             ) from None  # fmt: skip

    def score(self, text):
        """How urgent the most urgent window of a text from `guard.words` is: above 0 more like a red flag than not."""
        return self.bias + self.unit * urgency(text, self.letters, self.words)


def urgency(text, letters, words):
    """The largest score of a window of WINDOW words, without bias. letters, words: weights of the buckets.

    The weights of a window are summed and divided by the root of how many they are, so that words which say nothing
    take little away; the longer a text, the more windows there are to be urgent.
    """
    found = buckets(text)
    sums = [np.concatenate([[0.0], weights[places].sum(1, dtype=float).cumsum()])
            for weights, places in zip((letters, words), found, strict=True)]  # fmt: skip
    begins = np.concatenate([[0], np.cumsum([len(word) + 1 for word in text.split() or [""]])])
    first = np.arange(0, max(1, len(found[1]) - WINDOW + STEP), STEP)
    last = np.minimum(first + WINDOW, len(found[1]))
    by_letters = _mean(sums[0], begins[first], begins[last], found[0].shape[1])
    return float((by_letters + _mean(sums[1], first, last, found[1].shape[1])).max())


def _mean(sums, first, last, runs):
    return (sums[last] - sums[first]) / np.sqrt((last - first) * runs)
