"""A Modelfile for Ollama, derived from the training template: Ollama does not read the one inside the file.

Source: Ollama's references of the Modelfile and of its templates (Go's text/template over .System and .Messages).
"""

from jinja2 import TemplateError

from lib.chat import encoding
from lib.evaluation import generate
from lib.export import serve

PROBES = {"system": "PROBE-SYSTEM", "user": "PROBE-ONE", "assistant": "PROBE-ANSWER", "later": "PROBE-TWO"}


def adds_bos(base_url):
    """Whether whoever reads the file of a running llama-server puts a beginning-of-sequence token before every prompt.

    The file need not say so: without its key add_bos_token the reader goes by the kind of vocabulary.
    """
    asked = {"content": "a", "parse_special": True}
    bare, begun = (serve.request(base_url, "/tokenize", asked | {"add_special": a})["tokens"] for a in (False, True))
    return begun != bare


def write(file_name, tokenizer, bos, ctx=2048, date=None):
    """Text of a Modelfile whose prompts have the tokens of training, later turns and system messages included.

    file_name: the GGUF file, beside the Modelfile. bos: from `adds_bos`; Ollama then adds that token to what the
    template writes. A template that takes no system message gets none.
    Raises ValueError where the template writes something else than fixed frames around unchanged texts, or where the
    file adds a beginning that training never had.
    """
    head, frame = _frames(tokenizer, date, ("user", "assistant", "later"))
    if bos and not head[0].startswith(tokenizer.bos_token):
        raise ValueError(
            f"{file_name} tells its reader to put {tokenizer.bos_token!r} before every prompt, which the chat template "
            "never wrote in training: convert the model again, its tokenizer should have add_bos_token set to false"
        )
    start = _without(head[0], tokenizer.bos_token if bos else None)
    try:
        with_system, same = _frames(tokenizer, date, tuple(PROBES))
    except (TemplateError, ValueError):
        with_system = None
    if with_system:
        if same != frame:
            raise ValueError("the chat template writes other turns after a system message: no fixed frame exists")
        first = _without(with_system[0], tokenizer.bos_token if bos else None)
        start = "{{ if .System }}" + first + "{{ .System }}" + with_system[1] + "{{ else }}" + start + "{{ end }}"
    history, between, opening = frame
    turns = (
        '{{ range $i, $m := .Messages }}{{ if eq $m.Role "user" }}{{ $m.Content }}'
        "{{ if eq (len (slice $.Messages $i)) 1 }}" + opening + "{{ else }}" + history + "{{ end }}"
        '{{ else if eq $m.Role "assistant" }}{{ $m.Content }}' + between + "{{ end }}{{ end }}"
    )
    stops = sorted(tokenizer.convert_ids_to_tokens(token) for token in generate.stop_ids(None, tokenizer))
    lines = [f"FROM ./{file_name}", f'TEMPLATE """{start}{turns}"""', *(f'PARAMETER stop "{stop}"' for stop in stops)]
    return "\n".join([*lines, "PARAMETER temperature 0", f"PARAMETER num_ctx {ctx}"]) + "\n"


def _frames(tokenizer, date, roles):
    """([texts before the first user's], (user to answer in history, answer to the next user, last user to answer))."""
    turns = [{"role": "user" if role == "later" else role, "content": PROBES[role]} for role in roles]
    text = encoding.render(turns, tokenizer, generation=True, date=date)
    parts = []
    for role in roles:
        before, found, text = text.partition(PROBES[role])
        if not found or PROBES[role] in text or "{{" in before or '"""' in before:
            raise ValueError(f"the chat template does not write the {role}'s text once and unchanged: {before!r}")
        parts.append(before)
    return parts[:-2], (parts[-2], parts[-1], text)


def _without(text, bos):
    return text.removeprefix(bos) if bos else text
