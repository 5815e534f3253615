"""Small tokenizers of five model families, trained as the twins' are: pre-tokenizers, control tokens and templates."""

import tempfile
from dataclasses import replace

from lib.model import twin
from lib.model.families import FAMILIES, GPTOSS_CONTROL, LLAMA3_CONTROL, QWEN3_SPECIAL, QWEN3_VISIBLE

TEXT = ["the patient has a step and the answer, which test is one of two? ## Thinking ## Final Response Answer:"] * 4
CONTROL = f"{QWEN3_SPECIAL} {QWEN3_VISIBLE} {LLAMA3_CONTROL} {GPTOSS_CONTROL}".split()


def _trained(name, size=400, **changes):
    family = replace(FAMILIES[name], **changes)
    with tempfile.TemporaryDirectory() as folder:  # SentencePiece writes a file
        tokenizer = twin.train_tokenizer(family, TEXT, size, folder)
    special = [token for token in family.control if token not in family.visible]
    tokenizer.add_special_tokens({"additional_special_tokens": special})  # which published files name so
    return tokenizer


def qwen3():
    return _trained("qwen3")


def llama3(template="llama3"):
    control = tuple(token for token in LLAMA3_CONTROL.split() if "pad" not in token)  # Llama 3.0 has none
    return _trained("llama", template=f"{template}.jinja", padding=None, control=control)


def gptoss():
    return _trained("gptoss")


def llama2():
    return _trained("llama2", 450)


def gpt2():
    return _trained("gpt2")
