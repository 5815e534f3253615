"""Who may ask, and how much: keys, rates, requests at once, tokens a day."""

import hashlib
import hmac
import re
import time
from collections import Counter
from types import SimpleNamespace

import limits
from limits.aio import strategies
from limits.aio.storage import memory
from limits.errors import ConfigurationError, StorageError
from limits.storage import storage_from_string

from app.errors import Problem
from app.settings import OPEN, parsed

memory.time = SimpleNamespace(time=time.monotonic)  # a clock that is set back would lock a busy key out
REDIS = ".venv/bin/pip install 'coredis<6'"  # limits cannot open a pool of a later one


def stored(url):
    """Where rates and quotas are counted. Raises ValueError, without the URL's password, where Redis cannot be used."""
    try:
        return storage_from_string("async+" + (url or "memory://"), wrap_exceptions=True)
    except ConfigurationError:
        if not re.match(r"redis(s|\+\w+)?://", url):
            raise ValueError("SERVE_REDIS_URL does not begin with redis://") from None
        raise ValueError(f"SERVE_REDIS_URL is set and coredis is not installed: {REDIS}") from None


class Access:
    """The gate of one API process. Rates and quotas may be shared through Redis, requests at once are its own."""

    def __init__(self, settings):
        self.keys, self.settings, self.busy = parsed(settings.keys), settings, Counter()
        self.storage = storage = stored(settings.redis_url)
        self.now = time.time if settings.redis_url else time.monotonic
        self.rates, self.days = strategies.MovingWindowRateLimiter(storage), strategies.FixedWindowRateLimiter(storage)
        self.rate = None if settings.rate == "off" else limits.parse(settings.rate)
        self.day = limits.RateLimitItemPerDay(settings.tokens_per_day) if settings.tokens_per_day else None

    async def check(self):
        """Raises RuntimeError where Redis does not answer."""
        if not await self.storage.check():
            raise RuntimeError(f"no Redis answers at SERVE_REDIS_URL, or another coredis is installed: {REDIS}")

    def name(self, header):
        """Who sends this Authorization header. Every key is compared, in a time that tells nothing. Raises Problem."""
        if not self.keys:
            return OPEN
        given = hashlib.sha256((header or "").removeprefix("Bearer ").strip().encode()).digest()
        found = [name for name, digest in self.keys.items() if hmac.compare_digest(digest, given)]
        if not found:
            raise Problem(
                401, "no key, or one that is not known here: send Authorization: Bearer <key>", "invalid_api_key"
            )
        return found[0]

    async def admit(self, name):
        """Count a request in. Raises Problem where a limit is reached."""
        if self.busy[name] >= self.settings.concurrency:
            raise Problem(429, f"{self.busy[name]} requests of this key are under way", "concurrency_limit", retry_s=1)
        self.busy[name] += 1  # before anything is waited for, or two could pass together
        try:
            await self._within(name)
        except StorageError as error:
            self.leave(name)
            raise Problem(503, "the store of rates does not answer", "limits_unavailable", retry_s=5) from error
        except BaseException:
            self.leave(name)
            raise

    async def _within(self, name):
        if self.rate and not await self.rates.hit(self.rate, "rate", name):
            raise await self._refused(self.rates, self.rate, ("rate", name), f"more than {self.rate}", "rate_limit")
        if self.day and not await self.days.test(self.day, "day", name):
            told = f"more than {self.day.amount} tokens in a day"
            raise await self._refused(self.days, self.day, ("day", name), told, "token_quota")

    async def _refused(self, window, item, key, told, code):
        reset = (await window.get_window_stats(item, *key)).reset_time
        return Problem(429, told, code, retry_s=min(reset - self.now(), item.get_expiry()))

    def leave(self, name):
        """A request of this key has ended."""
        self.busy[name] -= 1

    async def spend(self, name, tokens):
        """Count the tokens of an answer against the day."""
        if self.day and tokens:
            await self.days.storage.incr(self.day.key_for("day", name), self.day.get_expiry(), amount=tokens)
