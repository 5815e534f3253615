"""What the training records share with the questions that a model is tested on, and what is removed because of it.

Six detectors, from the surest to the vaguest: where the data set says the item comes from, the same question after
normalisation, nearly the same question, 13 words in a row, most content words in common, 8 words in a row. `recall`
measures what they miss. The questions' own side is lib/dataset/tested.py.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from lib import stats
from lib.dataset import grams, near, split, tested
from lib.dataset.tested import GRAMS
from lib.pipeline.schema import OVERLAPS

DETECTORS = OVERLAPS
BOILERPLATE = 10  # a run of words in more training rows than this is exam wording, no evidence (Brown et al. 2020, C)


@dataclass(frozen=True)
class Scan:
    """What one pass over n training records found. flags: {detector: {evaluation set: mask (n,)}}.

    keys: their split.Keys. asked: those of the evaluation questions. signatures: (n, near.PERMUTATIONS) of the
    instructions.
    """

    keys: split.Keys
    asked: split.Keys
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

    records: an iterable, read once. evaluation: {name: list of records}; what they ask is compared, with and without
    their options, for the grams with the whole training text (question, reasoning, answer). banned: benchmarks, as the
    sources' field `benchmark` names them, and sources, that no training record may come from; matched without case.
    What tested.RETOLD says to be made from an evaluation set's benchmark is banned with it.
    """
    test = tested.Test(evaluation, seed)
    banned = [*banned, *(name for name in test.retold() if name not in {ban.casefold() for ban in banned})]
    bans = {name.casefold() for name in banned}
    found = {detector: ([], []) for detector in GRAMS}  # training rows, and places in the known grams
    kept, signatures, close, provenance, number = [], [], [], [], 0
    for batch in grams.batches(records):
        kept.append(split.keys(batch, seed))
        signatures.append(near.signatures([split.signed(record) for record in batch]))
        close.append(test.close(batch, signatures[-1]))
        provenance += [_origin(record) & bans for record in batch]
        hashes, offsets = grams.words([_text(record) for record in batch])
        for detector, n in GRAMS.items():
            rows, places = tested.hits(*grams.runs(hashes, offsets, n, weigh=True), test.known[detector])
            found[detector][0].append(rows + number)
            found[detector][1].append(places)
        number += len(batch)
    keys, asked = _settled(_joined(kept), test.keys)
    close = np.concatenate([np.empty((0, 3), np.int64), *close])
    flags = {"provenance": _by_ban(provenance, banned), "exact": test.exact(keys, asked)}
    flags["near"], flags["content"] = test.near(close, asked)
    for detector in GRAMS:
        rows, places = (np.concatenate([np.empty(0, np.int64), *parts]) for parts in found[detector])
        flags[detector] = test.quoted(detector, rows, places, number, boilerplate)
    signatures = np.concatenate([np.empty((0, near.PERMUTATIONS), np.uint32), *signatures])
    return Scan(keys, asked, signatures, flags)


def _text(record):
    return "\n".join([*split.earlier(record), record["instruction"], record["reasoning"], record["output"]])


def _origin(record):
    return {str(record[field]).casefold() for field in ("benchmark", "source") if record.get(field)}


def _by_ban(provenance, banned):
    return {name: np.array([name.casefold() in origin for origin in provenance], dtype=bool) for name in banned}


def _joined(parts):
    """One Keys of several batches' Keys."""
    names = tuple(sorted({name for part in parts for name in part.names}))
    source = [np.array([names.index(name) for name in part.names], dtype=np.int64)[part.source] for part in parts]
    rest = [f.name for f in dataclasses.fields(split.Keys) if f.name not in ("names", "source")]
    joined = {f: np.concatenate([np.empty(0, np.uint64), *(getattr(part, f) for part in parts)]) for f in rest}
    return split.Keys(names, np.concatenate([np.empty(0, np.int64), *source]), **joined)


def _settled(keys, asked):
    """Both Keys, in which a question is generic as the two together show it."""
    question = split.settled(*(np.concatenate([getattr(keys, f), getattr(asked, f)]) for f in ("brief", "whole")))
    return (
        dataclasses.replace(keys, question=question[: len(keys)]),
        dataclasses.replace(asked, question=question[len(keys) :]),
    )


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
        flags = [scan([_record(pair["rewritten"])], {"": [_record(pair["original"])]}, 0).flags for pair in mine]
        row = {"level": level, "pairs": len(mine)}
        for detector in DETECTORS[1:]:
            row[detector] = stats.proportion([bool(flag[detector][""][0]) for flag in flags])
        found.append(row)
    return found


def _record(text):
    return {"source": "", "instruction": text, "reasoning": "", "output": "", "options": [], "answer": None}
