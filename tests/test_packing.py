"""Packing is exact where attention stops at the borders, and is refused where it does not."""

import pytest
import torch
from transformers import (
    DeepseekV3Config,
    FalconH1Config,
    Gemma3TextConfig,
    GptOssConfig,
    GraniteMoeHybridConfig,
    LlamaConfig,
    Phi3Config,
    Qwen3Config,
)

from lib.chat import encoding, packing
from lib.model import loading
from lib.pipeline import recipe


@pytest.mark.parametrize("config", [LlamaConfig(), Qwen3Config()], ids=["llama", "qwen3"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_llama_and_qwen3_are_exact(config, attention):
    found = packing.exact(config, attention)
    assert found["exact"] and found["difference"] <= 1e-5 and found["architecture"] == config.model_type


def test_of_several_attentions_a_gpu_takes_the_first_that_is_exact(monkeypatch, tmp_path):
    monkeypatch.setattr(packing, "exact", lambda config, name, device: {"exact": name == "kernels"})
    taken = [packing.first_exact(names, None, device) for names, device in (
        (["flex_attention", "kernels", "eager"], "cuda"), (["flex_attention", "eager"], "cuda"),
        (["kernels", "eager"], "cpu"), ("sdpa", "cuda"))]  # fmt: skip
    assert taken == ["kernels", "eager", "eager", "sdpa"]
    GptOssConfig().save_pretrained(tmp_path)
    monkeypatch.setattr(loading, "_in_16_bits", lambda cfg: tmp_path)
    monkeypatch.setattr(loading, "device", lambda: "cuda")
    monkeypatch.setattr(packing, "exact", lambda config, name, device: {"exact": config.model_type == "gpt_oss"})
    assert loading.attention(recipe.load("gpt_oss_20b")) == "flex_attention"


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


LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 4096}
MIXED = {
    "layer_types": ["mamba"] * 5 + ["attention"] + ["mamba"] * 4,
    "num_hidden_layers": 10,
    "mamba_n_heads": 64,
    "hidden_size": 2048,
    "mamba_d_state": 128,
    "num_key_value_heads": 8,
    "position_embedding_type": "rope",
}
OTHERS = {  # sizes as their publishers give them: (configuration, whether conversations may share a row)
    "Phi-3-128k": (Phi3Config(max_position_embeddings=131072, rope_parameters=LONG | {
        "short_factor": [1.1] * 48, "long_factor": [9.0] * 48}), True),
    "Phi-4-mini": (Phi3Config(num_attention_heads=24, num_key_value_heads=8, max_position_embeddings=131072,
        rope_parameters=LONG | {"partial_rotary_factor": 0.75, "short_factor": [1.0] * 48, "long_factor": [9.0] * 48}),
        True),
    "DeepSeek-V3": (DeepseekV3Config(), True),
    "Granite-4.0-H": (GraniteMoeHybridConfig(num_local_experts=0, num_experts_per_tok=0, **MIXED), False),
    "Granite-4.0-H, experts": (GraniteMoeHybridConfig(num_local_experts=64, num_experts_per_tok=6, **MIXED), False),
    "Falcon-H1": (FalconH1Config(mamba_d_ssm=3072, mamba_n_heads=24, mamba_d_state=256), False),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_long_contexts_latent_attention_and_state_spaces_are_measured(name):
    config, exact = OTHERS[name]
    found = packing.exact(config, "sdpa")
    assert found["difference"] is not None, found
    assert found["exact"] is exact and (exact or found["difference"] > 50 * found["limit"])


def test_what_no_small_model_can_be_built_of_is_not_packed():
    config = LlamaConfig(hidden_act="no such function")
    found = packing.exact(config, "sdpa")
    assert found["difference"] is None and not found["exact"]
    changes, why = packing.fields({"packing": True}, found)
    assert changes["packing"] is False and "no small llama can be built (KeyError" in why
    assert packing.fields({"packing": False}, found)[0] == {}


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
