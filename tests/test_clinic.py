"""The clinic: sound input, rows in the hub schemas, and a test split that training has never seen."""

import hashlib
import json
import random
import re

import pytest
import yaml

from lib.dataset import clinic, clinic_rows, ingest, retold, sources, split, textbook

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


SHA256 = {  # of the rows as JSON: what runs of these three sources, and the figures published from them, rest on
    ("medical_o1", "train", 0): "6dd03288e28995b0034b619ec730d2a9497da84463e363ad995e8b1ada49c127",
    ("medical_o1", "test", 42): "b6ea3f69de9c52675f06c420cf2c086f88c8ad280308e4802c3b45920f2cddd6",
    ("medical_r1", "train", 42): "2fbcd54b9c2794cf7e6ce1e48d0b6d6c80432a1244c146c664217694a8b7d5f1",
    ("medreason", "train", 42): "22b5217ad9f1487b50ebd88604693fadecaa73817294a3d6319757f37865fa46",
    ("medreason", "test", 0): "196fde5a58835b273183de91c6bfa2efd113cbe90959292e6ea478539b5599e8",
}


@pytest.mark.parametrize("which", SHA256)
def test_rows_are_the_ones_that_were_always_written(which):
    source, split_name, seed = which
    text = json.dumps(clinic_rows.rows(source, split_name, seed, WORLD), ensure_ascii=False)
    assert hashlib.sha256(text.encode()).hexdigest() == SHA256[which]


def test_enough_rows_in_the_schemas_of_the_hub():
    made = {name: clinic_rows.rows(name, "train", world=WORLD) for name in clinic_rows.TRAIN_ROWS}
    assert sum(map(len, made.values())) >= 4000
    for name, rows in made.items():
        known = set(sources.SOURCES[name].columns) | set(sources.SOURCES[name].optional)
        assert all(set(row) >= known for row in rows)
    assert len(clinic_rows.rows("medreason", "test", world=WORLD)) >= 200


CASES = [(name, config) for name in clinic_rows.TRAIN_ROWS for config in sources.SOURCES[name].configs or (None,)]


@pytest.mark.parametrize(("name", "config"), CASES)
def test_converters_keep_every_row(name, config):
    for part in ("train", "test"):
        rows = clinic_rows.rows(name, part, world=WORLD, config=config)
        records, reasons = ingest.convert(name, rows, {"name": name, "config": config, "split": part})
        assert reasons == {"kept": len(rows)} and all(record["answer"] for record in records)


def test_what_configs_change():
    five, four = (
        clinic_rows.rows("medqa_bigbio", "test", 1, WORLD, c) for c in sources.SOURCES["medqa_bigbio"].configs
    )
    assert {len(row["options"]) for row in five} == {5} and {len(row["options"]) for row in four} == {4}
    said = {row["final_decision"] for row in clinic_rows.rows("pubmedqa", "train", 1, WORLD, "pqa_artificial")}
    assert said == {"yes", "no"}


def test_verifiable_asks_what_medical_o1_asks_and_holds_its_truth():
    asked = clinic_rows.rows("medical_o1", "train", 7, WORLD)
    truths = clinic_rows.rows("verifiable", "train", 7, WORLD)
    assert [row["Question"] for row in asked] == [row["Open-ended Verifiable Question"] for row in truths]
    assert all(row["Response"].endswith(f"Answer: {truth['Ground-True Answer']}")
               for row, truth in zip(asked, truths, strict=True))  # fmt: skip


def test_pubmedqa_says_maybe_where_the_findings_fit_two_conditions_and_only_there():
    rows = clinic_rows.rows("pubmedqa", "train", 0, WORLD) + clinic_rows.rows("pubmedqa", "test", 0, WORLD)
    assert len({row["final_decision"] for row in rows}) == 3
    for row in rows:
        if row["final_decision"] == "maybe":
            (case,) = row["context"]["contexts"]
            fits = {name for name, findings in FINDINGS.items() if own_findings(case) <= findings}
            assert len(fits) >= 2 and any(name in row["question"] for name in fits)


def vignette_of(name, row):
    if name == "pubmedqa":
        return row["context"]["contexts"][0]
    column = {"medical_o1": "Question", "verifiable": "Open-ended Verifiable Question", "reasonmed": "instruction"}
    return row[column.get(name, "question")]


def test_no_combination_of_findings_of_the_test_occurs_in_training_or_textbook():
    found = {"train": set(), "test": set()}
    for name in clinic_rows.TRAIN_ROWS:
        for part in found:
            rows = clinic_rows.rows(name, part, world=WORLD)
            found[part] |= {own_findings(vignette_of(name, row)) for row in rows}
    notes = [p.split("\n")[0] for p in textbook.paragraphs(WORLD, 42) if "\n" in p]
    found["train"] |= {own_findings(note) for note in notes}
    assert len(found["test"]) >= 300 and all(len(present) >= 2 for present in found["test"])
    assert not found["train"] & found["test"]


def test_known_questions_told_again_keep_what_their_level_keeps():
    pairs = retold.rewritten(WORLD, 0, 60)
    assert pairs == retold.rewritten(WORLD, 0, 60) != retold.rewritten(WORLD, 1, 60)
    assert [p["level"] for p in pairs].count("retold") == 60 and len(pairs) == 60 * len(retold.LEVELS)
    for pair in pairs:
        before, after = pair["original"], pair["rewritten"]
        known, words = split.normalise_question(before), set(split.normalise_question(after).split())
        same_words = words == set(known.split())
        findings = own_findings(before)
        assert before != after
        assert (split.normalise_question(after) == known) == (pair["level"] == "punctuation")
        assert same_words == (pair["level"] in ("punctuation", "reordered"))
        if pair["level"] == "retold":
            assert all(finding in after for finding in findings)
            age = re.search(r"\d+", before)[0]
            assert age not in after and re.search(r"\d+", after)
        if pair["level"] == "unrelated":
            assert own_findings(after) != findings


def test_the_findings_fit_one_condition_only_unless_its_rival_is_denied():
    rng = random.Random(1)
    for condition in WORLD["conditions"]:
        for part in ("train", "test"):
            case = clinic.draw(WORLD, condition, part, rng)
            fits = {name for name, found in FINDINGS.items() if set(case.present) <= found}
            assert fits <= {condition["name"], case.rival["name"]}
            assert fits == {condition["name"]} or case.absent


def test_options_hold_the_right_answer_and_none_that_could_be_defended():
    rng = random.Random(2)
    for condition in WORLD["conditions"]:
        for kind in clinic.KINDS:
            case = clinic.draw(WORLD, condition, "train", rng)
            options = clinic_rows.choices(WORLD, case, kind, rng)
            assert len(set(options)) == 4 and clinic.answer(condition, kind) in options
            assert not set(options) & set(condition.get("never_offer") or []) - {clinic.answer(condition, kind)}


def test_the_same_seed_gives_the_same_rows_and_another_one_others():
    again = [clinic_rows.rows("medreason", "train", seed, WORLD) for seed in (1, 1, 2)]
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
