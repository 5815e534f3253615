"""Chapter 4: training with the numbers of the GGUF file in the forward pass, exact to the bit.

Gives rounding (prepare, strip) with its sites, grids for every file type (in torch, and by ggml on a CPU), int4,
distill.
May use evaluation and every room below it, none of the other chapters' rooms.
"""
