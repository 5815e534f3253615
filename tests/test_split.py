"""No question on two sides, whatever its punctuation, source or options; same seed, same split."""

import hashlib
import random

import numpy as np
import pytest

from lib.dataset import split


def record(text, source="a", options=(), answer=None):
    listed = "\n\n" + "\n".join(f"{letter}. {o}" for letter, o in zip("ABCD", options, strict=False)) if options else ""
    identity = f"{source}:{text}{options}"
    return {"id": identity, "source": source, "instruction": text + listed, "options": list(options), "answer": answer}


def marked(records, mask):
    return [r["id"] for r, kept in zip(records, mask, strict=True) if kept]


def everything(keys):
    return np.ones(len(keys), bool)


def test_normalisation_by_hand():
    assert split.normalise_question("  A 34-year-old\twoman,\nwith FEVER?! ") == "a 34 year old woman with fever"
    assert split.normalise_question("caf\u00e9") == split.normalise_question("cafe\u0301")
    assert split.normalise_question("\uff21\uff22\uff23 \u60a3\u8005\uff1f") == "abc \u60a3\u8005"
    assert split.normalise_question("???") == "???"


def test_stem_leaves_out_options():
    assert split.question(record("What now?", options=("wait", "operate"))) == "what now"
    assert split.question(record("Read:\n\nA. fumigatus grows. What now?")) == "read a fumigatus grows what now"


def test_duplicates_are_all_but_the_first_and_counted_by_source():
    records = [
        record("Why?"),
        record("why", "b"),
        record("Why ?", "b"),
        record("Why?", "b", ("x", "y")),
        record("How?"),
    ]
    keys = split.keys(records, 0)
    assert marked(records, ~split.duplicates(keys)) == ["a:Why?()", "b:Why?('x', 'y')", "a:How?()"]
    assert keys.by_source(split.duplicates(keys)) == {"b": 2}


def test_conflicting_answers_lose_every_copy():
    records = [
        record("Why?", answer="Iron"),
        record("why", "b", answer="iron."),
        record("How?", answer="A"),
        record("How", "b", answer="B"),
        record("how", answer=None),
        record("How?", options=("p", "q"), answer="p"),
    ]
    assert split.conflicting(split.keys(records, 0)).tolist() == [False, False, True, True, True, False]


def many():
    """300 questions of three sources, one in five also asked by another source, with options and in capitals."""
    records = []
    for number in range(300):
        source = "abc"[number % 3]
        records.append(record(f"Question number {number}?", source))
        if number % 5 == 0:
            records.append(record(f"QUESTION, number {number}", "d", ("yes", "no")))
    return records


def parts_of(records, fraction, questions, seed=1):
    keys = split.keys(iter(records), seed)
    return split.split(keys, everything(keys), fraction, questions)


def test_no_question_is_on_two_sides_and_none_is_lost():
    parts = parts_of(many(), 0.1, 60)
    asked = {
        name: {split.question(r) for r, kept in zip(many(), mask, strict=True) if kept} for name, mask in parts.items()
    }
    assert not (asked["train"] & asked["test"] or asked["train"] & asked["eval"] or asked["eval"] & asked["test"])
    assert len(asked["test"]) == 60 and len(asked["eval"]) == 24 and len(asked["train"]) == 216
    assert (sum(mask.astype(int) for mask in parts.values()) == 1).all()


def test_each_source_gives_its_share():
    keys = split.keys(many(), 3)
    first = [i.split(":")[0] for i in marked(many(), split.take(keys, everything(keys), 30)) if not i.startswith("d")]
    assert [first.count(source) for source in "abc"] == [10, 10, 10]
    assert split._quotas({"a": 1, "b": 1, "c": 8}, 5) == {"a": 1, "b": 0, "c": 4}  # 0.5, 0.5, 4.0: the tie goes to "a"


def test_the_draw_is_the_published_one():
    """Those questions whose SHA-256 of "seed:question" is smallest, source by source."""
    records = [r for r in many() if r["source"] == "a"]
    keys = split.keys(records, 5)
    order = sorted(records, key=lambda r: hashlib.sha256(f"5:{split.question(r)}".encode()).hexdigest())
    assert set(marked(records, split.take(keys, everything(keys), 17))) == {r["id"] for r in order[:17]}


def test_split_depends_on_seed_and_content_not_on_order():
    shuffled = many()
    random.Random(0).shuffle(shuffled)
    drawn = []
    for records, seed in ((many(), 1), (shuffled, 1), (many(), 2)):
        keys = split.keys(records, seed)
        drawn.append(set(marked(records, split.take(keys, everything(keys), 60))))
    assert drawn[0] == drawn[1] != drawn[2]


def test_only_allowed_records_are_divided():
    keys = split.keys(many(), 1)
    allowed = keys.source == 0
    parts = split.split(keys, allowed, 0.1, 10)
    assert (sum(mask.astype(int) for mask in parts.values()) == allowed).all()


def test_impossible_splits_say_what_to_mend():
    with pytest.raises(ValueError, match="301 questions to hold out, but the sources hold 300"):
        parts_of(many(), 0.1, 301)
    with pytest.raises(ValueError, match="no record is left to train on: 2 records, 1 held out"):
        parts_of([record("a"), record("b")], 0.5, 1)
    with pytest.raises(ValueError, match="eval_fraction is 1.5"):
        parts_of(many(), 1.5, 0)


def test_no_eval_and_no_test():
    assert [int(mask.sum()) for mask in parts_of(many(), 0, 0).values()] == [360, 0, 0]


def test_the_turns_of_a_conversation_are_one_question_and_none_is_a_duplicate_of_another():
    def turn(history, asked, said):
        history = [{"role": role, "content": text} for role, text in history]
        return record(asked) | {"output": said, "history": history}

    opening = [("system", "Be brief."), ("user", "My nose runs."), ("assistant", "For how long?")]
    records = [
        turn(opening[:1], "My nose runs.", "For how long?"),
        turn(opening, "Two days.", "Rest."),
        turn([("user", "My ear hurts."), ("assistant", "For how long?")], "Two days.", "Come in."),
        turn(opening, "Two days.", "Rest."),
    ]
    keys = split.keys(records, 42)
    first, second, other, again = keys.question
    assert first == second == again != other
    assert list(split.duplicates(keys)) == [False, False, False, True]
    assert split.conversation(records[1]) == "My nose runs.\n\nFor how long?\n\nTwo days."
    assert split.signed(records[1]) != split.signed(records[2]) and split.signed(records[0]) == "My nose runs."
