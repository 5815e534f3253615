"""Small tokenizers of five model families: the published pre-tokenizer expressions, control tokens and templates."""

import json
from importlib.resources import files

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lib.model import families
from lib.model.gguf_convert import PRE_TOKENIZERS

QWEN, LLAMA3 = PRE_TOKENIZERS["qwen2"], PRE_TOKENIZERS["llama-bpe"]
TEXT = ["the patient has a step and the answer, which test is one of two? ## Thinking ## Final Response Answer:"] * 4
QWEN3_CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>",
                 "<tool_response>", "</tool_response>"]  # fmt: skip
GPTOSS_CONTROL = list(families.FAMILIES["gptoss"].control)
LLAMA3_CONTROL = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"]


def shipped(name):
    """A chat template that TRL ships."""
    return files("trl").joinpath("chat_templates", f"{name}.jinja").read_text(encoding="utf-8")


def byte_level(expression, template, special, added=(), **names):
    """A byte-level BPE tokenizer with a few merges; expression: None for GPT-2's, which ByteLevel has built in."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=expression is None)
    if expression:
        split = pre_tokenizers.Split(Regex(expression), "isolated")
        core.pre_tokenizer = pre_tokenizers.Sequence([split, core.pre_tokenizer])
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    return _with_control(core, template, special, added, names)


def metaspace(template, special, **names):
    """A SentencePiece-like BPE, blanks as U+2581, unknown characters as bytes."""
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    letters = [chr(code) for code in range(33, 127)] + ["\u2581"]
    trainer = trainers.BpeTrainer(
        vocab_size=450, special_tokens=["<unk>"], initial_alphabet=letters, show_progress=False
    )
    core.train_from_iterator(TEXT, trainer)
    state = json.loads(core.to_str())
    vocab = state["model"]["vocab"]
    vocab |= {f"<0x{value:02X}>": len(vocab) + value for value in range(256)}
    core = Tokenizer.from_str(json.dumps(state))
    return _with_control(core, template, special, (), names)


def _with_control(core, template, special, added, names):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **names)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.add_tokens(list(added))
    tokenizer.chat_template = template
    return tokenizer


def qwen3():
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return byte_level(QWEN, shipped("qwen3"), QWEN3_CONTROL[:3], QWEN3_CONTROL[3:], **names)


def llama3(template="llama3"):
    names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    return byte_level(LLAMA3, shipped(template), LLAMA3_CONTROL, **names)


def gptoss():
    names = {"bos_token": "<|startoftext|>", "eos_token": "<|return|>", "pad_token": "<|endoftext|>"}
    return byte_level(PRE_TOKENIZERS["gpt-4o"], shipped("gptoss"), GPTOSS_CONTROL, **names)


def llama2():
    return metaspace(families.LLAMA2_CHAT, ["<s>", "</s>"], bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def gpt2():
    return byte_level(None, None, ["<|endoftext|>"], bos_token="<|endoftext|>", eos_token="<|endoftext|>")
