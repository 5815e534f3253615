"""A tokenizer as the embedding and llama.cpp need it: a row for each token, and SentencePiece's own file beside it."""

import json

from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer


def with_rows(tokenizer, rows: int):
    """The tokenizer without tokens that the embedding has no row for: reading one would be an error, not a word.

    Gemma 3's has one for images, which its text models lack. rows: of the embedding. Raises ValueError where such a
    token is needed: by the template, to begin, end or pad a text, or inside the vocabulary.
    """
    lost = {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}
    if not lost:
        return tokenizer
    added, template = tokenizer.get_added_vocab(), str(tokenizer.chat_template or "")
    named = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token}
    needed = [token for token in lost if token not in added or token in named or token in template]
    if needed:
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path!r} has {len(tokenizer)} tokens and the embedding {rows} rows, none "
            f"for {needed[0]!r}, which is needed: use the tokenizer that belongs to model.base"
        )
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend["added_tokens"] = [token for token in backend["added_tokens"] if token["id"] < rows]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(backend))
    roles = tokenizer.init_kwargs.get("model_specific_special_tokens") or {}  # which saving would write out again
    for known in (roles, tokenizer._special_tokens_map):
        for role in [role for role, token in known.items() if str(token) in lost]:
            del known[role]
    return tokenizer


def sentencepiece(tokenizer) -> bytes:
    """SentencePiece's tokenizer.model of a BPE with byte fallback, made of tokenizer.json's merges.

    transformers reads and saves merges only, llama.cpp scores only: of two neighbours that could be joined it joins
    those whose whole scores higher. A piece's score is therefore the place of the merge that first makes it.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    model, added = backend["model"], {token["id"]: token for token in backend["added_tokens"]}
    ranks = {}
    for rank, pair in enumerate(model["merges"]):
        left, right = pair if isinstance(pair, list) else pair.split(" ")
        ranks.setdefault(left + right, rank)
    made = sentencepiece_model_pb2.ModelProto()
    kinds = made.SentencePiece.Type
    for piece, number in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        assert number == len(made.pieces), f"no token has the id {len(made.pieces)}"
        kind = kinds.BYTE if len(piece) == 6 and piece.startswith("<0x") else kinds.NORMAL
        if number in added:
            kind = kinds.CONTROL if added[number]["special"] else kinds.USER_DEFINED
        if piece == tokenizer.unk_token:
            kind = kinds.UNKNOWN
        made.pieces.add(piece=piece, score=-float(ranks.get(piece, len(model["merges"]))), type=kind)
    made.trainer_spec.model_type = made.trainer_spec.BPE
    made.trainer_spec.byte_fallback = True
    made.normalizer_spec.name = "identity"
    made.normalizer_spec.remove_extra_whitespaces = False
    made.normalizer_spec.add_dummy_prefix = "Prepend" in json.dumps(backend["normalizer"])
    return made.SerializeToString()


def one_template(tokenizer, path):
    """The tokenizer with its template "default", where it has several by name. Raises ValueError without that one."""
    if isinstance(tokenizer.chat_template, dict):
        if "default" not in tokenizer.chat_template:
            names = ", ".join(sorted(tokenizer.chat_template))
            raise ValueError(f"the tokenizer {str(path)!r} has no chat template named default, only {names}")
        tokenizer.chat_template = tokenizer.chat_template["default"]
    return tokenizer
