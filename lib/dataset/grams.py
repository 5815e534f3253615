"""Texts as hashes of their words and of n words in a row, for whole batches at once with NumPy.

Words are runs of letters and digits, whatever their case and width. In a script that writes no blanks between words
(Chinese, Japanese, Thai, ...) every character is one. Hashes have 64 bits: a billion grams against a million known ones
meet by accident with a chance of 5 in 100,000.
"""

import itertools
import unicodedata

import numpy as np

from lib.dataset.wording import UNSPACED

BATCH = 100  # texts hashed at once: arrays of a few hundred thousand characters stay in the cache
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplying by it loses no bit
MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # constants of splitmix64 (Steele et al. 2014)
LONGEST = 64  # characters of a word that count
POWERS = np.cumprod(np.concatenate([[np.uint64(1)], np.full(LONGEST - 1, BASE)]), dtype=np.uint64)
INVERSE, ONE = np.uint64(pow(int(BASE), -1, 2**64)), np.uint64(1)
WORD, CHARACTER = 8, 5  # a Chinese word has 1.6 characters on average: what each counts for in a run of words
BETWEEN, WITHIN, ALONE = range(3)  # kinds of characters: no word, part of a word, a word of its own
WIDE = (0xFF01, 0xFF5E, 0xFEE0)  # first and last of the full-width forms of ASCII, and how far they lie above it


def _kinds():
    """(0x110000,) uint8: the kind of every code point. A mark that combines with a letter is part of its word."""
    kinds = np.full(0x110000, WITHIN, np.uint8)
    kinds[:0x10000] = [char.isalnum() or unicodedata.category(char)[0] == "M" for char in map(chr, range(0x10000))]
    for first, last in UNSPACED:
        kinds[first : last + 1] *= ALONE
    return kinds


KINDS = _kinds()


def words(texts):
    """(hashes, offsets): uint64 hashes of all words of a list of texts, and where each text's begin; len(texts) + 1.

    Text i has the words hashes[offsets[i] : offsets[i + 1]]; the hash of a character of an unspaced script is odd.
    """
    return cut(texts)[:2]


def cut(texts, longest=LONGEST):
    """`words`, of which the first `longest` characters count, and a mask of those that stand in an unspaced script
    with another such character behind them."""
    raw = [unicodedata.normalize("NFC", text.lower()) for text in texts]
    ends = np.cumsum([len(part) + 1 for part in raw])  # one past each text's closing blank
    joined = " ".join(raw) + " "
    data = np.frombuffer(joined.encode("utf-32-le", "replace"), dtype=np.uint32)
    if not joined.isascii():
        data = data - np.uint32(WIDE[2]) * ((data >= WIDE[0]) & (data <= WIDE[1]))
    kinds = KINDS[data]
    cuts = np.flatnonzero((np.diff(kinds, prepend=BETWEEN) != 0) | (kinds == ALONE))
    inside = kinds[cuts] != BETWEEN
    starts, stops = cuts[inside], np.append(cuts[1:], len(data))[inside]
    if not len(starts):
        return np.empty(0, np.uint64), np.zeros(len(texts) + 1, np.int64), np.empty(0, bool)
    sizes = np.minimum(stops - starts, longest)
    firsts = np.cumsum(sizes) - sizes  # where each word begins among the characters that count
    within = np.arange(sizes.sum()) - np.repeat(firsts, sizes)
    values = data[np.repeat(starts, sizes) + within] * POWERS[within]
    alone = kinds[starts] == ALONE
    chained = alone & np.append(alone[1:] & (starts[1:] == stops[:-1]), False)
    hashes = mixed(np.add.reduceat(values, firsts)) & ~ONE | alone
    return hashes, np.concatenate([[0], np.searchsorted(starts, ends)]), chained


def mixed(values):
    """64-bit values spread evenly over all of their range (splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * MIX[0]
    values = (values ^ (values >> np.uint64(27))) * MIX[1]
    return values ^ (values >> np.uint64(31))


def runs(hashes, offsets, n, weigh=False):
    """(grams, offsets) of every n words in a row within one text; a text of fewer words gives one gram of all of them.

    hashes, offsets: from `words`. A text without words has no gram. weigh: characters of unspaced scripts count as the
    shares of a word that they say, so that a run says as much in every language.
    """
    starts, ends, at = spans(hashes, offsets, n, weigh)
    powers = np.cumprod(np.full(len(hashes), BASE, np.uint64), dtype=np.uint64)
    sums = np.concatenate([[np.uint64(0)], np.cumsum(hashes * powers, dtype=np.uint64)])
    back = np.cumprod(np.full(len(hashes), INVERSE, np.uint64), dtype=np.uint64)  # the same run hashes alike anywhere
    return mixed((sums[ends] - sums[starts]) * back[starts]), at


def spans(hashes, offsets, n, weigh=False):
    """(starts, ends, offsets) of the runs of `runs`, in words."""
    counts = np.diff(offsets)
    starts, stops = np.arange(len(hashes)), np.repeat(offsets[1:], counts)
    ends = starts + n
    if weigh:
        reach = reached(hashes)
        ends = np.searchsorted(reach, reach[:-1] + n * WORD)
    whole = (ends <= stops) | (starts == np.repeat(offsets[:-1], counts))
    kept = np.concatenate([[0], np.cumsum(whole)])
    return starts[whole], np.minimum(ends, stops)[whole], kept[offsets]


def reached(hashes):
    """(len(hashes) + 1,) how much the words before each place say, in units of 1 / WORD of a word."""
    return np.concatenate([[0], np.cumsum(np.where(hashes & ONE, CHARACTER, WORD))])


def batches(texts, size=BATCH):
    """Lists of up to `size` texts, or whatever else an iterable holds."""
    texts = iter(texts)
    while batch := list(itertools.islice(texts, size)):
        yield batch
