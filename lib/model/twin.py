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
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import torch
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Tokenizer,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.convert_slow_tokenizer import generate_merges

from lib.dataset import clinic, textbook
from lib.model.gguf_convert import PRE_TOKENIZERS
from lib.pipeline.files import ROOT, cache_dir, sha256_file, sha256_json, write_json

MADE_BY = ("model/twin", "dataset/textbook", "dataset/clinic")  # modules that decide what a twin is
TRAINING_KEYS = ("architecture", "vocab_size", "block_size", "batch_size", "steps", "learning_rate")
DRILLS = 4  # times that the whole vocabulary passes by in random order: no row of the embedding stays untrained
ROLL_CALLS = 30  # times a pass that the control tokens are listed: each gets a row that no other resembles


@dataclass(frozen=True)
class Family:
    """What is a family's own.

    tokenizer: the class that has the family's pre-tokenizer, or the name of its expression in PRE_TOKENIZERS, or
    "sentencepiece". control: added tokens in the published order of ids, which follow the vocabulary; the ones named in
    `visible` are not special, i.e. decoding keeps them. padding: a token that ends no text, or None where the family
    has none to pad with and lib/model/padding.py chooses. template: the name of a
    chat template that TRL ships, or a template's text, or None. fields: of the config, where they differ from both the
    class's defaults and a tiny model's.
    """

    tokenizer: type | str
    config: type
    model: type
    control: tuple
    end_of_text: str
    end_of_turn: str
    padding: str | None
    template: str | None
    begin: str | None = None
    visible: tuple = ()
    fields: dict = field(default_factory=dict)


