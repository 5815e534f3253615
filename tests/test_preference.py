"""Chapter 7's trainers, rewards and measures, on a tiny model with a trained adapter."""

import json
import math
import threading
from collections import Counter
from itertools import combinations
from types import SimpleNamespace

import pytest
import torch
import yaml
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tiny_qwen import byte_tokenizer, random_model
from transformers import TrainerCallback, TrainerControl, TrainerState

from lib import execute
from lib.evaluation import generate, probability
from lib.figures import leash
from lib.pipeline import recipe
from lib.pipeline.files import ROOT
from lib.preference import material, measure, pairs, rewards, training
from lib.qat import rounding

TOKENIZER = byte_tokenizer()
RECORDS = [
    {"id": f"q{n}", "instruction": f"Which is {n}? A) gout B) flu", "options": ["gout", "flu"], "letter": "AB"[n % 2],
     "answer": None, "reasoning": "", "output": f"Answer: {'AB'[n % 2]}", "source": "own"}
    for n in range(4)
]  # fmt: skip
COMMON = {
    "per_device_train_batch_size": 2,
    "max_steps": 1,
    "learning_rate": 0.05,
    "logging_steps": 1,
    "report_to": "none",
    "save_strategy": "no",
    "gradient_checkpointing": False,
}


def model(trained=True):
    """A random Qwen3 with an adapter that is not zero, as after chapter 3."""
    made = get_peft_model(random_model(TOKENIZER, 1), LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in made.named_parameters():
        if trained and "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return made


def arms(tmp_path, rows=None, scored=None, **preference):
    cfg = SimpleNamespace(
        chat={"format": "instruction", "date": None, "reasoning_effort": None, "max_new_tokens": 8, "batch_size": 8},
        sft={"max_length": 128}, run={"seed": 1}, model={"dtype": "float32"}, lora=None,
        preference={"kl_limit": 1.0, "samples": 2, "learn_from": 4, "reward": {}} | preference,
    )  # fmt: skip
    stage = SimpleNamespace(dir=tmp_path, recipe=cfg, headless=True, progress=None, resume_key=lambda: "key")
    kept = [
        {"id": "p", "axis": "decision", "source": "own", "question": "Why?", "messages": [],
         "chosen": {"reasoning": "", "output": "Rest."}, "rejected": {"reasoning": "", "output": "Surgery now."}}
    ] * 2  # fmt: skip
    rows = rows or [pairs.tokens(pair, TOKENIZER, cfg) for pair in kept]
    asked = material.prompts(RECORDS, TOKENIZER, cfg)
    return material.Material(
        cfg, stage, TOKENIZER, RECORDS, kept, rows, asked, scored or rewards.scored(RECORDS, "instruction", 8)
    )


@pytest.mark.parametrize("rounded", [False, True])
def test_at_step_zero_the_loss_is_log_two_and_the_reference_is_the_adapter_at_its_start(tmp_path, rounded):
    tuned = model()
    if rounded:
        types = {name: "q4_0" for name in rounding.base_parameters(tuned) if "proj" in name}
        rounding.prepare(tuned, types)
    trainer = arms(tmp_path).trainer(tuned, {"method": "dpo", "pairs": ["decision"], **COMMON}, "dpo", 1)
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    with torch.no_grad():
        assert math.isclose(float(trainer.compute_loss(tuned, batch)), math.log(2), abs_tol=1e-6)
        now, then = (training.log_probabilities(tuned, batch, name) for name in ("default", "ref"))
    torch.testing.assert_close(now, then, atol=1e-6, rtol=0)
    trainer.train()
    with torch.no_grad():
        later, still = (training.log_probabilities(tuned, batch, name) for name in ("default", "ref"))
    assert torch.equal(then, still) and (now - later).abs().max() > 1e-3
    hashes = rounding.fingerprints(training.alone(tuned)) if rounded else {}
    rounding.strip(tuned)
    if rounded:
        merged = tuned.merge_and_unload().to(torch.bfloat16)
        assert rounding.fingerprints(merged, types) == hashes


@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_where_all_rewards_of_a_group_are_equal_nothing_is_learnt(tmp_path, method):
    def score(ids, answers, _):
        return [1.0] * len(ids)

    tuned = model()
    before = [p.detach().clone() for p in tuned.parameters() if p.requires_grad]
    arm = {"method": method, "reward": "format", "num_generations": 2, "beta": 0.0, **COMMON}
    scored = {"key": score, "format": score}
    trainer = arms(tmp_path, scored=scored).trainer(tuned, arm, method, 1)
    log = arms(tmp_path).train(trainer, method)
    after = [p for n, p in tuned.named_parameters() if p.requires_grad and ".default." in n]
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(before, after, strict=True))
    assert log[0]["rewards/key/mean"] == 1.0


