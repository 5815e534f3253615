"""Chapter 7 in the plan: pairs, reward model, arms and answers, counted from what the chapter itself uses.

The reward model learns by an adapter as large as chapter 3's, on the merged model in 16 bits; whole and in float32
where the recipe has no lora. Every arm begins at the base with chapter 3's adapter, and a copy of it is its reference.
"""

import dataclasses
import math
from collections import Counter

import torch
from trl import RewardConfig

from lib.plan import budget, memory
from lib.preference import clinic_pairs, material, rewards, training

DRAWING = ("rloo", "grpo")


def fields(config, given):
    """The fields of a trainer's Config: the class's defaults, and those given."""
    known = {f.name: f.default for f in dataclasses.fields(config) if f.default is not dataclasses.MISSING}
    return known | {"packing": False} | {key: value for key, value in given.items() if key not in training.OURS}


def pairs(sections, assumed):
    """({axis: pairs to train on}, held-out pairs) of preference.data, before any is left out."""
    axes, held = Counter(), 0
    for entry in sections["preference"]["data"]:
        if entry["name"] == "clinic":
            sizes, named = material.per_axis(entry), entry.get("axes") or list(clinic_pairs.AXES)
            axes.update(dict.fromkeys(named, sizes["train"]))
            held += len(named) * sizes["test"]
        else:
            rows = budget.counted(entry, assumed)
            axes[entry.get("axis") or entry["name"]] += rows - rows // material.HELD_OUT
            held += rows // material.HELD_OUT
    return axes, held


def examples(sections, arm, assumed):
    """What an arm trains on in an epoch: rows, pairs, or answers that it draws."""
    chosen, method = sections["preference"], arm["method"]
    if method == "dpo":
        found = sum(count for axis, count in pairs(sections, assumed)[0].items() if axis in arm["pairs"])
        found += chosen["learn_from"] if "samples" in arm["pairs"] else 0
        return 2 * found if "reference" in arm["pairs"] else found
    if method == "best_of_k":
        return chosen["learn_from"]
    answers = fields(training.CONFIGS[method], arm)["num_generations"] if method in DRAWING else 1
    return budget.rows(sections, assumed) * answers


def steps(given, count):
    """(optimizer steps, examples in one) of a trainer that has `count` examples an epoch."""
    batch = given["per_device_train_batch_size"] * given["gradient_accumulation_steps"]
    if given["max_steps"] > 0:
        return given["max_steps"], batch
    return math.ceil(count * given["num_train_epochs"] / batch), batch


def length(sections, arm, assumed):
    """Tokens of one sequence of an arm: a row, a side of a pair with its prompt, or a prompt and a whole answer."""
    row, prompt = (assumed["lengths"][name] for name in ("row", "prompt"))
    if arm["method"] in DRAWING:
        return prompt + sections["chat"]["max_new_tokens"]
    return min(row, sections["sft"]["max_length"])


def arm_hours(sections, shape, gpu, assumed, arm):
    """(steps, hours) of one arm: forward passes of the reference, and the drawing of answers, included."""
    given = fields(training.CONFIGS[arm["method"]], arm)
    number, batch = steps(given, examples(sections, arm, assumed))
    trained, frozen, job = budget.passed(sections, shape)
    tokens = length(sections, arm, assumed)
    per_token = budget.flops_per_token(trained, frozen, shape, tokens / 2, given["gradient_checkpointing"])
    again = {"dpo": 1, "rloo": 2, "grpo": 1}.get(arm["method"], 0)  # the reference; RLOO asks the model once more too
    sequences = number * batch * (2 if arm["method"] == "dpo" else 1)
    flops = sequences * tokens * (per_token + again * 2 * (frozen or trained))
    hours = flops / (gpu["tflops"] * 1e12 * assumed["utilization"][job]) / 3600
    if arm["method"] in DRAWING:
        drawn = (
            number
            * given["gradient_accumulation_steps"]
            / (given["steps_per_generation"] or given["gradient_accumulation_steps"])
        )
        reads = sum(memory.weights(sections, shape).values())
        hours += budget.reading_hours(drawn * sections["chat"]["max_new_tokens"] * reads, gpu, assumed, "decode")
    return number, hours


def reward_hours(sections, shape, gpu, assumed):
    """(steps, hours) of the reward model: its training, and its marks for held-out pairs and their spoilt forms."""
    given = fields(RewardConfig, sections["preference"]["reward"])
    axes, held = pairs(sections, assumed)
    number, batch = steps(given, axes.total())
    row = min(assumed["lengths"]["row"], sections["sft"]["max_length"])
    trained, frozen, job = budget.passed(_unquantized(sections), shape)
    per_token = budget.flops_per_token(trained, frozen, shape, row / 2, given["gradient_checkpointing"])
    marked = 2 * held * (1 + len(rewards.SPOILT))
    flops = row * (number * batch * 2 * per_token + marked * 2 * (frozen or trained))
    rate = gpu["tflops" if sections["lora"] else "fp32_tflops"]
    return number, flops / (rate * 1e12 * assumed["utilization"][job]) / 3600


def _unquantized(sections):
    """The recipe as the reward model sees it: it begins at the merged model, which is not in 4 bits."""
    whole = {"dtype": "float32"} if not sections["lora"] else {}
    return sections | {"model": sections["model"] | {"quantization": None} | whole}


