"""A tiny base model of a family's architecture, pretrained from nothing on the clinic's textbook.

It is a base model in every respect but size: the family's own pre-tokenizer, special tokens, chat template and model
class, weights from next-token prediction on plain statements, and no idea of questions and answers. Built once, then
cached by content.
"""

import json
import os
import random
import tempfile
import time
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import GenerationConfig, Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM

from lib import clinic, textbook
from lib.files import cache_dir, sha256_file, sha256_json, write_json

TRAINING_KEYS = ("architecture", "vocab_size", "block_size", "batch_size", "steps", "learning_rate")
DRILLS = 4  # times that the whole vocabulary passes by in random order: no row of the embedding stays untrained
ROLL_CALLS = 60  # times a pass that the control tokens are listed: each gets a row that no other resembles


@dataclass(frozen=True)
class Family:
    """What is a family's own.

    control: added tokens in the published order of ids, which follow the vocabulary; the ones named in `visible` are
    not special, i.e. decoding keeps them. template: a chat template that TRL ships.
    """

    tokenizer: type
    config: type
    model: type
    control: tuple
    visible: tuple
    end_of_text: str
    end_of_turn: str
    template: str


QWEN3_SPECIAL = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> "
    "<|box_start|> <|box_end|> <|quad_start|> <|quad_end|> "
    "<|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>"
)
QWEN3_VISIBLE = (
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|> "
    "<tool_response> </tool_response> <think> </think>"
)
FAMILIES = {
    "qwen3": Family(
        tokenizer=Qwen2Tokenizer,  # Qwen3 uses Qwen2's, with four more control tokens
        config=Qwen3Config,
        model=Qwen3ForCausalLM,
        control=tuple(f"{QWEN3_SPECIAL} {QWEN3_VISIBLE}".split()),
        visible=tuple(QWEN3_VISIBLE.split()),
        end_of_text="<|endoftext|>",
        end_of_turn="<|im_end|>",
        template="qwen3.jinja",
    ),
}


def build(spec, world_path, seed, progress=None):
    """Folder of a pretrained twin: tokenizer with chat template, model, stats.json. Built when it is not in the cache.

    spec: the recipe's model.twin: architecture; vocab_size, block_size and batch_size (tokens, rows), steps and
        learning_rate of the pretraining; every other key is a field of the architecture's config. A small text may give
        fewer than vocab_size tokens.
    world_path: clinic.yaml. progress: called with (steps done, steps).
    Raises ValueError for an unknown architecture or a missing key.
    """
    family = _family(spec)
    here = Path(__file__)
    code = [*(sha256_file(here.with_name(f"{name}.py")) for name in ("twin", "textbook", "clinic")), torch.__version__]
    folder = cache_dir() / "twin" / sha256_json([spec, seed, sha256_file(world_path), *code])[:16]
    if (folder / "stats.json").exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch_name = {"dir": folder.parent, "prefix": f"{folder.name}."}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True, **scratch_name) as scratch:
        made = Path(scratch) / "twin"
        _make(family, spec, clinic.load(world_path), seed, made, progress)
        try:
            os.replace(made, folder)
        except OSError:  # another process finished the same twin first
            if not (folder / "stats.json").exists():
                raise
    return folder


def _family(spec):
    if spec.get("architecture") not in FAMILIES:
        raise ValueError(f"model.twin.architecture is {spec.get('architecture')!r}; known are {', '.join(FAMILIES)}")
    missing = [key for key in TRAINING_KEYS if key not in spec]
    if missing:
        raise ValueError(f"model.twin lacks {', '.join(missing)}: add them in the recipe")
    return FAMILIES[spec["architecture"]]


