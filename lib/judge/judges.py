"""Who judges: the language models that a recipe names, where they are reached, what they cost, whom they may favour.

A hosted model may also be a candidate: it answers the same questions, within the judge's cap.
"""

import contextlib
import math
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from lib.evaluation import generate
from lib.evaluation.endpoint import LOOPBACK
from lib.judge import asking, protocol
from lib.pipeline.files import beside, sha256_file

ENVIRONMENT = ("OPENAI_API_KEY", "JUDGE_BASE_URL", "JUDGE_API_KEY", "JUDGE_MODEL", "JUDGE_USD_PER_MTOK")
HOSTED = ("OPENAI_API_KEY", "API_BASE_URL", "API_KEY")  # what reaches a hosted candidate
ASSUMED_USD_PER_MTOK = (10.0, 40.0)  # input, output; on the high side, so that the cap errs towards spending less
DEFAULT_MODEL = "gpt-4.1-2025-04-14"  # dated: an undated name changes under the run's feet
VENDORS = beside(__file__)  # {company: how the names of its models begin}


@dataclass(frozen=True)
class Judge:
    """A language model that judges, and what a million of its tokens cost (input, output)."""

    model: str
    base_url: str | None = None  # None: api.openai.com
    api_key: str = "none"
    usd_per_mtok: tuple = ASSUMED_USD_PER_MTOK
    slots: int = 4  # requests under way at once
    file: str | None = None  # a GGUF file to serve while it judges
    label: str | None = None
    max_tokens: int | None = None  # of a reply; None where the server has a limit of its own

    @property
    def name(self):
        """The label, else the model and, away from api.openai.com, its host; never a password that the URL may hold."""
        if self.label or self.base_url is None:
            return self.label or self.model
        at = urlsplit(self.base_url)
        return f"{self.model} at {at.hostname}" + (f":{at.port}" if at.port else "")


def configured(names, environ, prices=None):
    """The LLM judges of a recipe that the environment can reach, GGUF files among them; [] where there are none.

    names: judge.judges. "lexical" is no LLM; "gguf:PATH" is a file, served here; "MODEL@URL" is a model at another
    server; any other name is a model at JUDGE_BASE_URL, else at api.openai.com. environ: {variable: value or None}
    with ENVIRONMENT's names, for example from stage.environ. The OpenAI key is only ever sent to api.openai.com, and
    JUDGE_API_KEY to the others. JUDGE_MODEL is used where the recipe names no model.
    prices: {model: {"input", "output"}} in dollars per million tokens, the longest name that a model's begins with
    counts; JUDGE_USD_PER_MTOK="2,8" overrides it; a server on this machine costs nothing.
    """
    base_url, key = environ.get("JUDGE_BASE_URL") or None, environ.get("OPENAI_API_KEY")
    other_key, stated = environ.get("JUDGE_API_KEY") or "none", environ.get("JUDGE_USD_PER_MTOK")
    models = [name for name in names if name != "lexical"]
    if not models and (base_url or key):
        models = [environ.get("JUDGE_MODEL") or ("local" if base_url else DEFAULT_MODEL)]
    found = []
    for name in models:
        if name.startswith("gguf:"):
            found.append(Judge("local", None, "none", (0.0, 0.0), 1, name.removeprefix("gguf:"), name, 1024))
            continue
        model, _, url = name.partition("@")
        url = url or base_url
        if url or key:
            price = price_of(model, url, prices or {}, stated)
            found.append(Judge(model, url, other_key if url else key, price))
    return found


def price_of(model, base_url, prices, stated=None):
    """Dollars per million tokens (input, output) of a model; ASSUMED_USD_PER_MTOK where nothing is known."""
    if stated:
        try:
            price = tuple(float(part) for part in stated.split(","))
        except ValueError:
            price = ()
        if len(price) != 2 or not all(math.isfinite(part) and part >= 0 for part in price):
            raise ValueError(f'JUDGE_USD_PER_MTOK is {stated!r}: expected "input,output", such as "2,8"')
        return price
    if base_url and urlsplit(base_url).hostname in LOOPBACK:
        return 0.0, 0.0
    known = max((name for name in prices if model.startswith(name)), key=len, default=None)
    return (prices[known]["input"], prices[known]["output"]) if known else ASSUMED_USD_PER_MTOK


