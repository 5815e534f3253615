"""The recipes' base models as their publishers describe them, and tiny models that keep what is peculiar about each.

Nothing is downloaded and no library is loaded: the published configuration values stand in architectures.yaml.
"""

import re
from pathlib import Path

from lib.pipeline import toolchain
from lib.pipeline.files import beside, read_json, rooted
from lib.pipeline.schema import nearest

SHAPES = beside(__file__)["shapes"]  # {name, as hub ids hold it: published values}
# model_type: lib.model.twin's name
FAMILY = {"llama": "llama", "qwen3": "qwen3", "gpt_oss": "gptoss", "gpt2": "gpt2", "gemma3_text": "gemma3"}
HEADS, HEAD_SIZE, LAYERS, EXPERTS = 4, 64, 2, 4  # of a twin


def published(base):
    """{field: value} of model.base: from a local folder's config.json, or the entry of SHAPES found in its hub id.

    Raises ValueError with the nearest known name, and what to do, for a model that is neither.
    """
    file = Path(rooted(base), "config.json")
    if file.exists():
        return read_json(file)
    name = base.rpartition("/")[2]
    found = [known for known in SHAPES if known.lower() in name.lower()]
    if not found:
        raise ValueError(
            f"the shape of {base!r} is not known here{nearest(name, list(SHAPES))}: download its config.json and set "
            "model.base to that folder, or add its values to lib/pipeline/architectures.yaml"
        )
    return SHAPES[max(found, key=len)]


def unconvertible(base):
    """Why llama.cpp's converter cannot read model.base, in words; None where it can, or where nothing tells.

    A local folder's config.json names its architecture, and the converter lists those that it knows.
    """
    config, known = Path(rooted(base), "config.json"), toolchain.folder() / "conversion" / "__init__.py"
    if not config.exists() or not known.exists():
        return None
    found = read_json(config)
    names = found.get("architectures") if isinstance(found, dict) else found
    if names and not (isinstance(names, list) and isinstance(names[0], str)) or not isinstance(found, dict):
        raise ValueError(f"{config}: architectures should be a list of names, found {names!r}")
    names = names or [None]
    listed = re.findall(r'"(\w+)": "\w+"', known.read_text(encoding="utf-8"))
    if names[0] is None or names[0] in listed:
        return None
    return f"llama.cpp's converter does not know the architecture {names[0]!r}{nearest(names[0], listed)}"


def twin(base):
    """The part of model.twin that makes it a twin of `base`: the family, and sizes that keep what decides a path.

    Kept: whether 256 divides the rows (else K-quants fall back to other types), how many query heads share a key head,
    whether the embedding is the head too, experts and the share of them that a token uses, a head size that is no
    quotient. Raises ValueError as `published` does, and for a family that lib/model/twin.py cannot build.
    """
    fields = published(base)
    kind = fields.get("model_type")
    if kind not in FAMILY:
        raise ValueError(f"a rehearsal of {base!r} needs a twin of model_type {kind!r}; known are {', '.join(FAMILY)}")
    family = "llama2" if kind == "llama" and fields["vocab_size"] < 2**16 else FAMILY[kind]  # SentencePiece's is small
    width = fields.get("hidden_size") or fields["n_embd"]
    made = {"architecture": family, "hidden_size": _rows(width), "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS}  # fmt: skip
    if kind == "gpt2":  # keys and values of all heads, four times the width inside, tied: GPT2Config's own defaults
        return made
    heads = fields["num_attention_heads"]
    shared = max(1, HEADS * (fields.get("num_key_value_heads") or heads) // heads)
    inside = _rows(fields["intermediate_size"])
    made |= {"num_key_value_heads": shared, "head_dim": HEAD_SIZE}
    made |= {"intermediate_size": 2 * inside if inside == 256 else inside}
    made |= {"tie_word_embeddings": bool(fields.get("tie_word_embeddings"))}
    if kind == "gemma3_text":  # llama.cpp scales attention by the head's size, transformers by this field
        made |= {"query_pre_attn_scalar": HEAD_SIZE}
    if fields.get("num_local_experts"):
        used = max(1, EXPERTS * fields["num_experts_per_tok"] // fields["num_local_experts"])
        made |= {"num_local_experts": EXPERTS, "num_experts_per_tok": max(2, used)}  # two, so that they are weighed
    return made


def _rows(width):
    """256 where 256 divides the real width, else 192, which 32 divides and 256 does not."""
    return 256 if width % 256 == 0 else 192
