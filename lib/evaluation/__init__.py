"""Chapter 2, used by 3 and 5 to 7: ask a model or a server, extract, score, compare; safety screens and cases.

Gives generate, multiple_choice (likelihoods), probability (perplexity, divergence), metrics, screens,
cases, and the endpoint for any server.
May use pipeline, figures, dataset, chat, model and stats.
"""
