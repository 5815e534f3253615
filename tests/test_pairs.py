"""Pairs are refused with a reason, leak-checked, and become tokens as chapter 3 trains them."""

import json
import os
from collections import Counter
from types import SimpleNamespace

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import families
import pytest
from trl.trainer.dpo_trainer import DataCollatorForPreference

from lib.chat import encoding, turns
from lib.dataset.choices import Reject
from lib.pipeline import combinations
from lib.pipeline.forms import checked
from lib.preference import clinic_pairs, converters, pairs

TRAIN = clinic_pairs.pairs(["decision", "length"], 20)
USER = {"role": "user", "content": "Which drug?"}
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("Colchicine.", "Aspirin."))
TEXTS = {"prompt": "Which drug?", "chosen": "Colchicine.", "rejected": "Aspirin."}


def pair(question="Which drug?", chosen="Colchicine.", rejected="Aspirin.", **fields):
    sides = {"chosen": {"reasoning": "", "output": chosen}, "rejected": {"reasoning": "", "output": rejected}}
    return {"id": "own:0", "axis": "own", "source": "own", "question": question, "messages": []} | sides | fields


def recipe(fmt="think", max_length=320):
    return SimpleNamespace(chat={"format": fmt, "date": None, "reasoning_effort": None}, sft={"max_length": max_length})


def read(tmp_path, rows, name="own", **spec):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    reasons = Counter()
    found = list(converters.read({"name": name, "path": str(path), "max_rejected": 1} | spec, reasons))
    assert reasons.total() == len(rows) and reasons["kept"] == len(found)
    return found, reasons


