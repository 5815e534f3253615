"""Packing is exact where attention stops at the borders, and is refused where it does not."""

import pytest
import torch
from transformers import Gemma3TextConfig, GptOssConfig, LlamaConfig, Qwen3Config

from lib.chat import encoding, packing


@pytest.mark.parametrize("config", [LlamaConfig(), Qwen3Config()], ids=["llama", "qwen3"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_llama_and_qwen3_are_exact(config, attention):
    found = packing.exact(config, attention)
    assert found["exact"] and found["difference"] <= 1e-5 and found["architecture"] == config.model_type


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_sliding_window_is_measured_where_it_cuts(attention):
    """Gemma 3 has one in five layers of six: the small model has both kinds, and a window inside a conversation."""
    config = Gemma3TextConfig(sliding_window=512)
    model = packing.small(config, attention)
    assert model.config.layer_types == ["sliding_attention", "full_attention"]
    ids = torch.randint(3, 64, (1, max(packing.LENGTHS)), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        cut = packing._losses(model, ids)
        model.config.sliding_window = 512
        whole = packing._losses(model, ids)
    assert (cut - whole)[: packing.WINDOW - 1].abs().max() < 1e-5 < 1e-3 < (cut - whole).abs().max()
    assert packing.exact(config, attention)["exact"]


def test_gpt_oss_without_flash_kernels_leaks_and_is_not_packed():
    found = packing.exact(GptOssConfig(), "eager")
    assert not found["exact"] and found["difference"] > 1e-3
    changes, why = packing.fields({"packing": True}, found)
    assert changes["packing"] is False and "read each other" in why and "gpt_oss" in why


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_in_bfloat16_which_flash_kernels_need_rounding_passes_and_a_leak_does_not(seed):
    for config in (LlamaConfig(), Qwen3Config()):
        found = packing.exact(config, "sdpa", seed=seed, dtype=torch.bfloat16)
        assert found["exact"] and found["difference"] < found["limit"] / 2 and found["dtype"] == "bfloat16"
        assert "bfloat16" in packing.fields({"packing": True}, found)[1]
    leaking = packing.exact(GptOssConfig(), "eager", seed=seed, dtype=torch.bfloat16)
    assert not leaking["exact"] and leaking["difference"] > 3 * leaking["limit"]


def test_flash_attention_is_measured_in_its_own_dtype(monkeypatch):
    asked, real = [], packing.small
    monkeypatch.setattr(packing, "small", lambda config, name, *how: asked.append(how) or real(config, "sdpa", *how))
    assert packing.exact(LlamaConfig(), "flash_attention_2")["exact"] and asked == [(0, torch.bfloat16)]


def test_the_gate_measures_what_a_border_changes():
    """Ignoring the position numbers is the fault it is there to find."""
    model = packing.small(LlamaConfig(), "sdpa")
    ids = torch.randint(3, 64, (1, 20))
    places = torch.cat([torch.arange(10), torch.arange(10)]).unsqueeze(0)
    with torch.no_grad():
        apart, leaking = (packing._losses(model, ids, **kw) for kw in ({"position_ids": places}, {}))
    assert (apart - leaking)[:9].abs().max() < 1e-5 < 1e-3 < (apart - leaking)[10:].abs().max()


def test_what_the_recipe_asks_for_stays_where_it_is_exact():
    found = packing.exact(Qwen3Config(), "sdpa")
    assert packing.fields({"packing": True}, found)[0] == {}
    assert packing.fields({"packing": False}, found | {"exact": False})[0] == {}


def test_the_real_trainer_takes_the_changes(tmp_path):
    import families
    from trl import SFTConfig, SFTTrainer

    tokenizer = families.gptoss()
    config = GptOssConfig()
    config.vocab_size = len(tokenizer)
    model = packing.small(config, "eager")
    model.resize_token_embeddings(len(tokenizer))
    sft = {"packing": True, "max_length": 256, "max_steps": 2, "per_device_train_batch_size": 2, "report_to": "none"}
    changes, _ = packing.fields(sft, packing.exact(config, "eager"))
    record = {"instruction": "Which test?", "reasoning": "Step one.", "output": "Two."}
    records = [record | {"output": "Two. " * n} for n in range(1, 9)]
    rows = encoding.rows(records, tokenizer, "harmony", "2026-11-03")
    device = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "disable_tqdm": True}
    trainer = SFTTrainer(
        model, args=SFTConfig(**(sft | changes | device)), train_dataset=rows, processing_class=tokenizer
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"].shape[0] == 2 and "attention_mask" in batch
    assert trainer.train().global_step == 2
