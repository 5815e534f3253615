"""The 25 cases are whole, sound in form and unlike the clinic; loaders say what is wrong with a file."""

import csv
import json
import re
from collections import Counter
from typing import get_args

import pytest

from lib.dataset import clinic
from lib.evaluation import cases
from lib.pipeline import combinations
from lib.pipeline.files import ROOT

CASES = cases.load_cases()
HEALTHBENCH, MEDSAFETY = ROOT / "data/samples/healthbench.jsonl", ROOT / "data/samples/medsafetybench.csv"
SENTENCE_END = re.compile(r"(?<=[.?!])\s+(?=[A-Z0-9])")
AMERICAN = (
    r"\w*(?:(?<!a)emia|(?<!o)edema|(?<!o)esophag|hemorrhag|hematem)\w*|color|anesthe\w+|pediatric\w*|tumor|center"
)


def words(text):
    return " ".join(re.findall(r"\w+", text.casefold()))


def test_twenty_five_cases_over_many_specialties():
    specialties = Counter(case["specialty"] for case in CASES)
    assert len(CASES) == 25 and len(specialties) >= 12 and max(specialties.values()) <= 3


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_a_case_has_the_lengths_it_was_written_to(case):
    prompt = case["messages"][0]["content"]
    assert 3 <= len(SENTENCE_END.split(prompt)) <= 6 and ("?" in prompt or "xplain" in prompt)
    assert 4 <= len(SENTENCE_END.split(case["reference"])) <= 8 and 120 <= len(case["reference"].split()) <= 240
    assert 3 <= len(case["steps"]) <= 6 and 3 <= len(case["facts"]) <= 6 and 2 <= len(case["traps"]) <= 3
    entries = case["steps"] + case["facts"] + case["traps"]
    assert len({words(entry) for entry in entries}) == len(entries)
    assert all(3 <= len(entry.split()) <= 22 for entry in entries)
    text = " ".join([prompt, case["reference"], *entries])
    assert not re.findall(rf"\b(?:{AMERICAN})\b", text, re.IGNORECASE) and "  " not in text


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_the_reference_states_the_facts_and_no_trap(case):
    reference = words(case["reference"])
    assert not [trap for trap in case["traps"] if words(trap) in reference]
    for fact in case["facts"]:
        content = [word for word in words(fact).split() if len(word) > 3 or word.isdigit()]
        assert sum(word in reference for word in content) >= 0.6 * len(content), fact


def test_no_case_asks_for_a_condition_of_the_clinic():
    conditions = clinic.load()["conditions"]
    for case in CASES:
        opening = words(re.split("[.;]", case["reference"])[0])  # the diagnosis; what else it could be comes after
        for condition in conditions:
            assert words(condition["name"]) not in opening, case["id"]


def broken(tmp_path, old, new):
    path, text = tmp_path / "cases.yaml", cases.CASES.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  traps:", "  trap:", "case 1: traps: Field required, found 'id, .*trap"),
        ("  specialty: neurology", "  specialty:", "case 1: specialty: .*valid string, found 'None'"),
        ("- id: headache-on-the-pill", "- id: stroke-on-apixaban", "stroke-on-apixaban occurs more than once"),
        ("    - Choose immediate mechanical thrombectomy", "    - why: now", "case 1: steps.2: .*valid string, found"),
    ],
)
def test_a_broken_case_is_named(tmp_path, old, new, message):
    with pytest.raises(ValueError, match=message):
        cases.load_cases(broken(tmp_path, old, new))


def test_a_file_without_cases_is_refused(tmp_path):
    path = tmp_path / "cases.yaml"
    path.write_text("cases: 3")
    with pytest.raises(ValueError, match="valid list, found"):
        cases.load_cases(path)


def test_healthbench_rows_keep_conversation_and_points():
    items = cases.load_healthbench(HEALTHBENCH)
    assert [item["id"] for item in items] == ["sample-chest-tightness", "sample-ibuprofen-kidney", "sample-green-tea"]
    assert [entry["points"] for entry in items[1]["rubrics"]] == [9, 6, 5, -9, -2]
    assert [m["role"] for m in items[1]["messages"]] == ["user", "assistant", "user"]
    assert items[0]["kind"] == "healthbench" and items[0]["tags"] == ["theme:emergency_referrals"]


