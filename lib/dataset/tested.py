"""The questions that a model is tested on, as the detectors of lib/dataset/leakage.py look for them."""

from dataclasses import dataclass

import numpy as np

from lib.dataset import content, grams, near, split, wording

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
        asked = [split.asked(record) for record in records]
        self.signatures = near.signatures(asked), near.signatures(record["instruction"] for record in records)
        self.index = content.Index(asked)
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
        """{set: mask} of the training records that ask the same, in whichever turn, or have the same instruction.

        Both: split.Keys.
        """
        return {
            name: np.isin(keys.question, asked.question[self.owners == place])
            | np.isin(keys.last, asked.question[self.owners == place])
            | np.isin(keys.instruction, asked.instruction[self.owners == place])
            for place, name in enumerate(self.names)
        }

    def close(self, records, signatures):
        """(n, 3) positions of a question that each record nearly repeats, -1 for none.

        By the signatures of what is asked and of all of it, by the content words of what is asked. signatures: of the
        records' instructions.
        """
        asked = [split.asked(record) for record in records]
        same = all(text == record["instruction"] for text, record in zip(asked, records, strict=True))
        brief = signatures if same else near.signatures(asked)
        found = [near.duplicates(a, b, near.FINE) for a, b in zip((brief, signatures), self.signatures, strict=True)]
        return np.stack([*found, self.index.closest(asked)], axis=1)

    def near(self, close, asked):
        """({set: mask} by signatures, {set: mask} by content words): see `close`. asked: split.Keys of the questions.

        A near copy of what is asked alone counts only where that is not generic.
        """
        specific = np.append(np.where(asked.question == asked.brief, self.owners, -1), -1)
        brief, whole, words = specific[close[:, 0]], np.append(self.owners, -1)[close[:, 1]], specific[close[:, 2]]
        near = {name: (brief == place) | (whole == place) for place, name in enumerate(self.names)}
        return near, {name: words == place for place, name in enumerate(self.names)}

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
    values, _ = grams.runs(hashes, offsets, n, weigh=True)
    starts, ends, at = grams.spans(hashes, offsets, n, weigh=True)
    says = np.concatenate([[0], np.cumsum(~np.isin(hashes, grams.words([wording.EMPTY, wording.NUMBERS])[0]))])
    reach, of = grams.reached(hashes), np.repeat(np.arange(len(texts)), np.diff(at))
    long = reach[ends] - reach[starts] >= n * grams.WORD
    pick = long & ((says[ends] - says[starts]) * EVIDENT >= ends - starts)
    return values[pick], of[pick]


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
