"""What is released is what was trained: the same prompts and answers, and a model card with what was measured.

Answers are compared by their likeliest tokens. Drawn by chance, two answers part sooner or later although their
probabilities differ in the fourth decimal only and the seed is the same: a token's share of the dice moves a little.
"""

import math
import statistics
from collections import deque
from itertools import zip_longest
from pathlib import Path

import pandas
import torch
from huggingface_hub import ModelCard, ModelCardData

from lib.chat import encoding
from lib.chat.turns import IGNORE_INDEX
from lib.evaluation import batching
from lib.export import serve
from lib.figures.markup import plain
from lib.pipeline.files import ROOT

APART, SEVERAL = 1.0, 5  # nats, answers
MAX_NEW_TOKENS = 256  # of each compared answer: a model that differs does so early
LIKELIEST, LONGEST = 20, 8  # next tokens that are compared, in so many conversations
OTHERWISE = 0.05  # nats


def evenly(rows, number):
    """`number` of the rows, from one end of the list to the other; all of them where it is None or there are fewer."""
    number = min(number or len(rows), len(rows))
    return [rows[at * len(rows) // number] for at in range(number)]


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
    at = next(i for i, (one, other) in enumerate(zip_longest(ours, theirs)) if one != other)
    raise ValueError(
        f"{where}: the server sees something else than the trainer from position {at} on: "
        f"trained {ours[max(0, at - 20) : at + 20]!r}, served {theirs[max(0, at - 20) : at + 20]!r}"
    )


def next_tokens(base_url, rows, ctx):
    """What a running llama-server finds likely next, in the middle of what is learnt of a conversation.

    rows: (ids, labels) of conversations; the LONGEST that fit into the server's ctx are read: a window of attention
    cuts long ones only. Returns (ids up to there, {token: log-probability} of its LIKELIEST tokens); a row is left out
    where the server does not tell them (a token may be part of a character).
    """
    found, asked = [], {"n_predict": 1, "n_probs": LIKELIEST, "temperature": 0, "cache_prompt": False}
    for ids, labels in sorted((row for row in rows if len(row[0]) <= ctx), key=lambda row: -len(row[0]))[:LONGEST]:
        learnt = [place for place, label in enumerate(labels) if label != IGNORE_INDEX]
        ids = list(ids[: learnt[len(learnt) // 2]])
        reply = serve.request(base_url, "/completion", asked | {"prompt": ids}, timeout_s=1800)
        at = reply.get("completion_probabilities", ())
        found += [(ids, {t["id"]: t["logprob"] for t in first["top_logprobs"]}) for first in at[:1]]
    return found


def divergences(model, told):
    """How far each distribution of `next_tokens` is from a transformers model's: nats, over the tokens named there."""
    found = []
    with batching.evaluation(model):
        for ids, served in told:
            logits = model(input_ids=torch.tensor([ids], device=model.device), logits_to_keep=1).logits[0, -1]
            ours = logits.float().log_softmax(-1)
            found.append(sum(math.exp(p) * (p - float(ours[token])) for token, p in served.items()))
    return found


def same_model(found):
    """The median of `divergences`, in words. Raises ValueError above OTHERWISE: the weights are computed otherwise."""
    if not found:
        return "No conversation is there to compare probabilities on."
    if (middle := statistics.median(found)) > OTHERWISE:
        raise ValueError(
            f"llama.cpp computes something else than transformers with these weights: of {len(found)} conversations the"
            f" next token's distribution is {middle:.2f} nats apart in the median, allowed are {OTHERWISE}. The pinned "
            "llama.cpp may fix what this configuration changes: a scale of attention, windows, the rotary embedding"
        )
    told = f"{abs(middle):.1e} nats from PyTorch's (median of {len(found)} conversations)"
    return f"The next token's distribution is {told}."


def greedy(base_url, prompts, max_new_tokens):
    """The likeliest tokens after each prompt, as a running llama-server finds them: lists of (token id, lead).

    prompts: lists of token ids. lead: nats by which the token is likelier than the second likeliest, None where the
    server does not say (it leaves out a token that is part of a character). An answer ends at its end token, or after
    max_new_tokens or MAX_NEW_TOKENS tokens.
    """
    body = {"n_predict": min(max_new_tokens, MAX_NEW_TOKENS), "temperature": 0, "n_probs": 2, "cache_prompt": False}
    found = []
    for prompt in prompts:
        asked = body | {"prompt": list(prompt), "return_tokens": True}
        reply = serve.request(base_url, "/completion", asked, timeout_s=1800)
        told = deque(reply["completion_probabilities"])
        said = [told.popleft() if told and told[0]["id"] == token else None for token in reply["tokens"]]
        found.append([(token, at and _lead(at)) for token, at in zip(reply["tokens"], said, strict=True)])
    return found


def _lead(at):
    first, second = sorted((token["logprob"] for token in at["top_logprobs"]), reverse=True)
    return first - second


def compare(ours, theirs):
    """Two sides' `greedy` answers: {"asked", "equal", "lead"}.

    equal: pairs of answers with the same tokens. lead: the largest that our side's token had where a pair parts first,
    or theirs where our answer has ended; None where all are equal.
    """
    leads = []
    for one, other in zip(ours, theirs, strict=True):
        pairs = zip_longest(one, other, fillvalue=(None, None))
        leads += next(([a[1] if a[1] is not None else b[1]] for a, b in pairs if a[0] != b[0]), [])
    known = [lead for lead in leads if lead is not None]
    return {"asked": len(ours), "equal": len(ours) - len(leads), "lead": max(known, default=None)}


def same_adapter(file, found):
    """Raise ValueError where base and adapter say something else than the merged file. found: of `compare`.

    The merged weights are rounded to 16 bits, which turns tokens that led by little; none that led by APART nats, and
    not one in every answer of SEVERAL.
    """
    asked, equal, lead = (found[key] for key in ("asked", "equal", "lead"))
    if (equal == 0 and asked >= SEVERAL) or (equal < asked and lead is None) or (lead or 0) > APART:
        led = "by how much its token led, the server does not say" if lead is None else f"its token led by {lead:.2f}"
        raise ValueError(
            f"{file.name} is not the adapter that was trained: of {asked} answers {equal} are the merged file's, and "
            f"where they part {led}{'' if lead is None else ' nats'}"
        )


def origin(model):
    """(hub id or None, in words) of what was fine-tuned. model: the recipe's section.

    Only a model of the hub is named as a card's base_model: a twin was pretrained here, a folder's path is private.
    """
    base = model["base"]
    if base == "twin":
        shape = model["twin"]["architecture"]
        return (
            None,
            f"a tiny {shape} model, pretrained from nothing on this repository's data/clinic.yaml, never published",
        )
    return (None, f"the local folder {Path(base).name}") if (ROOT / base).exists() else (base, base)


def header(title, model, sources):
    """What a GGUF file says of itself: {key: text}, for gguf.convert. Arguments as in model_card."""
    rows = "; ".join(f"{s['rows']:,} rows of {s['source']}" for s in sources)
    about = f"Base: {origin(model)[1]}. Trained on {rows}. Not for clinical use."
    return {"general.name": title, "general.license.name": _licence(sources), "general.description": about}


def _licence(sources):
    """The one licence of all training data in the hub's spelling, or "other"."""
    licences = {s["licence"] for s in sources}
    return min(licences).lower() if len(licences) == 1 else "other"


def model_card(title, model, ladder, sources, run):
    """Text of a model card in the hub's form: front matter, what it is, the measured ladder, data, limits.

    model: the recipe's section. ladder: rows of one dict each, printed as a table; run: recipe and run name.
    sources: [{"source", "licence", "rows", "commercial", "citation"}]; commercial is whether the licence
    allows such use, None where nobody says: anything but True is warned of in the card.
    """
    licence = _licence(sources)
    sources = [{key: plain(value) if isinstance(value, str) else value for key, value in s.items()} for s in sources]
    table = pandas.DataFrame(ladder, dtype=object).to_markdown(index=False, missingval="", disable_numparse=True)
    data = [f"- {s['source']}: {s['rows']:,} training rows, licence {s['licence']}" for s in sources]
    data += [f"- cite: {citation}" for citation in dict.fromkeys(s["citation"] for s in sources if s.get("citation"))]
    data += licence_warnings(sources)
    hub_id, base = origin(model)
    facts = ModelCardData(
        base_model=hub_id,
        library_name="gguf",
        license=licence,
        tags=["medical", "reasoning", "lora", "gguf"],
    )
    text = "\n".join([
        f"# {plain(title)}",
        "",
        "Written by the export stage from what it measured. Not for clinical use: it was never tested on patients.",
        f"Fine-tuned from {plain(base)}.",
        "",
        "## Measured",
        "",
        table,
        "",
        f"Recipe {plain(run['recipe'])}, run {plain(run['run'])}. Intervals are 95 %, over questions.",
        "",
        "## Training data",
        "",
        *data,
        "",
    ])  # fmt: skip
    return str(ModelCard(f"---\n{facts.to_yaml()}\n---\n{text}"))


def licence_warnings(sources):
    """A sentence for every source whose licence is unknown or excludes commercial use. sources: as in model_card."""
    unclear = [s for s in sources if s.get("commercial") is not True]
    return [
        f"\n**Licence of {s['source']}: {s['licence']}, "
        f"{'commercial use excluded' if s.get('commercial') is False else 'terms not known'}.** "
        f"{s['rows']:,} rows of it went into this model: clear its terms before you publish or sell anything."
        for s in unclear
    ]
