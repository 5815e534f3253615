"""`python -m app` (make serve): API and page started together, watched, restarted, and ended together.

`python -m app chat` (make chat) is the same in the terminal.
"""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

from app import catalogue, settings
from app.errors import SAID
from lib.export.serve import DIRECT
from lib.pipeline.commands import held

RESTARTS, PAUSE_S = 5, 1.0  # a child that dies so often in a row is broken
CURL = """curl {url}/v1/chat/completions -H 'Content-Type: application/json'{auth} \\
  -d '{{"messages": [{{"role": "user", "content": "What are the signs of a heart attack?"}}]}}'"""


class Child:
    """A Python process of ours, which the kernel ends with this one. ready(): whether it serves."""

    def __init__(self, name, args, env, ready):
        self.name, self.env, self.ready, self.deaths, self.process = name, os.environ | env, ready, 0, None
        self.command = held(sys.executable, *args)

    def start(self, wait_s=900):
        """Start it and wait until it serves. Where it ends: RuntimeError, or SystemExit if it has said why."""
        self.process = subprocess.Popen(self.command, env=self.env, stdout=sys.stderr)
        end = time.monotonic() + wait_s
        while not self.ready():
            if self.process.poll() is not None:
                if self.process.returncode == SAID:
                    sys.exit(1)
                raise RuntimeError(f"the {self.name} ended with status {self.process.returncode}")
            if time.monotonic() > end:
                raise RuntimeError(f"the {self.name} was not ready after {wait_s} s")
            time.sleep(0.05)

    def stop(self):
        """End it, by force where it does not."""
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(8)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def tend(self):
        """Start it again where it has died. Raises RuntimeError where that happens too often."""
        if self.process.poll() is None:
            return
        self.deaths += 1
        print(
            f"serve: the {self.name} ended with status {self.process.returncode}, it is started again", file=sys.stderr
        )
        if self.deaths > RESTARTS:
            raise RuntimeError(
                f"the {self.name} has ended {self.deaths} times, the last with {self.process.returncode}"
            )
        time.sleep(PAUSE_S)
        self.start()


def healthy(url):
    """A function that says whether an address answers with 200."""

    def ask():
        with contextlib.suppress(urllib.error.URLError, OSError):
            return DIRECT.open(url, timeout=2).status == 200
        return False

    return ask


def free(host, port, name):
    """Raises ValueError where a port is taken or an address is not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ValueError(f"{host}:{port} cannot be used ({error.strerror}): give another {name}=") from None


def address(how):
    """Where a client on this machine reaches the API."""
    host = "127.0.0.1" if how.host in ("0.0.0.0", "::", "localhost") else how.host
    return f"http://[{host}]:{how.port}" if ":" in host else f"http://{host}:{how.port}"


def children(how):
    """The API, and the page where it is wanted."""
    url, page = address(how), {}
    if how.keys:  # the page asks with a key of its own
        page = {"MEDTUNE_PAGE_KEY": secrets.token_urlsafe(24)}
        keys = f"{how.keys} own-page:{page['MEDTUNE_PAGE_KEY']}"
    made = [Child("API", ["-m", "app.server"], {"SERVE_KEYS": keys} if how.keys else {}, healthy(url + "/ready"))]
    if how.ui:
        where = healthy(f"http://127.0.0.1:{how.ui_port}/_stcore/health")
        made.append(Child("page", ["-m", "app.site", str(how.ui_port)], page | {"MEDTUNE_API": url}, where))
    return made


def run(how, while_up):
    """All of it up, for the time of while_up(children)."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # also where the shell has SIGINT ignored, behind nohup
    made = children(how)
    try:
        for child in made:
            child.start()
        while_up(made)
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C changes nothing
        for child in reversed(made):
            child.stop()


def watch(how, models):
    """What `make serve` does while it is up: say where, and tend."""

    def up(made):
        url = address(how)
        auth = " -H 'Authorization: Bearer <key>'" if how.keys else ""
        print(f"serving {', '.join(model.name for model in models)}")
        print(f"  API   {url}/v1   ({url}/docs)")
        print(f"  page  http://127.0.0.1:{how.ui_port}" if how.ui else "  page  left out (UI=0)")
        print(f"Not for clinical use. Ctrl-C ends it all. Try:\n{CURL.format(url=url, auth=auth)}", flush=True)
        while True:
            for child in made:
                child.tend()
            time.sleep(0.2)

    return up


def main(args):
    """Exit status of the command; what is wrong is said in one line."""
    try:
        how = settings.load()
        models = catalogue.asked(how)
        if args == ["chat"]:
            from app import terminal

            return terminal.main(how, models)
        free(how.host, how.port, "PORT")
        if how.ui:
            free("127.0.0.1", how.ui_port, "UI_PORT")
        run(how, watch(how, models))
    except (ValueError, FileNotFoundError, RuntimeError, OSError) as error:
        print(f"serve: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
