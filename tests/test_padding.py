"""Bases without a pad token get one that is no end token, and model, tokenizer, adapter and GGUF file agree on it."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import families
import pytest
import torch
from gguf import GGUFReader
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from sentencepiece import SentencePieceProcessor
from tiny_qwen import cpu_trainer
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lib.chat import encoding
from lib.export import gguf
from lib.model import loading, padding, saving, tokens, twin
from lib.pipeline import recipe

RECORDS = [
    {"instruction": "Which test?\n\nA. one\nB. two", "reasoning": "Step one.", "output": "Two.\n\nAnswer: B"},
    {"instruction": "Why <unk> and <|pad|>?", "reasoning": "", "output": "Both are text. Ünknown 語 too."},
]
TEXTS = [f"A patient aged {n} with fever, chest pain and {n % 7} days of cough isn't well." for n in range(200)]
SHAPE = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("make", "chosen"),
    [
        (families.qwen3, "<|endoftext|>"),  # its own
        (families.gptoss, "<|endoftext|>"),
        (families.llama2, "<unk>"),  # never produced: unknown characters become bytes
        (families.gpt2, "<|pad|>"),  # nothing to spare
        (families.llama3, "<|pad|>"),
    ],
)
def test_the_token_of_each_family(make, chosen):
    tokenizer = make()
    assert padding.choose(tokenizer) == chosen
    padding.pad(tokenizer)
    assert tokenizer.pad_token == chosen and tokenizer.pad_token_id not in (tokenizer.eos_token_id, None)


def test_an_end_token_that_pads_is_replaced():
    tokenizer = families.gpt2()
    tokenizer.pad_token = tokenizer.eos_token  # what most tutorials do
    assert padding.pad(tokenizer).pad_token == "<|pad|>"


def test_llama_3s_reserved_token_is_taken_and_unk_is_not_where_text_becomes_it():
    llama = families.llama3()
    llama.add_special_tokens({"additional_special_tokens": ["<|finetune_right_pad_id|>"]})
    assert padding.choose(llama) == "<|finetune_right_pad_id|>"
    words = families.gpt2()
    words.add_special_tokens({"unk_token": "<unk>"})  # a vocabulary without bytes to fall back on
    assert padding.choose(words) == "<|pad|>"


def llama2(folder):
    tokenizer = twin.train_tokenizer(twin.FAMILIES["llama2"], TEXTS, 500, folder)
    tokenizer.pad_token = None
    ends = {"bos_token_id": 1, "eos_token_id": 2, "vocab_size": len(tokenizer)}
    model = LlamaForCausalLM(LlamaConfig(intermediate_size=128, num_key_value_heads=4, **ends, **SHAPE))
    return tokenizer, model


def gpt2(folder):
    tokenizer = families.gpt2()
    size = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.eos_token_id, "n_ctx": 1024}
    return tokenizer, GPT2LMHeadModel(GPT2Config(**size, **SHAPE, eos_token_id=tokenizer.eos_token_id))


@pytest.fixture(scope="module", params=[llama2, gpt2], ids=["llama2", "gpt2"])
def base(request, tmp_path_factory):
    """(recipe over a base without pad token, the base's folder); copies with a token more go to a cache of its own."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    tokenizer, model = request.param(folder)
    assert tokenizer.pad_token is None
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    overrides = {"model.base": str(folder), "model.twin": None, "model.dtype": "float32", "chat.format": "instruction"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "cache_dir", lambda: tmp_path_factory.getbasetemp() / "cache")
        yield recipe.load("tiny", overrides), folder


def test_new_rows_are_the_mean_and_old_ones_stay(base):
    cfg, folder = base
    tokenizer, model = loading.tokenizer(cfg), loading.base(cfg)
    before = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    old = before.config.vocab_size
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == len(tokenizer)
    assert len(tokenizer) - old == (1 if cfg.model["base"] != loading.source(cfg) else 0)
    for now, then in zip(
        (model.get_input_embeddings().weight, model.get_output_embeddings().weight),
        (before.get_input_embeddings().weight, before.get_output_embeddings().weight),
        strict=True,
    ):
        assert torch.equal(now[:old], then)
        for row in now[old:]:
            torch.testing.assert_close(row, then.mean(0), atol=1e-4, rtol=1e-2)  # the base is kept in bfloat16
    again = loading.base(cfg)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_the_end_is_trained_and_padding_is_not(base):
    cfg, _ = base
    tokenizer = loading.tokenizer(cfg)
    rows = [row for _ in range(2) for row in encoding.tokenize(RECORDS, tokenizer, "instruction")]
    for ids, labels in rows:
        assert labels[-1] == ids[-1] == tokenizer.eos_token_id
        assert tokenizer.pad_token_id not in ids  # also where the data says <unk> or <|pad|>


@pytest.mark.parametrize(  # the family with a new row is the harder one
    "base", [pytest.param(llama2, id="llama2", marks=pytest.mark.slow), pytest.param(gpt2, id="gpt2")], indirect=True
)
def test_adapter_merge_and_gguf_have_one_vocabulary(base, tmp_path):
    cfg, _ = base
    tokenizer = loading.tokenizer(cfg)
    wrap = {"target_modules": "all-linear", "fan_in_fan_out": "gpt2" in str(loading.base(cfg).config.model_type)}
    model = get_peft_model(loading.base(cfg), LoraConfig(r=4, task_type="CAUSAL_LM", **wrap))
    data, how = encoding.rows(RECORDS, tokenizer, "instruction"), {"learning_rate": 1e-2, "max_steps": 2}
    trainer = cpu_trainer(model, tokenizer, data, tmp_path / "out", gradient_checkpointing=False, **how)
    batch = next(iter(trainer.get_train_dataloader()))
    padded = batch["attention_mask"] == 0
    assert padded.any() and (batch["labels"][padded] == encoding.IGNORE_INDEX).all()
    assert (batch["input_ids"][padded] == tokenizer.pad_token_id).all()
    assert trainer.train().training_loss > 0
    model.eval().save_pretrained(tmp_path / "adapter")
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", "pt") as file:
        assert all(".lora_" in name for name in file.keys())  # noqa: SIM118 - not a dict
    ids = torch.tensor([data[0]["input_ids"]])
    with torch.no_grad():
        trained = model(input_ids=ids).logits
        reloaded = loading.adapted(loading.base(cfg), tmp_path / "adapter")(input_ids=ids).logits
    assert torch.equal(trained, reloaded)

    merged = Path(saving.merge(model, tokenizer, tmp_path / "merged"))
    served, config = AutoTokenizer.from_pretrained(merged), AutoModelForCausalLM.from_pretrained(merged).config
    assert served.get_vocab() == tokenizer.get_vocab() and served.pad_token == tokenizer.pad_token
    assert config.vocab_size == len(tokenizer) and config.pad_token_id == tokenizer.pad_token_id
    file = GGUFReader(gguf.convert(merged, tmp_path / "merged.gguf"))
    assert len(file.get_field("tokenizer.ggml.tokens").contents()) == len(tokenizer)
    assert file.get_field("tokenizer.ggml.padding_token_id").contents() == tokenizer.pad_token_id
    assert file.get_field("tokenizer.ggml.eos_token_id").contents() == tokenizer.eos_token_id
    loading.write_base(cfg, tokenizer, tmp_path / "plain")
    assert gguf.convert_lora(tmp_path / "adapter", tmp_path / "plain", tmp_path / "adapter.gguf").exists()


def test_llama_2s_text_after_a_control_token_is_sentencepieces_own(tmp_path):
    """transformers' class leaves the blank before it out, and llama.cpp, as SentencePiece, does not."""
    twin.train_tokenizer(twin.FAMILIES["llama2"], TEXTS, 500, tmp_path / "twin")
    own = SentencePieceProcessor(model_file=str(tmp_path / "twin" / "tokenizer.model"))
    tokenizer = loading.read_tokenizer(tmp_path / "twin")
    saving.save_tokenizer(tokenizer, tmp_path / "again")
    text = "[INST] A patient aged 41 isn't  well.\n\nA. one [/INST]"
    for reader in (tokenizer, AutoTokenizer.from_pretrained(tmp_path / "again")):
        assert reader(f"<s>{text}", add_special_tokens=False)["input_ids"] == [1, *own.encode(text)]
    without = AutoTokenizer.from_pretrained(tmp_path / "twin")  # if this fails, read_tokenizer can go
    assert without(f"<s>{text}", add_special_tokens=False)["input_ids"] != [1, *own.encode(text)]


def test_of_named_chat_templates_the_default_is_trained_and_saved(tmp_path):
    plain = families.qwen3()
    plain.save_pretrained(tmp_path / "plain")
    named = {"default": plain.chat_template, "tool_use": "{{ tools }}"}
    plain.chat_template = named
    plain.save_pretrained(tmp_path / "named")
    plain.chat_template = {name: named["default"] for name in ("tool_use", "rag")}
    plain.save_pretrained(tmp_path / "other")
    one, other = (encoding.prepare(loading.read_tokenizer(tmp_path / name), "think") for name in ("plain", "named"))
    assert one.chat_template == other.chat_template
    rows = [list(encoding.tokenize(RECORDS, tokenizer, "think", "2026-11-03")) for tokenizer in (one, other)]
    assert rows[0] == rows[1] and len(rows[0]) == 2
    saving.save_tokenizer(other, tmp_path / "again")
    assert AutoTokenizer.from_pretrained(tmp_path / "again").chat_template == one.chat_template
    with pytest.raises(ValueError, match="other' has no chat template named default, only rag, tool_use$"):
        loading.read_tokenizer(tmp_path / "other")


def test_tokens_without_a_row_leave_the_tokenizer_unless_they_are_needed():
    tokenizer = families.qwen3()
    rows, text = len(tokenizer), "The patient has <image> and a step."
    before = tokenizer(text)["input_ids"]
    assert tokens.with_rows(tokenizer, rows) is tokenizer and len(tokenizer) == rows
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]}, replace_extra_special_tokens=False)
    assert tokenizer(text)["input_ids"] != before and max(tokenizer(text)["input_ids"]) == rows
    assert len(tokens.with_rows(tokenizer, rows)) == rows and tokenizer(text)["input_ids"] == before
    for needed, short in ((tokenizer.eos_token, tokenizer.eos_token_id), ("zz", rows)):
        tokenizer.add_tokens([needed])
        tokenizer.chat_template += "zz"  # which the template writes
        with pytest.raises(ValueError, match=f"the embedding {short} rows, none for .*, which is needed"):
            tokens.with_rows(tokenizer, short)


def test_a_tokenizer_that_the_model_has_no_rows_for_is_not_saved(base, tmp_path):
    cfg, folder = base
    tokenizer = loading.tokenizer(cfg)
    tokenizer.add_tokens(["one more"])
    with pytest.raises(
        ValueError, match=rf"has {len(tokenizer)} tokens and the model's embedding {len(tokenizer) - 1}"
    ):
        saving.save(loading.base(cfg), tokenizer, tmp_path)
