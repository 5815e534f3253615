"""Chapter 1: rows of a source become unified records, split once, with every reject and every leak counted.

Gives sources, readers and converters, answers (text to a letter), records, split, leakage, curriculum, the clinic.
May use pipeline and stats.
"""
