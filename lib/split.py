"""Which records the model may learn from, and which it never sees: one split, by question, over all sources.

Two records ask the same question when their stems (the text without the listed options) are equal after
normalisation. All records of a question go to one side.
"""

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict

BLANKS = re.compile(r"[\W_]+")


def normalise_question(text: str) -> str:
    """Text in which case, accents' encoding, punctuation and blanks do not count; never empty for non-blank text."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return BLANKS.sub(" ", folded).strip() or folded.strip()


def question(record: dict) -> str:
    """The normalised stem of a record's instruction: what train and test must not share."""
    listed = record["instruction"]
    if record["options"]:
        listed = listed.rsplit("\n\nA. ", 1)[0]
    return normalise_question(listed)


def deduplicate(records: list[dict]) -> tuple[list[dict], Counter]:
    """Records without those whose whole normalised instruction, options included, came before, in the order given.

    Returns (records, removed_by_source). The same stem with other options stays: it is another exercise.
    """
    seen, kept, removed = set(), [], Counter()
    for record in records:
        key = normalise_question(record["instruction"])
        if key in seen:
            removed[record["source"]] += 1
        else:
            seen.add(key)
            kept.append(record)
    return kept, removed


def without(records: list[dict], held_out: list[dict]) -> tuple[list[dict], Counter]:
    """Records whose question is not asked in `held_out`, and the number removed by source."""
    banned = {question(record) for record in held_out}
    kept = [record for record in records if question(record) not in banned]
    return kept, Counter(r["source"] for r in records) - Counter(r["source"] for r in kept)


def take(records: list[dict], questions: int, seed: int) -> tuple[list[dict], list[dict]]:
    """Draw whole questions, the same share of each source's. Returns (taken, rest), both in the order given.

    A question that several sources ask counts for the one whose name sorts first. The draw depends on the seed and
    the questions alone, not on the order of the records: a row added to a source moves almost no other row.
    Raises ValueError when there are fewer than `questions`.
    """
    asked = [question(record) for record in records]
    by_source, source_of = defaultdict(list), {}
    for key, record in zip(asked, records, strict=True):
        source_of[key] = min(record["source"], source_of.get(key, record["source"]))
    for key, source in source_of.items():
        by_source[source].append(key)
    if not 0 <= questions <= len(source_of):
        raise ValueError(
            f"{questions} questions to hold out, but the sources hold {len(source_of)} different ones: "
            f"lower data.test_questions or data.eval_fraction in the recipe"
        )
    quota = _quotas({source: len(keys) for source, keys in by_source.items()}, questions)
    chosen = set()
    for source, keys in by_source.items():
        chosen.update(sorted(keys, key=lambda key: _draw(seed, key))[: quota[source]])
    taken = [record for key, record in zip(asked, records, strict=True) if key in chosen]
    return taken, [record for key, record in zip(asked, records, strict=True) if key not in chosen]


def _draw(seed: int, key: str) -> str:
    return hashlib.sha256(f"{seed}:{key}".encode()).hexdigest()


def _quotas(sizes: dict[str, int], wanted: int) -> dict[str, int]:
    """Split `wanted` in proportion to sizes, by largest remainder; ties go to the name that sorts first."""
    total = max(1, sum(sizes.values()))
    quota = {name: wanted * size // total for name, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda name: (-(wanted * sizes[name] % total), name))
    for name in by_remainder[: wanted - sum(quota.values())]:
        quota[name] += 1
    return quota


def split(records: list[dict], eval_fraction: float, test_questions: int, seed: int) -> dict[str, list[dict]]:
    """{"train", "eval", "test"}: no question in two of them, each source in the same proportion.

    eval_fraction: share of the questions left after the test set that guide training, at least one where it is above 0.
    test_questions: number of questions to hold out; 0 where a recipe names its own test sources.
    Raises ValueError when nothing is left to train on.
    """
    if not 0 <= eval_fraction < 1:
        raise ValueError(f"data.eval_fraction is {eval_fraction}, expected at least 0 and below 1: mend the recipe")
    test, rest = take(records, test_questions, seed)
    left = len({question(record) for record in rest})
    evaluation, train = take(rest, max(1, round(eval_fraction * left)) if eval_fraction and left else 0, seed)
    if not train:
        raise ValueError(
            f"no record is left to train on: {len(records)} records, {len(test)} held out for the test, "
            f"{len(evaluation)} for evaluation. Lower data.test_questions or data.eval_fraction in the recipe"
        )
    return {"train": train, "eval": evaluation, "test": test}
