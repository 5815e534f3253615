"""Which records the model may learn from, and which it never sees: one split, by question, over all sources.

Two records ask the same question when what they ask (without listed options, stock phrases, or the abstract before a
question of yes or no) is equal after normalisation; where that is generic ("Which is true?") the right answer, or the
abstract, has to be the same too. All records of a question go to one side. Everything here works on arrays of hashes,
one entry per record, so that millions of records need a few dozen bytes each.
"""

import hashlib
import re
import unicodedata
from dataclasses import dataclass

import numpy as np

from lib.dataset import wording

BLANKS = re.compile(r"[\W_]+")
DECISIONS = {"yes", "no", "maybe", "是", "否", "不确定"}
SHORT = 13  # a stem of fewer words may be generic: the same words over other options ask something else


def normalise_question(text: str) -> str:
    """Text in which case, accents' encoding, punctuation and blanks do not count; never empty for non-blank text."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return BLANKS.sub(" ", folded).strip() or folded.strip()


def stem(record: dict) -> str:
    """A record's instruction without its listed options."""
    return record["instruction"].rsplit("\n\nA. ", 1)[0] if record["options"] else record["instruction"]


def earlier(record: dict) -> list[str]:
    """What the user and the assistant said before a record's question, where it is a further turn of a conversation."""
    return [turn["content"] for turn in record.get("history") or () if turn["role"] != "system"]


def conversation(record: dict) -> str:
    """The question as a reader has to see it: after what was said before, where it is a conversation's further turn."""
    return "\n\n".join([*earlier(record), record["instruction"]])


def signed(record: dict) -> str:
    """The text that near-duplicates are told by: the instruction, and of a conversation's further turn the answer too.

    The turns of one conversation share what was said before; the same short question ("For how long?") stands in many.
    """
    return f"{record['instruction']}\n{record['output']}" if earlier(record) else record["instruction"]


def asked(record: dict) -> str:
    """What a record asks: its stem without stock phrases, and for a decision (yes, no, maybe) the question alone.

    PubMedQA puts an abstract before its question; sets that are built from it leave the abstract out. A conversation
    asks what it opens with, so that all of its turns go to one side.
    """
    text = wording.without_stock(next(iter(earlier(record)), None) or stem(record))
    if "\n" in text and _decides(record):
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        text = wording.without_stock(next((line for line in lines[::-1] if line[-1] in "?？"), lines[-1]))
    return text


def _decides(record: dict) -> bool:
    return bool(record["options"]) and {option.casefold() for option in record["options"]} <= DECISIONS


def question(record: dict) -> str:
    """The normal form of what a record asks: what train and test must not share, unless it is generic."""
    return normalise_question(asked(record))


def _whole(record: dict, brief: str) -> str:
    """The question with what tells it from others that are asked in the same words: its abstract, or its answer."""
    if not record["options"]:
        return brief
    if _decides(record):
        return normalise_question(wording.without_stock(stem(record)))  # with the abstract
    if wording.length(brief) >= SHORT:
        return brief
    return f"{brief}\n{normalise_question(record['answer'] or ' '.join(sorted(record['options'])))}"


@dataclass(frozen=True)
class Keys:
    """What the split needs to know of n records: arrays (n,) of 64-bit hashes and of places in `names`.

    brief: of what is asked. whole: of that with what tells it from others asked in the same words. question: `whole`
    where several of these records share the brief one over different wholes, else `brief`. instruction: of the
    normalised instruction without stock phrases, options sorted. last: of the question that closes a passage or is a
    conversation's further turn, else `brief`. answer: of the normalised ground truth, 0 where there is none. source:
    index into `names`, which is sorted. draw: decides who is drawn first.
    """

    names: tuple
    source: np.ndarray
    brief: np.ndarray
    whole: np.ndarray
    question: np.ndarray
    instruction: np.ndarray
    last: np.ndarray
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
        brief = question(record)
        whole, instruction = _whole(record, brief), brief
        if record["options"] or earlier(record):
            asks = [wording.without_stock(stem(record)), *sorted(record["options"])]  # in whichever order
            instruction = "\n".join([*earlier(record), *asks])
            instruction = normalise_question(instruction)
        truth = normalise_question(record["answer"]) if record.get("answer") else None
        place, short = places.setdefault(record["source"], len(places)), _hash(brief)
        wide = short if whole == brief else _hash(whole) & ~1 | _decides(record)  # odd: told by its abstract
        alone = asked(record | {"history": None}) if "\n" in record["instruction"] or earlier(record) else ""
        last = wording.closing(alone) or (alone if earlier(record) else "")
        rows.append(
            (
                place,
                short,
                wide,
                _hash(instruction),
                _hash(normalise_question(last)) if last else short,
                _hash(truth) if truth else 0,
                _draw(seed, whole),
            )
        )
    table = np.array(rows, dtype=np.uint64).reshape(-1, 7)
    names = tuple(sorted(places))
    order = np.array([names.index(name) for name in places] or [0])
    brief, whole = table[:, 1].copy(), table[:, 2].copy()
    return Keys(names, order[table[:, 0].astype(np.int64)], brief, whole, settled(brief, whole), *table[:, 3:].T.copy())


def settled(brief: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """(n,) the key of each question: `whole` where `brief` is generic, that is, stands over several wholes.

    Two answers are enough; abstracts have to be three, since a set may tell the abstract of a question differently.
    """
    told = np.flatnonzero(whole != brief)  # a bare question, or a long one, says nothing about others
    _, first = np.unique(brief[told] * np.uint64(0x9E3779B97F4A7C15) + whole[told], return_index=True)
    of, behind = brief[told][first], (whole[told][first] & np.uint64(1)).astype(bool)
    generic = []
    for kind, enough in ((~behind, 2), (behind, 3)):
        briefs, counts = np.unique(of[kind], return_counts=True)
        generic.append(briefs[counts >= enough])
    return np.where(np.isin(brief, np.concatenate(generic)), whole, brief)


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
    asked, of = np.unique(k.question[places], return_inverse=True)
    if not 0 <= questions <= len(asked):
        raise ValueError(
            f"{questions} questions to hold out, but the sources hold {len(asked)} different ones: "
            f"lower data.test_questions or data.eval_fraction in the recipe"
        )
    owner = np.full(len(asked), len(k.names))
    np.minimum.at(owner, of, k.source[places])
    draw, chosen = np.full(len(asked), np.iinfo(np.uint64).max), np.zeros(len(asked), bool)
    np.minimum.at(draw, of, k.draw[places])
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
