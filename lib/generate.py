"""Answers from a transformers model, or from any server that speaks the OpenAI protocol, in one shape.

An answer is {"id", "text", "tokens", "finish", "seconds"}:
    text     the complete assistant turn without stop tokens, reasoning tags included, also those that the template or
             the server kept apart, so that lib.answers sees one form whoever generated
    tokens   number of generated tokens, the stop token included
    finish   "stop" (the model ended its turn), "length" (cut at max_new_tokens) or "error" (no answer came)
    seconds  wall time from the start of its batch or request to its last token: a latency, not a share of the cost
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import openai

from lib import chat, decode
from lib.endpoint import client, complete

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
    seed=42,
    date=None,
    effort=None,
    progress=None,
):
    """Answer prompts with a causal language model; greedy unless temperature > 0. Returns answers in prompt order.

    prompts: list of {"id", "messages"}, rendered with the tokenizer's chat template (date, effort: see chat.render).
    progress: called with (answered, total) after each batch. Prompts are batched by length, so that padding is small,
    left-padded, and rows leave the batch once they have ended. Raises ValueError where a prompt has no tokens.
    """
    texts = [chat.render(prompt["messages"], tokenizer, True, date, effort) for prompt in prompts]
    encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    if not all(encoded):
        raise ValueError(f"prompt {prompts[encoded.index([])]['id']!r} has no tokens: look at the chat template")
    stops, answers = stop_ids(model, tokenizer), [None] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: (-len(encoded[i]), i))  # longest first: memory runs out early
    pick = decode.sampler(temperature, seed, model.device)
    with decode.evaluation(model):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            outcomes = decode.batch(model, [encoded[i] for i in rows], stops, max_new_tokens, pick)
            for i, (ids, seconds) in zip(rows, outcomes, strict=True):
                answers[i] = _answer(prompts[i]["id"], texts[i], ids, stops, tokenizer) | {"seconds": seconds}
            if progress:
                progress(min(start + batch_size, len(order)), len(order))
    return answers


def _answer(name, prompt, ids, stops, tokenizer):
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
    timeout_s: float = 300.0
    slots: int = 1
    api_key: str = "none"
    extra_body: dict = field(default_factory=dict)
    progress: object = None


def server(base_url, prompts, max_new_tokens, **options):
    """Answer prompts through an OpenAI-compatible server (llama-server, vLLM, Ollama, the OpenAI API), in order.

    prompts: list of {"id", "messages"}. options: fields of Server. slots: requests under way at once; 1 is what makes
    two runs against llama-server identical. An answer that does not come in timeout_s has finish "error" and text "".
    Raises ConnectionError when the server cannot be reached, ValueError when it refuses the request.
    """
    how = Server(**options)
    api = client(base_url, how.api_key)
    done = []

    def ask(prompt):
        answer = _ask(api, how, prompt, max_new_tokens)
        done.append(answer["id"])
        if how.progress:
            how.progress(len(done), len(prompts))
        return answer

    with ThreadPoolExecutor(how.slots) as pool:
        return list(pool.map(ask, prompts))


def _ask(api, how, prompt, max_new_tokens):
    request = {"model": how.model, "messages": prompt["messages"], "max_tokens": max_new_tokens}
    if how.temperature is not None:
        request["temperature"] = how.temperature
    start = time.monotonic()
    try:
        reply, _ = complete(api, request | {"extra_body": how.extra_body}, how.timeout_s)
    except (openai.APITimeoutError, openai.RateLimitError, openai.InternalServerError, ValueError):
        return _missing(prompt["id"], time.monotonic() - start)
    except openai.APIConnectionError as error:
        raise ConnectionError(f"no server at {api.base_url}: {error}. Is llama-server still running?") from error
    except openai.APIStatusError as error:
        raise ValueError(f"{api.base_url} refused prompt {prompt['id']!r}: {error}") from error
    choice, usage = reply.choices[0], reply.usage
    finish = choice.finish_reason if choice.finish_reason in ("stop", "length") else "error"
    tokens = usage.completion_tokens if usage else 0
    return {
        "id": prompt["id"],
        "text": whole_turn(choice.message),
        "tokens": tokens,
        "finish": finish,
        "seconds": time.monotonic() - start,
    }


def _missing(name, seconds):
    return {"id": name, "text": "", "tokens": 0, "finish": "error", "seconds": seconds}


def whole_turn(message):
    """The assistant turn as one text; reasoning that a server split off goes back into its tags, closed or not."""
    extra = message.model_extra or {}
    reasoning, content = extra.get("reasoning_content") or extra.get("reasoning") or "", message.content or ""
    if not reasoning:
        return content
    return f"<think>\n{reasoning}" + (f"\n</think>\n\n{content}" if content else "")
