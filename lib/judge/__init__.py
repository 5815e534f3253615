"""Chapter 6: blind, order-balanced verdicts of language models, an exam before they are trusted, and what they cost.

May use evaluation and every room below it, none of the other chapters' rooms.
"""
