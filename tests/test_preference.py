"""Chapter 7's trainers, rewards and measures, on a tiny model with a trained adapter."""

import copy
import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from itertools import combinations
from types import SimpleNamespace

import pytest
import torch
import yaml
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from test_merging import adapted, bases
from tiny_qwen import NF4, byte_tokenizer, random_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainerCallback, TrainerControl, TrainerState

from lib import execute
from lib.evaluation import generate, probability
from lib.figures import leash
from lib.judge import protocol
from lib.pipeline import ranks, recipe, run
from lib.pipeline.files import ROOT
from lib.preference import material, measure, pairs, rewards, training
from lib.qat import rounding
from lib.sft import checkpoint

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


SAMPLED = {"method": "rloo", "reward": "format", "num_generations": 2, **COMMON}


def order(ids, *_):
    return [float(n) for n in range(len(ids))]


def model(trained=True, base=None):
    """A random Qwen3 with an adapter that is not zero, as after chapter 3."""
    base = base or random_model(TOKENIZER, 1)
    made = get_peft_model(base, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in made.named_parameters():
        if trained and "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return made


def arms(tmp_path, rows=None, scored=None, **preference):
    cfg = SimpleNamespace(
        chat={"format": "instruction", "date": None, "reasoning_effort": None, "max_new_tokens": 8, "batch_size": 8,
              "generator": "transformers"},
        sft={"max_length": 128}, run={"seed": 1}, model={"dtype": "float32"}, lora=None,
        preference={"kl_limit": 1.0, "samples": 2, "learn_from": 4, "reward": {}} | preference,
    )  # fmt: skip
    stage = SimpleNamespace(dir=tmp_path, recipe=cfg, headless=True, progress=None, resume_key=lambda: "key")
    kept = [
        {"id": "p", "axis": "decision", "source": "own", "question": question, "messages": [],
         "chosen": {"reasoning": "", "output": "Rest."}, "rejected": {"reasoning": "", "output": "Surgery now."}}
        for question in ("Why?", "Why, if rest is rest?")
    ]  # fmt: skip
    rows = rows or [pairs.tokens(pair, TOKENIZER, cfg) for pair in kept]
    asked = material.prompts(RECORDS, TOKENIZER, cfg)
    return material.Material(
        cfg, stage, TOKENIZER, RECORDS, kept, rows, asked, scored or rewards.scored(RECORDS, "instruction", 8)
    )


def dpo_by_hand(trainer, batch):
    """(TRL's loss, the loss by hand, log-probabilities of the model, of the reference)."""
    with torch.no_grad():
        loss = float(trainer.compute_loss(trainer.model, batch))
        now, then = (training.log_probabilities(trainer.model, batch, name) for name in ("default", "ref"))
        good, bad = (now - then).chunk(2)
        return loss, float(-torch.nn.functional.logsigmoid(trainer.beta * (good - bad)).mean()), now, then


def test_with_several_ranks_the_reference_is_computed_in_every_step(tmp_path, monkeypatch, capsys):
    """TRL keeps the log-probabilities of rows in memory in a temporary file of one process: the others died of it."""
    made, arm = arms(tmp_path), {"method": "dpo", "precompute_ref_log_probs": True, **COMMON}
    assert training.arguments(made.cfg, made.stage, arm, "dpo", 1).precompute_ref_log_probs
    monkeypatch.setattr(ranks, "world", lambda: 2)
    assert not training.arguments(made.cfg, made.stage, arm, "dpo", 1).precompute_ref_log_probs
    assert "precompute_ref_log_probs" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["plain", "rounded", "rounded, precomputed", "experts", "nf4"])
