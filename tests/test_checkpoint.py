"""Which checkpoint is resumed: the newest whose manifest, written last, matches key and bytes."""

from types import SimpleNamespace

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tiny_qwen import byte_tokenizer, random_model
from trl import SFTConfig, SFTTrainer

from lib.sft import checkpoint


def saved(folder, step, key="k"):
    path = folder / f"checkpoint-{step}"
    (path / "nested").mkdir(parents=True)
    (path / "weights.bin").write_bytes(bytes([step]))
    (path / "nested" / "state.json").write_text("{}")
    args, state = SimpleNamespace(output_dir=str(folder)), SimpleNamespace(global_step=step)
    checkpoint.Manifests(key).on_save(args, state, None)
    return path


def test_the_newest_verified_one_wins_and_the_rest_is_removed(tmp_path):
    old, good = saved(tmp_path, 5), saved(tmp_path, 10)
    torn = saved(tmp_path, 20)
    (torn / "weights.bin").write_bytes(b"torn")
    half = tmp_path / "checkpoint-30"
    half.mkdir()
    (half / "weights.bin").write_bytes(b"half written, killed before its manifest")
    assert checkpoint.newest(tmp_path, "k") == str(good)
    assert old.exists() and not torn.exists() and not half.exists()


def test_a_checkpoint_of_other_values_is_not_resumed(tmp_path):
    path = saved(tmp_path, 10, key="another learning rate")
    assert checkpoint.newest(tmp_path, "k") is None and not path.exists()


def test_a_file_too_many_or_a_broken_manifest_is_not_trusted(tmp_path):
    extra, broken = saved(tmp_path, 1), saved(tmp_path, 2)
    (extra / "more.bin").write_bytes(b"")
    (broken / checkpoint.MANIFEST).write_text("{")
    assert checkpoint.newest(tmp_path, "k") is None


def test_no_folder_no_checkpoint(tmp_path):
    assert checkpoint.newest(tmp_path / "none", "k") is None


def trainer(folder):
    tokenizer = byte_tokenizer()
    rows = Dataset.from_list([{"input_ids": [5 + n] * n, "labels": [5 + n] * n} for n in range(9, 30)])
    args = SFTConfig(output_dir=str(folder), use_cpu=True, bf16=False, max_steps=4, per_device_train_batch_size=1,
                     learning_rate=1e-2, save_steps=2, logging_steps=1, disable_tqdm=True, report_to="none",
                     dataset_kwargs={"skip_prepare_dataset": True})  # fmt: skip
    model = get_peft_model(random_model(tokenizer, 1), LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    return SFTTrainer(
        model, args, train_dataset=rows, processing_class=tokenizer, callbacks=[checkpoint.Manifests("k")]
    )


def test_a_checkpoint_of_the_last_step_is_the_end_of_training(tmp_path):
    whole, found = trainer(tmp_path), []
    checkpoint.train(whole, None)
    for resume in ("checkpoint-2", "checkpoint-4"):  # of 21 steps in an epoch
        resumed = trainer(tmp_path)
        checkpoint.train(resumed, str(tmp_path / resume))
        assert resumed.state.global_step == 4
        pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        found.append([e["loss"] for e in resumed.state.log_history if "loss" in e])
    assert found == [[e["loss"] for e in whole.state.log_history if "loss" in e]] * 2


def test_training_asks_for_no_walk_over_modules_and_leaves_the_model_as_it_was(tmp_path):
    made, modes = trainer(tmp_path), []
    model = made.model
    model.base_model.model.eval()  # as models.base gives it: PEFT's own module says it trains, its base does not
    inner = model.base_model.model.model.layers[0]
    inner.register_forward_hook(lambda *_: modes.append(inner.training))
    walks, walk = [], type(model).train
    made.args.eval_strategy, made.args.eval_steps, made.eval_dataset = "steps", 2, made.train_dataset
    type(model).train = lambda self, mode=True: walks.append(mode) or walk(self, mode)
    try:
        checkpoint.train(made, None)
    finally:
        del type(model).train
    evaluated = len(made.train_dataset) * 2 // made.args.per_device_eval_batch_size
    assert modes.count(True) == 4 and 0 < modes.count(False) <= evaluated + 2
    assert len(walks) < 8 and made.state.total_flos > 0  # two evaluations, there and back, beside the first
    assert not {"train", "num_parameters", "zero_grad"} & set(vars(model))
