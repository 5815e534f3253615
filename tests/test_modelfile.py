"""The prompt that Ollama builds from the Modelfile has the tokens of training, in every family."""

import re

import families
import pytest

from lib.chat import encoding
from lib.export import modelfile

USER = {"role": "user", "content": "Which test is one of two?"}
LATER = [USER, {"role": "assistant", "content": "The answer."}, {"role": "user", "content": "And the step?"}]
SYSTEM = {"role": "system", "content": "The patient has a step."}
FAMILIES = {"qwen3": "think", "llama3": "thinking_response", "gptoss": "harmony", "llama2": "thinking_response",
            "gpt2": "instruction"}  # fmt: skip
DATE = "2026-01-05"


def ollama(text, messages):
    """What Ollama makes of a Modelfile's template: the five constructs that we write, read by hand."""
    template = re.search(r'TEMPLATE """(.*?)"""\n', text, re.DOTALL)[1]
    system = "".join(m["content"] for m in messages if m["role"] == "system")
    head, loop = template.split("{{ range $i, $m := .Messages }}")
    if head.startswith("{{ if .System }}"):
        yes, no = head.removeprefix("{{ if .System }}").removesuffix("{{ end }}").split("{{ else }}")
        head = yes.replace("{{ .System }}", system) if system else no
    user, rest = loop.removeprefix('{{ if eq $m.Role "user" }}').split('{{ else if eq $m.Role "assistant" }}')
    assistant = rest.removesuffix("{{ end }}{{ end }}")
    content, branches = user.split("{{ if eq (len (slice $.Messages $i)) 1 }}")
    last, history = branches.removesuffix("{{ end }}").split("{{ else }}")
    for place, message in enumerate(messages):
        if message["role"] == "user":
            tail = last if place == len(messages) - 1 else history
            head += content.replace("{{ $m.Content }}", message["content"]) + tail
        elif message["role"] == "assistant":
            head += assistant.replace("{{ $m.Content }}", message["content"])
    return head


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_prompt_has_the_tokens_of_training(name, bos):
    tokenizer = encoding.prepare(getattr(families, name)(), FAMILIES[name], DATE)
    if bos and not tokenizer.bos_token:
        pytest.skip("this family has no such token, so no file adds it")
    text = modelfile.write("m.gguf", tokenizer, bos, 64, DATE)
    talks = [[USER], LATER] + ([[SYSTEM, USER], [SYSTEM, *LATER]] if "{{ .System }}" in text else [])
    for messages in talks:
        ours = tokenizer(encoding.render(messages, tokenizer, True, DATE), add_special_tokens=False)["input_ids"]
        prompt = (tokenizer.bos_token if bos else "") + ollama(text, messages)  # llama.cpp reads both ways alike
        assert tokenizer(prompt, add_special_tokens=False)["input_ids"] == ours
    assert text.startswith("FROM ./m.gguf\n") and text.count("PARAMETER stop") >= 1 and "num_ctx 64" in text
