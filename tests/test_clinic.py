"""The clinic: sound input, rows in the hub schemas, and a test split that training has never seen."""

import random
import re

import pytest
import yaml

from lib import clinic, sources, textbook

WORLD = clinic.load()
FINDINGS = {c["name"]: set(c["findings"]) for c in WORLD["conditions"]}


def own_findings(question):
    """The patient's own findings in a vignette, read back from its text: the second path to a case's combination."""
    every = sorted({f for found in FINDINGS.values() for f in found}, key=len, reverse=True)
    pattern = "|".join(map(re.escape, every))
    first = next(s for s in re.split(r"(?<=\.) ", question) if re.match(r"(An?|Seen)\b", s))
    return frozenset(re.findall(rf"\b(?:{pattern})\b", first))


def test_the_world_is_large_enough_and_its_conditions_share_findings():
    assert len(WORLD["conditions"]) >= 30 and len(WORLD["specialties"]) >= 8
    assert all(len(c["findings"]) >= 6 and c["red_flag"] and c["escalation"] for c in WORLD["conditions"])
    for condition in WORLD["conditions"]:
        mine = FINDINGS[condition["name"]]
        assert any(len(mine & FINDINGS[rival]) >= 2 for rival in condition["confusable_with"])
        assert all(not mine <= theirs for name, theirs in FINDINGS.items() if name != condition["name"])


def test_enough_rows_in_the_schemas_of_the_hub():
    columns = {
        "medical_o1": {"Question", "Complex_CoT", "Response"},
        "medical_r1": {"question", "reasoning (reasoning_content)", "response (content)"},
        "medreason": {"dataset_name", "id_in_dataset", "question", "answer", "reasoning", "options"},
    }
    made = {name: clinic.rows(name, "train", world=WORLD) for name in columns}
    assert sum(map(len, made.values())) >= 2000
    assert all(set(row) == columns[name] for name, found in made.items() for row in found)
    assert len(clinic.rows("medreason", "test", world=WORLD)) >= 200


@pytest.mark.parametrize("name", clinic.TRAIN_ROWS)
def test_converters_keep_every_row(name):
    rows = clinic.rows(name, "train", world=WORLD)
    records, reasons = sources.convert(name, rows, {"name": name})
    assert reasons == {"kept": len(rows)} and all(record["answer"] for record in records)


def test_no_combination_of_findings_of_the_test_occurs_in_training_or_textbook():
    trained = set()
    for name in clinic.TRAIN_ROWS:
        column = "Question" if name == "medical_o1" else "question"
        trained |= {own_findings(row[column]) for row in clinic.rows(name, "train", world=WORLD)}
    notes = [p.split("\n")[0] for p in textbook.paragraphs(WORLD, 42) if "\n" in p]
    trained |= {own_findings(note) for note in notes}
    tested = {own_findings(row["question"]) for row in clinic.rows("medreason", "test", world=WORLD)}
    assert len(tested) >= 150 and all(len(found) >= 3 for found in tested)
    assert not trained & tested


def test_the_findings_fit_one_condition_only_unless_its_rival_is_denied():
    rng = random.Random(1)
    for condition in WORLD["conditions"]:
        for split in ("train", "test"):
            case = clinic.draw(WORLD, condition, split, rng)
            fits = {name for name, found in FINDINGS.items() if set(case.present) <= found}
            assert fits <= {condition["name"], case.rival["name"]}
            assert fits == {condition["name"]} or case.absent


def test_options_hold_the_right_answer_and_none_that_could_be_defended():
    rng = random.Random(2)
    for condition in WORLD["conditions"]:
        for kind in clinic.KINDS:
            case = clinic.draw(WORLD, condition, "train", rng)
            options = clinic.choices(WORLD, case, kind, rng)
            assert len(set(options)) == 4 and clinic.answer(condition, kind) in options
            assert not set(options) & set(condition.get("never_offer") or []) - {clinic.answer(condition, kind)}


def test_the_same_seed_gives_the_same_rows_and_another_one_others():
    again = [clinic.rows("medreason", "train", seed, WORLD) for seed in (1, 1, 2)]
    assert again[0] == again[1] != again[2]
    assert textbook.paragraphs(WORLD, 1) == textbook.paragraphs(WORLD, 1) != textbook.paragraphs(WORLD, 2)


def test_the_textbook_asks_nothing_and_lists_no_options():
    text = "\n".join(textbook.paragraphs(WORLD, 42))
    assert "?" not in text and "Answer:" not in text and not re.search(r"^[A-D]\. ", text, re.MULTILINE)


def test_lookup_counts_findings_whoever_has_them():
    by_name = {c["name"]: c for c in WORLD["conditions"]}
    migraine, sah = by_name["migraine"], by_name["subarachnoid haemorrhage"]
    options = [migraine["treatment"]["name"], sah["treatment"]["name"]]
    assert clinic.lookup("She has zigzag visual aura and scalp tenderness.", options, WORLD) == 0
    denied = "She has zigzag visual aura. She has no neck stiffness and no one dilated pupil."
    assert clinic.lookup(denied, options, WORLD) == 1, "a denied finding counts for the lookup, which is its weakness"


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda c: c.pop("red_flag"), "missing or empty: red_flag"),
        (lambda c: c.update(findings=["a", "b"]), "at least six different findings"),
        (lambda c: c.update(specialty="magic"), "'magic' is not listed"),
        (lambda c: c.update(confusable_with=["nothing"]), "names no other condition"),
        (lambda c: c.update(avoid={"name": "x"}), "avoid needs name and because"),
        (lambda c: c.update(mechanism=["one"]), "three steps"),
    ],
)
def test_a_broken_condition_is_named(tmp_path, break_it, said):
    world = yaml.safe_load(clinic.WORLD.read_text())
    break_it(world["conditions"][3])
    path = tmp_path / "clinic.yaml"
    path.write_text(yaml.safe_dump(world))
    with pytest.raises(ValueError, match=re.escape(world["conditions"][3]["name"]) + ".*" + said):
        clinic.load(path)
