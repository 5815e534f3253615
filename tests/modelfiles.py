"""What Ollama makes of a Modelfile, read by hand, and the conversations that the tests put to it."""

import re

USER = {"role": "user", "content": "Which test is one of two?"}
LATER = [USER, {"role": "assistant", "content": "The answer."}, {"role": "user", "content": "And the step?"}]
SYSTEM = {"role": "system", "content": "The patient has a step."}


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


def talks(text):
    """Conversations of one turn and of several; with a system message too, where the Modelfile takes one."""
    return [[USER], LATER] + ([[SYSTEM, USER], [SYSTEM, *LATER]] if "{{ .System }}" in text else [])