def _make(family, spec, world, seed, folder, progress):
    started, cpu = time.time(), time.process_time()
    statements = textbook.paragraphs(world, seed)
    tokenizer = train_tokenizer(family, statements, spec["vocab_size"])
    blocks, counts = corpus(statements, tokenizer, spec, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = initialize(family.model(_config(family, spec, tokenizer)))
        losses = pretrain(model, blocks, spec["learning_rate"], progress)
    end = tokenizer.convert_tokens_to_ids([family.end_of_turn, family.end_of_text])
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    last = losses[-max(1, len(losses) // 20) :]
    stats = {"parameters": model.num_parameters(), "vocab_size": len(tokenizer), "statements": len(statements)}
    stats |= {"steps": len(losses), "tokens": blocks.numel(), "unseen_tokens": int((counts == 0).sum())}
    stats |= {"first_loss": losses[0], "loss": sum(last) / len(last), "losses": losses}
    stats |= {"seconds": time.time() - started, "cpu_seconds": time.process_time() - cpu}
    write_json(folder / "stats.json", stats)


def train_tokenizer(family, texts, vocab_size):
    """A byte-level BPE of at most vocab_size tokens, control tokens included, in the family's own tokenizer class."""
    own = family.tokenizer().backend_tokenizer  # normalizer and pre-tokenizer exactly as published
    trained = Tokenizer(models.BPE())
    trained.normalizer, trained.pre_tokenizer = own.normalizer, own.pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = vocab_size - len(family.control)
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(texts, trainer)
    bpe = json.loads(trained.to_str())["model"]
    tokenizer = family.tokenizer(vocab=bpe["vocab"], merges=[tuple(pair) for pair in bpe["merges"]])
    added = (AddedToken(t, special=t not in family.visible, normalized=False) for t in family.control)
    tokenizer.add_tokens(list(added))
    tokenizer.pad_token, tokenizer.eos_token = family.end_of_text, family.end_of_turn
    tokenizer.chat_template = files("trl").joinpath("chat_templates", family.template).read_text(encoding="utf-8")
    return tokenizer


def corpus(statements, tokenizer, spec, seed):
    """Pack the textbook, reshuffled at every pass, into (steps, batch_size, block_size) token ids.

    Returns (blocks, how often each token id occurs). Documents end with the end-of-text token; the vocabulary drills
    are spread evenly over them. The control tokens, which no statement holds, are one document more: without it their
    rows differ by chance alone, and a fine-tuned model that cannot write <think> loses more there than to rounding.
    """
    rng = random.Random(f"corpus {seed}")
    end = [tokenizer.pad_token_id]
    documents = [ids + end for ids in tokenizer(statements)["input_ids"]]
    documents += [sorted(tokenizer.added_tokens_decoder) + end] * ROLL_CALLS
    wanted = spec["steps"] * spec["batch_size"] * spec["block_size"]
    stream, drills = [], 0
    while len(stream) < wanted:
        for document in rng.sample(documents, len(documents)):
            if len(stream) * DRILLS >= drills * wanted and drills < DRILLS:
                stream += rng.sample(range(len(tokenizer)), len(tokenizer)) + end
                drills += 1
            stream += document
    blocks = torch.tensor(stream[:wanted]).view(spec["steps"], spec["batch_size"], spec["block_size"])
    return blocks, torch.bincount(blocks.flatten(), minlength=len(tokenizer))


def _config(family, spec, tokenizer):
    shape = {key: value for key, value in spec.items() if key not in TRAINING_KEYS}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    length = {"max_position_embeddings": max(2048, spec["block_size"])}
    return family.config(**{"vocab_size": len(tokenizer), "tie_word_embeddings": True, **ends, **length, **shape})


def initialize(model):
    """Zero the matrices that write to the residual stream, so that it starts as the token's own embedding."""
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            torch.nn.init.zeros_(weight)
    return model


def pretrain(model, blocks, learning_rate, progress=None):
    """Next-token prediction on (steps, rows, tokens) ids; returns the loss of every step, in nats per token.

    AdamW with a short warm-up, then linear decay to zero. Many small steps learn more per token here than few large
    ones: the facts are few and far apart.
    """
    torch.set_flush_denormal(True)  # denormal floats slow a CPU down many times
    matrices, vectors = ([p for p in model.parameters() if (p.dim() > 1) is wide] for wide in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)
    steps, losses = len(blocks), []
    warmup = max(1, steps // 20)

    def rate(step):
        return min((step + 1) / warmup, (steps - step) / (steps - warmup + 1))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    model.train()
    for done, batch in enumerate(blocks, 1):
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if progress:
            progress(done, steps)
    model.eval()
    return losses
