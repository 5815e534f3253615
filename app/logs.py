"""One JSON object a line: what happened to which request, never what it said unless that is asked for."""

import hashlib
import sys

import structlog


class _Sink:
    """A file that may fail: a full disk loses lines of the log and nothing else."""

    def __init__(self, path):
        self.path, self.file, self.lost = path, open(path, "a", encoding="utf-8") if path else sys.stderr, 0

    def write(self, text):
        try:
            self.file.write(text)
            self.file.flush()
        except (OSError, ValueError):
            self.lost += 1

    def flush(self):
        pass


def logger(settings):
    """A structlog logger; with a DSN, faults go to Sentry too. Raises ValueError where its package is missing."""
    if settings.sentry_dsn:
        try:
            import sentry_sdk
        except ImportError:
            raise ValueError(
                "SERVE_SENTRY_DSN is set and sentry-sdk is not installed: .venv/bin/pip install sentry-sdk"
            ) from None
        texts = {"send_default_pii": False, "max_request_body_size": "never"}  # a frame's variables hold the question
        sentry_sdk.init(settings.sentry_dsn, include_local_variables=settings.log_text, **texts)
    return structlog.wrap_logger(
        structlog.PrintLogger(_Sink(settings.log_file)),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
    )


def hashed(text):
    """16 hex digits of a text, to find the same one again without reading it."""
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]