def test_at_step_zero_the_loss_is_log_two_and_the_reference_is_the_adapter_at_its_start(tmp_path, small_base, kind):
    if kind == "experts":
        tuned = adapted(tmp_path / "base", bases(kind, TOKENIZER, tmp_path / "base"), torch.float32)
    elif kind == "nf4":  # whose adapter TRL casts to bfloat16, and not the reference
        four = BitsAndBytesConfig(**NF4, bnb_4bit_compute_dtype=torch.float32)
        given = {"quantization_config": four, "dtype": torch.float32, "trust_remote_code": False}
        tuned = model(base=AutoModelForCausalLM.from_pretrained(small_base, **given))
    else:
        tuned = model()
    rounded = kind.startswith("rounded")
    if rounded:
        types = {name: "q4_0" for name in rounding.base_parameters(tuned) if "proj" in name}
        rounding.prepare(tuned, types)
    arm = {"method": "dpo", "pairs": ["decision"], "precompute_ref_log_probs": "precomputed" in kind, **COMMON}
    trainer = arms(tmp_path).trainer(tuned, arm, "dpo", 1)
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    assert ("ref_chosen_logps" in batch) == ("precomputed" in kind)
    loss, by_hand, now, then = dpo_by_hand(trainer, batch)
    assert loss == pytest.approx(math.log(2), abs=1e-6) and by_hand == pytest.approx(math.log(2), abs=1e-6)
    torch.testing.assert_close(now, then, atol=1e-6, rtol=0)
    trainer.train()
    loss, by_hand, later, still = dpo_by_hand(trainer, batch)
    assert torch.equal(then, still) and (now - later).abs().max() > 1e-3
    assert loss == pytest.approx(by_hand, rel=1e-5) and abs(loss - math.log(2)) > 1e-3
    hashes = rounding.fingerprints(training.alone(tuned)) if rounded else {}
    rounding.strip(tuned)
    assert {p.dtype for name, p in tuned.named_parameters() if "lora" in name} == {torch.float32}
    if rounded:
        merged = tuned.merge_and_unload().to(torch.bfloat16)
        assert rounding.fingerprints(merged, types) == hashes


def test_advantages_and_divergence_of_rloo_are_those_by_hand(tmp_path):
    made, seen = arms(tmp_path, scored={"format": order, "key": order}), []
    more = {"beta": 0.5, "max_steps": 2, "per_device_train_batch_size": 4}
    trainer = made.trainer(model(), SAMPLED | more, "rloo", 1)
    real = trainer._generate_and_score_completions

    def kept(inputs):
        found = real(inputs)
        prompt, said = ([found[f"{part}_{what}"] for what in ("ids", "mask")] for part in ("prompt", "completion"))
        ids, mask = (torch.cat(two, 1) for two in zip(prompt, said, strict=True))
        batch = {"input_ids": ids, "attention_mask": mask}
        batch["completion_mask"] = torch.cat([torch.zeros_like(prompt[1]), said[1]], 1)
        with torch.no_grad():
            now, then = (training.log_probabilities(trainer.model, batch, name) for name in ("default", "ref"))
        seen.append((found["advantages"], now - then, float(said[1].sum())))
        return found

    trainer._generate_and_score_completions = kept
    log = made.train(trainer, "rloo")
    for (advantages, ratio, tokens), entry in zip(seen, log, strict=False):
        worth = (torch.tensor(order(range(4))) - 0.5 * ratio).view(2, 2)
        others = (worth.sum(1, keepdim=True) - worth) / (2 - 1)
        torch.testing.assert_close(advantages, (worth - others).flatten(), atol=1e-5, rtol=1e-5)
        assert entry["kl"] == pytest.approx(float(ratio.sum()) / tokens, abs=1e-6)
    assert len(seen) == 2 and abs(log[1]["kl"]) > 1e-3


def test_while_it_learns_it_draws_from_the_rounded_model(tmp_path):
    seen, tuned = {}, model()
    plain = copy.deepcopy(tuned).merge_and_unload().to(torch.bfloat16)
    types = {name: "q4_0" for name in rounding.base_parameters(tuned) if "proj" in name}
    rounded = rounding.quantize_model(copy.deepcopy(plain), types)
    rounding.prepare(tuned, types)

    def score(ids, answers, completion_ids):
        seen.update(zip(ids, completion_ids, strict=True))
        return order(ids)

    made = arms(tmp_path, scored={"format": score, "key": order})
    greedy = {"generation_kwargs": {"do_sample": False}, "per_device_train_batch_size": 8}
    made.trainer(tuned, SAMPLED | greedy, "rloo", 1).train()
    wanted = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": TOKENIZER.pad_token_id}
    said = []
    for one in (rounded, plain):
        asked = {name: TOKENIZER(made.asked[name], add_special_tokens=False, return_tensors="pt") for name in seen}
        drawn = {
            n: one.float().generate(**a, **wanted)[0, a["input_ids"].shape[1] :].tolist() for n, a in asked.items()
        }
        said.append(drawn)
    assert len(seen) == 4 and seen == said[0] != said[1]


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
    log = made.train(trainer, "rloo")
    assert len(seen) == 2 and all(0 < len(ids) <= 8 for _, ids in seen)
    assert made.generated == {"rloo": sum(len(ids) for _, ids in seen)} and made.generated[
        "rloo"
    ] < measure.tokens_seen(log)