def answers(sections):
    """(answers drawn in all, models asked): each model is asked the test, red flags, and a few questions often."""
    chosen, data = sections["preference"], sections["data"]
    runs = 1 + len(chosen["seeds"])
    flags = len(clinic_pairs.escalation_questions()) if data["origin"] == "clinic" else 0
    each = data["test_questions"] + flags + chosen["samples"] * min(chosen["questions"], data["test_questions"])
    models = 1 + runs * len(chosen["arms"])
    learning = [a for a in chosen["arms"].values() if a["method"] == "best_of_k" or "samples" in (a.get("pairs") or ())]
    return models * each + runs * len(learning) * chosen["learn_from"] * chosen["samples"], models


def time(sections, shape, gpu, assumed):
    """Rows of chapter 7 in the form of budget.time."""
    chosen = sections["preference"]
    number, hours = reward_hours(sections, shape, gpu, assumed)
    found = [(f"reward model, {number:,} steps", hours)]
    for name, arm in chosen["arms"].items():
        number, hours = arm_hours(sections, shape, gpu, assumed, arm)
        runs = 1 + len(chosen["seeds"])
        found.append((f"arm {name}: {number:,} steps" + (f", {runs} times" if runs > 1 else ""), runs * hours))
    count, models = answers(sections)
    batches = math.ceil(count / sections["chat"]["batch_size"])
    total = sum(memory.counted(sections, shape)["parts"].values())
    read = batches * sections["chat"]["max_new_tokens"] * 2 * total
    found.append((f"{count:,} answers of {models} models", budget.reading_hours(read, gpu, assumed, "decode")))
    return [{"stage": "07_preference", "what": what, "hours": h, "usd": h * gpu["usd_per_hour"]} for what, h in found]


def memory_phases(sections, shape, gpu, assumed):
    """{"reward model", "largest arm", "answers": {part: bytes}}, as memory.memory gives the phases of chapter 3."""
    chosen, counts = sections["preference"], memory.counted(sections, shape)
    total, wide = sum(counts["parts"].values()), memory.dtype(sections).itemsize
    kernels = {"kernels": int(assumed["margins"]["kernels_gib"] * memory.GIB)}
    given = fields(RewardConfig, chosen["reward"]) | {"loss_type": "chunked_nll"}
    merged, trained = _unquantized(sections), counts["adapter"] if sections["lora"] else total
    rows, tokens = 2 * given["per_device_train_batch_size"], min(given["max_length"], sections["sft"]["max_length"])
    size = total * memory.dtype(merged).itemsize
    found = {"reward model": {"weights": size, "gradients": 4 * trained,
             "adapter": 4 * trained if sections["lora"] else 0,
             "optimizer": int(trained * memory.state_bytes(given["optim"], torch.float32)),
             "activations and logits": memory.activations(merged, shape, gpu, given, rows, tokens, True)}}  # fmt: skip
    judged = any(arm.get("reward") == "model" for arm in chosen["arms"].values())
    beside = {"chapter 3's model": total * wide} | ({"reward model": size} if judged else {})
    parts = [_arm(sections, shape, gpu, assumed, arm) for arm in chosen["arms"].values()]
    if parts:
        found["largest arm"] = beside | max(parts, key=lambda part: sum(part.values()))
    asked = memory.answering(sections, shape, gpu, assumed, memory.settings(sections))
    found["answers"] = beside | {"an arm's model": total * wide} | asked
    return {phase: part | kernels for phase, part in found.items()}


def _arm(sections, shape, gpu, assumed, arm):
    """What an arm's training takes beside the models that the chapter keeps."""
    chosen, counts, method = sections["preference"], memory.counted(sections, shape), arm["method"]
    given = fields(training.CONFIGS[method], arm)
    given["loss_type"] = "nll" if method in ("dpo", *DRAWING) else "chunked_nll"
    rows = given["per_device_train_batch_size"] * (2 if method == "dpo" else 1)
    longest = sections["sft"]["max_length"]
    tokens = length(sections, arm, assumed) if method in DRAWING else min(longest, given["max_length"] or longest)
    states = counts["adapter"] * memory.state_bytes(given["optim"], torch.float32)
    found = memory.weights(sections, shape) | {
        "adapter and a copy": 8 * counts["adapter"], "gradients": 4 * counts["adapter"], "optimizer": int(states),
        "activations and logits": memory.activations(sections, shape, gpu, given, rows, tokens, True),
    }  # fmt: skip
    on_grid = chosen["scheme"] and arm.get("scheme") != "none"
    return found | (memory.rounding(sections, shape) if on_grid else {})


def disk(sections, shape, assumed):
    """{what: bytes} that chapter 7 adds to budget.disk."""
    chosen, counts = sections["preference"], memory.counted(sections, shape)
    total, runs, saved = sum(counts["parts"].values()), 1 + len(chosen["seeds"]), 0
    for arm in chosen["arms"].values():
        given = fields(training.CONFIGS[arm["method"]], arm)
        made = math.ceil(steps(given, examples(sections, arm, assumed))[0] / given["save_steps"])
        saved += 0 if given["save_strategy"] == "no" else min(made, given["save_total_limit"] or made)
    arms, which = runs * len(chosen["arms"]), 0 if counts["whole"] else 1
    file = total * assumed["disk"][chosen["scheme"]][which] / 8 if chosen["scheme"] else 0
    found = {
        "checkpoints of chapter 7": 12 * counts["adapter"] * runs * saved,
        "adapters of chapter 7, also as GGUF": 8 * counts["adapter"] * arms,
        "GGUF files of chapter 7": int(file * arms),
        "chapter 7: an arm merged, and as GGUF": 2 * total * (2 if chosen["scheme"] else 1),
    }
    return {what: size for what, size in found.items() if size}
