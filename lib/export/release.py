"""What goes out beside a GGUF file: an Ollama Modelfile and a model card, both derived and never typed by hand."""

from lib.chat import encoding
from lib.evaluation import generate

PROBE = "PROBE-OF-THE-USER-TURN"


def turn_frame(tokenizer, date=None):
    """(before, after): what the chat template writes around one user message, up to where the model begins.

    Raises ValueError when the template changes the message, so that no fixed frame exists.
    """
    text = encoding.render([{"role": "user", "content": PROBE}], tokenizer, generation=True, date=date)
    before, found, after = text.partition(PROBE)
    if not found or PROBE in after:
        raise ValueError(f"the chat template does not write the user's text once and unchanged: {text!r}")
    return before, after


def modelfile(file_name, tokenizer, model, ctx=2048, date=None):
    """Text of an Ollama Modelfile whose prompt equals the training template's, token for token.

    file_name: the GGUF file, beside the Modelfile. model: its transformers model or None; gives further end tokens.
    Source: the Modelfile reference of Ollama (FROM, TEMPLATE, PARAMETER stop, temperature, num_ctx).
    """
    before, after = turn_frame(tokenizer, date)
    stops = sorted(tokenizer.convert_ids_to_tokens(token) for token in generate.stop_ids(model, tokenizer))
    lines = [
        f"FROM ./{file_name}",
        f'TEMPLATE """{before}{{{{ .Prompt }}}}{after}{{{{ .Response }}}}{tokenizer.eos_token}"""',
        *(f'PARAMETER stop "{stop}"' for stop in stops),
        "PARAMETER temperature 0",
        f"PARAMETER num_ctx {ctx}",
    ]
    return "\n".join(lines) + "\n"


def parity(conversations, tokenizer, to_text, to_tokens, date=None):
    """Compare prompts as trainer and server see them. Returns the number compared, all equal.

    conversations: lists of messages that end with the user. to_text(messages) and to_tokens(text) ask the server, which
    may leave the beginning-of-sequence token to its tokenizer.
    Raises ValueError with both sides around the first difference.
    """
    for number, messages in enumerate(conversations, 1):
        ours = encoding.render(messages, tokenizer, generation=True, date=date)
        theirs = to_text(messages)
        bos = tokenizer.bos_token or ""
        _same(ours.removeprefix(bos), theirs.removeprefix(bos), f"conversation {number}, text of the prompt")
        _same(
            tokenizer(ours, add_special_tokens=False)["input_ids"], to_tokens(theirs), f"conversation {number}, tokens"
        )
    return len(conversations)


def _same(ours, theirs, where):
    if ours == theirs:
        return
    at = next(
        (i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), min(len(ours), len(theirs))
    )
    raise ValueError(
        f"{where}: the server sees something else than the trainer from position {at} on: "
        f"trained {ours[max(0, at - 20) : at + 20]!r}, served {theirs[max(0, at - 20) : at + 20]!r}"
    )


def model_card(title, base, ladder, sources, run):
    """Text of a model card in the hub's form: front matter, what it is, the measured ladder, data, limits.

    ladder: rows of one dict each, printed as a table; run: recipe and run name. sources: [{"source", "licence", "rows",
    "commercial", "citation"}]; commercial is whether the licence allows such use, None where nobody says: anything but
    True is warned of in the card.
    """
    heads = list(ladder[0])
    table = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    table += ["| " + " | ".join(str(row[h]) for h in heads) + " |" for row in ladder]
    data = [f"- {s['source']}: {s['rows']:,} training rows, licence {s['licence']}" for s in sources]
    data += [f"- cite: {citation}" for citation in dict.fromkeys(s["citation"] for s in sources if s.get("citation"))]
    data += licence_warnings(sources)
    licences = sorted({s["licence"] for s in sources})
    return "\n".join([
        "---",
        f"base_model: {base}",
        "library_name: gguf",
        f"license: {licences[0].lower() if len(licences) == 1 else 'other'}",
        "tags: [medical, reasoning, lora, gguf]",
        "---",
        f"# {title}",
        "",
        "Written by the export stage from what it measured. Not for clinical use: it was never tested on patients.",
        "",
        "## Measured",
        "",
        *table,
        "",
        f"Recipe {run['recipe']}, run {run['run']}. Intervals are 95 %, over questions.",
        "",
        "## Training data",
        "",
        *data,
        "",
    ])  # fmt: skip


def licence_warnings(sources):
    """A sentence for every source whose licence is unknown or excludes commercial use. sources: as in model_card."""
    unclear = [s for s in sources if s.get("commercial") is not True]
    return [
        f"\n**Licence of {s['source']}: {s['licence']}, "
        f"{'commercial use excluded' if s.get('commercial') is False else 'terms not known'}.** "
        f"{s['rows']:,} rows of it went into this model: clear its terms before you publish or sell anything."
        for s in unclear
    ]
