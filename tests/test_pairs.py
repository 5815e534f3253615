"""Pairs are refused with a reason or become tokens as chapter 3 trains them, and no red flag of the test is in one."""

import json
import os
from collections import Counter
from types import SimpleNamespace

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import families
import pytest
from trl.trainer.dpo_trainer import DataCollatorForPreference

from app.guard import Guard
from lib.chat import encoding, turns
from lib.dataset import clinic, clinic_rows
from lib.dataset.choices import Reject
from lib.evaluation import screens, wordrules
from lib.preference import clinic_pairs, converters, pairs

WORLD = clinic.load()
TRAIN, TEST = (clinic_pairs.pairs(clinic_pairs.AXES, 60, split=split, world=WORLD) for split in ("train", "test"))
QUESTIONS = clinic_pairs.escalation_questions()
USER = {"role": "user", "content": "Which drug?"}
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("Colchicine.", "Aspirin."))
TEXTS = {"prompt": "Which drug?", "chosen": "Colchicine.", "rejected": "Aspirin."}


def pair(question="Which drug?", chosen="Colchicine.", rejected="Aspirin.", **fields):
    sides = ({"reasoning": "", "output": text} for text in (chosen, rejected))
    return {"id": "own:0", "axis": "own", "source": "own", "question": question, "messages": []} | dict(
        zip(pairs.SIDES, sides, strict=True), **fields
    )


def recipe(fmt="think", max_length=320):
    chat = {"format": fmt, "date": None, "reasoning_effort": None}
    return SimpleNamespace(chat=chat, sft={"max_length": max_length})


def read(tmp_path, rows, name="own", **spec):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    reasons = Counter()
    found = list(converters.read({"name": name, "path": str(path), "max_rejected": 1} | spec, reasons))
    assert reasons.total() == len(rows) and reasons["kept"] == len(found)
    return found, reasons


@pytest.mark.parametrize(
    "row",
    [
        TEXTS,
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        TEXTS | {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        TEXTS | {"chosen": json.dumps([USER, GOOD]), "rejected": json.dumps([USER, BAD]), "score_chosen": 5},
        {"Question": "Which drug?", "chosen": [{"from": "gpt", "value": "Colchicine."}], "rejected": "Aspirin."},
    ],
)
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


@pytest.mark.parametrize(
    "row, reason",
    [
        (TEXTS | {"rejected": "Colchicine."}, "equal_sides"),
        (TEXTS | {"rejected": "Colchicine ."}, "equal_after_normalising"),
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
    ],
)
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
    about = {"label_type": "hard", "metadata": {"chosen": {"model": "a", "score": 5.0}}}
    row = {"prompt_id": "MedQA,41", "prompt": "Which drug?", "chosen": [USER, GOOD], "rejected": [USER, BAD]} | about
    (found,), _ = read(tmp_path, [row], "ultramedical", axis="quality")
    assert found == pair(id="ultramedical:0", axis="quality", source="ultramedical", benchmark="medqa")
    row = {"prompt_id": "f0e37e", "messages": [USER, GOOD], "score_chosen": 8.0, "score_rejected": 4.5} | row
    (found,), _ = read(tmp_path, [row], "ultrafeedback")
    assert found == pair(id="ultrafeedback:0", axis="ultrafeedback", source="ultrafeedback")
    assert converters.terms({"name": "ultramedical"})["licence"] == "MIT"
    assert converters.terms({"name": "own", "licence": "CC0"}) == {"licence": "CC0", "commercial": None, "citation": ""}


def test_a_rubric_prefers_the_answer_that_meets_more_points(tmp_path):
    rubrics = [{"criterion": "Names a drug.", "points": 5, "tags": []},
               {"criterion": "Gives aspirin.", "points": -8, "tags": []}]  # fmt: skip
    said = [("Colchicine.", [True, False]), ("Rest.", [False, False]), ("Aspirin.", [True, True])]
    row = {"prompt": [USER], "rubrics": rubrics, "candidates": [{"output": o, "met": m} for o, m in said]}
    unscored = row | {"candidates": [{"output": "Rest.", "met": [True]}, *row["candidates"]]}
    alike = row | {"candidates": row["candidates"][:1] * 2}
    odd = row | {"candidates": ["Rest."]}
    (found,), reasons = read(tmp_path, [row, unscored, alike, odd], "rubrics")
    assert (found["chosen"]["output"], found["rejected"]["output"]) == ("Colchicine.", "Aspirin.")
    assert reasons == {"kept": 1, "unscored": 1, "no_contrast": 1, "wrong_type": 1}


@pytest.mark.parametrize(
    "fmt, make",
    [
        ("think", families.qwen3),
        ("harmony", families.gptoss),
        ("thinking_response", families.llama3),
        ("instruction", families.llama2),
    ],
)
def test_tokens_are_those_of_chapter_three(fmt, make):
    tokenizer, two = turns.prepare(make(), fmt), TRAIN[0]
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
    batch = DataCollatorForPreference(tokenizer.pad_token_id)(
        [found, pairs.tokens(TRAIN[0], tokenizer, recipe("instruction", 4000))]
    )
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


@pytest.mark.parametrize(
    "template, message",
    [
        ("{{ raise_exception('roles must alternate') }}", "cannot render pair 'own:0': roles must alternate"),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "ends no turn"),
        ("{% for m in messages %}{{ m['content'] }},{% endfor %}{% if add_generation_prompt %}A{% endif %}",
         "another text before an answer"),
    ],
)  # fmt: skip
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
    (found,) = pairs.from_samples(sampled, lambda _, text: "olchicine" in text, "think", reasons)
    assert (found["chosen"]["output"], found["rejected"]["output"]) == ("Colchicine.", "Codeine.")
    assert found["chosen"]["reasoning"] == "Swollen toe." and reasons == {"kept": 1, "no_contrast": 3}


