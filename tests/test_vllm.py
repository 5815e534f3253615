"""Answers by vLLM are those of the model in memory. The real one runs where VLLM names it: make soak VLLM=path."""

import os
from types import SimpleNamespace

import families
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from lib.evaluation import generate, vllm
from lib.pipeline import ranks, recipe

ASKED = [{"id": str(n), "messages": [{"role": "user", "content": "What is it? " * n}]} for n in range(1, 9)]


@pytest.fixture
def model(small_base):
    yield AutoModelForCausalLM.from_pretrained(small_base, dtype=torch.float32)
    vllm.stop()


@pytest.fixture
def adapted(model):
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(model, config).eval()


def test_a_recipe_says_what_answers():
    chosen = {name: generate.chosen(SimpleNamespace(chat={"generator": name})) for name in ("transformers", "vllm")}
    assert chosen == {"transformers": generate.transformers, "vllm": vllm.answers}
    assert recipe.load("tiny").chat["generator"] == "transformers"
    assert recipe.load("llama32_1b_reasonmed", {"chat.generator": "vllm"}).chat["generator"] == "vllm"
    with pytest.raises(ValueError, match=r"vllm with model\.quantization or preference\.scheme.*transformers"):
        recipe.load("qwen3_8b", {"chat.generator": "vllm"})


@pytest.mark.parametrize("program, said", [("no-such-program", "no program 'no-such-program'.*environment of its own"),
                                           ("false", "vLLM ended with status 1")])  # fmt: skip
def test_a_server_that_does_not_start_is_said_and_nothing_is_left(model, monkeypatch, program, said):
    monkeypatch.setenv("VLLM", program)
    with pytest.raises(RuntimeError, match=said):
        vllm.answers(model, families.qwen3(), ASKED, 4)
    vllm.stop()
    assert not vllm._served


def test_what_vllm_would_answer_for_with_other_weights_is_refused(model, monkeypatch):
    monkeypatch.setenv("VLLM", "false")
    model.is_quantized = True
    with pytest.raises(ValueError, match="quantized in memory"):
        vllm.answers(model, families.qwen3(), ASKED, 4)
    monkeypatch.setattr(ranks, "world", lambda: 2)
    with pytest.raises(ValueError, match="several processes"):
        vllm.answers(model, families.qwen3(), ASKED, 4)


def test_an_adapter_is_served_beside_its_base(adapted, small_base, tmp_path):
    base, *args = vllm._weights(adapted, tmp_path)
    assert base == str(small_base) and args[args.index("--max-lora-rank") + 1] == 8, "the least that vLLM knows"
    assert args[-1] == f"chapter={tmp_path / 'adapter'}"
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("VLLM"), reason="VLLM names no vLLM of an environment of its own")
@pytest.mark.parametrize("kind", ["model", "adapted"])
def test_vllm_answers_as_the_model_in_memory(kind, request, tmp_path):
    asked, tokenizer = request.getfixturevalue(kind), families.qwen3()
    ours = generate.transformers(asked, tokenizer, ASKED, 24)
    theirs = vllm.answers(asked, tokenizer, ASKED, 24, 4, keep=tmp_path / "kept.jsonl")
    process = vllm._served["process"]
    told = [[(answer["text"], answer["tokens"], answer["finish"]) for answer in found] for found in (ours, theirs)]
    assert told[0] == told[1] and all(answer["first_s"] <= answer["seconds"] for answer in theirs)
    assert vllm.answers(asked, tokenizer, ASKED, 24, 4, keep=tmp_path / "kept.jsonl") == theirs, "kept, not asked again"
    drawn = [vllm.answers(asked, tokenizer, ASKED, 24, 4, 1.0, seed=seed) for seed in (1, 1, 2)]
    texts = [[answer["text"] for answer in found] for found in drawn]
    assert texts[0] == texts[1] != texts[2] and vllm._served["process"] is process
    with torch.no_grad():
        for parameter in asked.parameters():
            parameter.mul_(1.05)
    with pytest.raises(ValueError, match="not the one in memory: log-probabilities .* nats apart on 4 prompts"):
        vllm.answers(asked, tokenizer, ASKED, 24, 4)
    assert process.poll() is not None and not vllm._served
