"""The base model and an adapter on it: load, pad, adapt, merge, save; published shapes and tiny twins of them.

Gives loading (base, tokenizer, adapter), head (logits where there is loss), layout (where a parameter lies in the GGUF
file, by addresses and gguf_probe), tokens, twin, shapes, merging, saving, and gguf_convert for twins' tokenizers.
May use pipeline, dataset and chat.
"""
