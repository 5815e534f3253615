"""The hub that models and data sets come from: what it refuses, in words that say what to mend.

Downloads are huggingface_hub's own. It goes on where a connection was closed, and keeps every file that arrived whole.
"""

import contextlib
import os
from pathlib import Path

import httpx
from huggingface_hub import constants, errors, get_hf_file_metadata, get_token, hf_hub_url, try_to_load_from_cache

from lib.pipeline import machine
from lib.pipeline.run import setting

OFFLINE = (httpx.TransportError, errors.LocalEntryNotFoundError, ConnectionError, TimeoutError)


class Refused(ValueError):
    """The hub did not give what was asked for; the text says what to do."""


class Unreachable(Refused):
    """The hub did not answer, or stopped answering."""


@contextlib.contextmanager
def asked(repo, revision=None, kind="model"):
    """Let HF_TOKEN of .env count, and turn what the hub refuses inside the block into Refused, which says what to do.

    repo: hub id; a local folder passes through. revision: as in the recipe. kind: "model" or "dataset".
    The commit of a model that was loaded inside the block is kept for stage.json.
    """
    if token := setting("HF_TOKEN"):
        os.environ["HF_TOKEN"] = token
    try:
        yield
    except Refused:
        raise
    except Exception as error:
        known = [explained(cause, repo, revision, kind) for cause in _causes(error)]
        if any(known):
            raise next(filter(None, known)) from error
        raise
    with contextlib.suppress(errors.HFValidationError):  # a folder's path is no hub id
        config = try_to_load_from_cache(repo, "config.json", revision=revision)  # .../snapshots/<commit>/config.json
        if isinstance(config, str):
            machine.REVISIONS[repo] = Path(config).parent.name


def _causes(error):
    """An exception and all that it was raised from, the first cause first: libraries wrap what the client said."""
    earlier = error.__cause__ or error.__context__
    return [*(_causes(earlier) if earlier else []), error]


def explained(error, repo, revision, kind):
    """The Refused for one exception of the hub's client, with the remedy; None where it is not of that kind."""
    end = constants.ENDPOINT
    page = f"{end}/{'datasets/' if kind == 'dataset' else ''}{repo}"
    where = {"model": "model.base", "dataset": "data.sources"}[kind]
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if isinstance(error, errors.GatedRepoError):
        return Refused(f"{repo} is gated: accept its terms at {page}. {_token()}")
    if isinstance(error, errors.RevisionNotFoundError):
        return Refused(f"{repo} has no revision {revision!r}: mend the revision of {where} in the recipe, see {page}")
    if status == 401 and "Invalid credentials" in str(error):
        return Refused(f"the hub does not know the token in HF_TOKEN: make a new one at {end}/settings/tokens")
    if isinstance(error, errors.RepositoryNotFoundError):
        return Refused(f"{end} has no {kind} {repo}, or it is private: check the spelling of {where}. {_token()}")
    if status and (status in (408, 429) or status >= 500):
        return Unreachable(f"the hub answers {status} for {repo}: run again later; files that arrived whole are kept")
    if isinstance(error, OFFLINE):
        local = "set model.base to a local folder" if kind == "model" else "name a copy of it (path) in its entry"
        return Unreachable(
            f"cannot fetch {repo} from {end} ({type(error).__name__}: {str(error).partition(chr(10))[0]}): check the "
            f"network or HF_ENDPOINT and run again, files that arrived whole are kept. To go without a network, {local}"
        )
    return None


def _token():
    if get_token() is None:
        return f"HF_TOKEN is not set: put a token of {constants.ENDPOINT}/settings/tokens into the environment or .env"
    return "HF_TOKEN is set: its account has not been let in, or the token may not read gated repositories"


def look(repo, revision=None, kind="model", timeout_s=3):
    """Ask the hub whether this repository may be read, by one small request. Raises as `asked` does.

    timeout_s: as short as suits a plan, which can do without the answer.
    """
    url = hf_hub_url(repo, {"model": "config.json", "dataset": "README.md"}[kind], repo_type=kind, revision=revision)
    with asked(repo, revision, kind), contextlib.suppress(errors.EntryNotFoundError):
        get_hf_file_metadata(url, timeout=timeout_s)