def test_samples_are_drawn_from_the_prompt_as_chapter_three_renders_it(tmp_path):
    seen = []

    def score(ids, answers, completion_ids):
        seen.extend(zip(ids, completion_ids, strict=True))
        return [float(n) for n in range(len(ids))]

    made = arms(tmp_path, scored={"key": score})
    arm = {"method": "rloo", "reward": "key", "num_generations": 2, **COMMON}
    trainer = made.trainer(model(), arm, "rloo", 1)
    assert trainer._tokenize_prompts(list(made.asked.values()))[0] == [
        TOKENIZER(text, add_special_tokens=False)["input_ids"] for text in made.asked.values()
    ]
    trainer.train()
    assert len(seen) == 2 and all(0 < len(ids) <= 8 for _, ids in seen)


@pytest.mark.parametrize("name", ["loss", "rewards/key/mean"])
def test_a_loss_or_reward_that_is_not_finite_ends_the_run(name):
    with pytest.raises(ValueError, match=f"{name} is nan at step 3: lower preference's learning_rate"):
        training.Leash().on_log(None, TrainerState(global_step=3), TrainerControl(), logs={name: math.nan})


def test_a_loss_that_is_not_a_number_is_seen_through_the_trainer(tmp_path):
    tuned = model()
    next(p for name, p in tuned.named_parameters() if "lora_B" in name).data.fill_(math.nan)
    with pytest.raises(ValueError, match="loss is nan at step 1"):
        arms(tmp_path).trainer(tuned, {"method": "dpo", "pairs": ["decision"], **COMMON}, "dpo", 1).train()


SAMPLED = {"method": "rloo", "reward": "format", "num_generations": 2, **COMMON}


def order(ids, *_):
    return [float(n) for n in range(len(ids))]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_reward_that_is_no_number_is_named_though_the_key_beside_it_has_one(tmp_path, value):
    scored = {"format": lambda ids, *_: [value, 1.0], "key": order}
    with pytest.raises(ValueError, match=rf"reward format is {value} for question q\d"):
        arms(tmp_path, scored=scored).trainer(model(), SAMPLED, "rloo", 1).train()


def test_where_no_answer_has_a_known_truth_a_run_goes_on(tmp_path):
    scored = {"key": lambda ids, *_: [None] * len(ids)}
    made = arms(tmp_path, scored=scored)
    log = made.train(made.trainer(model(), SAMPLED | {"reward": "key"}, "rloo", 1), "rloo")
    assert log[0]["rewards/key/mean"] is None


def test_a_reward_that_hangs_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(rewards, "LIMIT_S", 0.2)
    ended = threading.Event()
    scored = {"format": lambda ids, *_: ended.wait(20) and [1.0, 1.0], "key": order}
    with pytest.raises(TimeoutError, match=r"reward format has not answered in 0.2 s"):
        arms(tmp_path, scored=scored).trainer(model(), SAMPLED, "rloo", 1).train()
    ended.set()


@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_an_arm_without_a_leash_logs_its_divergence_all_the_same(tmp_path, method):
    made = arms(tmp_path, scored={"format": order, "key": order})
    arm = SAMPLED | {"method": method, "max_steps": 2} | ({} if method == "grpo" else {"beta": 0.0})
    points = measure.curve(made.train(made.trainer(model(), arm, method, 1), method), "format")
    assert points[0]["kl"] == pytest.approx(0, abs=1e-6) and points[1]["kl"] != 0


class Weights(TrainerCallback):
    """What every step begins with."""

    def __init__(self):
        self.begun = []

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.begun.append([p.detach().clone() for p in model.parameters() if p.requires_grad])


