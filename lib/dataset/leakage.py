"""What the training records share with the questions that a model is tested on, and what is removed because of it.

Five detectors, from the surest to the vaguest: where the data set says the item comes from, the same question after
normalisation, nearly the same question, 13 words in a row, 8 words in a row. `recall` measures what they miss.
"""

from dataclasses import dataclass

import numpy as np

from lib import stats
from lib.dataset import grams, near, split
from lib.pipeline.schema import OVERLAPS

DETECTORS = OVERLAPS
GRAMS = {"gram_13": 13, "gram_8": 8}
BOILERPLATE = 10  # a run of words in more training rows than this is exam wording, no evidence (Brown et al. 2020, C)


@dataclass(frozen=True)
class Scan:
    """What one pass over n training records found. flags: {detector: {evaluation set: mask (n,)}}.

    keys: their split.Keys. signatures: (n, near.PERMUTATIONS) of the instructions.
    """

    keys: split.Keys
    signatures: np.ndarray
    flags: dict

    def flagged(self, detectors) -> np.ndarray:
        """Mask of the records that any of the detectors found in any evaluation set."""
        masks = [mask for name in detectors for mask in self.flags[name].values()]
        return np.logical_or.reduce(masks) if masks else np.zeros(len(self.keys), bool)

    def table(self, drop, alive) -> list[dict]:
        """One row per source and evaluation set: records found by each detector, and how many `drop` removes.

        alive: mask of the records that are still there; others are not counted.
        """
        found = []
        for number, source in enumerate(self.keys.names):
            mine = alive & (self.keys.source == number)
            for name in dict.fromkeys(name for by_set in self.flags.values() for name in by_set):
                masks = {d: by_set[name] & mine for d, by_set in self.flags.items() if name in by_set}
                gone = np.logical_or.reduce([np.zeros(len(mine), bool), *(masks[d] for d in drop if d in masks)])
                counts = {detector: int(masks[detector].sum()) for detector in DETECTORS if detector in masks}
                found.append({"source": source, "against": name, **counts, "removed": int(gone.sum())})
        return found


def scan(records, evaluation, seed, banned=(), boilerplate=BOILERPLATE) -> Scan:
    """Compare training records with the evaluation sets, in one pass.

    records: an iterable, read once. evaluation: {name: list of records}; their questions without options are compared,
    for the grams with the whole training text (question, reasoning, answer). banned: benchmarks, as the sources' field
    `benchmark` names them, and sources, that no training record may come from; matched without case.
    """
    names = list(evaluation)
    asked = [(place, split.stem(record)) for place, name in enumerate(names) for record in evaluation[name]]
    owners = np.array([place for place, _ in asked], dtype=np.int64)
    wanted = {detector: _known_grams([text for _, text in asked], owners, n) for detector, n in GRAMS.items()}
    likely = {detector: _first_bits(known) for detector, (known, _) in wanted.items()}
    found = {detector: ([], []) for detector in GRAMS}  # training rows, and places in the known grams
    kept, signatures, provenance, number = [], [], [], 0
    bans = {name.casefold() for name in banned}
    for batch in grams.batches(records):
        kept.append(split.keys(batch, seed))
        signatures.append(near.signatures([record["instruction"] for record in batch]))
        provenance += [_origin(record) & bans for record in batch]
        hashes, offsets = grams.words([_text(record) for record in batch])
        for detector, n in GRAMS.items():
            rows, places = _hits(*grams.runs(hashes, offsets, n), wanted[detector][0], likely[detector])
            found[detector][0].append(rows + number)
            found[detector][1].append(places)
        number += len(batch)
    keys = _joined(kept)
    signatures = np.concatenate([np.empty((0, near.PERMUTATIONS), np.uint32), *signatures])
    flags = {"provenance": _by_ban(provenance, banned)}
    flags["exact"] = _exact(keys, asked, owners, names)
    close = near.duplicates(signatures, near.signatures(text for _, text in asked))
    flags["near"] = {name: (close >= 0) & (owners[close] == place) for place, name in enumerate(names)}
    for detector in GRAMS:
        known, owned = wanted[detector]
        rows, places = (np.concatenate([np.empty(0, np.int64), *parts]) for parts in found[detector])
        spread = np.bincount(places, minlength=len(known))
        rows, places = rows[spread[places] <= boilerplate], places[spread[places] <= boilerplate]
        flags[detector] = {name: np.zeros(number, bool) for name in names}
        for place, name in enumerate(names):
            flags[detector][name][rows[owned[places, place]]] = True
    return Scan(keys, signatures, flags)


def _text(record):
    return f"{record['instruction']}\n{record['reasoning']}\n{record['output']}"


def _origin(record):
    return {str(record[field]).casefold() for field in ("benchmark", "source") if record.get(field)}


