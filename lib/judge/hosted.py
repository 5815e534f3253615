"""Candidates that somebody else serves: a hosted model answers the same questions, within the judge's cap."""

from lib.evaluation import generate
from lib.judge import judges, panel

ENVIRONMENT = ("OPENAI_API_KEY", "API_BASE_URL", "API_KEY")


def answers(model, prompts, max_new_tokens, environ, store, keep, *, prices, max_usd, timeout_s, progress=None):
    """Answers of a hosted model, as generate.py gives them, or None where the environment names no way to it.

    environ: {variable: value or None} with ENVIRONMENT's names: API_BASE_URL and API_KEY of any server that speaks
    OpenAI's protocol, else OPENAI_API_KEY for api.openai.com. store: the judge's verdicts.Store, whose ledger the calls
    are added to. keep: file for answers as they come. prices: see judges.configured.
    Raises ValueError when the answers, at their longest, would exceed what is left of max_usd dollars.
    """
    base_url, key = environ.get("API_BASE_URL"), environ.get("API_KEY") or "none"
    if not base_url:
        key = environ.get("OPENAI_API_KEY")
        if not key:
            return None
    priced = judges.Judge(model, base_url, key, judges.price_of(model, base_url, prices))
    kept = generate.Kept(keep, prompts, generate.Server(model).decides(base_url, max_new_tokens))
    missing = kept.missing(prompts)
    usd = sum(panel.expected(priced, prompt["messages"], max_new_tokens) for prompt in missing)
    if missing and usd > max_usd - store.spent() and usd > 0:
        raise ValueError(f"{len(missing)} answers of {model} may cost {usd:.2f} dollars, {max_usd - store.spent():.2f} "
                         "are left of judge.max_usd: raise it, or leave the candidate out")  # fmt: skip
    found = generate.server(base_url, prompts, max_new_tokens, model=model, api_key=key, keep=keep, slots=4,
                            timeout_s=timeout_s, progress=progress)  # fmt: skip
    asked = {prompt["id"]: prompt for prompt in missing}
    for answer in found:
        if answer["id"] in asked:
            tokens_in = sum(len(m["content"]) for m in asked[answer["id"]]["messages"]) / panel.CHARS_PER_TOKEN
            cost = panel.cost(priced, tokens_in, answer["tokens"])
            store.record_call(f"candidate {model}", answer["finish"], int(tokens_in), answer["tokens"], cost)
    return found
