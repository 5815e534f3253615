"""Which records the model may learn from, and which it never sees: one split, by question, over all sources.

Two records ask the same question when their stems (the text without the listed options) are equal after
normalisation. All records of a question go to one side. Everything here works on arrays of hashes, one entry per
record, so that millions of records need a few dozen bytes each.
"""

import hashlib
import re
import unicodedata
from dataclasses import dataclass

import numpy as np

BLANKS = re.compile(r"[\W_]+")


def normalise_question(text: str) -> str:
    """Text in which case, accents' encoding, punctuation and blanks do not count; never empty for non-blank text."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return BLANKS.sub(" ", folded).strip() or folded.strip()


def stem(record: dict) -> str:
    """A record's instruction without its listed options."""
    return record["instruction"].rsplit("\n\nA. ", 1)[0] if record["options"] else record["instruction"]


def question(record: dict) -> str:
    """The normalised stem of a record's instruction: what train and test must not share."""
    return normalise_question(stem(record))


@dataclass(frozen=True)
class Keys:
    """What the split needs to know of n records: arrays (n,) of 64-bit hashes and of places in `names`.

    question: of the normalised stem. instruction: of the whole normalised instruction. answer: of the normalised
    ground truth, 0 where there is none. source: index into `names`, which is sorted. draw: decides who is drawn first.
    """

    names: tuple
    source: np.ndarray
    question: np.ndarray
    instruction: np.ndarray
    answer: np.ndarray
    draw: np.ndarray

    def __len__(self):
        return len(self.source)

    def by_source(self, mask) -> dict[str, int]:
        """{source: number of records that the mask marks}, sources without any left out."""
        counts = np.bincount(self.source[mask], minlength=len(self.names))
        return {name: int(count) for name, count in zip(self.names, counts, strict=True) if count}


def keys(records, seed: int) -> Keys:
    """The Keys of an iterable of records, read once. The draw hashes seed and question alone."""
    rows, places = [], {}
    for record in records:
        asked = question(record)
        whole = normalise_question(record["instruction"]) if record["options"] else asked
        truth = normalise_question(record["answer"]) if record.get("answer") else None
        place = places.setdefault(record["source"], len(places))
        rows.append((place, _hash(asked), _hash(whole), _hash(truth) if truth else 0, _draw(seed, asked)))
    table = np.array(rows, dtype=np.uint64).reshape(-1, 5)
    names = tuple(sorted(places))
    order = np.array([names.index(name) for name in places] or [0])
    return Keys(names, order[table[:, 0].astype(np.int64)], *table[:, 1:].T.copy())


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def _draw(seed: int, key: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode("utf-8", "surrogatepass")).digest()[:8])


def duplicates(k: Keys) -> np.ndarray:
    """Mask of the records whose whole instruction, options included, came before.

    The same stem with other options stays: it is another exercise.
    """
    _, first = np.unique(k.instruction, return_index=True)
    mask = np.ones(len(k), bool)
    mask[first] = False
    return mask


def conflicting(k: Keys) -> np.ndarray:
    """Mask of all records of an instruction that comes with two different ground truths: none can be trusted."""
    known = np.flatnonzero(k.answer)
    pairs = np.unique(np.stack([k.instruction[known], k.answer[known]]), axis=1)[0]
    instructions, counts = np.unique(pairs, return_counts=True)
    return np.isin(k.instruction, instructions[counts > 1])


def take(k: Keys, allowed: np.ndarray, questions: int) -> np.ndarray:
    """Mask of the records of `questions` whole questions, drawn from those allowed, the same share of each source's.

    A question that several sources ask counts for the one whose name sorts first. The draw depends on the seed and
    the questions alone, not on the order of the records: a row added to a source moves almost no other row.
    Raises ValueError when there are fewer than `questions`.
    """
    places = np.flatnonzero(allowed)
    asked, at, of = np.unique(k.question[places], return_index=True, return_inverse=True)
    if not 0 <= questions <= len(asked):
        raise ValueError(
            f"{questions} questions to hold out, but the sources hold {len(asked)} different ones: "
            f"lower data.test_questions or data.eval_fraction in the recipe"
        )
    owner = np.full(len(asked), len(k.names))
    np.minimum.at(owner, of, k.source[places])
    draw, chosen = k.draw[places][at], np.zeros(len(asked), bool)
    quota = _quotas({name: int((owner == n).sum()) for n, name in enumerate(k.names)}, questions)
    for number, name in enumerate(k.names):
        mine = np.flatnonzero(owner == number)
        chosen[mine[np.argsort(draw[mine], kind="stable")[: quota[name]]]] = True
    taken = np.zeros(len(k), bool)
    taken[places] = chosen[of]
    return taken


def _quotas(sizes: dict[str, int], wanted: int) -> dict[str, int]:
    """Split `wanted` in proportion to sizes, by largest remainder; ties go to the name that sorts first."""
    total = max(1, sum(sizes.values()))
    quota = {name: wanted * size // total for name, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda name: (-(wanted * sizes[name] % total), name))
    for name in by_remainder[: wanted - sum(quota.values())]:
        quota[name] += 1
    return quota


def split(k: Keys, allowed: np.ndarray, eval_fraction: float, test_questions: int) -> dict[str, np.ndarray]:
    """{"train", "eval", "test"}: masks; no question in two of them, each source in the same proportion.

    allowed: mask of the records to divide. eval_fraction: share of the questions left after the test set that guide
        training, at least one where it is above 0. test_questions: number of questions to hold out; 0 where a recipe
        names its own test sources.
    Raises ValueError when nothing is left to train on.
    """
    if not 0 <= eval_fraction < 1:
        raise ValueError(f"data.eval_fraction is {eval_fraction}, expected at least 0 and below 1: mend the recipe")
    test = take(k, allowed, test_questions)
    rest = allowed & ~test
    left = len(np.unique(k.question[rest]))
    evaluation = take(k, rest, max(1, round(eval_fraction * left)) if eval_fraction and left else 0)
    train = rest & ~evaluation
    if not train.any():
        raise ValueError(
            f"no record is left to train on: {allowed.sum()} records, {test.sum()} held out for the test, "
            f"{evaluation.sum()} for evaluation. Lower data.test_questions or data.eval_fraction in the recipe"
        )
    return {"train": train, "eval": evaluation, "test": test}
