"""Answers from a transformers model, or from any server that speaks the OpenAI protocol, in one shape.

An answer is {"id", "text", "tokens", "finish", "first_s", "seconds"}:
    text     the complete assistant turn without stop tokens, reasoning tags included, also those that the template or
             the server kept apart, so that lib.dataset.answers sees one form whoever generated
    tokens   number of generated tokens, the stop token included
    finish   "stop" (the model ended its turn), "length" (cut at max_new_tokens) or "error" (no answer came)
    first_s  wall time from the start of its batch or request to its first token
    seconds  wall time to its last token: a latency, not a share of the cost
With `keep`, answers are written to a file as they come; a run that was killed asks for the rest only.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import openai
import torch
from transformers import GenerationConfig, StoppingCriteriaList

from lib.chat import encoding
from lib.evaluation import batching
from lib.evaluation.endpoint import client, dialect, sentence, shown, stream
from lib.evaluation.kept import Kept
from lib.model import offload
from lib.pipeline import ranks
from lib.pipeline.files import sha256_json

# What a model's own generation_config may ask for besides; an answer depends on the recipe alone.
PLAIN = {"num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "use_cache": True}
BUSY = (openai.APITimeoutError, openai.RateLimitError, openai.InternalServerError)
END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|return|>", "<|call|>", "<|endoftext|>", "<|end_of_text|>", "</s>")


def stop_ids(model, tokenizer):
    """Token ids that end an assistant turn: the model's own, the tokenizer's, and the end-of-turn tokens it knows."""
    configured = getattr(model, "generation_config", None)
    own = getattr(configured, "eos_token_id", None)
    ids = set(own if isinstance(own, (list, tuple)) else [own]) | {tokenizer.eos_token_id}
    vocabulary = tokenizer.get_vocab()
    return {int(i) for i in ids | {vocabulary.get(token) for token in END_OF_TURN} if i is not None}


def transformers(
    model,
    tokenizer,
    prompts,
    max_new_tokens,
    batch_size=64,
    temperature=0.0,
    *,
    top_p=1.0,
    seed=42,
    date=None,
    effort=None,
    keep=None,
    progress=None,
):
    """Answer prompts with a causal language model; greedy unless temperature > 0. Returns answers in prompt order.

    prompts: list of {"id", "messages"}, rendered with the tokenizer's chat template (date, effort: see chat.render).
    top_p: draw among the likeliest tokens, as few as hold this share together. keep: file for answers as they come; the
    same call after a kill goes on from it. progress: called with (answered, total) after each batch. Prompts are
    batched by length, so that padding is small, and fewer at once from where a GPU's memory runs out on. With several
    ranks each answers its share, and all get every answer. Raises ValueError where a prompt has no tokens.
    """
    settings = [max_new_tokens, temperature, top_p, seed, date, effort]
    share = ranks.share(prompts)
    if keep and not ranks.leads():
        keep = keep.with_name(f"{keep.stem}.rank{ranks.rank()}{keep.suffix}")
    kept = Kept(keep, share, [*settings, identity(model)] if keep else settings)
    rest = kept.missing(share)
    texts = [encoding.render(prompt["messages"], tokenizer, True, date, effort) for prompt in rest]
    encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    if not all(encoded):
        raise ValueError(f"prompt {rest[encoded.index([])]['id']!r} has no tokens: look at the chat template")
    stops = stop_ids(model, tokenizer)
    order = sorted(range(len(rest)), key=lambda i: (-len(encoded[i]), i))  # longest first: memory runs out early
    how = _drawing(temperature, top_p) | {"max_new_tokens": max_new_tokens, "eos_token_id": sorted(stops)}
    devices = [model.device] if model.device.type == "cuda" else []
    with batching.evaluation(model), torch.random.fork_rng(devices):
        torch.manual_seed(seed + ranks.rank())
        batches = batching.halving(order, batch_size, lambda rows: continue_ids(model, [encoded[i] for i in rows], how))
        for rows, outcomes in batches:
            for i, (ids, first, seconds) in zip(rows, outcomes, strict=True):
                times = {"first_s": first, "seconds": seconds}
                kept.add(answer(rest[i]["id"], texts[i], ids, stops, tokenizer) | times)
            if progress:
                progress(len(kept.answers), len(share))
    answers = {answer["id"]: answer for part in ranks.gather(kept.ordered(share)) for answer in part}
    return [answers[prompt["id"]] for prompt in prompts]


def ask(stage, name, model, tokenizer, prompts):
    """Greedy or drawn answers of a chapter's model, as its recipe's chat section says: `chosen` with its values.

    They are kept under the name as they come, so that a chapter that was killed asks for the rest only.
    """
    chat = stage.recipe.chat
    fields = {"seed": stage.recipe.run["seed"], "top_p": chat["top_p"], "date": chat["date"]}
    fields |= {"effort": chat["reasoning_effort"], "keep": stage.dir / "cache" / f"{name}.jsonl"}
    values = (chat["max_new_tokens"], chat["batch_size"], chat["temperature"])
    with stage.timer(f"generate {name}"):
        return chosen(stage.recipe)(
            model, tokenizer, prompts, *values, progress=lambda *at: stage.progress(*at, name), **fields
        )


def chosen(recipe):
    """What answers under a recipe: `transformers`, or vllm.answers, which takes the same."""
    if recipe.chat["generator"] == "vllm":
        from lib.evaluation.vllm import answers  # which reads this file

        return answers
    return transformers


def _drawing(temperature, top_p):
    if not temperature:
        return PLAIN | {"do_sample": False}
    return PLAIN | {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}


def continue_ids(model, prompts, how):
    """Continue prompts, lists of token ids of similar length: a list of (generated ids, seconds to first, to last).

    how: fields of transformers.GenerationConfig. A stop token is among the ids that it ended.
    """
    ids, mask, _ = batching.left_pad(prompts, model.device)
    clock, stops = batching.Clock(), set(how["eos_token_id"])
    config = GenerationConfig(pad_token_id=how["eos_token_id"][0], **how)
    out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config, synced_gpus=False,
                         past_key_values=batching.shared_cache(model, prompts),
                         stopping_criteria=StoppingCriteriaList([clock]))  # fmt: skip
    found = []
    for row in out[:, ids.shape[1] :].tolist():
        end = next((place for place, token in enumerate(row, 1) if token in stops), len(row))
        found.append((row[:end], clock.seconds[0], clock.seconds[end - 1]))
    return found


def identity(model):
    """Hash of a sample of every parameter, 64 values each: another training gives another hash."""
    sample = {
        name: p.detach().flatten()[:: max(1, p.numel() // 64)].double().tolist()
        for name, p in offload.parameters(model).items()
    }
    return sha256_json(sample)


def answer(name, prompt, ids, stops, tokenizer):
    """The answer made of generated ids; special tokens stay in the text, because some formats are written in them."""
    ended = bool(ids) and ids[-1] in stops
    text = tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=False)
    opened = "<think>\n" if prompt.rstrip().endswith("<think>") else ""  # some templates open the reasoning themselves
    return {"id": name, "text": opened + text, "tokens": len(ids), "finish": "stop" if ended else "length"}


@dataclass(frozen=True)
class Server:
    """How to ask a server. timeout_s bounds one answer with all its attempts; extra_body: fields of its own."""

    model: str = "local"
    temperature: float | None = 0.0
    top_p: float | None = None
    seed: int | None = None
    timeout_s: float = 300.0
    slots: int = 1
    api_key: str = "none"
    extra_body: dict = field(default_factory=dict)
    keep: object = None
    identity: str | None = None
    session: object = None  # of a hosted model, lib.judge.asking.Candidate: what it costs, and when it is given up
    progress: object = None

    def decides(self, base_url, max_new_tokens):
        """What an answer depends on: kept answers to anything else are not read."""
        return [self.identity or base_url, self.model, _drawn(self), max_new_tokens, self.extra_body]


def server(base_url, prompts, max_new_tokens, **options):
    """Answer prompts through an OpenAI-compatible server (llama-server, vLLM, Ollama, the OpenAI API), in order.

    prompts: list of {"id", "messages"}. options: fields of Server. slots: requests under way at once; 1 is what makes
    two runs against llama-server identical. keep: as for `transformers`, with `identity` naming what is served where
    the address does not. An answer that does not come in timeout_s has finish "error" and text "". base_url: None for
    api.openai.com.
    Raises ConnectionError when the server cannot be reached, ValueError when it refuses the request or is given up.
    """
    how = Server(**options)
    api = client(base_url, how.api_key)
    kept = Kept(how.keep, prompts, how.decides(base_url, max_new_tokens))

    def ask(prompt):
        if how.session and how.session.closed:
            return
        kept.add(_ask(api, how, prompt, max_new_tokens, dialect(base_url, how.model)))
        if how.progress:
            how.progress(len(kept.answers), len(prompts))

    with ThreadPoolExecutor(how.slots) as pool:
        list(pool.map(ask, kept.missing(prompts)))
    if how.session and how.session.closed:
        raise ValueError(f"{how.model} at {shown(api)} was given up ({how.session.closed}): mend its address, name or "
                         "key and make again, what came is kept; or leave the candidate out")  # fmt: skip
    return kept.ordered(prompts)


def _drawn(how):
    """The fields of a request that say how tokens are drawn; what is None is left to the server."""
    fields = {"temperature": how.temperature, "top_p": how.top_p, "seed": how.seed}
    return {name: value for name, value in fields.items() if value is not None}


def _ask(api, how, prompt, max_new_tokens, dialect):
    request = {"model": how.model, "messages": prompt["messages"], "max_tokens": max_new_tokens} | _drawn(how)
    request, start = request | {"extra_body": how.extra_body}, time.monotonic()
    counted = {"attempt": lambda: how.session.attempt(prompt["messages"], max_new_tokens)} if how.session else {}
    try:
        reply = stream(api, request, how.timeout_s, dialect, **counted)
    except (openai.APIError, ValueError) as error:
        if how.session:
            how.session.lose(error)
        away = isinstance(error, openai.APIConnectionError)
        # amid its stream: llama-server cannot read what the model wrote, in harmony for one
        one = isinstance(error, BUSY) or not away and not isinstance(error, openai.APIStatusError)
        if one or how.session and (away or how.session.closed):
            return _never_came(prompt, time.monotonic() - start)
        said = sentence(error, how.api_key)  # and no traceback with the reply, which may repeat the key
        if away:
            raise ConnectionError(f"no server at {shown(api)}: {said}. Is llama-server still running?") from None
        raise ValueError(f"{shown(api)} refused prompt {prompt['id']!r}: {said}") from None
    told = {name: reply[name] for name in ("tokens", "finish", "first_s", "seconds")}
    told |= {} if reply["finish"] in ("stop", "length") else {"finish": "error"}
    return {"id": prompt["id"], "text": whole_turn(reply["content"], reply["reasoning"])} | told


def _never_came(prompt, seconds):
    return {"id": prompt["id"], "text": "", "tokens": 0, "finish": "error", "first_s": seconds, "seconds": seconds}


def whole_turn(content, reasoning=""):
    """The assistant turn as one text; reasoning that a server split off goes back into its tags, closed or not."""
    if not reasoning:
        return content
    return f"<think>\n{reasoning}" + (f"\n</think>\n\n{content}" if content else "")