def vendor(model):
    """Who made a model, by its name without the organisation, or None."""
    name = model.rpartition("/")[2].lower()
    return next((who for who, starts in VENDORS.items() if name.startswith(tuple(starts))), None)


def warnings(judges, models):
    """What weakens a panel, in words: fewer than two judges, and judges that may favour their own kind.

    models: names of the models behind the candidates: the recipe's base, and hosted ones.
    """
    found = ["one judge only: its habits cannot be told from the answers' merits"] if len(judges) == 1 else []
    for one in judges:
        kin = sorted({m for m in models if vendor(m) and vendor(m) == vendor(one.model)})
        if kin:
            found.append(
                f"{one.name} and {', '.join(kin)} come from {vendor(one.model)}: a judge may favour its own kind"
            )
    return found


@contextlib.contextmanager
def reachable(one, stage, running):
    """The judge with an address: a GGUF file is served while it is asked, and named by its content.

    running: lib.export.serve.running. A file is one of 05_export's, else one of the repository or of this machine.
    """
    if not one.file:
        yield one
        return
    exported = stage.input("05_export")
    path = exported[one.file] if one.file in exported.json["outputs"] else stage.file(one.file)
    with running(path, ctx=8192, threads=stage.recipe.run["threads"]) as url:
        yield replace(one, base_url=url, label=f"{path.name} {sha256_file(path)[:8]}")


def hosted_answers(model, prompts, max_new_tokens, environ, store, keep, *, prices, max_usd, timeout_s, progress=None):
    """Answers of a hosted model as generate.py gives them, or None where the environment names no way to it.

    environ: {variable: value or None} with HOSTED's names: API_BASE_URL and API_KEY of any server that speaks
    OpenAI's protocol, else OPENAI_API_KEY for api.openai.com. store: the judge's verdicts.Store, whose ledger the calls
    are added to. keep: file for answers as they come. prices: see `configured`.
    Raises ValueError when the answers, at their longest, would exceed what is left of max_usd dollars, when the model
    is given up as a judge would be (asking.Session.lose), or when too many have no text, because hidden reasoning left
    no room: ranked, they would say nothing of it.
    """
    base_url, key = environ.get("API_BASE_URL"), environ.get("API_KEY") or "none"
    if not base_url:
        key = environ.get("OPENAI_API_KEY")
        if not key:
            return None
    priced = Judge(model, base_url, key, price_of(model, base_url, prices), label=f"candidate {model}")
    kept = generate.Kept(keep, prompts, generate.Server(model).decides(base_url, max_new_tokens))
    missing = kept.missing(prompts)
    usd = sum(asking.expected(priced, prompt["messages"], max_new_tokens) for prompt in missing)
    if missing and usd > max_usd - store.spent() and usd > 0:
        raise ValueError(f"{len(missing)} answers of {model} may cost {usd:.2f} dollars, {max_usd - store.spent():.2f} "
                         "are left of judge.max_usd: raise it, or leave the candidate out")  # fmt: skip
    session = asking.Candidate(priced, store, timeout_s, max_usd)
    try:
        found = generate.server(
            base_url,
            prompts,
            max_new_tokens,
            model=model,
            api_key=key,
            keep=keep,
            slots=priced.slots,
            timeout_s=timeout_s,
            progress=progress,
            session=session,
        )
    except asking.Stopped:
        raise ValueError(f"asking {model} again would exceed the {max_usd:.2f} dollars of judge.max_usd: raise it and "
                         "make again, what came is kept; or leave the candidate out") from None  # fmt: skip
    unsaid = [answer["finish"] for answer in found if not answer["text"]]
    if len(unsaid) > protocol.MAX_INVALID * len(found):
        cut = unsaid.count("length")
        raise ValueError(f"{len(unsaid)} of {len(found)} answers of {model} have no text: {cut} ended after "
                         f"{max_new_tokens} tokens, which hidden reasoning took, {len(unsaid) - cut} never came. Raise "
                         "judge.hosted_tokens and make again, or leave the candidate out")  # fmt: skip
    return found
