"""The tiny base model: the family's tokenizer and template, every token seen, the same weights from the same seed."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lib.chat import encoding
from lib.dataset import clinic
from lib.model import families, twin

SPEC = {"architecture": "qwen3", "vocab_size": 1024, "block_size": 128, "batch_size": 4, "steps": 30}
SPEC |= {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
SPEC |= {"intermediate_size": 128, "learning_rate": 3.0e-3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        torch.set_num_threads(1)
        yield twin.build(SPEC, clinic.WORLD, 42)


def test_it_learns_and_has_seen_every_token(folder):
    stats = json.loads((folder / "stats.json").read_text())
    assert stats["unseen_tokens"] == 0 and stats["loss"] < 0.9 * stats["first_loss"]
    assert len(stats["losses"]) == stats["steps"] == 30


def test_the_second_build_is_the_cached_folder_and_another_seed_is_not(folder):
    assert twin.build(SPEC, clinic.WORLD, 42) == folder
    assert twin.build(SPEC | {"steps": 2}, clinic.WORLD, 43) != folder
    assert not [p for p in folder.parent.iterdir() if "." in p.name], "nothing half-written is left"


def test_the_same_seed_gives_the_same_weights(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    torch.manual_seed(5)  # the state of the caller must not matter
    again = twin.build(SPEC, clinic.WORLD, 42)
    first, second = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (folder, again))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_tokenizer_is_the_familys(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.decode(tokenizer("naïve 12 mmol/L\n\n no fever")["input_ids"]) == "naïve 12 mmol/L\n\n no fever"
    assert len(tokenizer("2024")["input_ids"]) == 4, "Qwen's pre-tokenizer splits every digit"
    text = tokenizer.apply_chat_template([{"role": "user", "content": "q"}], tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"


SMALL = {"vocab_size": 600, "block_size": 128, "batch_size": 4, "steps": 12, "learning_rate": 3.0e-3}
SMALL |= {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
GROUPED = {"intermediate_size": 64, "num_key_value_heads": 1, "head_dim": 32}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
OTHERS = {  # config fields; begin, end and padding; what the template writes around a question
    "llama": (
        GROUPED, "<|begin_of_text|> <|eot_id|> <|finetune_right_pad_id|>",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "llama2": (GROUPED, "<s> </s> None", "<s>[INST] q [/INST]"),
    "gpt2": ({}, "<|endoftext|> <|endoftext|> None", "<|endoftext|>### Question:\nq\n\n### Answer:\n"),
    "gptoss": (GROUPED | EXPERTS, "<|startoftext|> <|return|> <|endoftext|>", None),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_families_have_their_own_tokens_template_and_model(name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shape, ends, prompt = OTHERS[name]
    folder = twin.build(SMALL | shape | {"architecture": name}, clinic.WORLD, 42)
    stats = json.loads((folder / "stats.json").read_text())
    assert stats["unseen_tokens"] == 0 and stats["loss"] < stats["first_loss"]
    tokenizer = encoding.prepare(AutoTokenizer.from_pretrained(folder), "instruction")
    assert f"{tokenizer.bos_token} {tokenizer.eos_token} {tokenizer.pad_token}" == ends  # None: padding.py chooses
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    text = encoding.render([{"role": "user", "content": "q"}], tokenizer, generation=True)
    assert text == prompt or (prompt is None and text.endswith("<|start|>user<|message|>q<|end|><|start|>assistant"))
    sample = "naïve 12 mmol/L, it isn't 37.5 °C"
    assert tokenizer.decode(tokenizer(sample, add_special_tokens=False)["input_ids"]) == sample
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model) is families.FAMILIES[name].model
    assert len(tokenizer) == model.get_input_embeddings().num_embeddings == stats["vocab_size"] <= 600


def test_a_spec_that_cannot_be_built_says_what_is_missing():
    with pytest.raises(ValueError, match="architecture is 'gpt5'; known are qwen3"):
        twin.build(SPEC | {"architecture": "gpt5"}, clinic.WORLD, 42)
    with pytest.raises(ValueError, match="lacks steps"):
        twin.build({k: v for k, v in SPEC.items() if k != "steps"}, clinic.WORLD, 42)