def test_pairs_that_ask_a_question_of_the_test_are_found_by_each_detector():
    asked = TRAIN[0]["question"]
    stem = asked.rpartition("\n\nA. ")[0]
    exam = [{"id": "t", "source": "exam", "instruction": stem, "options": [], "answer": None, "benchmark": "exam"}]
    others = TRAIN[60:70]
    quoting = pair("What next?", chosen=f"It says: {stem}", id="q")
    suite = [TRAIN[0], quoting, pair("Anything else to know?", benchmark="exam"), *others]
    kept, ledger = pairs.without_leaks(suite, {"exam": exam}, 1, ["provenance", "exact", "gram_13"], ["exam"])
    assert kept == others
    assert sum(row["exact"] for row in ledger if row["against"] == "exam") == 1
    assert sum(row["gram_13"] for row in ledger) == 2 and sum(row["provenance"] for row in ledger) == 1
    assert sum(row["removed"] for row in ledger) == 3


def test_the_clinics_pairs_repeat_and_none_asks_a_frozen_question():
    assert TRAIN == clinic_pairs.pairs(clinic_pairs.AXES, 60) and TRAIN != clinic_pairs.pairs(clinic_pairs.AXES, 60, 1)
    assert len({p["id"] for p in TRAIN + TEST}) == len(TRAIN + TEST) == 600
    reasons = Counter()
    list(pairs.counted(TRAIN + TEST, lambda _, made: made, reasons))
    assert reasons == {"kept": 600}
    frozen = {row["question"] for row in clinic_rows.rows("medreason", "test", world=WORLD)}
    assert not any(p["question"].startswith(tuple(frozen)) for p in TRAIN)
    with pytest.raises(ValueError, match="no pairs for 'kindness'"):
        clinic_pairs.pairs(["kindness"], 1)


def test_each_axis_differs_in_what_it_is_named_for():
    guard = Guard()
    for p in TRAIN + TEST:
        chosen, rejected = (p[side]["output"] for side in pairs.SIDES)
        apart = len(rejected + p["rejected"]["reasoning"]) - len(chosen + p["chosen"]["reasoning"])
        if p["axis"] in ("escalation", "reassurance"):
            sends = [wordrules.escalates(text) for text in (chosen, rejected)]
            assert sends == [p["axis"] == "escalation", p["axis"] == "reassurance"]
        elif p["axis"] == "caution":
            assert [bool(guard.after(text, "stop", True)[1]) for text in (chosen, rejected)] == [False, True]
        elif p["axis"] == "length":
            assert chosen.splitlines()[-1] == rejected.splitlines()[-1] and apart > 60
        else:
            listed = [text.rpartition("Answer: ")[2] for text in (chosen, rejected)]
            assert len(set(listed)) == 2 and all(f". {text}" in p["question"] for text in listed)
        assert p["axis"] == "length" or abs(apart) < 80


def test_escalation_and_reassurance_exchange_the_same_texts():
    for urgent, calm in zip(
        *([p for p in TRAIN if p["axis"] == a] for a in ("escalation", "reassurance")), strict=True
    ):
        assert (urgent["chosen"], urgent["rejected"]) == (calm["rejected"], calm["chosen"])
    old = sum("years ago" in p["question"] for p in TRAIN if p["axis"] == "escalation")
    assert 15 < old < 45, "the age of a note must not tell a red flag from its twin"


def test_no_red_flag_of_the_test_stands_in_a_training_pair():
    sides = Counter((q["origin"], q["side"]) for q in QUESTIONS)
    assert all(sides["clinic", side] >= 40 and sides["hand", side] >= 10 for side in screens.SIDES)
    trained = "\n".join(p["question"] for p in TRAIN if p["axis"] in ("escalation", "reassurance"))
    assert not [q["flag"] for q in QUESTIONS if q["flag"] in trained]
    assert not [q["id"] for q in QUESTIONS if not all(map(clinic_pairs.held_out, q["fits"]))]
    names = [c["name"] for c in WORLD["conditions"]]
    assert 15 <= sum(map(clinic_pairs.held_out, names)) <= 25
    tested = "\n".join(p["question"] for p in TEST if p["axis"] == "escalation")
    assert all(clinic_pairs.held_out(c["name"]) for c in WORLD["conditions"] if c["red_flag"] in tested)


def test_held_out_questions_leave_the_guards_third_alone_and_are_scored_by_the_screens():
    from benchmarks import guard

    assert not {q["pair"] for q in QUESTIONS} & {q["pair"] for q in guard.questions() if q["held_out"]}
    everyone = {q["id"]: "This is an emergency. Go to hospital now." for q in QUESTIONS}
    missed, needless = screens.summary(screens.rows(QUESTIONS, everyone, WORLD))
    assert (missed["value"], needless["value"]) == (0, 1)
