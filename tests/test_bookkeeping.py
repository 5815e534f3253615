"""A lightened trainer computes what an ordinary one does, with fewer walks over the model."""

import torch
from datasets import Dataset
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM, Trainer, TrainingArguments

from lib import bookkeeping

SHAPE = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 1, "head_dim": 8}  # fmt: skip


def trained(folder, change):
    """(weights after six steps with an evaluation between them, logs, times that a module was switched)."""
    torch.manual_seed(0)
    rows = Dataset.from_list([{"input_ids": ids, "labels": ids} for ids in torch.randint(0, 32, (6, 5)).tolist()])
    args = TrainingArguments(output_dir=str(folder), use_cpu=True, max_steps=6, per_device_train_batch_size=1,
                             report_to="none", logging_steps=1, save_strategy="no", eval_strategy="steps", eval_steps=2,
                             disable_tqdm=True, learning_rate=1e-2)  # fmt: skip
    trainer = change(Trainer(Qwen3ForCausalLM(Qwen3Config(**SHAPE)), args, None, rows, rows.select([0])))
    switched, layer = [], trainer.model.model.layers[0]
    layer.train = lambda mode=True: switched.append(mode) or nn.Module.train(layer, mode)
    trainer.train()
    logs = [
        {k: v for k, v in log.items() if "second" not in k and "runtime" not in k} for log in trainer.state.log_history
    ]
    return dict(trainer.model.state_dict()), logs, switched


def test_weights_logs_and_flops_are_the_same_and_modules_are_switched_only_around_an_evaluation(tmp_path):
    weights, logs, often = trained(tmp_path, lambda trainer: trainer)
    lighter, same, seldom = trained(tmp_path, bookkeeping.lighten)
    assert all(torch.equal(weights[name], lighter[name]) for name in weights)
    assert logs == same and logs[-1]["total_flos"] > 0
    assert seldom.count(False) == often.count(False) == 3  # three evaluations
    assert often.count(True) >= 6 > seldom.count(True) >= 2  # at the beginning and after each evaluation but the last