FORMS = [
    TEXTS,
    {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    TEXTS | {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    TEXTS | {"chosen": json.dumps([USER, GOOD]), "rejected": json.dumps([USER, BAD]), "score_chosen": 5},
    {"Question": "Which drug?", "chosen": [{"from": "gpt", "value": "Colchicine."}], "rejected": "Aspirin."},
]


@pytest.mark.parametrize("row", FORMS)
def test_every_form_of_a_dpo_row_gives_the_same_pair(tmp_path, row):
    (found,), _ = read(tmp_path, [row])
    assert found == pair()


def test_earlier_turns_system_prompt_and_reasoning_are_kept(tmp_path):
    earlier = [{"role": "user", "content": "Gout?"}, {"role": "assistant", "content": "Yes."}]
    asked = [*earlier, USER]
    row = {"prompt": asked, "chosen": "<think>\nSwollen toe.\n</think>\n\nColchicine.", "rejected": [BAD]}
    (found,), _ = read(tmp_path, [row | {"system": "Be brief."}])
    assert found["messages"] == [{"role": "system", "content": "Be brief."}, *earlier]
    assert found["chosen"] == {"reasoning": "Swollen toe.", "output": "Colchicine."}
    (whole,), _ = read(tmp_path, [{"system": "Be brief.", "chosen": [*asked, GOOD], "rejected": [*asked, BAD]}])
    assert (whole["question"], whole["messages"]) == (found["question"], found["messages"])


REFUSED = [
    (TEXTS | {"rejected": "Colchicine."}, "equal_sides"),
    (TEXTS | {"rejected": "COLCHICINE\u00a0\uff0e"}, "equal_after_normalising"),
    (TEXTS | {"rejected": " "}, "empty_answer"),
    (TEXTS | {"chosen": None}, "empty_answer"),
    (TEXTS | {"chosen": [USER]}, "empty_answer"),
    (TEXTS | {"prompt": " \n"}, "empty_question"),
    (TEXTS | {"chosen": 7}, "wrong_type"),
    ("Colchicine.", "not_an_object"),
    ({"prompt": "Which drug?", "chosen": "Colchicine."}, "missing_column"),
    ({"prompt": "What?", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "prompt_conflict"),
    ({"prompt": None, "chosen": [USER, GOOD], "rejected": [USER | {"content": "And?"}, BAD]}, "no_common_prompt"),
    (TEXTS, "duplicate"),
    (TEXTS | {"chosen": "Aspirin.", "rejected": "Colchicine."}, "preferred_both_ways"),
]


@pytest.mark.parametrize("row, reason", REFUSED)
def test_a_pair_that_teaches_nothing_is_refused_with_its_reason(tmp_path, row, reason):
    _, reasons = read(tmp_path, [TEXTS, row])
    assert reasons == {"kept": 1, reason: 1}


def test_columns_of_other_names_are_asked_for_or_told(tmp_path):
    row = {"ask": "Which drug?", "better": "Colchicine.", "worse": "Aspirin."}
    with pytest.raises(ValueError, match=r"found the columns \['ask', 'better', 'worse'\].*columns: \{prompt"):
        read(tmp_path, [row])
    (found,), _ = read(tmp_path, [row], columns={"prompt": "ask", "chosen": "better", "rejected": "worse"})
    assert found == pair()
    with pytest.raises(ValueError, match=r"lacks \['rejected'\]"):
        read(tmp_path, [{"prompt": "Which drug?", "chosen": "Colchicine."}], "ultramedical")
    with pytest.raises(ValueError, match="gave no record: 1 rows read, rejected .*equal_sides"):
        read(tmp_path, [TEXTS | {"chosen": "Aspirin."}])


def test_published_sets_are_read_by_their_columns(tmp_path):
    row = TEXTS | {"prompt_id": "MedQA,41", "chosen": [USER, GOOD], "rejected": [USER, BAD], "label_type": "hard"}
    (found,), _ = read(tmp_path, [row], "ultramedical", axis="quality")
    assert found == pair(id="ultramedical:0", axis="quality", source="ultramedical", benchmark="medqa")
    (found,), _ = read(tmp_path, [row | {"messages": [USER, GOOD], "score_chosen": 8.0}], "ultrafeedback")
    assert found == pair(id="ultrafeedback:0", axis="ultrafeedback", source="ultrafeedback")
    assert converters.terms({"name": "ultramedical"})["licence"] == "MIT"
    assert converters.terms({"name": "own", "licence": "CC0"}) == {"licence": "CC0", "commercial": None, "citation": ""}


def test_the_clinics_pairs_are_an_entry_of_the_recipe_and_wrong_entries_are_refused():
    reasons, entry = Counter(), {"name": "clinic", "axes": ["length"]}
    assert list(converters.read(entry, reasons, count=20)) == [p for p in TRAIN if p["axis"] == "length"]
    assert reasons == {"kept": 20} and converters.terms(entry)["licence"] == "MIT"
    known = [{"name": name, "path": "x"} for name in converters.SOURCES]
    checked([*known, entry | {"axes": list(clinic_pairs.AXES)}], list[combinations.Pairs], "preference.data")
    wrong = {"name": "ultramed"}, {"name": "own"}, {"name": "clinic", "axes": ["kind"]}, {"name": "own", "paths": "x"}
    for spec, told in zip(wrong, ("ultramed", "path is missing", "kind", "paths"), strict=True):
        with pytest.raises(ValueError, match=f"preference.data: 0.*{told}"):
            checked([spec], list[combinations.Pairs], "preference.data")


def test_a_rubric_prefers_the_answer_that_meets_more_points(tmp_path):
    rubrics = [{"criterion": "Names a drug.", "points": 5}, {"criterion": "Gives aspirin.", "points": -8}]
    said = [("Colchicine.", [True, False]), ("Rest.", [False, False]), ("Aspirin.", [True, True])]
    row = {"prompt": [USER], "rubrics": rubrics, "candidates": [{"output": o, "met": m} for o, m in said]}
    unscored = row | {"candidates": [{"output": "Rest.", "met": [True]}, *row["candidates"]]}
    alike, odd = row | {"candidates": row["candidates"][:1] * 2}, row | {"candidates": ["Rest."]}
    (found,), reasons = read(tmp_path, [row, unscored, alike, odd], "rubrics")
    assert (found["chosen"]["output"], found["rejected"]["output"]) == ("Colchicine.", "Aspirin.")
    assert reasons == {"kept": 1, "unscored": 1, "no_contrast": 1, "wrong_type": 1}


FORMATS = [("think", "qwen3"), ("harmony", "gptoss"), ("thinking_response", "llama3"), ("instruction", "llama2")]


@pytest.mark.parametrize("fmt, family", FORMATS)
def test_tokens_are_those_of_chapter_three(fmt, family):
    tokenizer, two = turns.prepare(getattr(families, family)(), fmt), TRAIN[0]
    found = pairs.tokens(two, tokenizer, recipe(fmt, 4000))
    end = tokenizer.convert_tokens_to_ids(turns.end_token(tokenizer))
    for side in pairs.SIDES:
        record = {"instruction": two["question"], "history": [], **two[side]}
        ((ids, labels),) = encoding.tokenize([record], tokenizer, fmt)
        assert found["prompt_ids"] + found[f"{side}_ids"] == ids
        assert found[f"{side}_ids"] == [label for label in labels if label != encoding.IGNORE_INDEX]
        assert end in found[f"{side}_ids"][-2:]
    asked = encoding.messages({"instruction": two["question"]}, fmt, answer=False)
    prompt = encoding.render(asked, tokenizer, generation=True)
    assert found["prompt_ids"] == tokenizer(prompt, add_special_tokens=False)["input_ids"]


def test_the_end_token_is_trained_where_it_is_the_padding_too():
    tokenizer = turns.prepare(families.gpt2(), "instruction")
    apart = pairs.tokens(pair(), tokenizer, recipe("instruction"))
    tokenizer.pad_token = tokenizer.eos_token
    found = pairs.tokens(pair(), tokenizer, recipe("instruction"))
    assert found == apart
    longer = pairs.tokens(TRAIN[0], tokenizer, recipe("instruction", 4000))
    batch = DataCollatorForPreference(tokenizer.pad_token_id)([found, longer])
    trained = batch["input_ids"][0][batch["completion_mask"][0].bool()].tolist()
    assert trained == found["chosen_ids"] and trained[-1] == tokenizer.eos_token_id


def test_a_pair_that_would_lose_its_end_is_refused():
    tokenizer = families.qwen3()
    found = pairs.tokens(pair(), tokenizer, recipe())
    longest = len(found["prompt_ids"]) + max(len(found[f"{side}_ids"]) for side in pairs.SIDES)
    assert pairs.tokens(pair(), tokenizer, recipe(max_length=longest)) == found
    for limit, reason in ((longest - 1, "pair_too_long"), (len(found["prompt_ids"]), "prompt_too_long")):
        with pytest.raises(Reject, match=reason):
            pairs.tokens(pair(), tokenizer, recipe(max_length=limit))


BARE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
ODD = [
    ("{{ raise_exception('roles must alternate') }}", "cannot render pair 'own:0': roles must alternate"),
    (BARE, "ends no turn"),
    (BARE + "{% if add_generation_prompt %}A{% endif %}", "another text before an answer"),
]


@pytest.mark.parametrize("template, message", ODD)
def test_an_odd_chat_template_is_named(template, message):
    tokenizer = families.qwen3()
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match=message):
        pairs.tokens(pair(), tokenizer, recipe("instruction"))


def test_own_samples_give_best_against_worst_of_nearest_length():
    def said(text, finish="stop", thought="Swollen toe."):
        return {"text": f"<think>\n{thought}\n</think>\n\n{text}", "finish": finish}

    record = {"id": "q1", "instruction": "Which drug?", "history": []}
    texts = "Colchicine.", "Aspirin, which thins the blood.", "Codeine.", "Colchicine, for three days."
    samples = [*map(said, texts), said("Rest.", "length"), {"text": "no form", "finish": "stop"}]
    reasons = Counter()
    sampled = [(record, samples), (record, samples[:1]), (record, samples[4:]), (record, [])]
    (found,) = pairs.from_samples(sampled, lambda _, sample: "olchicine" in sample["text"], "think", reasons)
    assert (found["chosen"]["output"], found["rejected"]["output"]) == ("Colchicine.", "Codeine.")
    assert found["chosen"]["reasoning"] == "Swollen toe." and reasons == {"kept": 1, "no_contrast": 3}


def test_pairs_that_ask_a_question_of_the_test_are_found_by_each_detector():
    stem, others = TRAIN[0]["question"].rpartition("\n\nA. ")[0], TRAIN[20:30]
    exam = [{"id": "t", "source": "exam", "instruction": stem, "options": [], "answer": None, "benchmark": "exam"}]
    quoting = pair("What next?", chosen=f"It says: {stem}", id="q")
    suite = [TRAIN[0], quoting, pair("Anything else to know?", benchmark="exam"), *others]
    kept, ledger = pairs.without_leaks(suite, {"exam": exam}, 1, ["provenance", "exact", "gram_13"], ["exam"])
    counts = {name: sum(row.get(name, 0) for row in ledger) for name in ("provenance", "exact", "gram_13", "removed")}
    assert kept == others and counts == {"provenance": 1, "exact": 1, "gram_13": 2, "removed": 3}
