"""Whether two served models say the same, token by token, and how close the call was where they part.

Drawn by chance, two answers part sooner or later although their probabilities differ in the fourth decimal only, and
the seed is the same: a token's share of the dice moves a little. So the likeliest tokens are compared, always.
"""

from collections import deque
from itertools import zip_longest

from lib.export import gguf

MAX_NEW_TOKENS = 256  # of each answer: a model that differs does so early


def greedy(base_url, prompts, max_new_tokens):
    """The likeliest tokens after each prompt, as a running llama-server finds them: lists of (token id, lead).

    prompts: lists of token ids. lead: nats by which the token is likelier than the second likeliest, None where the
    server does not say (it leaves out a token that is part of a character). An answer ends at its end token, or after
    max_new_tokens or MAX_NEW_TOKENS tokens.
    """
    body = {"n_predict": min(max_new_tokens, MAX_NEW_TOKENS), "temperature": 0, "n_probs": 2, "cache_prompt": False}
    found = []
    for prompt in prompts:
        asked = body | {"prompt": list(prompt), "return_tokens": True}
        reply = gguf.request(base_url, "/completion", asked, timeout_s=1800)
        told = deque(reply["completion_probabilities"])
        said = [told.popleft() if told and told[0]["id"] == token else None for token in reply["tokens"]]
        found.append([(token, at and _lead(at)) for token, at in zip(reply["tokens"], said, strict=True)])
    return found


def _lead(at):
    first, second = sorted((token["logprob"] for token in at["top_logprobs"]), reverse=True)
    return first - second


def compare(ours, theirs):
    """Two sides' `greedy` answers: {"asked", "equal", "lead"}.

    equal: pairs of answers with the same tokens. lead: the largest that our side's token had where a pair parts first,
    or theirs where our answer has ended; None where all are equal.
    """
    leads = []
    for one, other in zip(ours, theirs, strict=True):
        pairs = zip_longest(one, other, fillvalue=(None, None))
        leads += next(([a[1] if a[1] is not None else b[1]] for a, b in pairs if a[0] != b[0]), [])
    known = [lead for lead in leads if lead is not None]
    return {"asked": len(ours), "equal": len(ours) - len(leads), "lead": max(known, default=None)}
