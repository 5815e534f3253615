"""No question on two sides, whatever its punctuation, source or options; same seed, same split."""

import random

import pytest

from lib import split


def record(text, source="a", options=()):
    listed = "\n\n" + "\n".join(f"{letter}. {o}" for letter, o in zip("ABCD", options, strict=False)) if options else ""
    return {"id": f"{source}:{text}{options}", "source": source, "instruction": text + listed, "options": list(options)}


def test_normalisation_by_hand():
    assert split.normalise_question("  A 34-year-old\twoman,\nwith FEVER?! ") == "a 34 year old woman with fever"
    assert split.normalise_question("caf\u00e9") == split.normalise_question("cafe\u0301")
    assert split.normalise_question("\uff21\uff22\uff23 \u60a3\u8005\uff1f") == "abc \u60a3\u8005"
    assert split.normalise_question("???") == "???"


def test_stem_leaves_out_options():
    assert split.question(record("What now?", options=("wait", "operate"))) == "what now"
    assert split.question(record("Read:\n\nA. fumigatus grows. What now?")) == "read a fumigatus grows what now"


def test_deduplicate_keeps_the_first_and_counts_by_source():
    records = [
        record("Why?"),
        record("why", "b"),
        record("Why ?", "b"),
        record("Why?", "b", ("x", "y")),
        record("How?"),
    ]
    kept, removed = split.deduplicate(records)
    assert [r["id"] for r in kept] == ["a:Why?()", "b:Why?('x', 'y')", "a:How?()"]
    assert removed == {"b": 2}


def test_without_removes_the_same_question_in_another_form():
    train = [record("Why?"), record("WHY", "b", ("x", "y")), record("How?")]
    kept, removed = split.without(train, [record("why", "test", ("p", "q"))])
    assert [r["id"] for r in kept] == ["a:How?()"] and removed == {"a": 1, "b": 1}


def many():
    """300 questions of three sources, one in five also asked by another source, with options and in capitals."""
    records = []
    for number in range(300):
        source = "abc"[number % 3]
        records.append(record(f"Question number {number}?", source))
        if number % 5 == 0:
            records.append(record(f"QUESTION, number {number}", "d", ("yes", "no")))
    return records


def test_no_question_is_on_two_sides_and_none_is_lost():
    parts = split.split(many(), 0.1, 60, seed=1)
    asked = {
        name: {split.normalise_question(r["instruction"].split("\n")[0]) for r in part} for name, part in parts.items()
    }
    assert not asked["train"] & asked["test"] | asked["train"] & asked["eval"] | asked["eval"] & asked["test"]
    assert len(asked["test"]) == 60 and len(asked["eval"]) == 24 and len(asked["train"]) == 216
    assert sorted(r["id"] for part in parts.values() for r in part) == sorted(r["id"] for r in many())


def test_each_source_gives_its_share():
    taken, _ = split.take(many(), 30, seed=3)
    first = [r["source"] for r in taken if r["source"] != "d"]
    assert [first.count(source) for source in "abc"] == [10, 10, 10]
    assert split._quotas({"a": 1, "b": 1, "c": 8}, 5) == {"a": 1, "b": 0, "c": 4}  # 0.5, 0.5, 4.0: the tie goes to "a"


def test_split_depends_on_seed_and_content_not_on_order():
    shuffled = many()
    random.Random(0).shuffle(shuffled)
    one, two, other = (split.take(r, 60, s)[0] for r, s in ((many(), 1), (shuffled, 1), (many(), 2)))
    questions = [{split.question(r) for r in part} for part in (one, two, other)]
    assert questions[0] == questions[1] != questions[2]
    assert split.split(many(), 0.1, 60, seed=1) == split.split(many(), 0.1, 60, seed=1)


def test_impossible_splits_say_what_to_mend():
    with pytest.raises(ValueError, match="301 questions to hold out, but the sources hold 300"):
        split.split(many(), 0.1, 301, seed=1)
    with pytest.raises(ValueError, match="no record is left to train on: 2 records, 1 held out"):
        split.split([record("a"), record("b")], 0.5, 1, seed=1)
    with pytest.raises(ValueError, match="eval_fraction is 1.5"):
        split.split(many(), 1.5, 0, seed=1)


def test_no_eval_and_no_test():
    parts = split.split(many(), 0, 0, seed=1)
    assert [len(parts[name]) for name in ("train", "eval", "test")] == [360, 0, 0]
