"""A token to pad with, for bases that have none of their own: Llama-2, Llama 3, GPT-2, DialoGPT.

Padding is masked out of the loss and the end token must not be, so the two cannot be one: a model that pads with its
end token never learns to stop.
"""

import torch

from lib.chat.turns import neutralise

RESERVED = ("<|finetune_right_pad_id|>", "<|reserved_special_token_0|>", "<|pad|>", "<pad>", "<unk>")  # best first
ADDED = "<|pad|>"


def choose(tokenizer) -> str:
    """The token to pad with: the tokenizer's own; else a reserved one of its vocabulary; else ADDED, which is new.

    Never the end or the beginning, none that the chat template writes, none that text of a data set can become
    (`neutralise` breaks them all), and <unk> only where unknown characters become bytes instead.
    """
    taken = {tokenizer.eos_token, tokenizer.bos_token}
    if tokenizer.pad_token is not None and tokenizer.pad_token_id not in (None, tokenizer.eos_token_id):
        return tokenizer.pad_token
    vocabulary, template = tokenizer.get_vocab(), str(tokenizer.chat_template or "")
    for token in RESERVED:
        bytewise = token != "<unk>" or getattr(tokenizer.backend_tokenizer.model, "byte_fallback", False)
        if token in vocabulary and token not in taken and token not in template and bytewise:
            assert neutralise(token) != token, f"text of a data set could become {token}"
            return token
    return ADDED


def pad(tokenizer):
    """The tokenizer with the token of `choose` as its pad token; new ones go behind the vocabulary."""
    token = choose(tokenizer)
    if tokenizer.pad_token != token:
        tokenizer.add_special_tokens({"pad_token": token})
    assert tokenizer.pad_token_id != tokenizer.eos_token_id, f"{token} is still the end token"
    return tokenizer


def grow(model, vocab_size: int):
    """The model with at least vocab_size rows of embedding; new rows, of the head too, are the mean of the old ones.

    A mean row has an average logit: no token loses probability to padding, as it would to a row of zeros or noise, and
    every load gives the same numbers. The size is not rounded up: model, tokenizer and GGUF file keep one vocabulary.
    """
    old = model.get_input_embeddings().weight.shape[0]
    if vocab_size > old:
        model.resize_token_embeddings(vocab_size, mean_resizing=False)
        with torch.no_grad():
            for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
                layer.weight[old:] = layer.weight[:old].float().mean(0).to(layer.weight.dtype)
    return model
