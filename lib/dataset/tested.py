"""The questions that a model is tested on, as the detectors of lib/dataset/leakage.py look for them."""

from dataclasses import dataclass

import numpy as np

from lib.dataset import grams, near, split, wording

GRAMS = {"gram_13": 13, "gram_8": 8}
RETOLD = {"medqa": ("medxpertqa",)}  # benchmark: others that are made from its items (Zuo et al. 2025)
EVIDENT = 4  # one in this many words of a run has to be other than wording.EMPTY


@dataclass(frozen=True)
class Known:
    """Runs of words that are evidence: `grams` sorted, `owned` (grams, evaluation sets), `likely` by their first bits.

    likely: few other grams pass this look-up of 24 bits, and the search is for those.
    """

    grams: np.ndarray
    owned: np.ndarray
    likely: np.ndarray


class Test:
    """The questions of all evaluation sets; position i of each array is question i."""

    def __init__(self, evaluation, seed):
        self.names = list(evaluation)
        records = [record for name in self.names for record in evaluation[name]]
        self.owners = np.repeat(np.arange(len(self.names)), [len(evaluation[name]) for name in self.names])
        self.benchmarks = {str(record.get("benchmark")).casefold() for record in records}
        self.keys = split.keys(records, seed)
        self.signatures = (
            near.signatures([split.asked(record) for record in records]),
            near.signatures([record["instruction"] for record in records]),
        )
        stems, groups = [split.stem(record) for record in records], near.groups(self.signatures[0])
        self.known = {detector: self._known(stems, groups, n) for detector, n in GRAMS.items()}

    def _known(self, stems, groups, n):
        """Known of the runs of n words that say something and that only one question, or near copies of it, has."""
        parts = [np.empty((2, 0), np.uint64)]
        for start, batch in enumerate(grams.batches(stems)):
            values, of = _telling(batch, n)
            parts.append(np.stack([values, (of + start * grams.BATCH).astype(np.uint64)]))
        values, of = np.concatenate(parts, axis=1)
        of = of.astype(np.int64)
        known, where = np.unique(values, return_inverse=True)
        first = np.full(len(known), len(groups), np.int64)
        np.minimum.at(first, where, groups[of])
        shared = np.zeros(len(known), bool)
        shared[where[groups[of] != first[where]]] = True  # it stands in two questions: exam wording
        owned = np.zeros((len(known), max(1, len(self.names))), bool)
        owned[where, self.owners[of]] = True
        likely = np.zeros(1 << 24, bool)
        likely[known[~shared] >> np.uint64(40)] = True
        return Known(known[~shared], owned[~shared], likely)

    def retold(self):
        """Benchmarks whose items are made from those that are tested."""
        return [name for tested, names in RETOLD.items() if tested in self.benchmarks for name in names]

    def exact(self, keys, asked):
        """{set: mask} of the training records that ask the same, or have the same instruction. Both: split.Keys."""
        return {
            name: np.isin(keys.question, asked.question[self.owners == place])
            | np.isin(keys.instruction, asked.instruction[self.owners == place])
            for place, name in enumerate(self.names)
        }

    def close(self, records, signatures):
        """(n, 2) positions of a question that each record nearly repeats, -1 for none: what it asks, and all of it.

        signatures: of the records' instructions.
        """
        asked = [split.asked(record) for record in records]
        same = all(text == record["instruction"] for text, record in zip(asked, records, strict=True))
        brief = signatures if same else near.signatures(asked)
        found = [near.duplicates(a, b, near.FINE) for a, b in zip((brief, signatures), self.signatures, strict=True)]
        return np.stack(found, axis=1)

    def near(self, close, asked):
        """{set: mask}: a near copy of all of a question counts, one of what it asks only where that is not generic."""
        owners = np.append(self.owners, -1)
        specific = np.where(np.append(asked.question == asked.brief, False), owners, -1)
        return {
            name: (specific[close[:, 0]] == place) | (owners[close[:, 1]] == place)
            for place, name in enumerate(self.names)
        }

    def quoted(self, detector, rows, places, count, boilerplate):
        """{set: mask (count,)} of the rows with a known gram that at most `boilerplate` training rows have."""
        known = self.known[detector]
        spread = np.bincount(places, minlength=len(known.grams))
        rows, places = rows[spread[places] <= boilerplate], places[spread[places] <= boilerplate]
        flags = {name: np.zeros(count, bool) for name in self.names}
        for place, name in enumerate(self.names):
            flags[name][rows[known.owned[places, place]]] = True
        return flags


def _telling(texts, n):
    """(grams, their texts' places) of the runs of n words that say something; shorter texts have none."""
    hashes, offsets = grams.words(texts)
    counts = np.diff(offsets)
    values, at = grams.runs(hashes, offsets, n)
    of = np.repeat(np.arange(len(texts)), np.diff(at))
    start = offsets[of] + np.arange(len(values)) - at[of]
    says = np.concatenate([[0], np.cumsum(~np.isin(hashes, _empty()))])
    pick = counts[of] >= n
    pick[pick] = (says[start[pick] + n] - says[start[pick]]) * EVIDENT >= n
    return values[pick], of[pick]


def _empty():
    """Hashes of the words that say nothing, numbers among them."""
    return grams.words([wording.EMPTY, " ".join(map(str, range(1000)))])[0]


def hits(values, offsets, known):
    """(rows, places in known.grams) of the grams that are known, each pair once."""
    if not len(known.grams) or not len(values):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    maybe = np.flatnonzero(known.likely[values >> np.uint64(40)])
    places = np.minimum(np.searchsorted(known.grams, values[maybe]), len(known.grams) - 1)
    same = known.grams[places] == values[maybe]
    rows = np.searchsorted(offsets, maybe[same], side="right") - 1
    pairs = np.unique(np.stack([rows, places[same]]), axis=1)
    return pairs[0], pairs[1]
