"""The probe: it measures real steps, and training after it is training without it."""

import random

import torch
from tiny_qwen import tiny_trainer

from lib.sft.probe import longest, probe


def trainer(folder):
    torch.manual_seed(0)
    return tiny_trainer(folder, (9, 40, 17, 33, 12, 21), {"r": 4, "lora_dropout": 0.1})


def state(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def test_the_probe_takes_the_longest_rows(tmp_path):
    batch = longest(trainer(tmp_path))
    assert batch["input_ids"].shape == (2, 40) and (batch["labels"] != -100).sum() == 40 + 33


def test_the_probe_leaves_adapter_dice_and_log_as_they_were(tmp_path):
    made = trainer(tmp_path)
    before, dice = state(made), (torch.get_rng_state(), random.getstate())
    found = probe(made)
    after = state(made)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(dice[0], torch.get_rng_state()) and dice[1] == random.getstate()
    assert all(p.grad is None for p in made.model.parameters()) and made.optimizer is None
    assert found["tokens"] == 80 and found["seconds_per_step"] > 0 and found["peak_bytes"] > 2**20
    plain = trainer(tmp_path)
    for each in (made, plain):
        torch.manual_seed(1)
        each.train()
    after, without = state(made), state(plain)
    assert all(torch.equal(after[name], without[name]) for name in after)
    assert any(not torch.equal(after[name], before[name]) for name in after)
    keys = ("loss", "grad_norm", "num_tokens", "entropy")
    logs = [[{k: e[k] for k in keys if k in e} for e in each.state.log_history] for each in (made, plain)]
    assert logs[0] == logs[1]
