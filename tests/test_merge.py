"""A merge holds the model that was trained, also where the base was loaded in 4 bits."""

import json
from types import SimpleNamespace

import families
import pytest
import tiny_qwen
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GPT2Config, GPT2LMHeadModel

from lib.evaluation import probability
from lib.model import saving
from lib.pipeline.files import ROOT

NF4 = BitsAndBytesConfig(**tiny_qwen.NF4, bnb_4bit_compute_dtype=torch.float32)
ROWS = [(list(range(5, 45)), list(range(5, 45))), (list(range(9, 60)), [-100] * 20 + list(range(29, 60)))]


@pytest.fixture(scope="module")
def tokenizer():
    return families.qwen3()


def adapted(folder, quantization, dtype=torch.float32):
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=quantization)
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(loaded, config).eval()


def merged(model, tokenizer, path):
    saving.merge(model, tokenizer, path)
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


@pytest.mark.parametrize("quantization", [None, NF4], ids=["16 bits", "nf4"])
def test_the_merge_is_the_trained_model_to_bfloat16(small_base, tokenizer, quantization, tmp_path):
    model = adapted(small_base, quantization)
    before = probability.next_token_logits(model, ROWS)
    assert before.shape == (39 + 31, len(tokenizer))
    found = probability.changed_by_merging(
        before, probability.next_token_logits(merged(model, tokenizer, tmp_path), ROWS)
    )
    assert 0 < found["divergence"] < 1e-3 and 0 < found["largest"] < 0.2 and found["tokens"] == 70
    assert found["flipped"] <= 7 and found["lead"] <= 2 * found["largest"]


def test_a_flipped_token_is_counted_with_its_lead():
    before = torch.tensor([[2.0, 1.9, 0.0], [3.0, 1.0, 0.0], [1.0, 0.5, 0.98]])
    after = before + torch.tensor([[0.0, 0.2, 0.0], [0.0, 0.2, 0.0], [0.0, 0.0, 0.03]])
    found = probability.changed_by_merging(before, after, limit=1)
    assert found["flipped"] == 2 and found["lead"] == pytest.approx(0.1)


def test_a_merge_into_the_16_bit_base_is_refused(small_base, tokenizer, tmp_path):
    """What tutorials do: the adapter was trained over NF4 weights, and is merged into those from the hub."""
    before = probability.next_token_logits(adapted(small_base, NF4), ROWS)
    wrong = merged(adapted(small_base, None), tokenizer, tmp_path)
    with pytest.raises(ValueError, match="is not the trained one: .* nats a token apart, expected at most 0.01"):
        probability.changed_by_merging(before, probability.next_token_logits(wrong, ROWS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quantized", [False, True], ids=["16 bits", "nf4"])
def test_chapter_3_multiplies_by_hand_whatever_the_base_computes_in(small_base, dtype, quantized, tmp_path):
    nf4 = BitsAndBytesConfig(**tiny_qwen.NF4, bnb_4bit_compute_dtype=dtype) if quantized else None
    multiplied(adapted(small_base, nf4, dtype), tmp_path)


def test_chapter_3_multiplies_by_hand_on_gpt2_whose_matrices_are_transposed(tmp_path):
    """DialoGPT's rehearsal ended there: its layers are no torch.nn.Linear."""
    base = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64))
    config = LoraConfig(r=4, target_modules=["c_proj"], fan_in_fan_out=True, init_lora_weights=False)
    multiplied(get_peft_model(base, config).eval(), tmp_path)


def multiplied(model, tmp_path):
    """Runs chapter 3's cell that multiplies an adapter by hand."""
    cells = json.loads((ROOT / "notebooks" / "03_sft.ipynb").read_text(encoding="utf-8"))["cells"]
    (source,) = ["".join(cell["source"]) for cell in cells if "adapter.trained(" in "".join(cell["source"])]
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}, "as it is trained"
    given = {"torch": torch, "cfg": None, "model": model, "trainer": None, "stage": SimpleNamespace(dir=tmp_path)}
    exec(source, given | {"adapter": SimpleNamespace(trained=lambda cfg, model, *more: model)})
