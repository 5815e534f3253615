"""Models and adapters on disk, whole or not at all: one pad token, one vocabulary, one rounding."""

import json
import shutil
from pathlib import Path

from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule

from lib.model import merging, tokens
from lib.pipeline import ranks
from lib.pipeline.files import whole_folder


def save_adapter(model, folder, trainer=None):
    """Save a trained LoRA adapter, whole or not at all; returns the folder.

    trainer: whose training it comes from; needed where it spread the weights over ranks (FSDP, DeepSpeed ZeRO-3).
    """
    whole = None
    if any(isinstance(module, FSDPModule) for module in model.modules()):  # accelerate would gather the base as well
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        whole = get_model_state_dict(model, options=options)
    elif sharded(trainer) and trainer.model_wrapped is not model:  # it is where nothing was left to train
        whole = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return _write_adapter(model, Path(folder), whole)


@ranks.led
def _write_adapter(model, folder, state):
    with whole_folder(folder) as partial:
        model.save_pretrained(partial, state_dict=state)
    return folder


def sharded(trainer):
    """Whether a trainer has spread the model's weights over ranks, so that no rank has all of them."""
    if trainer is None:
        return False
    deepspeed = getattr(trainer.args, "hf_deepspeed_config", None)
    return bool(trainer.args.fsdp or (deepspeed and deepspeed.is_zero3()))


def merge(peft_model, tokenizer, folder):
    """Merge an adapter into what it was trained on and save bfloat16 safetensors with the tokenizer.

    The sum W + BA is taken in float32, matrix by matrix, and rounded once, to bfloat16: the rounding that QAT has
    inside its forward. A 4-bit base is dequantized, because the adapter was trained on the dequantized weights.
    peft_model: is consumed; its memory is free afterwards. Returns the folder.
    """
    ranks.led(save)(peft_model.get_base_model(), tokenizer, folder, peft_model)
    for parameter in peft_model.parameters() if not ranks.leads() else ():
        parameter.data = parameter.data.new_empty(0)
    return folder


def save(model, tokenizer, folder, consumed=None):
    """Save a model and its tokenizer with one pad token and one vocabulary, whole or not at all; returns the folder.

    consumed: the model with its adapter, or itself, to write merged in bfloat16 instead; its memory is free afterwards.
    Raises ValueError where the model lacks rows for the tokenizer's tokens.
    """
    _agree(model, tokenizer)
    with whole_folder(folder) as partial:
        merging.write(consumed, partial) if consumed is not None else model.save_pretrained(partial)
        save_tokenizer(tokenizer, partial)
    return folder


def _agree(model, tokenizer):
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens and the model's embedding {rows} rows: load both through "
            "lib.model.loading, which adds the rows that are missing"
        )
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    if getattr(model.config, "output_router_logits", False):  # TRL's, for training: it stops decoding with a cache
        model.config.output_router_logits = False


def save_tokenizer(tokenizer, folder):
    """Save a tokenizer, SentencePiece's own file included.

    transformers leaves tokenizer.model out, and llama.cpp's converter then takes every merge for equally likely: the
    served model would read other tokens than the trained one.
    """
    tokenizer.save_pretrained(folder)
    if not json.loads(tokenizer.backend_tokenizer.to_str())["model"].get("byte_fallback"):
        return
    own, file = getattr(tokenizer, "vocab_file", None), Path(folder, "tokenizer.model")
    if own:
        shutil.copy(own, file)
    else:  # a base that comes with tokenizer.json alone
        file.write_bytes(tokens.sentencepiece(tokenizer))
