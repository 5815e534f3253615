"""The clinic: sound input, rows in the hub schemas, and a test split that training has never seen."""

import hashlib
import json
import random
import re
from collections import Counter

import pytest
import yaml

from lib.dataset import clinic, clinic_rows, clinic_rules, ingest, retold, sources, split, textbook, vignettes

WORLD = clinic.load()
FINDINGS = {c["name"]: set(c["findings"]) for c in WORLD["conditions"]}
BY_NAME = {c["name"]: c for c in WORLD["conditions"]}
WORDS = {finding: finding for found in FINDINGS.values() for finding in found}
WORDS |= {w[key]: f for f, w in WORLD["wordings"].items() for key in ("plain", "book", "new") if w[key]}
PHRASES = re.compile(rf"\b(?:{'|'.join(map(re.escape, sorted(WORDS, key=len, reverse=True)))})\b")
VALUES = {f: re.escape(w["value"]["text"]).replace(r"\{\}", r"([\d.]+\d|\d)")
          for f, w in WORLD["wordings"].items() if w["value"]}  # fmt: skip


def own_findings(question):
    """The patient's own findings in a vignette, read back from its text: the second path to a case's combination."""
    first = next(s for s in re.split(r"(?<=\.) (?=[A-Z])", question) if re.match(r"(An?|Seen)\b", s))
    measured = {finding for finding, pattern in VALUES.items() if re.search(pattern, first)}
    return frozenset(measured | {WORDS[phrase] for phrase in PHRASES.findall(first)})


def test_the_world_is_large_enough_and_its_conditions_share_findings():
    assert len(WORLD["conditions"]) >= 30 and len(WORLD["specialties"]) >= 8
    assert all(len(c["findings"]) >= 6 and c["red_flag"] and c["escalation"] for c in WORLD["conditions"])
    for condition in WORLD["conditions"]:
        mine = FINDINGS[condition["name"]]
        assert any(len(mine & FINDINGS[rival]) >= 3 for rival in condition["confusable_with"])
        assert all(not mine <= theirs for name, theirs in FINDINGS.items() if name != condition["name"])


