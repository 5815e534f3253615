"""Chapter 7 in the plan, by hand and from its notebook; keys and values against transformers' own cache; the table."""

import json
import re

import pytest
import torch
from transformers import DynamicCache, Gemma3TextConfig, GptOssConfig, Qwen3Config

from lib.dataset import clinic
from lib.model import shapes
from lib.pipeline import recipe
from lib.pipeline.files import ROOT
from lib.plan import budget, fit, memory, preference, table
from lib.preference import clinic_pairs, rewards

ASSUMED = budget.load()
H100 = ASSUMED["gpus"]["h100"]
ARMS = {
    "longer": {"method": "sft", "max_steps": 10, "per_device_train_batch_size": 4},
    "dpo": {"method": "dpo", "pairs": ["ultramedical"], "beta": 0.1, "per_device_train_batch_size": 2,
            "num_train_epochs": 1, "gradient_accumulation_steps": 4, "gradient_checkpointing": False},
    "rloo": {"method": "rloo", "reward": "key", "beta": 0.03, "num_generations": 8, "per_device_train_batch_size": 8,
             "gradient_accumulation_steps": 16, "max_steps": 200, "gradient_checkpointing": False,
             "save_strategy": "no"},
}  # fmt: skip


def sections(**changed):
    chosen = {"data": [{"name": "ultramedical"}], "reward": {"max_steps": 100, "gradient_checkpointing": False},
              "arms": ARMS} | changed  # fmt: skip
    return fit.on(recipe.load("qwen3_8b", {"preference": chosen}).sections(), H100)


@pytest.mark.parametrize(
    "shape",
    [
        Qwen3Config(num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=2, head_dim=16, hidden_size=64),
        GptOssConfig(num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=2, head_dim=16, sliding_window=12),
        Gemma3TextConfig(num_hidden_layers=7, num_key_value_heads=1, head_dim=8, sliding_window=9),
    ],
    ids=lambda shape: shape.model_type,
)
def test_keys_and_values_are_those_that_transformers_keeps(shape):
    cache, step = DynamicCache(config=shape), (2, shape.num_key_value_heads, 20, shape.head_dim)
    for length in (20, *10 * [1]):  # a prompt, and ten tokens
        for layer in range(shape.num_hidden_layers):
            cache.update(*2 * [torch.zeros(*step[:2], length, step[3])], layer)
    held = sum(4 * (layer.keys.numel() + layer.values.numel()) for layer in cache.layers)
    spared = sum(kind == "sliding_attention" for kind in shape.layer_types)  # such a layer keeps its window less one
    token = 2 * 4 * shape.num_key_value_heads * shape.head_dim
    assert 2 * (memory.cached(shape, torch.float32, 30) - spared * token) == held


def test_pairs_and_answers_of_the_default_recipe_are_those_that_the_chapter_makes():
    tiny = recipe.load("tiny").sections()
    axes, held = preference.pairs(tiny, ASSUMED)
    made = {part: len(clinic_pairs.pairs(list(clinic_pairs.AXES), size, 42, part, clinic.load()))
            for part, size in (("train", 240), ("test", 60))}  # fmt: skip
    assert axes.total() == made["train"] == 5 * 240 and held == made["test"] == 5 * 60
    flags = len(clinic_pairs.escalation_questions())
    assert preference.answers(tiny) == (4 * (240 + flags + 8 * 40), 4)
    cells = json.loads((ROOT / "notebooks/07_preference.ipynb").read_text())["cells"]
    text = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    found = [text.count(what) for what in ("generate.ask(", "measure.samples(", "measured(", "arm | measured(")]
    assert found == [2, 1, 3, 1]  # measured: its definition, the start, and every arm


def test_every_seed_and_what_an_arm_draws_to_learn_from_is_counted():
    own = sections(seeds=[1], arms={"dpo": ARMS["dpo"] | {"pairs": ["samples", "reference"]}}, learn_from=50, samples=4)
    assert preference.answers(own) == (3 * (200 + 4 * 60) + 2 * 50 * 4, 3)
    assert preference.examples(own, own["preference"]["arms"]["dpo"], ASSUMED) == 2 * 50


