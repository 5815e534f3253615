"""Chapter 2, used by 3 and 5 to 7: ask a model or a server, extract, score, compare; safety screens and cases.

Gives generate, probability (likelihoods, perplexity), metrics, screens, cases, and the endpoint for any server.
May use pipeline, figures, dataset, chat, model and stats.
"""
