"""The hub that models and data sets come from: downloads that go on where they were cut, errors that say what to mend.

huggingface_hub throws the part of a file away when it gives up or is killed. Here the part stays, under a name of its
own, and the next run asks for the rest; whole files are compared with the SHA-256 that the hub names. All files come by
plain HTTP: Xet, the hub's other protocol, cannot go on after a kill.
"""

import contextlib
import errno
import os
import re
import shutil
import time

import httpx
from huggingface_hub import constants, errors, file_download, get_hf_file_metadata, get_token, hf_hub_url
from huggingface_hub.utils import get_session, hf_raise_for_status

from lib.files import sha256_file
from lib.run import setting

SHA256 = re.compile("[0-9a-f]{64}")  # the tag of a large file; small ones, tagged otherwise, are fetched anew
ATTEMPTS = 6  # in a row without a byte
PAUSE_S = 1.0  # after the first of them, twice that after the second: 15 s in all
TIMEOUT_S = 3  # of a question that a plan can do without
OFFLINE = (httpx.TransportError, errors.LocalEntryNotFoundError, ConnectionError, TimeoutError)


class Refused(ValueError):
    """The hub did not give what was asked for; the text says what to do."""


class Unreachable(Refused):
    """The hub did not answer, or stopped answering."""


@contextlib.contextmanager
def asked(repo, revision=None, kind="model"):
    """Let HF_TOKEN of .env count, and turn what the hub refuses inside the block into Refused, which says what to do.

    repo: hub id; a local folder passes through. revision: as in the recipe. kind: "model" or "dataset".
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
    if status and _passing(status):
        return Unreachable(f"the hub answers {status} for {repo}: run again later; what was fetched is kept")
    if isinstance(error, OFFLINE):
        local = "set model.base to a local folder" if kind == "model" else "set data.origin to clinic or samples"
        return Unreachable(
            f"cannot fetch {repo} from {end} ({type(error).__name__}: {str(error).partition(chr(10))[0]}): check the "
            f"network or HF_ENDPOINT and run again, what was fetched is kept. To go without a network, {local}"
        )
    return None


def _passing(status):
    """Whether an HTTP status may be another one in a minute."""
    return status in (408, 429) or status >= 500


def _token():
    if get_token() is None:
        return f"HF_TOKEN is not set: put a token of {constants.ENDPOINT}/settings/tokens into the environment or .env"
    return "HF_TOKEN is set: its account has not been let in, or the token may not read gated repositories"


def look(repo, revision=None, kind="model"):
    """Ask the hub whether this repository may be read, by one small request. Raises as `asked` does."""
    url = hf_hub_url(repo, {"model": "config.json", "dataset": "README.md"}[kind], repo_type=kind, revision=revision)
    with asked(repo, revision, kind), contextlib.suppress(errors.EntryNotFoundError):
        get_hf_file_metadata(url, timeout=TIMEOUT_S)


def _download(incomplete_path, destination_path, url_to_download, headers, expected_size, filename, force_download,
              etag, xet_file_data, **options):  # fmt: skip
    """Stands in for the function of this signature in huggingface_hub, under the lock that its caller holds."""
    if destination_path.exists() and not force_download:
        return
    if not (SHA256.fullmatch(etag) and expected_size):
        _original(incomplete_path, destination_path, url_to_download, headers, expected_size, filename,
                  force_download, etag, None, **options)  # fmt: skip
        return
    with open(incomplete_path, "ab") as part:
        if force_download or part.tell() > expected_size:
            part.truncate(0)
        lacking, free = expected_size - part.tell(), shutil.disk_usage(incomplete_path.parent).free
        if lacking > free:
            raise OSError(errno.ENOSPC, f"No space left: {filename} needs {lacking:,} bytes more, {free:,} are free")
        fetch(url_to_download, headers, part, expected_size, filename)
    if sha256_file(incomplete_path) != etag:
        incomplete_path.unlink()
        raise OSError(f"{filename} did not arrive as the hub describes it and was thrown away: run again")
    os.replace(incomplete_path, destination_path)


def fetch(url, headers, part, size, name):
    """Append to the open file `part` what it lacks of `size` bytes, going on after every cut.

    Raises the last error after ATTEMPTS in a row that brought nothing, and what the hub refuses.
    """
    failed = 0
    while (had := part.seek(0, os.SEEK_END)) < size:
        wanted = headers | {"Accept-Encoding": "identity"} | ({"Range": f"bytes={had}-"} if had else {})
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        try:
            with get_session().stream("GET", url, headers=wanted, timeout=timeout) as answer:
                hf_raise_for_status(answer)
                if had and answer.status_code != 206:
                    part.truncate(0)  # the server sends all of it again
                for piece in answer.iter_bytes():
                    part.write(piece)
        except (httpx.TransportError, errors.HfHubHTTPError) as error:
            if isinstance(error, errors.HfHubHTTPError) and not _passing(error.response.status_code):
                raise
            part.flush()
            failed = 0 if part.tell() > had else failed + 1
            if failed == ATTEMPTS:
                raise
            print(f"{name}: {error}; {part.tell():,} of {size:,} bytes are here, going on")
            time.sleep(failed * PAUSE_S)


_original = file_download._download_to_tmp_and_move
file_download._download_to_tmp_and_move = _download
