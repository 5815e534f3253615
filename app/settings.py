"""What can be set about serving: one table of names, defaults and reasons, read from SERVE_<NAME> or .env."""

import hashlib
import ipaddress
import os
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lib.pipeline import run

PREFIX = "SERVE_"
ADDRESS = r"^(https?://\S+)?$"
OPEN = "local"  # who asks where no keys are set


class Settings(BaseModel):
    """Every setting with its default; the description is what docs/serving.md shows of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(
        "", description="files to serve, separated by blanks: q8_0, qat-q4_0, base-bf16; empty: the best of the run"
    )
    host: str = Field("127.0.0.1", description="address of the API; another than loopback needs keys")
    port: int = Field(8000, ge=1, le=65535, description="port of the API")
    ui: bool = Field(True, description="0 leaves the page out")
    ui_port: int = Field(8501, ge=1, le=65535, description="port of the page, on 127.0.0.1 always")
    slots: int = Field(4, ge=1, le=512, description="answers written at once by each model")
    context: int = Field(
        0, ge=0, description="tokens a slot, question and answer; 0: twice sft.max_length of the recipe"
    )
    threads: int = Field(0, ge=0, le=1024, description="threads of llama-server; 0: run.threads of the recipe")
    backend_url: str = Field(
        "", pattern=ADDRESS, description="a llama-server or vLLM that runs already, instead of one of our own"
    )
    backend_key: str = Field("", description="its API key")
    keys: str = Field("", description="name:key, separated by blanks; a key may be given as sha256:<64 hex digits>")
    chat_key: str = Field(
        "", description="the key that `make chat` asks with; empty: the first of SERVE_KEYS that is no hash"
    )
    rate: str = Field("120/minute", description="requests of one key, as the library limits writes it; off: no limit")
    concurrency: int = Field(64, ge=1, description="requests of one key under way or waiting")
    tokens_per_day: int = Field(
        0, ge=0, description="prompt and answer tokens of one key in 24 hours from the first on; 0: no limit"
    )
    redis_url: str = Field(
        "",
        description="where replicas share rates and quotas: redis://host:6379; needs `pip install 'coredis<6'`; "
        "empty: in memory",
    )
    queue: int = Field(64, ge=0, description="requests that may wait for a slot; more get 503")
    queue_s: float = Field(30, gt=0, description="seconds a request may wait for a slot")
    first_token_s: float = Field(
        60, gt=0, description="seconds until the first token, from the slot on, and between two tokens"
    )
    answer_s: float = Field(300, gt=0, description="seconds for the whole answer")
    header_s: float = Field(10, gt=0, description="seconds in which a request's headers must arrive")
    body_s: float = Field(10, gt=0, description="seconds in which its body must arrive")
    body_bytes: int = Field(1048576, ge=1024, description="largest body of a request")
    cors_origins: str = Field("", description="web origins that may call the API from a browser, separated by blanks")
    out_of_scope: Literal["notice", "refuse", "off"] = Field(
        "notice", description="what a question that is not medical gets"
    )
    guard_url: str = Field(
        "", pattern=ADDRESS, description="OpenAI-compatible endpoint of a guard model, asked beside the rules"
    )
    guard_model: str = Field("", description="its model's name")
    guard_key: str = Field("", description="its API key")
    log_text: bool = Field(False, description="1 writes questions and answers into the log, not their hashes only")
    log_file: str = Field("", description="file for the log; empty: standard error")
    sentry_dsn: str = Field("", description="where faults are reported; needs `pip install sentry-sdk`")

    @field_validator("keys")
    @classmethod
    def _named(cls, text):
        parsed(text)
        return text

    @field_validator("rate")
    @classmethod
    def _rate(cls, text):
        if text != "off":
            import limits

            limits.parse(text)
        return text

    @model_validator(mode="after")
    def _guarded(self):
        if not self.keys and not loopback(self.host):
            raise ValueError(
                f"host {self.host} can be reached from other machines and no keys are set: set {PREFIX}KEYS=name:key, "
                f"or leave the host at 127.0.0.1"
            )
        return self


def loopback(host):
    """Whether an address is this machine's own, not to be reached from another."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parsed(keys):
    """{name: sha256 of its key, in bytes}. Raises ValueError, without the key in it, where an entry is malformed."""
    found = {}
    for number, entry in enumerate(keys.split(), 1):
        name, colon, key = entry.partition(":")
        digest = key.removeprefix("sha256:")
        hashed = key.startswith("sha256:")
        if not (colon and name and key) or name in found or (hashed and len(digest) != 64):
            raise ValueError(f"entry {number} of {PREFIX}KEYS is not name:key with a name of its own")
        found[name] = bytes.fromhex(digest) if hashed else hashlib.sha256(key.encode()).digest()
    return found


def load(**over):
    """Settings from SERVE_* of the environment or .env, with `over` laid over them.

    Raises ValueError: one line for each setting that is wrong, with what was found.
    """
    known = {name: run.setting(PREFIX + name.upper()) for name in Settings.model_fields}
    odd = [name for name in os.environ if name.startswith(PREFIX) and name[len(PREFIX) :].lower() not in known]
    if odd:
        raise ValueError(f"no setting {odd[0]}: docs/serving.md lists them all")
    try:
        return Settings(**{name: value for name, value in (known | over).items() if value is not None})
    except ValidationError as error:
        raise ValueError("; ".join(_line(fault) for fault in error.errors())) from None


def _line(fault):
    name = PREFIX + fault["loc"][0].upper() + ": " if fault["loc"] else ""
    secret = name.endswith(("KEYS: ", "KEY: "))
    found = "" if secret or not fault["loc"] else f" (found {fault['input']!r})"
    return f"{name}{fault['msg'].removeprefix('Value error, ')}{found}"