def renamed(row):
    row["rubric"] = row.pop("rubrics")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed, "line 2: rubrics: Field required, found .*rubric"),
        (lambda row: row["rubrics"][0].update(points="9"), "line 2: rubrics.0.points.*valid integer, found '9'"),
        (
            lambda row: row["rubrics"][0].pop("criterion"),
            "line 2: rubrics.0.criterion: Field required, found 'points, tags'",
        ),
        (lambda row: row["rubrics"].__delitem__(slice(0, 3)), "no criterion has points above 0"),
        (lambda row: row.update(prompt="Can I?"), "line 2: prompt: .*valid list, found 'Can I"),
        (lambda row: row["prompt"].pop(), "line 2: .*prompt ends with assistant, expected the user's turn"),
        (
            lambda row: row["prompt"][0].update(role="tool"),
            "prompt.0.role: .*'system', 'user' or 'assistant', found 'tool'",
        ),
        (lambda row: row.update(prompt_id="sample-green-tea"), "sample-green-tea occurs more than once"),
    ],
)
def test_a_broken_row_of_healthbench_is_named(tmp_path, change, message):
    rows = [json.loads(line) for line in HEALTHBENCH.read_text().splitlines()]
    change(rows[1])
    path = tmp_path / "hb.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=message):
        cases.load_healthbench(path)


def test_medsafetybench_comes_from_one_file_or_from_the_published_folder(tmp_path):
    items = cases.load_medsafetybench(MEDSAFETY)
    assert [item["id"] for item in items] == ["medsafetybench-1", "medsafetybench-2", "medsafetybench-3"]
    assert items[0]["messages"][0]["content"].startswith("I missed a fracture")
    assert items[2]["safe_response"].startswith("I cannot help with that. What a patient tells us")
    for generator in ("gpt4", "llama2"):
        folder = tmp_path / "test" / generator
        folder.mkdir(parents=True)
        (folder / "med_safety_demonstrations_category_1.csv").write_bytes(MEDSAFETY.read_bytes())
    items = cases.load_medsafetybench(tmp_path / "test")
    assert len(items) == 6 and items[-1]["id"] == "llama2/med_safety_demonstrations_category_1-3"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [["", "harmful_request", "safe_response"], [0, "a", "b"]],
            "row 1: harmful_medical_request: Field required",
        ),
        ([["", "harmful_medical_request", "safe_response"], [0, "a", ""]], "row 1: safe_response: .*, found ''"),
        ([["", "harmful_medical_request", "safe_response"], [0, "a"]], "row 1: safe_response: .*, found 'None'"),
        ([["", "harmful_medical_request", "safe_response"], [0, "a", "b", "c"]], "row 1: more cells than columns"),
        ([["", "harmful_medical_request", "safe_response"]], "found no row"),
        ([], "found no row"),
    ],
)
def test_a_broken_row_of_medsafetybench_is_named(tmp_path, rows, message):
    path = tmp_path / "ms.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    with pytest.raises(ValueError, match=message):
        cases.load_medsafetybench(path)


def test_a_folder_without_csv_files_is_refused(tmp_path):
    with pytest.raises(ValueError, match="found no row, expected at least one"):
        cases.load_medsafetybench(tmp_path)


def test_an_entry_of_the_recipe_draws_its_questions_and_tells_its_files(tmp_path):
    entry, opened = {"name": "healthbench", "path": "data/samples/healthbench.jsonl", "questions": 2}, []
    items = cases.load_benchmark(entry, 1, opened.append)
    assert len(items) == 2 and items == cases.load_benchmark(entry, 1) and opened == [entry["path"]]
    drawn = {item["id"] for seed in range(20) for item in cases.load_benchmark(entry, seed)}
    assert drawn == {item["id"] for item in cases.load_healthbench(HEALTHBENCH)}
    for name in ("one", "two"):
        (tmp_path / f"{name}.csv").write_bytes(MEDSAFETY.read_bytes())
    whole = cases.load_benchmark({"name": "medsafety", "path": str(tmp_path)}, 1, opened.append)
    assert len(whole) == 6 and opened[1:] == [str(tmp_path / f"{name}.csv") for name in ("one", "two")]
    assert set(cases.LOADERS) == set(get_args(combinations.Benchmark.model_fields["name"].annotation))
