"""Chapter 7: pairs of a better and a worse answer, and what a model learns from them.

Gives pairs (converters, refusals, tokens, leaks) and clinic_pairs (offline pairs, and questions with red flags that no
pair holds). May use qat, sft and every room below them, not report.
"""
