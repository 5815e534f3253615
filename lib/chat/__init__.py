"""A record as tokens: chat templates, reasoning formats, the loss mask, and whether packing is exact.

Gives encoding.rows (what the trainer sees), turns.render, lossmask's audit and packing's gate.
May use pipeline and dataset.
"""
