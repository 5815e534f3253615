"""A tiny base model of a family's architecture, pretrained from nothing on the clinic's textbook.

It is a base model in every respect but size: the family's own pre-tokenizer, special tokens, chat template and model
class, weights from next-token prediction on plain statements, and no idea of questions and answers. Built once, then
cached by content.
"""

import json
import random
import time
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import torch
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GemmaTokenizer, GenerationConfig, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges

from lib.dataset import clinic, textbook
from lib.model.families import FAMILIES, SENTENCEPIECE, TRAINING_KEYS, config
from lib.model.gguf_convert import PRE_TOKENIZERS
from lib.pipeline.files import ROOT, cache_dir, kept_folder, sha256_file, sha256_json, write_json

# what decides what a twin is: modules, where model/gguf_convert has the pre-tokenizers' expressions, and packages
MADE_BY = ("model/twin", "model/families", "model/gguf_convert")
MADE_BY += ("dataset/textbook", "dataset/vignettes", "dataset/clinic")
MADE_WITH = ("torch", "transformers", "tokenizers", "sentencepiece", "trl")  # trl ships the chat templates
DRILLS = 4  # times that the whole vocabulary passes by in random order: no row of the embedding stays untrained
ROLL_CALLS = 30  # times a pass that the control tokens are listed: each gets a row that no other resembles


def build(spec, world_path, seed, progress=None):
    """Folder of a pretrained twin: tokenizer with chat template, model, stats.json. Built when it is not in the cache.

    spec: the recipe's model.twin: architecture; vocab_size, block_size and batch_size (tokens, rows), steps and
        learning_rate of the pretraining; every other key is a field of the architecture's config. A small text may give
        fewer than vocab_size tokens.
    world_path: clinic.yaml. progress: called with (steps done, steps).
    Raises ValueError for an unknown architecture or a missing key.
    """
    family = _family(spec)
    code = [*(sha256_file(ROOT / "lib" / f"{name}.py") for name in MADE_BY), *map(version, MADE_WITH)]
    folder = cache_dir() / "twin" / sha256_json([spec, seed, sha256_file(world_path), *code])[:16]
    return kept_folder(folder, lambda made: _make(family, spec, clinic.load(world_path), seed, made, progress))


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
        model = initialize(family.model(config(spec, tokenizer)))
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
    train = _sentencepiece if family.tokenizer in SENTENCEPIECE else _byte_level
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
    """Llama-2's and Gemma's kind: SentencePiece BPE, blanks as U+2581, unknown characters as bytes.

    Saved as tokenizer.model as well: transformers computes with the merges, llama.cpp with that file's scores.
    """
    file, gemma = Path(folder, "tokenizer.model"), family.tokenizer is GemmaTokenizer
    file.parent.mkdir(parents=True, exist_ok=True)
    as_llama2 = {"normalization_rule_name": "identity", "byte_fallback": True, "split_digits": True}
    as_llama2 |= {"remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True, "character_coverage": 1.0}
    as_gemma = {"add_dummy_prefix": False, "user_defined_symbols": list(family.control), "pad_id": 0, "eos_id": 1,
                "bos_id": 2, "unk_id": 3, "pad_piece": "<pad>", "eos_piece": "<eos>", "bos_piece": "<bos>"}  # fmt: skip
    with open(file, "wb") as sink:
        SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=sink, model_type="bpe", vocab_size=vocab_size,
            hard_vocab_limit=False, num_threads=1, minloglevel=2, **as_llama2 | (as_gemma if gemma else {}),
        )  # fmt: skip
    pieces = SentencePieceProcessor(model_file=str(file))
    vocab = {pieces.id_to_piece(i): i for i in range(pieces.vocab_size())}
    scores = {piece: pieces.get_score(i) for piece, i in vocab.items()}
    atoms = [p for p, i in vocab.items() if pieces.is_control(i) or pieces.is_byte(i) or pieces.is_unknown(i)]
    tokenizer = family.tokenizer(vocab=vocab, merges=generate_merges(vocab, scores, [*atoms, *family.control]))
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in family.control])
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