@pytest.mark.parametrize("name", ["loss", "rewards/key/mean"])
def test_a_loss_or_reward_that_is_not_finite_ends_the_run(name):
    with pytest.raises(ValueError, match=f"{name} is nan at step 3: lower preference's learning_rate"):
        training.Leash().on_log(None, TrainerState(global_step=3), TrainerControl(), logs={name: math.nan})


def test_a_loss_that_is_not_a_number_is_seen_through_the_trainer(tmp_path):
    tuned = model()
    next(p for name, p in tuned.named_parameters() if "lora_B" in name).data.fill_(math.nan)
    with pytest.raises(ValueError, match="loss is nan at step 1"):
        arms(tmp_path).trainer(tuned, {"method": "dpo", "pairs": ["decision"], **COMMON}, "dpo", 1).train()


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


DYING = """
import os, pathlib, signal, sys
import transformers, test_preference
real, calls = transformers.Trainer._save_optimizer_and_scheduler, []

def save(self, *args):
    calls.append(1)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, *args)

transformers.Trainer._save_optimizer_and_scheduler = save
test_preference.learnt(pathlib.Path(sys.argv[1]))
"""


def learnt(folder):
    """(what an arm of DPO has learnt in four steps, the checkpoint that it began at)."""
    torch.manual_seed(0)
    tuned, made = model(), arms(folder)
    arm = {"method": "dpo", "pairs": ["decision"], **COMMON, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    trainer = made.trainer(tuned, arm | {"per_device_train_batch_size": 1}, "dpo", 1)
    begun = checkpoint.newest(trainer.args.output_dir, made._key("dpo"))
    made.train(trainer, "dpo")
    return [p.detach() for p in tuned.parameters() if p.requires_grad], begun


def test_an_arm_of_pairs_that_was_killed_ends_in_the_adapter_of_one_that_was_not(tmp_path):
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", DYING, str(tmp_path / "killed")]
    assert subprocess.run(command, env=os.environ | {"PYTHONPATH": path}).returncode == -signal.SIGKILL
    expected, _ = learnt(tmp_path / "whole")
    found, begun = learnt(tmp_path / "killed")
    assert begun.endswith("checkpoint-2") and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_an_arm_that_draws_starts_over_and_says_so(tmp_path, capsys):
    arm = SAMPLED | {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    for _ in range(2):
        made = arms(tmp_path, scored={"format": order, "key": order})
        log = made.train(made.trainer(model(), arm, "rloo", 1), "rloo")
        assert [entry["step"] for entry in log if "kl" in entry] == [1, 2]
        assert "rloo draws its answers, and they are not kept: it starts from its first step" in capsys.readouterr().out
    assert (tmp_path / "checkpoints" / "rloo" / "checkpoint-2").exists()


def test_a_reward_that_raises_ends_the_run_with_its_own_words(tmp_path):
    def score(*_):
        raise OSError("the reward's file is gone")

    arm = {"method": "rloo", "reward": "key", "num_generations": 2, **COMMON}
    with pytest.raises(OSError, match="the reward's file is gone"):
        arms(tmp_path, scored={"key": score}).trainer(model(), arm, "rloo", 1).train()


def test_an_arm_without_pairs_says_which_axes_there_are(tmp_path):
    with pytest.raises(ValueError, match=r"is \['caution'\], of which no pair is left; axes: decision"):
        arms(tmp_path).preferred(None, {"pairs": ["caution"]}, "dpo")


def test_the_judge_of_an_arm_that_has_not_run_says_which_chapter_to_run(tmp_path):
    stage = SimpleNamespace(dir=tmp_path / "06_judge", name="06_judge", recipe=recipe.load("tiny"))
    stage.input = lambda name: run.Stage.input(stage, name)
    with pytest.raises(ValueError, match="06_judge needs 07_preference, .*: make 07_preference RECIPE=tiny"):
        protocol.gather(stage, ["dpo"])


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


def test_errors_of_the_key_are_counted_for_each_wording():
    """By hand. Of the third question the options' texts are letters, which are read before the letter of an option: a
    wording of the letter alone then names the other one. What is told after others is never read.
    """
    asked = [(["gout", "flu"], "A"), (["gout", "flu", "a cold"], "B"), (["B", "A"], "A")]
    table = rewards.key_errors([{"options": options, "letter": letter} for options, letter in asked])
    columns = ("right called wrong", "wrong called right")
    found = {row["said"]: tuple(round(3 * row[c]["value"]) for c in columns) for row in table}
    bare = dict.fromkeys(("as trained", "a sentence", "in brackets", "the option alone"), (1, 1))
    assert found == bare | {"letter and text": (0, 0), "told after others": (3, 0)}
    told = rewards.WORDINGS["told after others"]({"options": ["gout", "flu"]}, 0)
    assert told == "It is not B, as the findings speak against it. It is A."


def test_probes_count_how_often_the_worse_answer_gets_the_higher_reward(tmp_path, monkeypatch):
    """A reward of one point for each "rest", which the second question has twice, and the other answer three times."""
    decoded = TOKENIZER.batch_decode
    monkeypatch.setattr(rewards, "values", lambda _, rows: [text.lower().count("rest") for text in decoded(rows)])
    made = arms(tmp_path)
    found = rewards.probes(None, made.kept, [{"output": "Rest, rest, rest."}], TOKENIZER, made.cfg)
    assert {name: (share["value"], share["n"]) for name, share in found.items()} == {
        "said twice": (1, 2), "form without content": (0, 2), "empty": (0, 2), "the question again": (0.5, 2),
        "an answer to another question": (1, 2),
    }  # fmt: skip


def test_best_of_k_learns_from_right_samples_only(tmp_path, monkeypatch):
    said = {"q0": ["Answer: B", "Answer: A"], "q1": ["Answer: A"]}
    answers = {q: [{"id": q, "text": t, "finish": "stop", "tokens": 4} for t in texts] for q, texts in said.items()}
    made = arms(tmp_path)
    monkeypatch.setattr(measure, "samples", lambda *_: answers)
    assert [(r["id"], r["output"]) for r in made.best(None, "best")] == [("q0", "Answer: A")]
    assert made.generated == {"best": 3 * 4}
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
        ({"method": "dpo", "pairs": ["decision"], "scheme": "q8_0"}, "new.scheme: found 'q8_0'.*valid are none"),
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
    train, test, (row,), leaks = material.load(made.cfg, TOKENIZER, [question], lambda name: ROOT / name)
    counts = {key: value for key, value in row.items() if key not in ("source", "licence")}
    assert (counts["kept to train"], counts["kept to test"]) == (len(train), len(test)) and test
    assert sum(counts.values()) == (40 if rows else 2 * (4 + 20))
    assert counts.get("asks a test question", 0) == (1 if rows else 0)
    assert [leak["part"] for leak in leaks] == ["train", "test"] and all(leak["against"] == "test" for leak in leaks)
    found = [sum(leak[name] for leak in leaks) for name in ("exact", "near", "gram_13", "removed")]
    assert found == ([1, 1, 0, 1] if rows else [0, 0, 0, 0])
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


def one_arm(arm, seed, correct, flags=(), method="dpo", drift=0.1, tokens=100):
    scored, known = [{"correct": c} for c in correct], {"arm": arm, "seed": seed, "method": method}
    return known | {"scored": scored, "flags": list(flags), "drift": {"value": drift}, "tokens": tokens}


def test_arms_of_several_seeds_are_compared_with_the_control_of_their_own_seed():
    """The mean of the differences is by hand; one seed alone is no table."""
    flag = {"side": "red_flag", "empty": False, "escalates": False}
    results = {"sft": {"scored": [{"correct": c} for c in (1, 0, 0, 0)], "flags": []}}
    for seed, own in ((1, ""), (2, "-2")):
        results[f"longer{own}"] = one_arm("longer", seed, (1, seed == 2, 0, 0), method="sft")
        told = [flag | {"id": n, "escalates": n < seed} for n in range(4)]
        results[f"dpo{own}"] = one_arm("dpo", seed, (1, 1, seed == 2, 0), told, drift=0.1 * seed, tokens=1000 * seed)
    assert measure.rivals(results, "sft") == {} and measure.rivals(results, "longer-2") == {"sft": "sft"}
    assert measure.rivals(results, "dpo-2") == {"sft": "sft", "longer": "longer-2"}
    control, ours = measure.together(results)
    assert (control["arm"], control["seeds"], ours["seeds"]) == ("longer", 2, 2) and "minus longer" not in control
    assert ours["accuracy"]["value"] == 5 / 8 and ours["minus longer"]["value"] == 2 / 8
    assert ours["minus sft"]["value"] == 3 / 8 and ours["minus sft"]["n"] == 4
    assert ours["minus longer"]["low"] <= 2 / 8 <= ours["minus longer"]["high"]
    missed = ours["missed escalation"]
    assert (missed["low"], missed["value"], missed["high"]) == (0.5, 0.625, 0.75)
    assert ours["KL (nats a token)"]["value"] == pytest.approx(0.15) and ours["tokens"] == "1,500"
    shown = measure.headline([{"arm": "dpo", "accuracy": None}], [control, ours])
    assert [row["label"] for row in shown][2:] == [
        "Accuracy: dpo, 2 seeds", "dpo minus sft, 2 seeds", "dpo minus longer, 2 seeds"]  # fmt: skip
    assert measure.together({"sft": results["sft"], "dpo": results["dpo"]}) == []
    alone = {"arm": "dpo", "accuracy": {"value": 0.5, "low": 0, "high": 1, "n": 2}}
    assert [row["label"] for row in measure.headline([alone], [])] == ["Accuracy: dpo"]


def test_what_an_arm_draws_to_learn_from_counts_as_read_and_follows_its_seed(tmp_path):
    made = arms(tmp_path, scored={"key": lambda ids, said, _: [1.0] * len(said)})
    made.stage.progress = lambda *_: None
    arm = {"method": "best_of_k", **COMMON}
    texts = {}
    for name, seed in (("one", 1), ("two", 2)):
        log = made.train(made.trainer(model(), arm, name, seed), name)
        asked = [len(TOKENIZER(made.asked[q], add_special_tokens=False)["input_ids"]) for q in list(made.asked)[:4]]
        assert made.read[name] == made.generated[name] + 2 * sum(asked) + measure.tokens_seen(log)
        texts[name] = (tmp_path / "cache" / f"samples_to_learn_{name}.jsonl").read_text()
    assert texts["one"] != texts["two"]


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


def test_the_label_of_a_loss_says_what_it_is_a_mean_over_and_what_it_adds_up():
    assert measure.loss_label({"method": "sft"}) == "loss (nats per\ntrained token)"
    assert measure.loss_label({"method": "dpo"}) == "loss: sigmoid (nats a pair)"
    both = {"method": "dpo", "loss_type": ["sigmoid", "sft"]}
    assert measure.loss_label(both | {"loss_weights": [1.0, 0.5]}) == (
        "loss: sigmoid (nats a pair)\n+ 0.5 sft (nats a token)"
    )
    assert measure.loss_label(both) == "loss: sigmoid (nats a pair)\n+ sft (nats a token)"
    assert measure.loss_label({"method": "dpo", "loss_type": "ipo"}) == "loss: ipo (a pair)"


def test_the_sentences_say_which_side_an_arm_is_on_after_the_adjustment():
    share = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10}
    rows = [{"arm": name, "pass@1": share, "pass@8": share} for name in ("sft", "up", "level")]
    rows[1] = rows[1] | {"pass@1": share | {"value": 0.7}} | dict.fromkeys(measure.SCREENS, share)
    alone = {"value": 0.1, "low": 0.02, "high": 0.2, "n": 10}
    moved = {"up": {"sft": alone | {"p": 0.02}}, "level": {"sft": alone | {"p": 0.04}, "up": alone | {"p": 0.03}}}
    moved["sft"] = {}
    said = " ".join(measure.in_words(rows, moved, 8))
    assert "up is not told apart from sft: 10.0 %" in said and "p 0.0600 of 3 comparisons" in said
    moved["up"]["sft"]["p"] = 0.001
    flags = {"arm": "up", "red flags of": "clinic"} | dict.fromkeys(measure.SCREENS, share)
    said = " ".join(measure.in_words(rows, moved, 8, [flags]))
    assert "up is above sft: 10.0 %" in said and "level is not told apart from sft" in said
    assert "It misses 50.0 % (40.0-60.0, n = 10) of the clinic's held-out red flags and sends on 50.0 %" in said
    assert "it does not tell them apart (Fisher's p 1.0000)" in said
    assert "Its pass@1 moved by +20.0 points and its pass@8 by +0.0, on 10 questions." in said
    empty = {"value": None, "low": 0.0, "high": 1.0, "n": 0}
    assert "of their benign twins. Its" in " ".join(
        measure.in_words(rows, moved, 8, [flags | {measure.SCREENS[1]: empty}])
    )
    few = dict.fromkeys(measure.SCREENS, share | {"value": 0.1})  # 9 of 10, 1 of 10
    words = {"arm": "words of the pairs", "red flags of": "hand"} | few
    said = " ".join(measure.in_words(rows, moved, 8, [flags | few, words]))
    assert said.count("it tells them apart (Fisher's p 0.0011)") == 2
    assert "A rule by the words of the pairs misses 10.0 % (40.0-60.0, n = 10) of those written by hand" in said


def test_a_change_has_mcnemars_p():
    ours, theirs = ([{"correct": hit == "1"} for hit in hits] for hits in ("111111", "000000"))
    assert measure.change(ours, theirs)["p"] == 2 / 2**6 and measure.change([{"correct": None}], theirs[:1]) is None
