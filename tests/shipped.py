"""Real tokenizers as the hub's folders hold them, made of the vocabularies that llama.cpp's pinned source ships."""

import struct
from functools import cache
from pathlib import Path

from gguf import GGUFValueType, TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges

from lib.model.families import FAMILIES, SENTENCEPIECE
from lib.model.gguf_convert import PRE_TOKENIZERS
from lib.pipeline.programs import toolchain

MODELS = toolchain().home / "models"
LLAMA31 = {128004: "<|finetune_right_pad_id|>", 128008: "<|eom_id|>", 128010: "<|python_tag|>"}  # 3.0 is shipped


SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))  # GGUF's kinds, as struct's


@cache
def vocabulary(name):
    """The tokenizer.ggml.* fields of a shipped vocabulary, or of the GGUF file of a path: {"tokens": [...], ...}.

    Read here: GGUFReader takes ten seconds for the half million strings of one.
    """
    path = name if isinstance(name, Path) else MODELS / f"ggml-vocab-{name}.gguf"
    prefix, found = "tokenizer.ggml.", {}
    with open(path, "rb") as file:
        for _ in range(_numbers(file, "IIQQ")[3]):
            key, (kind,) = _text(file), _numbers(file, "I")
            found[key] = _value(file, kind)
    found = {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}
    if name == "llama-bpe":
        for number, token in LLAMA31.items():
            found["tokens"][number] = token
    return found


def _numbers(file, form):
    return struct.unpack(f"<{form}", file.read(struct.calcsize(f"<{form}")))


def _text(file):
    return file.read(_numbers(file, "Q")[0]).decode()


def _value(file, kind):
    if kind == GGUFValueType.STRING:
        return _text(file)
    if kind != GGUFValueType.ARRAY:
        return _numbers(file, SCALARS[kind])[0]
    kind, length = _numbers(file, "IQ")
    if kind == GGUFValueType.STRING:
        return [_text(file) for _ in range(length)]
    return list(_numbers(file, f"{length}{SCALARS[kind]}"))


def template(name):
    """The text of a shipped chat template."""
    return (MODELS / "templates" / f"{name}.jinja").read_text(encoding="utf-8")


def expected(name):
    """[(text, token ids)] that the publisher's own tokenizer gave llama.cpp's authors, beside the vocabulary."""
    texts, ids = ((MODELS / f"ggml-vocab-{name}.gguf.{kind}").read_bytes().decode() for kind in ("inp", "out"))
    parts, lines = texts.split("\n__ggml_vocab_test__\n"), ids.split("\n")
    return [(text, [int(number) for number in line.split()]) for text, line in zip(parts, lines, strict=False)]


def tokenizer(architecture, name, folder):
    """Write the tokenizer of a family with a shipped vocabulary into a folder; it has no chat template yet.

    The family's own classes, pre-tokenizer and control tokens, as lib/model/twin.py builds them.
    """
    family, known = FAMILIES[architecture], vocabulary(name)
    kinds = dict(zip(known["tokens"], known["token_type"], strict=True))
    merges = [tuple(pair.split(" ")) for pair in known.get("merges", ())]
    vocab = {token: number for number, token in enumerate(known["tokens"]) if kinds[token] == TokenType.NORMAL}
    control = [*family.control] if vocab else []
    if family.tokenizer in SENTENCEPIECE:
        made = _sentencepiece(family, known, kinds)
    elif isinstance(family.tokenizer, str):  # Llama 3 takes a word of its vocabulary whole, whatever its merges
        core = Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
        split = pre_tokenizers.Split(Regex(PRE_TOKENIZERS[family.tokenizer]), "isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        core.pre_tokenizer, core.decoder = pre_tokenizers.Sequence([split, byte_level]), decoders.ByteLevel()
        begin = (family.begin, known["bos_token_id"])
        core.post_processor = processors.TemplateProcessing(single=f"{begin[0]} $A", special_tokens=[begin])
        made = PreTrainedTokenizerFast(tokenizer_object=core)
        control = known["tokens"][len(vocab) :]
    else:
        made = family.tokenizer(vocab=vocab, merges=merges)
    made.add_tokens([AddedToken(t, special=t not in family.visible, normalized=False) for t in control])
    made.eos_token, made.bos_token = family.end_of_turn, family.begin
    made.save_pretrained(folder)


def _sentencepiece(family, known, kinds):
    vocab = {token: number for number, token in enumerate(known["tokens"])}
    scores = dict(zip(vocab, known["scores"], strict=True))
    atoms = [token for token, kind in kinds.items() if kind != TokenType.NORMAL]
    return family.tokenizer(vocab=vocab, merges=generate_merges(vocab, scores, atoms))