def _by_ban(provenance, banned):
    return {name: np.array([name.casefold() in origin for origin in provenance], dtype=bool) for name in banned}


def _known_grams(texts, owners, n):
    """(sorted distinct grams, mask (grams, evaluation sets)) of the evaluation questions; shorter ones have none."""
    sets = int(owners.max()) + 1 if len(owners) else 0
    pairs = [np.empty((2, 0), np.uint64)]
    for start, batch in enumerate(grams.batches(texts)):
        hashes, offsets = grams.words(batch)
        long = np.diff(offsets) >= n
        values, at = grams.runs(hashes, offsets, n)
        of = np.repeat(np.arange(len(batch)), np.diff(at))
        pick = long[of]
        pairs.append(np.stack([values[pick], owners[of[pick] + start * grams.BATCH].astype(np.uint64)]))
    values, places = np.concatenate(pairs, axis=1)
    known, where = np.unique(values, return_inverse=True)
    owned = np.zeros((len(known), max(1, sets)), bool)
    owned[where, places.astype(np.int64)] = True
    return known, owned


def _first_bits(known):
    """Mask of the first 24 bits that known grams have: few others pass this look-up, and the search is for those."""
    likely = np.zeros(1 << 24, bool)
    likely[known >> np.uint64(40)] = True
    return likely


def _hits(values, offsets, known, likely):
    """(rows, places in known) of the grams that are known, each pair once."""
    if not len(known) or not len(values):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    maybe = np.flatnonzero(likely[values >> np.uint64(40)])
    places = np.minimum(np.searchsorted(known, values[maybe]), len(known) - 1)
    same = known[places] == values[maybe]
    rows = np.searchsorted(offsets, maybe[same], side="right") - 1
    pairs = np.unique(np.stack([rows, places[same]]), axis=1)
    return pairs[0], pairs[1]


def _exact(keys, asked, owners, names):
    known = np.array([split._hash(split.normalise_question(text)) for _, text in asked], dtype=np.uint64)
    return {name: np.isin(keys.question, known[owners == place]) for place, name in enumerate(names)}


def _joined(parts):
    """One Keys of several batches' Keys."""
    names = tuple(sorted({name for part in parts for name in part.names}))
    source = [np.array([names.index(name) for name in part.names], dtype=np.int64)[part.source] for part in parts]
    rest = {f: [getattr(part, f) for part in parts] for f in ("question", "instruction", "answer", "draw")}
    joined = {f: np.concatenate([np.empty(0, np.uint64), *arrays]) for f, arrays in rest.items()}
    return split.Keys(names, np.concatenate([np.empty(0, np.int64), *source]), **joined)


def overlap(keys: split.Keys, signatures: np.ndarray) -> dict[str, dict[str, float]]:
    """{a: {b: share}}: the share of a's different questions that b asks too, word for word or nearly."""
    shares = {}
    for a, first in enumerate(keys.names):
        mine = keys.source == a
        shares[first] = {}
        for b, second in enumerate(keys.names):
            theirs = keys.source == b
            same = np.isin(keys.question[mine], keys.question[theirs])
            if a != b:
                same |= near.duplicates(signatures[mine], signatures[theirs]) >= 0
            asked, at = np.unique(keys.question[mine], return_index=True)
            shares[first][second] = float(same[at].mean()) if len(asked) else 0.0
    return shares


def recall(pairs) -> list[dict]:
    """What each detector finds of evaluation questions that were told again: one row per level of rewriting.

    pairs: [{"level", "original", "rewritten"}], texts; the original is the evaluation question. Each pair is judged by
    itself. Returns [{"level", "pairs", detector: {"value", "low", "high", "n"}}] for all detectors but provenance,
    which texts do not have. Pairs of a level of unrelated texts give the share of false alarms.
    """
    found = []
    for level in dict.fromkeys(pair["level"] for pair in pairs):
        mine = [pair for pair in pairs if pair["level"] == level]
        flags = [_pair_flags(pair["original"], pair["rewritten"]) for pair in mine]
        row = {"level": level, "pairs": len(mine)}
        for detector in DETECTORS[1:]:
            hits = sum(flag[detector] for flag in flags)
            low, high = stats.wilson(hits, len(mine))
            row[detector] = {"value": hits / len(mine), "low": low, "high": high, "n": len(mine)}
        found.append(row)
    return found


def _pair_flags(original, rewritten):
    flags = {"exact": split.normalise_question(original) == split.normalise_question(rewritten)}
    flags["near"] = bool(near.duplicates(near.signatures([rewritten]), near.signatures([original]))[0] >= 0)
    for detector, n in GRAMS.items():
        known, _ = _known_grams([original], np.zeros(1, np.int64), n)
        flags[detector] = bool(len(_hits(*grams.runs(*grams.words([rewritten]), n), known, _first_bits(known))[0]))
    return flags
