"""How fast do transformers and vLLM answer? The generate part of benchmarks.gpu; VLLM names vLLM's program.

A random Llama in bfloat16 (on a CPU float32) answers prompts of unlike length, many at once; its stop token is
one of the whole vocabulary, so that nearly all answers have their full length.
"""

import functools
import tempfile
import time

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.gpu_qat import SHAPES
from lib.evaluation import generate, vllm
from lib.model import saving

BATCH, PROMPTS, WORDS, NEW = 64, 256, (64, 448), 256  # at once; in all; words a prompt; tokens an answer
TINY = 4, 8, (8, 40), 16


def jobs(args, rows):
    """Jobs of the part: every shape. rows: of the table, unused."""
    return [(f"{shape}, answers", functools.partial(compare, shape, args.device)) for shape in args.shape]


def tokenizer(size):
    """Words w0, w1, ... as tokens, and a chat template that adds nothing."""
    words = Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1} | {f"w{n}": n for n in range(2, size)}, unk_token="<pad>"))
    words.pre_tokenizer = WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    made.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return made


def asked(size, prompts, words):
    """Prompts of random words, as generate.py takes them."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(*words, (prompts,), generator=draw).tolist()
    drawn = [torch.randint(2, size, (length,), generator=draw).tolist() for length in lengths]
    texts = [" ".join(f"w{n}" for n in numbers) for numbers in drawn]
    return [{"id": str(n), "messages": [{"role": "user", "content": text}]} for n, text in enumerate(texts)]


def compare(shape, device):
    """Yields tokens a second by transformers, then by vLLM without its start, and how many answers are equal.

    Raises RuntimeError where there is no vLLM.
    """
    batch, prompts, words, new = TINY if shape == "tiny" else (BATCH, PROMPTS, WORDS, NEW)
    config = SHAPES[shape] | {"max_position_embeddings": 2048}
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    words_of, questions = tokenizer(config["vocab_size"]), asked(config["vocab_size"], prompts, words)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        saving.save(LlamaForCausalLM(LlamaConfig(**config)).to(dtype), words_of, f"{folder}/model")
        model = AutoModelForCausalLM.from_pretrained(f"{folder}/model", dtype=dtype, trust_remote_code=False).to(device)

        def timed(answers):
            answers(model, words_of, questions[:batch], new, batch)  # kernels are chosen, a server is started
            start = time.perf_counter()
            found = answers(model, words_of, questions, new, batch)
            return found, sum(answer["tokens"] for answer in found) / (time.perf_counter() - start)

        ours, speed = timed(generate.transformers)
        text = f"{prompts} answers, {batch} at once: {speed:,.0f} tokens/s by transformers"
        yield {"tokens_per_s": round(speed, 1), "measured": text}
        theirs, fast = timed(vllm.answers)
        vllm.stop()
    same = sum(one["text"] == other["text"] for one, other in zip(ours, theirs, strict=True))
    text += f", {fast:,.0f} by vLLM ({fast / speed:.1f} x), {same} equal"
    yield {"vllm_tokens_per_s": round(fast, 1), "measured": text}