SHA256 = {  # of the rows as JSON: what runs of these three sources, and the figures published from them, rest on
    ("medical_o1", "train", 0): "22b374c60577d546b40eb8428046108b3b97fc155059764d59f40c13aa6aee09",
    ("medical_o1", "test", 42): "a0b2365a1f69f1133b2fe306a2dc1b3fc9c39c5d0145495c721a75415d9f4b50",
    ("medical_r1", "train", 42): "acf0b462d060e6a4fbf221e7dd4d096f378a24e1cc4205c8532bddac897d0c45",
    ("medreason", "train", 42): "536231a2244fc9e0f802c5d046b6c08e918d968b8dc614216141c09e99c7587b",
    ("medreason", "test", 0): "9e153f23c7cba5ebae33f17ef40ad991b65801a888112007998b6e93cf9de764",
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


@pytest.mark.parametrize("skill", vignettes.SKILLS)
def test_the_findings_fit_one_condition_only_and_what_is_denied_is_its_rivals(skill):
    rng, drawn = random.Random(1), 0
    for condition in WORLD["conditions"]:
        for part in ("train", "test"):
            if case := vignettes.draw(WORLD, condition, part, rng, skill):
                drawn += 1
                assert [name for name, found in FINDINGS.items() if set(case.present) <= found] == [condition["name"]]
                assert set(case.absent) <= FINDINGS[case.rival["name"]] - FINDINGS[condition["name"]]
                assert own_findings(case.text) == set(case.present) and case.skill == skill
    assert drawn == 80 or (skill == "values" and drawn > 40)


def test_questions_of_every_skill_and_of_the_trained_ones_only_where_they_are_trained():
    asked = {part: Counter(row["skill"] for row in clinic_rows.rows("medreason", part, world=WORLD))
             for part in ("train", "test")}  # fmt: skip
    assert set(asked["train"]) == set(vignettes.TRAINED) and set(asked["test"]) == set(vignettes.SKILLS)
    assert min(asked["test"].values()) >= 30


def test_words_of_the_test_are_unknown_to_training_and_textbook_and_words_of_the_textbook_to_training():
    book = "\n".join(textbook.paragraphs(WORLD, 42))
    rows = [row for name in clinic_rows.TRAIN_ROWS for row in clinic_rows.rows(name, "train", world=WORLD)]
    asked, told = json.dumps(rows, ensure_ascii=False), 0
    for finding, words in WORLD["wordings"].items():
        assert words["new"] not in book and words["new"] not in asked, finding
        assert words["book"] not in asked and words["book"].lower() in book.lower(), finding
        told += words["plain"] in asked
    assert told > 0.9 * len(WORLD["wordings"])


def test_every_wording_reads_back_as_its_finding_and_no_other():
    for words, finding in WORDS.items():
        assert own_findings(f"A 40-year-old man has {words} and nothing else.") == {finding}
    rng = random.Random(3)
    for finding, words in WORLD["wordings"].items():
        for abnormal in (True, False) if words["value"] else ():
            number = vignettes.measured(words["value"], abnormal, rng)
            assert own_findings(f"A 40-year-old man has {number}.") == {finding}
            low, high = words["value"]["found" if abnormal else "normal"]
            assert low <= float(re.fullmatch(VALUES[finding], number)[1]) <= high


def test_ages_and_sexes_are_those_of_the_condition():
    found = {name: [] for name in FINDINGS}
    rng = random.Random(4)
    for name in found:
        for _ in range(60):
            text = vignettes.draw(WORLD, BY_NAME[name], "train", rng).text
            found[name].append((int(re.search(r"(\d+)-year-old", text)[1]), " woman " in text))
    for name, patients in found.items():
        youngest, oldest = BY_NAME[name]["ages"]
        assert all(youngest <= age <= oldest for age, _ in patients)
        assert abs(sum(woman for _, woman in patients) / 60 - BY_NAME[name]["women"]) < 0.25
    assert BY_NAME["giant cell arteritis"]["ages"][0] >= 50  # ACR/EULAR 2022 asks for it
    assert BY_NAME["chronic obstructive pulmonary disease"]["ages"][0] >= 40


def test_every_test_and_treatment_names_a_guideline_and_its_year():
    for condition in WORLD["conditions"]:
        for act in (condition["test"], condition["treatment"]):
            year = re.search(r"[A-Za-z]{3}.* ((?:19|20)\d\d)(?: \(review: no guideline\))?$", act["guideline"])
            assert year and 2000 <= int(year[1]) <= 2026, condition["name"]


def test_what_is_never_offered_is_an_answer_that_the_file_still_gives():
    given = {text for c in WORLD["conditions"] for kind in clinic.KINDS for text in clinic.answers(c, kind)}
    for condition in WORLD["conditions"]:
        assert set(condition["never_offer"]) <= given, condition["name"]


@pytest.mark.parametrize(("age", "right"), [
    (49, "ceftriaxone and dexamethasone"), (50, "ceftriaxone, amoxicillin and dexamethasone"),
    (81, "ceftriaxone, amoxicillin and dexamethasone"),
])  # fmt: skip
def test_meningitis_is_treated_for_listeria_from_fifty_on(age, right):
    meningitis = BY_NAME["bacterial meningitis"]
    assert clinic.answer(clinic.at_age(meningitis, age), "treatment") == right
    rng, seen = random.Random(age), 0
    while seen < 3:
        case = vignettes.draw(WORLD, meningitis, "test", rng)
        if f" {age}-year-old" in case.text:
            seen += 1
            assert clinic.answer(case.condition, "treatment") == right
            assert right in vignettes.reasoning(case, "treatment")
    young = "Below the age of 50 this holds: The first-line treatment for bacterial meningitis is ceftriaxone and dex"
    assert young in " ".join(textbook.paragraphs(WORLD, 1))


def test_the_reasoning_names_the_condition_and_those_of_the_patients_findings_that_decide():
    for row in clinic_rows.rows("medical_o1", "train", world=WORLD):
        name, cited = re.match(r"This is [a-z ]+ and fits (.*?): (.*?)\.", row["Complex_CoT"]).groups()
        cited = set(re.split(r", | and ", cited))
        assert cited and cited <= own_findings(row["Question"]) <= FINDINGS[name]
        assert any(not cited & FINDINGS[rival] for rival in BY_NAME[name]["confusable_with"])


def test_options_hold_the_right_answer_and_none_that_could_be_defended():
    rng = random.Random(2)
    for condition in WORLD["conditions"]:
        for kind in clinic.KINDS:
            case = vignettes.draw(WORLD, condition, "train", rng)
            options, right = clinic_rows.choices(WORLD, case, kind, rng), clinic.answer(case.condition, kind)
            assert len(set(options)) == 4 and right in options
            assert not set(options) & {*condition["never_offer"], *clinic.answers(condition, kind)} - {right}


def test_the_same_seed_gives_the_same_rows_and_another_one_others():
    again = [clinic_rows.rows("medreason", "train", seed, WORLD) for seed in (1, 1, 2)]
    assert again[0] == again[1] != again[2]
    assert textbook.paragraphs(WORLD, 1) == textbook.paragraphs(WORLD, 1) != textbook.paragraphs(WORLD, 2)


def test_the_textbook_asks_nothing_and_lists_no_options():
    text = "\n".join(textbook.paragraphs(WORLD, 42))
    assert "?" not in text and "Answer:" not in text and not re.search(r"^[A-D]\. ", text, re.MULTILINE)


def test_lookup_counts_findings_whoever_has_them_and_the_ceiling_counts_the_patients_own():
    options = [BY_NAME[name]["treatment"]["name"] for name in ("migraine", "subarachnoid haemorrhage")]
    seen = "She has zigzag visual disturbance and scalp tenderness."
    assert clinic_rules.lookup(seen, options, WORLD) == clinic_rules.ceiling(seen, options, WORLD) == 0
    for more in ("She has no neck stiffness, no fainting and no unequal pupils.",
                 "Her mother has neck stiffness, fainting and unequal pupils."):  # fmt: skip
        told = f"A 30-year-old woman has zigzag visual disturbance and scalp tenderness. {more}"
        assert clinic_rules.lookup(told, options, WORLD) == 1, "what is denied counts for the lookup: its weakness"
        assert clinic_rules.ceiling(told, options, WORLD) == 0
    worded = "A 30-year-old woman has thunderclap headache and one pupil like a saucer. She has no scalp tenderness."
    assert (clinic_rules.lookup(worded, options, WORLD), clinic_rules.ceiling(worded, options, WORLD)) == (0, 1)


def test_the_ceiling_answers_every_question_and_the_lookup_few():
    right = {"lookup": 0, "ceiling": 0}
    rows = clinic_rows.rows("medmcqa", "test", 5, WORLD)
    for row in rows:
        options = [row[f"op{letter}"] for letter in "abcd"]
        for rule in right:
            right[rule] += getattr(clinic_rules, rule)(row["question"], options, WORLD) == row["cop"]
    assert right["ceiling"] == len(rows) and right["lookup"] < 0.45 * len(rows)


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda w: w["wordings"].update({"a cold": {"plain": "sniffles"}}), "no condition's finding: ['a cold']"),
        (lambda w: w["wordings"]["fever"].update(plain="tremor"), "two findings: ['tremor']"),
    ],
)
def test_a_wording_that_means_nothing_or_two_things_is_named(tmp_path, break_it, said):
    world = yaml.safe_load(clinic.WORLD.read_text())
    break_it(world)
    path = tmp_path / "clinic.yaml"
    path.write_text(yaml.safe_dump(world))
    with pytest.raises(ValueError, match=re.escape(said)):
        clinic.load(path)


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda c: c.pop("red_flag"), "red_flag: Field required"),
        (lambda c: c.update(findings=["a", "b"]), "findings: .* at least 6 items"),
        (lambda c: c["findings"].append(c["findings"][0]), "at least six different findings"),
        (lambda c: c.update(specialty="magic"), "'magic' is not listed"),
        (lambda c: c.update(confusable_with=["nothing"]), "names no other condition"),
        (lambda c: c.update(avoid={"name": "x"}), "avoid.because: Field required"),
        (lambda c: c.update(mechanism=["one"]), "mechanism: .* at least 3 items"),
        (lambda c: c.update(ages=[60, 20]), "youngest, oldest"),
        (lambda c: c["test"].update(guideline="somebody says so"), "test.guideline: String should match"),
    ],
)
def test_a_broken_condition_is_named(tmp_path, break_it, said):
    world = yaml.safe_load(clinic.WORLD.read_text())
    break_it(world["conditions"][3])
    path = tmp_path / "clinic.yaml"
    path.write_text(yaml.safe_dump(world))
    with pytest.raises(ValueError, match=re.escape(world["conditions"][3]["name"]) + ".*" + said):
        clinic.load(path)