@pytest.mark.parametrize(("every", "limit"), [(1, 0.05), (2, 0.1)])
def test_a_divergence_above_the_limit_ends_the_run_and_puts_the_last_weights_below_it_back(tmp_path, every, limit):
    made, tuned, seen = arms(tmp_path, scored={"format": order, "key": order}, kl_limit=limit), model(), Weights()
    arm = SAMPLED | {"beta": 0.0, "max_steps": 12, "learning_rate": 0.01, "logging_steps": every}
    trainer = made.trainer(tuned, arm, "rloo", 1)
    trainer.add_callback(seen)
    divergence = [entry["kl"] for entry in made.train(trainer, "rloo") if "kl" in entry]
    assert len(divergence) > 1 and max(divergence[:-1]) <= limit < divergence[-1] and trainer.state.global_step < 12
    after = [p for p in tuned.parameters() if p.requires_grad]
    for begun in range(0, len(seen.begun), every):
        equal = all(torch.equal(a, b) for a, b in zip(after, seen.begun[begun], strict=True))
        assert equal is (begun == len(seen.begun) - 2 * every)
    assert not list(tmp_path.rglob("checkpoint-*"))


def test_a_reward_that_raises_ends_the_run_with_its_own_words(tmp_path):
    def score(*_):
        raise OSError("the reward's file is gone")

    arm = {"method": "rloo", "reward": "key", "num_generations": 2, **COMMON}
    with pytest.raises(OSError, match="the reward's file is gone"):
        arms(tmp_path, scored={"key": score}).trainer(model(), arm, "rloo", 1).train()


def test_an_arm_without_pairs_says_which_axes_there_are(tmp_path):
    with pytest.raises(ValueError, match=r"is \['caution'\], of which no pair is left; axes: decision"):
        arms(tmp_path).preferred(None, {"pairs": ["caution"]}, "dpo")


def test_references_are_chapter_ones_answers_against_another_questions(tmp_path):
    found = list(arms(tmp_path)._references(4))
    assert [pair["chosen"]["output"] for pair in found] == [r["output"] for r in RECORDS]
    assert all(pair["chosen"]["output"] != pair["rejected"]["output"] for pair in found)
    assert len(list(arms(tmp_path)._references(2))) == 2