def test_hours_of_the_arms_and_of_the_reward_model_by_hand():
    cfg, shape = sections(), shapes.config("Qwen3-8B")
    assert budget.counted({"name": "ultramedical"}, ASSUMED) == 109_400
    adapter, passed = memory.counted(cfg, shape)["adapter"], 8_190_735_360 - 151_936 * 4096
    row, attention = 700, 4 * 36 * 32 * 128
    number, hours = preference.arm_hours(cfg, shape, H100, ASSUMED, ARMS["dpo"])
    assert number == 10_940 == 87_520 // 8  # a fifth is held out
    flops = (
        number * 8 * 2 * row * (6 * adapter + 4 * passed + 3 * attention * row / 2 + 2 * passed)
    )  # and the reference
    assert hours == pytest.approx(flops / (989e12 * 0.20) / 3600)
    number, hours = preference.arm_hours(cfg, shape, H100, ASSUMED, ARMS["rloo"])
    tokens = 300 + 2048
    flops = 200 * 128 * tokens * (6 * adapter + 4 * passed + 3 * attention * tokens / 2 + 2 * 2 * passed)
    reads = 200 * 2048 * sum(memory.weights(cfg, shape).values())  # all answers of a step are drawn together
    assert number == 200 and hours == pytest.approx((flops / (989e12 * 0.20) + reads / (3350e9 * 0.30)) / 3600)
    unleashed = ARMS["rloo"] | {"beta": 0.0}  # its divergence is logged, so the reference is asked all the same
    assert preference.arm_hours(cfg, shape, H100, ASSUMED, unleashed) == (number, hours)
    number, hours = preference.reward_hours(cfg, shape, H100, ASSUMED)
    read = 2 * 21_880 * (1 + len(rewards.SPOILT)) * 2 * passed  # held-out pairs, as they are and spoilt
    flops = row * (100 * 8 * 2 * (6 * adapter + 4 * passed + 3 * attention * row / 2) + read)
    assert number == 100 and hours == pytest.approx(flops / (989e12 * 0.30) / 3600)
    _, hours = preference.reward_hours(cfg | {"lora": None}, shape, H100, ASSUMED)  # whole, in float32
    flops = row * (100 * 8 * 2 * (6 * passed + 3 * attention * row / 2) + read)
    assert hours == pytest.approx(flops / (67e12 * 0.30) / 3600)


def test_memory_and_disk_of_chapter_7_by_hand():
    cfg, shape, total = sections(scheme="q4_0"), shapes.config("Qwen3-8B"), 8_190_735_360
    adapter = memory.counted(cfg, shape)["adapter"]
    found = preference.memory_phases(cfg, shape, H100, ASSUMED)
    assert list(found) == ["reward model", "largest arm", "answers"]
    parts = ("weights", "adapter", "gradients", "optimizer")
    assert [found["reward model"][part] for part in parts] == [2 * total, 4 * adapter, 4 * adapter, 8 * adapter]
    whole = preference.memory_phases(cfg | {"lora": None}, shape, H100, ASSUMED)["reward model"]
    assert [whole[part] for part in parts] == [4 * total, 0, 4 * total, 8 * total]
    assert found["largest arm"]["rounded weights"] == found["largest arm"]["chapter 3's model"] == 2 * total
    judged = ARMS | {"judged": ARMS["rloo"] | {"reward": "model"}}
    assert preference.memory_phases(sections(arms=judged), shape, H100, ASSUMED)["answers"]["reward model"] == 2 * total
    written = preference.disk(cfg, shape, ASSUMED)
    assert written["GGUF files of chapter 7"] == 3 * int(4.5 * total / 8)
    assert written["checkpoints of chapter 7"] == 12 * adapter * (1 + 22)  # longer once, DPO every 500 of 10,940 steps


def committed():
    return table.PAGE.read_text(encoding="utf-8").partition(table.START)[2].partition(table.END)[0]


def test_a_row_of_the_committed_table_is_what_the_code_gives():
    row, changes = table.lines("llama32_1b_reasonmed", ASSUMED)
    assert row in committed().splitlines() and all(line in committed().splitlines() for line in changes)
    assert re.findall(r"^\| `(\w+)`", committed(), re.MULTILINE) == table.names()


@pytest.mark.slow
def test_the_committed_table_is_what_the_code_gives():
    assert committed().strip() == table.table(ASSUMED).strip()


def test_what_the_table_tells_to_set_loads():
    told = re.findall(r"^- `(\w+)` on .*: `(.+)`$", committed(), re.MULTILINE)
    assert told
    for name, words in told:
        recipe.load(name, recipe.parse_set(words))


def test_the_front_page_has_the_tables_hours_and_dollars():
    head, _, *rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in committed().splitlines() if "|" in line
    ]
    planned = {row[0].strip("`"): dict(zip(head, row, strict=True)) for row in rows}
    text, found = (ROOT / "README.md").read_text(encoding="utf-8"), 0
    for name, gpu, hours, usd in re.findall(
        r"^\| `(\w+)` \|[^|]+\| ([^|]+) \| ([^|]+) \| ([^|]+) \|", text, re.MULTILINE
    ):
        if gpu != "none":
            assert planned[name][gpu.removesuffix(" GB")].rstrip("*") == f"{hours} h, {usd} USD", name
            found += 1
    assert found == len(planned) - 1  # of gemma3_270m the front page names no GPU
