"""Run llama.cpp's own convert_hf_to_gguf.py or convert_lora_to_gguf.py, and teach them the tokenizers of twins.

The converter recognizes a pre-tokenizer by a hash over token ids, so it refuses every tokenizer trained afresh, even
one with a family's exact pre-tokenizer. Here, and only where that hash is unknown, the regular expression in
tokenizer.json decides: equal to a published one, character by character, or refused.
"""

import json
import os
import runpy
import sys
from pathlib import Path

PRE_TOKENIZERS = {  # llama.cpp's name: the expression in the family's tokenizer.json, as quoted in src/llama-vocab.cpp
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "gpt-4o": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


def pre_tokenizer_name(tokenizer_json):
    """Name of the published pre-tokenizer that a tokenizer.json holds.

    tokenizer_json: path. It must split by one published expression (isolated), then byte-level without its own one;
    or, as GPT-2's, byte-level with its own.
    Raises ValueError for anything else: a guessed name would give other tokens in llama.cpp than in training.
    """
    found = json.loads(Path(tokenizer_json).read_text(encoding="utf-8")).get("pre_tokenizer") or {}
    parts = found.get("pretokenizers", [found])
    if len(parts) == 1 and parts[0].get("type") == "ByteLevel" and parts[0]["use_regex"]:
        return "gpt-2"  # the expression that ByteLevel has built in
    byte_level = parts[-1].get("type") == "ByteLevel" and not parts[-1]["use_regex"]
    if len(parts) == 2 and parts[0].get("type") == "Split" and parts[0]["behavior"] == "Isolated" and byte_level:
        for name, expression in PRE_TOKENIZERS.items():
            if parts[0]["pattern"] == {"Regex": expression} and not parts[0]["invert"]:
                return name
    raise ValueError(
        f"pre-tokenizer of {tokenizer_json} is none of {', '.join(PRE_TOKENIZERS)}: found {json.dumps(found)}. "
        "Build the tokenizer as Split(<published expression>, isolated) + ByteLevel(use_regex=False); "
        "lib/model/gguf_convert.py lists the expressions"
    )


def main(script, arguments):
    """Run the stock converter in this process with the fallback in place. script: path of the converter."""
    home = Path(script).parent
    sys.path[:0] = [str(home), str(home / "gguf-py")]  # the converter's own gguf, of the same commit
    os.environ["NO_LOCAL_GGUF"] = "1"  # it would insert the same path again
    sys.modules["sklearn"] = None  # not installed, as far as transformers can see: it would load it, in two seconds
    from conversion import base

    stock = base.TextModel.get_vocab_base_pre

    def with_twins(model, tokenizer):
        try:
            return stock(model, tokenizer)
        except NotImplementedError:
            return pre_tokenizer_name(model.dir_model / "tokenizer.json")

    base.TextModel.get_vocab_base_pre = with_twins
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
