"""Texts that nearly repeat another: MinHash signatures by rensa, candidates by banding, every candidate compared."""

import numpy as np
import rensa

from lib.dataset import grams

PERMUTATIONS, SHINGLE = 128, 5  # numbers in a signature; words in a shingle
BANDS = 16  # of 8 numbers: finds a pair of Jaccard similarity 0.8 with a chance of 94.7 %, one of 0.9 with 99.9 %
FINE = 32  # bands of 4 numbers: one of 0.7 with 99.98 %
SEED = 7


def signatures(texts):
    """(len(texts), PERMUTATIONS) uint32: MinHash of each text's 5-word shingles. texts: an iterable, read once."""
    parts = [np.empty((0, PERMUTATIONS), np.uint32)]
    for batch in grams.batches(texts):
        hashes, offsets = grams.runs(*grams.words(batch), SHINGLE)
        matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
            hashes, offsets.astype(np.uint64), PERMUTATIONS, SEED
        )
        parts.append(np.array(matrix.to_rows(), dtype=np.uint32).reshape(len(batch), PERMUTATIONS))
    return np.concatenate(parts)


def duplicates(found, others=None, bands=BANDS, threshold=0.8, margin=0.1):
    """For each text the position of an earlier text that it nearly repeats, else -1; with `others`, of any text there.

    found, others: from `signatures`. The similarity of a pair is the share of equal numbers in its signatures, whose
    standard error is 0.035 at 0.8: a pair counts from threshold - margin on, so that few above it are missed. bands:
    more of them find more pairs near the threshold, and take longer.
    """
    everything = found if others is None else np.concatenate([others, found])
    first = 0 if others is None else len(others)
    best = np.full(len(everything), -1, np.int64)
    width = PERMUTATIONS // bands
    for band in range(bands):
        keys = _band_keys(everything[:, band * width : (band + 1) * width])
        order = np.argsort(keys, kind="stable")
        same = keys[order][1:] == keys[order][:-1]
        starts = np.flatnonzero(np.concatenate([[True], ~same]))
        head = order[np.repeat(starts, np.diff(np.concatenate([starts, [len(order)]])))]  # the first of each bucket
        for a, b in ((order, head), (order[1:][same], order[:-1][same])):  # against the first, and the one before
            pick = (a != b) & (best[a] < 0) & (a >= first) & ((others is None) | (b < first))
            a, b = a[pick], b[pick]
            alike = (everything[a] == everything[b]).mean(1) >= threshold - margin
            best[a[alike]] = b[alike]
    return best[first:]


def groups(found):
    """(n,) the first of the texts that each nearly repeats, also over others; its own place where there is none."""
    parent = duplicates(found)
    first = np.where(parent >= 0, parent, np.arange(len(found)))
    while (first != first[first]).any():  # a text's parent stands before it, so this ends
        first = first[first]
    return first


def _band_keys(band):
    keys = np.zeros(len(band), np.uint64)
    for column in band.T:
        keys = keys * grams.BASE + column
    return keys
