"""SIGTERM, the warning before a machine is taken away: training saves a checkpoint, all else stops at once.

lib.pipeline.notebook sends it too where Ctrl-C is pressed or the terminal is closed.
"""

import signal
import time

AGAIN = "run the same command again to go on from there"
_asked = {}  # "at": when the signal came, "training": whether a trainer listens


class Stopped(RuntimeError):
    """The stage was asked to stop and did."""


def listen():
    """Catch SIGTERM in this process, from now on; call it in the main thread."""
    _asked.clear()
    signal.signal(signal.SIGTERM, _on_signal)


def _on_signal(number, frame):
    if "at" in _asked:  # Make and its group may both be told: once is enough
        return
    _asked["at"] = time.monotonic()
    if not _asked.get("training"):
        raise Stopped(f"stopped by SIGTERM; {AGAIN}")


def training(now):
    """Say whether a trainer is at work, which looks at `asked` itself and ends with a checkpoint."""
    _asked["training"] = now


def asked():
    """Seconds since this process was asked to stop, or None."""
    return time.monotonic() - _asked["at"] if "at" in _asked else None
