"""Answers by vLLM, for many questions on one GPU: a server over the chapter's model, which has to be that model.

vLLM wants a torch of its own, so it runs from an environment of its own; VLLM names its executable. It is started with
the first question, reads the weights from where the model in memory was loaded, an adapter from a copy, and is stopped
when another model is asked or the chapter ends. It reads token ids and gives token ids: no template stands between.
"""

import atexit
import contextlib
import os
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import torch

from lib.chat import encoding
from lib.evaluation import batching, generate
from lib.evaluation.endpoint import client
from lib.evaluation.kept import Kept
from lib.model import saving
from lib.pipeline import machine, ranks
from lib.pipeline.commands import ended, environment, held, tail

LIMIT = {torch.float32: 0.05, torch.bfloat16: 0.5, torch.float16: 0.2}  # nats between two log-probabilities of a token
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM knows for an adapter
SHOWN, START_S = 4, 1800  # prompts that both models read; seconds that a server may take to load
_now = contextlib.ExitStack()  # the server that runs, and what it was started for
_served = {}


def answers(
    model, tokenizer, prompts, max_new_tokens, batch_size=64, temperature=0.0,
    *, top_p=1.0, seed=42, date=None, effort=None, keep=None, progress=None,
):  # fmt: skip
    """As `generate.transformers`, by vLLM; batch_size: requests under way at once.

    Raises ValueError where vLLM's model is not the one in memory, RuntimeError where it does not start.
    """
    settings = ["vllm", max_new_tokens, temperature, top_p, seed, date, effort]
    kept = Kept(keep, prompts, [*settings, generate.identity(model)] if keep else settings)
    rest = kept.missing(prompts)
    texts = [encoding.render(prompt["messages"], tokenizer, True, date, effort) for prompt in rest]
    encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    if not all(encoded):
        raise ValueError(f"prompt {rest[encoded.index([])]['id']!r} has no tokens: look at the chat template")
    if not rest:
        return kept.ordered(prompts)
    api = server(model, max(map(len, encoded)) + max_new_tokens, batch_size, encoded[:SHOWN])
    stops = generate.stop_ids(model, tokenizer)
    how = {"max_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "stream": True}
    more = {"stop_token_ids": sorted(stops), "return_token_ids": True, "skip_special_tokens": False}

    def ask(at):
        start, ids, first = time.monotonic(), [], None
        drawn = {"seed": seed + at} if temperature else {}
        for part in api.completions.create(model="chapter", prompt=encoded[at], **how, **drawn, extra_body=more):
            for choice in part.choices:
                ids += choice.token_ids or []
                first = first or time.monotonic() - start
        times = {"first_s": first, "seconds": time.monotonic() - start}
        kept.add(generate.answer(rest[at]["id"], texts[at], ids, stops, tokenizer) | times)
        if progress:
            progress(len(kept.answers), len(prompts))

    with ThreadPoolExecutor(batch_size) as pool:
        list(pool.map(ask, range(len(rest))))
    return kept.ordered(prompts)


def server(model, length, slots, shown):
    """A client of the server over a model. length: tokens of the longest conversation. shown: prompts to compare on.

    The one that runs is used again for the same weights, where it reads as much.
    """
    if ranks.world() > 1:
        raise ValueError("chat.generator is vllm under several processes: expected one. Leave LAUNCH out, or generate "
                         "with transformers")  # fmt: skip
    key = generate.identity(model)
    if _served.get("key") != key or _served["length"] < length or _served["process"].poll() is not None:
        stop()
        length = -(-length // 1024) * 1024
        most = getattr(model.config, "max_position_embeddings", length)
        process, api = _started(model, min(length, most), slots)
        _served.update(key=key, length=length, api=api, process=process)
        _compared(api, model, shown)
    return _served["api"]


@atexit.register
def stop():
    """Stop the server that runs, if any."""
    _now.close()
    _served.clear()


def _started(model, length, slots):
    """(process, client) of a server that is ready."""
    named = os.environ.get("VLLM") or "vllm"
    executable = shutil.which(named)
    if not executable:
        raise RuntimeError(f"no program {named!r}, which chat.generator: vllm needs. Install vllm in an environment of "
                           "its own and set VLLM to its bin/vllm, or set chat.generator: transformers")  # fmt: skip
    scratch = Path(_now.enter_context(tempfile.TemporaryDirectory()))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    args = [*_weights(model, scratch), "--host", "127.0.0.1", "--port", port, "--max-model-len", length]
    args += ["--max-num-seqs", slots, "--dtype", str(model.dtype).removeprefix("torch.")]
    machine.release()
    if torch.cuda.is_available():  # what the model in memory leaves
        free, total = torch.cuda.mem_get_info()
        args += ["--gpu-memory-utilization", f"{0.92 * free / total:.2f}"]
    key = secrets.token_urlsafe(24)
    known = environment() | {"VLLM_API_KEY": key, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    log = scratch / "vllm.log"
    with open(log, "w", encoding="utf-8") as sink:
        command = held(executable, "serve", *args, end="SIGTERM")  # at SIGKILL it would leave its engine behind
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env=known, start_new_session=True)
    _now.callback(ended, process, 30)
    api = client(f"http://127.0.0.1:{port}", key).with_options(timeout=3600)
    begun = time.monotonic()
    while process.poll() is None and time.monotonic() - begun < START_S:
        with contextlib.suppress(openai.APIError):
            api.models.list()
            return process, api
        time.sleep(1)
    raise RuntimeError(f"vLLM ended with status {process.poll()} (None: not ready in {START_S} s):\n{tail(log)}")


def _weights(model, scratch):
    """Arguments that name a model's weights: where they were loaded from, and a copy of an adapter."""
    if getattr(model, "is_quantized", False) or getattr(model, "is_loaded_in_4bit", False):
        raise ValueError("chat.generator is vllm and the model is quantized in memory: vLLM would round it in a way of "
                         "its own. Expected 16 bits; else set chat.generator: transformers")  # fmt: skip
    config = (model.get_base_model() if hasattr(model, "peft_config") else model).config
    revision = ["--revision", config._commit_hash] if config._commit_hash else []
    if not hasattr(model, "peft_config"):
        return [config._name_or_path, *revision, "--served-model-name", "chapter"]
    rank = max(adapter.r for adapter in model.peft_config.values())
    rank = next((known for known in RANKS if known >= rank), rank)
    adapter = saving.save_adapter(model, scratch / "adapter")
    return [config._name_or_path, *revision, "--served-model-name", "base", "--enable-lora", "--max-lora-rank", rank,
            "--lora-modules", f"chapter={adapter}"]  # fmt: skip


def _compared(api, model, shown):
    """Raise ValueError unless both models give the likeliest next tokens of some prompts the same log-probabilities."""
    worst = 0.0
    for ids in shown:
        reply = api.completions.create(model="chapter", prompt=ids, max_tokens=1, temperature=0, logprobs=5,
                                       extra_body={"return_tokens_as_token_ids": True})  # fmt: skip
        (given,) = reply.choices[0].logprobs.top_logprobs
        theirs = {int(re.sub(r"\D", "", token)): value for token, value in given.items()}
        with batching.evaluation(model):
            logits = model(torch.tensor([ids], device=model.device)).logits[0, -1].float()
        ours = logits.log_softmax(-1)
        worst = max([worst, *(abs(float(ours[token]) - value) for token, value in theirs.items())])
    if not worst <= LIMIT[model.dtype]:
        stop()
        raise ValueError(f"vLLM's model is not the one in memory: log-probabilities of next tokens are {worst:.3g} "
                         f"nats apart on {len(shown)} prompts, expected at most {LIMIT[model.dtype]}. Where weights "
                         "are rounded or changed in memory, set chat.generator: transformers")  # fmt: skip
