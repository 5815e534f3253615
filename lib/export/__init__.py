"""Chapter 5: GGUF files converted, quantized, measured and served by llama.cpp; what is released with them.

Gives gguf (files), serve (a running llama-server), release (proofs, model card), modelfile (for Ollama).
May use evaluation and every room below it, none of the other chapters' rooms.
"""
