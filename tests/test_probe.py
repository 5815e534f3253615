"""The probe: it measures real steps, and training after it is training without it."""

import random

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM
from trl import SFTConfig, SFTTrainer

from lib.sft.probe import longest, probe
from tests.families import qwen3


def trainer(folder):
    torch.manual_seed(0)
    tokenizer = qwen3()
    config = Qwen3Config(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=2, head_dim=32)  # fmt: skip
    lora = LoraConfig(r=4, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM")
    rows = [{"input_ids": [5] * n, "labels": [5] * n} for n in (9, 40, 17, 33, 12, 21)]
    args = SFTConfig(output_dir=str(folder), use_cpu=True, bf16=False, max_steps=4, per_device_train_batch_size=2,
                     learning_rate=1e-2, report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True,
                     dataset_kwargs={"skip_prepare_dataset": True})  # fmt: skip
    model = get_peft_model(Qwen3ForCausalLM(config), lora)
    return SFTTrainer(model, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


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
