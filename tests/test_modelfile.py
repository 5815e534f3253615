"""The prompt that Ollama builds from the Modelfile has the tokens of training, in every family."""

import families
import pytest
from modelfiles import USER, ollama, talks

from lib.chat import encoding
from lib.export import modelfile

FAMILIES = {"qwen3": "think", "llama3": "thinking_response", "gptoss": "harmony", "llama2": "thinking_response",
            "gpt2": "instruction"}  # fmt: skip
DATE = "2026-01-05"


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_prompt_has_the_tokens_of_training(name, bos):
    tokenizer = encoding.prepare(getattr(families, name)(), FAMILIES[name], DATE)
    if bos and not tokenizer.bos_token:
        pytest.skip("this family has no such token, so no file adds it")
    written = encoding.render([USER], tokenizer, True, DATE)
    if bos and not written.startswith(tokenizer.bos_token):
        with pytest.raises(ValueError, match="which the chat template never wrote in training"):
            modelfile.write("m.gguf", tokenizer, bos, 64, DATE)
        return
    text = modelfile.write("m.gguf", tokenizer, bos, 64, DATE)
    for messages in talks(text):
        ours = tokenizer(encoding.render(messages, tokenizer, True, DATE), add_special_tokens=False)["input_ids"]
        prompt = (tokenizer.bos_token if bos else "") + ollama(text, messages)  # llama.cpp reads both ways alike
        assert tokenizer(prompt, add_special_tokens=False)["input_ids"] == ours
    assert text.startswith("FROM ./m.gguf\n") and text.count("PARAMETER stop") >= 1 and "num_ctx 64" in text