QWEN3_SPECIAL = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> "
    "<|box_start|> <|box_end|> <|quad_start|> <|quad_end|> "
    "<|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>"
)
QWEN3_VISIBLE = (
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|> "
    "<tool_response> </tool_response> <think> </think>"
)
LLAMA3_CONTROL = (
    "<|begin_of_text|> <|end_of_text|> <|finetune_right_pad_id|> <|start_header_id|> <|end_header_id|> <|eom_id|> "
    "<|eot_id|> <|python_tag|>"
)
GPTOSS_CONTROL = (
    "<|startoftext|> <|endoftext|> <|return|> <|constrain|> <|channel|> <|start|> <|end|> <|message|> <|call|>"
)
LLAMA2_CHAT = (  # one exchange in Llama-2's chat format
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
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
        padding="<|endoftext|>",
        template="qwen3.jinja",
    ),
    "llama": Family(  # Llama 3
        tokenizer="llama-bpe",
        config=LlamaConfig,
        model=LlamaForCausalLM,
        control=tuple(LLAMA3_CONTROL.split()),
        begin="<|begin_of_text|>",
        end_of_text="<|end_of_text|>",
        end_of_turn="<|eot_id|>",
        padding="<|finetune_right_pad_id|>",
        template="llama3.jinja",
    ),
    "llama2": Family(
        tokenizer="sentencepiece",
        config=LlamaConfig,
        model=LlamaForCausalLM,
        control=(),  # <unk>, <s> and </s> are SentencePiece's own first three
        begin="<s>",
        end_of_text="</s>",
        end_of_turn="</s>",
        padding=None,
        template=LLAMA2_CHAT,
    ),
    "gpt2": Family(
        tokenizer=GPT2Tokenizer,
        config=GPT2Config,
        model=GPT2LMHeadModel,
        control=("<|endoftext|>",),
        begin="<|endoftext|>",
        end_of_text="<|endoftext|>",
        end_of_turn="<|endoftext|>",
        padding=None,
        template=None,
        fields={"n_ctx": 2048},  # llama.cpp's converter reads this name
    ),
    "gptoss": Family(
        tokenizer="gpt-4o",
        config=GptOssConfig,
        model=GptOssForCausalLM,
        control=tuple(GPTOSS_CONTROL.split()),
        begin="<|startoftext|>",
        end_of_text="<|endoftext|>",
        end_of_turn="<|return|>",
        padding="<|endoftext|>",
        template="gptoss.jinja",
        fields={"tie_word_embeddings": False},  # its file has no form for tied ones
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
    code = [*(sha256_file(ROOT / "lib" / f"{name}.py") for name in MADE_BY), torch.__version__]
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
    tokenizer = train_tokenizer(family, statements, spec["vocab_size"], folder)
    end = tokenizer.convert_tokens_to_ids(family.end_of_text)
    blocks, counts = corpus(statements, tokenizer, spec, seed, end)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = initialize(family.model(_config(family, spec, tokenizer)))
        losses = pretrain(model, blocks, spec["learning_rate"], progress)
    end = tokenizer.convert_tokens_to_ids([family.end_of_turn, family.end_of_text])
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    last = losses[-max(1, len(losses) // 20) :]
    stats = {"parameters": model.num_parameters(), "vocab_size": len(tokenizer), "statements": len(statements)}
    stats |= {"steps": len(losses), "tokens": blocks.numel(), "unseen_tokens": int((counts == 0).sum())}
    stats |= {"first_loss": losses[0], "loss": sum(last) / len(last), "losses": losses}
    stats |= {"seconds": time.time() - started, "cpu_seconds": time.process_time() - cpu}
    write_json(folder / "stats.json", stats)


def train_tokenizer(family, texts, vocab_size, folder=None):
    """The family's kind of tokenizer, of at most vocab_size tokens, control tokens included.

    folder: where to save it, if anywhere; SentencePiece's needs one, for the tokenizer.model that llama.cpp reads.
    """
    train = _sentencepiece if family.tokenizer == "sentencepiece" else _byte_level
    tokenizer = train(family, texts, vocab_size, folder)
    tokenizer.pad_token, tokenizer.eos_token = family.padding, family.end_of_turn
    if family.begin:
        tokenizer.bos_token = family.begin
    template = family.template
    if template and template.endswith(".jinja"):
        template = files("trl").joinpath("chat_templates", template).read_text(encoding="utf-8")
    tokenizer.chat_template = template
    if folder:
        tokenizer.save_pretrained(folder)
    return tokenizer


def _byte_level(family, texts, vocab_size, folder):
    """A byte-level BPE with the pre-tokenizer of the family's own class, or of its published expression."""
    trained = Tokenizer(models.BPE())
    if isinstance(family.tokenizer, str):
        split = pre_tokenizers.Split(Regex(PRE_TOKENIZERS[family.tokenizer]), "isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        trained.pre_tokenizer, trained.decoder = pre_tokenizers.Sequence([split, byte_level]), decoders.ByteLevel()
    else:
        own = family.tokenizer().backend_tokenizer  # normalizer and pre-tokenizer exactly as published
        trained.normalizer, trained.pre_tokenizer = own.normalizer, own.pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = vocab_size - len(family.control)
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(texts, trainer)
    if isinstance(family.tokenizer, str):
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained)
    else:
        bpe = json.loads(trained.to_str())["model"]
        tokenizer = family.tokenizer(vocab=bpe["vocab"], merges=[tuple(pair) for pair in bpe["merges"]])
    added = (AddedToken(t, special=t not in family.visible, normalized=False) for t in family.control)
    tokenizer.add_tokens(list(added))
    return tokenizer


def _sentencepiece(family, texts, vocab_size, folder):
    """Llama-2's kind: SentencePiece BPE, blanks as U+2581 and one before each text, unknown characters as bytes.

    Saved as tokenizer.model as well: transformers computes with the merges, llama.cpp with that file's scores.
    """
    file = Path(folder, "tokenizer.model")
    file.parent.mkdir(parents=True, exist_ok=True)
    as_llama2 = {"normalization_rule_name": "identity", "byte_fallback": True, "split_digits": True}
    as_llama2 |= {"remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True, "character_coverage": 1.0}
    with open(file, "wb") as sink:
        SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=sink, model_type="bpe", vocab_size=vocab_size,
            hard_vocab_limit=False, num_threads=1, minloglevel=2, **as_llama2,
        )  # fmt: skip
    pieces = SentencePieceProcessor(model_file=str(file))
    vocab = {pieces.id_to_piece(i): i for i in range(pieces.vocab_size())}
    scores = {piece: pieces.get_score(i) for piece, i in vocab.items()}
    atoms = [p for p, i in vocab.items() if pieces.is_control(i) or pieces.is_byte(i) or pieces.is_unknown(i)]
    merges = generate_merges(vocab, scores, atoms)
    tokenizer = LlamaTokenizer(vocab=vocab, merges=merges)
    tokenizer.vocab_file = str(file)
    return tokenizer


def corpus(statements, tokenizer, spec, seed, end_of_text):
    """Pack the textbook, reshuffled at every pass, into (steps, batch_size, block_size) token ids.

    Returns (blocks, how often each token id occurs). Documents end with the end-of-text token; the vocabulary drills
    are spread evenly over them. The control tokens and the line break, which no statement holds, are one document more:
    without it their rows differ by chance alone, and three quarters of a fine-tuned model's loss come from them.
    """
    rng = random.Random(f"corpus {seed}")
    end = [end_of_text]
    documents = [ids + end for ids in tokenizer(statements, add_special_tokens=False)["input_ids"]]
    roll = "".join(f"{tokenizer.added_tokens_decoder[token]}\n" for token in sorted(tokenizer.added_tokens_decoder))
    documents += [tokenizer(roll, add_special_tokens=False)["input_ids"] + end] * ROLL_CALLS
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
    ends = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    length = {"max_position_embeddings": max(2048, spec["block_size"])}
    own = {"vocab_size": len(tokenizer), "tie_word_embeddings": True, **family.fields}
    return family.config(**{**own, **ends, **length, **shape})


def initialize(model):
    """Zero the matrices that write to the residual stream, so that it starts as the token's own embedding."""
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight", "c_proj.weight", "experts.down_proj")):
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
