"""Texts as hashes of their words and of n words in a row, for whole batches at once with NumPy.

Words are runs of letters and digits, whatever their case; all that is not ASCII counts as a letter. Hashes have 64
bits: a billion grams against a million known ones meet by accident with a chance of 5 in 100,000.
"""

import itertools

import numpy as np

BATCH = 1000  # texts hashed at once
WORD = np.array([(byte < 128 and chr(byte).isalnum()) or byte >= 128 for byte in range(256)])
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplying by it loses no bit
MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # constants of splitmix64 (Steele et al. 2014)
LONGEST = 64  # bytes of a word that count
POWERS = np.cumprod(np.concatenate([[np.uint64(1)], np.full(LONGEST - 1, BASE)]), dtype=np.uint64)


def words(texts):
    """(hashes, offsets): uint64 hashes of all words of a list of texts, and where each text's begin; len(texts) + 1.

    Text i has the words hashes[offsets[i] : offsets[i + 1]].
    """
    raw = [text.lower().encode("utf-8", "replace") for text in texts]
    data = np.frombuffer(b" ".join(raw) + b" ", dtype=np.uint8)
    ends = np.cumsum([len(part) + 1 for part in raw])  # one past each text's closing blank
    inside = WORD[data]
    edges = np.flatnonzero(np.diff(inside, prepend=False))  # starts and ends of words, in turn
    starts, stops = edges[::2], edges[1::2]
    if not len(starts):
        return np.empty(0, np.uint64), np.zeros(len(texts) + 1, np.int64)
    sizes = np.minimum(stops - starts, LONGEST)
    firsts = np.cumsum(sizes) - sizes  # where each word begins among the bytes that count
    within = np.arange(sizes.sum()) - np.repeat(firsts, sizes)
    values = data[np.repeat(starts, sizes) + within] * POWERS[within]
    hashes = _mixed(np.add.reduceat(values, firsts))
    return hashes, np.concatenate([[0], np.searchsorted(starts, ends)])


def _mixed(values):
    values = (values ^ (values >> np.uint64(30))) * MIX[0]
    values = (values ^ (values >> np.uint64(27))) * MIX[1]
    return values ^ (values >> np.uint64(31))


def runs(hashes, offsets, n):
    """(grams, offsets) of every n words in a row within one text; a text of fewer words gives one gram of all of them.

    hashes, offsets: from `words`. A text without words has no gram.
    """
    counts = np.diff(offsets)
    total = np.zeros(len(hashes), np.uint64)
    owner = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(len(hashes)) - np.repeat(offsets[:-1], counts)
    for step in range(n):
        reach = max(0, len(hashes) - step)
        same = owner[step:] == owner[:reach] if step else np.ones(reach, bool)
        total[:reach] = np.where(same, total[:reach] * BASE + hashes[step:], total[:reach])
    whole = place <= np.maximum(counts - n, 0)[owner]
    kept = np.concatenate([[0], np.cumsum(whole)])
    return _mixed(total[whole]), kept[offsets]


def batches(texts, size=BATCH):
    """Lists of up to `size` texts, or whatever else an iterable holds."""
    texts = iter(texts)
    while batch := list(itertools.islice(texts, size)):
        yield batch