def test_the_reward_model_begins_level_and_padding_changes_no_reward(tmp_path):
    tuned, folder = model(), tmp_path / "merged"
    tuned.merge_and_unload().save_pretrained(folder)
    scorer = training.reward_model(arms(tmp_path).cfg, folder, TOKENIZER)
    rows = [[5, 6, 7], [5, 6, 7, 8, 9, 10, 11, 12], [9]]
    assert rewards.values(scorer, rows) == [0.0] * 3
    torch.nn.init.normal_(scorer.score.weight)
    alone = [rewards.values(scorer, [row])[0] for row in rows]
    assert alone == pytest.approx(rewards.values(scorer, rows), abs=1e-4) and len(set(alone)) == 3


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
def test_a_reward_model_learns_to_tell_sides_apart(tmp_path, dtype):
    """Whole, and by an adapter of the recipe's lora in its precision: then nothing but adapter and head has moved."""
    tuned, folder = model(), tmp_path / "merged"
    tuned.merge_and_unload().save_pretrained(folder)
    made = arms(tmp_path, reward={"max_steps": 20, "learning_rate": 0.01, "logging_steps": 5})
    if dtype:
        made.cfg.lora = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
        made.cfg.model["dtype"] = dtype
    scorer = training.reward_model(made.cfg, folder, TOKENIZER)
    before = {name: p.detach().clone() for name, p in scorer.named_parameters()}
    whole = pairs.whole(made.rows)
    trainer = training.score_trainer(made.cfg, made.stage, scorer, Dataset.from_list(whole), TOKENIZER)
    trainer.train()
    good, bad = (rewards.values(scorer, [whole[0][f"{side}_ids"]])[0] for side in pairs.SIDES)
    assert good > bad + 1
    moved = {name for name, p in scorer.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all(p.dtype == torch.float32 for name, p in scorer.named_parameters() if name in moved)
    if dtype:
        assert all("lora_" in name or "score.modules_to_save" in name for name in moved)
        assert scorer.dtype == getattr(torch, dtype)


def test_pass_at_k_is_the_share_of_draws_of_k_with_a_right_one():
    flags = {"a": [True, False, False, True], "b": [False] * 4}
    for k in (1, 2, 4):
        by_hand = [any(draw) for draw in combinations(flags["a"], k)]
        assert measure.pass_at(flags, k)["value"] == pytest.approx(sum(by_hand) / len(by_hand) / 2)
    with pytest.raises(ValueError, match="pass@5 takes 5 samples of each question, 'a' has 4"):
        measure.pass_at(flags, 5)


def test_the_drift_is_the_divergence_of_the_model_from_its_reference():
    ours, theirs = random_model(TOKENIZER, 1), random_model(TOKENIZER, 2)
    rows = [([5, 6, 7, 8], [-100, -100, 7, 8]), ([9, 10, 11], [-100, 10, 11])]
    p, q = (probability.next_token_logits(m, rows).double().log_softmax(-1) for m in (ours, theirs))
    by_hand = float((p.exp() * (p - q)).sum() / len(p))
    assert measure.drift(ours, theirs, rows)["value"] == pytest.approx(by_hand, rel=1e-4)
    assert abs(measure.drift(ours, ours, rows)["value"]) < 1e-9


def test_the_key_reads_what_it_was_trained_to_read_and_its_errors_are_counted():
    table = {row["said"]: row for row in rewards.key_errors(RECORDS)}
    assert table["as trained"]["right called wrong"]["value"] == table["as trained"]["wrong called right"]["value"] == 0
    assert all(row["wrong called right"]["n"] == len(RECORDS) for row in table.values())


def test_best_of_k_learns_from_right_samples_only(tmp_path, monkeypatch):
    said = {"q0": ["Answer: B", "Answer: A"], "q1": ["Answer: A"]}
    answers = {q: [{"id": q, "text": t, "finish": "stop", "tokens": 4} for t in texts] for q, texts in said.items()}
    made = arms(tmp_path)
    monkeypatch.setattr(made, "_drawn", lambda model, name: answers)
    assert [(r["id"], r["output"]) for r in made.best(None, "best")] == [("q0", "Answer: A")]
    answers.pop("q0")
    with pytest.raises(ValueError, match="none of the samples is right"):
        made.best(None, "best")


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ({"method": "ppo"}, "method should be one of sft, best_of_k, dpo, rloo, grpo, found 'ppo'"),
        ({"method": "dpo"}, "trains by dpo and needs 'pairs'"),
        ({"method": "grpo", "beta": 0.1}, "trains by grpo and needs 'reward'"),
        ({"method": "dpo", "pairs": ["decision"], "betta": 1}, "nearest valid name is 'beta'"),
        ({"method": "rloo", "reward": "kay"}, "nearest valid name is 'key'"),
        ({"method": "dpo", "pairs": ["decision"], "scheme": "q8_0"}, "scheme should be.*none.*found 'q8_0'"),
        ({"method": "rloo", "reward": "key", "output_dir": "x"}, "unknown key 'output_dir'"),
    ],
)
def test_an_arm_that_cannot_be_trained_is_refused_with_the_recipe(arm, message):
    with pytest.raises(ValueError, match=message):
        recipe.load("tiny", {"preference.arms": {"new": arm}})


def test_a_file_of_other_weights_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(training.gguf, "dequantize", lambda file: [("a", torch.ones(2).numpy())])
    with pytest.raises(ValueError, match="1 of 1 tensors of f.gguf are not those that were trained"):
        training.refuse_other(tmp_path / "f.gguf", {"a": "other"})


