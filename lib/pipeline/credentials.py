"""Keys and passwords: read from the environment or .env, refused in a recipe, and kept out of what is published."""

import html
import json
import os
import re

from huggingface_hub import get_token

from lib.pipeline.commands import USER_INFO, VARIABLE
from lib.pipeline.files import ROOT

REMEDY = "a recipe is written into every output: put it into .env, see .env.example"
NAME = re.compile(
    r"(?!(?:bos|eos|pad|unk|sep|cls|mask|image)_token$)(?:.*[-_])?"
    r"(?:token|api[-_]?key|access[-_]key|passw(?:or)?d|secret(?:[-_]key)?|authorization)",
    re.I,
)
SECRET = re.compile(  # the forms of hub, model API, forge, cloud, chat and tracking keys, JSON web tokens, headers
    r"(?<![A-Za-z0-9])(?:hf_\w{16,}|(?:sk|pk|rk)-(?=[\w-]*\d)[\w-]{16,}|gh[a-z]_\w{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|"
    r"A(?:KIA|SIA)[A-Z0-9]{16}|AIza[\w-]{30,}|gsk_\w{16,}|xox[a-z]-[\w-]{10,}|wandb_v1_\w{16,}|"
    r"(?:xai-|nvapi-|pplx-|r8_|tgp_v1_|fw_|ya29\.|npm_|pypi-|xapp-|[sr]k_live_|dop_v1_|glrt-|api_org_)"
    r"(?=[\w-]*\d)[\w-]{16,}|"
    r"eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,})|(?<=[Bb]earer )[\w.~+/=-]{8,}|(?<=Basic )[\w+/]{8,}=*|"
    r"(?<=[?&])(?i:api_?key|\w*token|sig)=[^&\s\"'<>]{8,}|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
SHORTEST = 8  # characters of a value that is looked for: "none" and "local" are no keys


def dotenv():
    """{name: value} of the file .env in the repository: KEY=value lines, quoted or not, a comment after a blank."""
    found = {}
    try:
        lines = (ROOT / ".env").read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        return found
    for line in lines:
        name, equals, value = line.partition("=")
        quoted = re.fullmatch(r"""\s*(["'])(.*)\1\s*(?:#.*)?""", value)
        value = quoted[2] if quoted else re.split(r"(?:^|\s)#", value)[0].strip()
        if equals and value and not name.lstrip().startswith("#"):
            found[name.strip().removeprefix("export ").strip()] = value
    return found


def refuse(values, where="the recipe"):
    """Raise ValueError for a key that holds a secret, or a text that looks like one, at any depth; never shows it."""
    if isinstance(values, str) and (SECRET.search(values) or USER_INFO.search(values)):
        raise ValueError(f"{where} holds what looks like a key or password: {REMEDY}")
    pairs = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in pairs:
        if isinstance(key, str):
            refuse(key, f"a key of {where}")
            if NAME.fullmatch(key) and value is not None:
                raise ValueError(f"{where}.{key} would hold a secret: {REMEDY}")
        refuse(value, f"{where}.{key}")


def scrub(text):
    """Text without user names and passwords in URLs, and without what has the form of a key."""
    return SECRET.sub("<secret>", USER_INFO.sub("", text))


def check(text, where):
    """Raise ValueError where a text holds a key of the environment, of .env or of the hub's login; shows its name only.

    Each key of a value that holds several is looked for, without the name before it: "name:key" of SERVE_KEYS.
    """
    given = dotenv() | dict(os.environ)
    known = {name: value for name, value in given.items() if VARIABLE.fullmatch(name)}
    for name, value in given.items():  # the password of an address, whatever its variable is called
        for found in USER_INFO.findall(value):
            known[name] = found.removesuffix("@").partition(":")[2]
    for name, value in (known | {"the hub's login": get_token() or ""}).items():
        entries = [entry.split(":") for entry in re.split(r"[,\s]+", value)]
        keys = [value, *(part for entry in entries for part in (entry[1:] or entry))]
        if any(form in text for key in keys if len(key) >= SHORTEST for form in _forms(key)):
            raise ValueError(f"{where} holds the value of {name}: find out what printed it, and run that stage again")


def _forms(key):
    """A key as it stands in plain text, in JSON, and in HTML, of a notebook too."""
    found = {key, html.escape(key), html.escape(key, quote=False)}
    return found | {json.dumps(form, ensure_ascii=False)[1:-1] for form in found}