@pytest.mark.parametrize(
    "rows", [None, [{"prompt": f"Why {n}?", "chosen": "Rest.", "rejected": "Run."} for n in range(40)]]
)
def test_pairs_are_read_once_and_every_row_is_accounted_for(tmp_path, rows):
    made, entry = arms(tmp_path), {"name": "clinic", "pairs": 4, "axes": ["decision", "escalation"]}
    made.cfg.sft["max_length"], made.cfg.data = 2048, {"drop_overlaps": ["exact"], "banned": []}
    if rows:
        (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
        entry = {"name": "own", "path": str(tmp_path / "mine.jsonl"), "licence": "CC0"}
    made.cfg.preference["data"] = [entry]
    question = RECORDS[0] | {"instruction": "Why 3?", "options": [], "letter": None}
    train, test, (row,) = material.load(made.cfg, TOKENIZER, [question], lambda name: ROOT / name)
    counts = {key: value for key, value in row.items() if key not in ("source", "licence")}
    assert (counts["kept to train"], counts["kept to test"]) == (len(train), len(test)) and test
    assert sum(counts.values()) == (40 if rows else 2 * (4 + 20))
    assert counts.get("asks a test question", 0) == (1 if rows else 0)
    assert not {p["question"] for p in train} & {p["question"] for p in test}


def test_the_commented_sections_of_the_large_recipes_are_valid():
    found = 0
    for path in (ROOT / "params").glob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        if "# preference:" in text:
            section = text[text.index("# preference:") :].replace("\n# ", "\n")[2:]
            recipe.load(path.stem, {"preference": yaml.safe_load(section)["preference"]})
            found += 1
    assert found == 8


def test_a_recipe_without_the_section_leaves_the_chapter_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OUTPUTS", str(tmp_path))
    assert execute.main(["07_preference", "--recipe", "tiny", "--set", "preference=null"]) == 0
    assert "left out, the recipe has no section preference" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_samples_keep_their_question_and_are_as_many_as_asked(tmp_path):
    made = arms(tmp_path)
    stage = SimpleNamespace(dir=tmp_path, recipe=made.cfg, progress=lambda *_: None)
    drawn = measure.samples(stage, "sft", random_model(TOKENIZER, 1), TOKENIZER, RECORDS[:2], 3)
    assert Counter(a["id"] for answers in drawn.values() for a in answers) == {"q0": 3, "q1": 3}
    assert len({a["text"] for a in drawn["q0"]}) > 1
    rows = measure.conversations(drawn, RECORDS[:2], TOKENIZER, made.cfg)
    stops = generate.stop_ids(random_model(TOKENIZER, 1), TOKENIZER)
    assert all(labels.count(-100) < len(ids) and not set(labels[-1:]) & stops for ids, labels in rows)


def test_the_curve_of_an_arm_holds_what_was_rewarded_and_what_was_right():
    log = [
        {"step": 1, "kl": 0.0, "rewards/format/mean": 0.5, "rewards/key/mean": 0.4, "num_tokens": 100.0},
        {"step": 2, "kl": 0.04, "rewards/format/mean": 0.9, "rewards/key/mean": 0.2, "num_tokens": 250.0},
        {"train_loss": 0.1},
    ]
    points = measure.curve(log, "format")
    assert [(p["kl"], p["proxy"], p["gold"]) for p in points] == [(0.0, 0.5, 0.4), (0.04, 0.9, 0.2)]
    assert measure.curve(log, None) == [] and measure.tokens_seen(log) == 250 and measure.tokens_seen([]) == 0
    dots = leash.drift({"format": points, "key": [p | {"proxy": p["gold"]} for p in points]}).axes
    assert [len(ax.collections) for ax in dots] == [2, 1]
    assert dots[0].collections[0].get_offsets().tolist() == [[0.0, 0.5], [0.2, 0.9]]


def test_the_sentences_say_which_side_an_interval_lies_on():
    share = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10}
    rows = [{"arm": name, "pass@1": share, "pass@8": share} for name in ("sft", "up", "level")]
    rows[1] = rows[1] | {"pass@1": share | {"value": 0.7}} | dict.fromkeys(measure.SCREENS, share)
    moved = {"up": {"sft": {"value": 0.1, "low": 0.02, "high": 0.2, "n": 10}}}
    moved |= {"level": {"sft": {"value": 0.1, "low": -0.02, "high": 0.2, "n": 10}}, "sft": {}}
    said = " ".join(measure.in_words(rows, moved, 8))
    assert "up is above sft: 10.0 %" in said and "level is not told apart from sft" in said
    assert "It misses 50.0 %" in said and "Its pass@1 moved by +20.0 points and its pass@8 by +0.0." in said
