"""`python -m app.site PORT [HOST]`: the page as an ASGI application with security headers; HOST is 127.0.0.1."""

import sys
from pathlib import Path

from starlette.middleware import Middleware

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' ws: data:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)  # no picture, script or request of an answer reaches another host
HEADERS = {
    "content-security-policy": POLICY,
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
OPTIONS = {
    "server.headless": True,
    "server.fileWatcherType": "none",
    "browser.gatherUsageStats": False,
    "client.toolbarMode": "viewer",
    "client.showErrorDetails": "none",
    "logger.level": "error",
}


class Headers:
    """ASGI middleware that adds HEADERS."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def answer(message):
            if message["type"] == "http.response.start":
                ours = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                theirs = [pair for pair in message["headers"] if pair[0].decode().lower() not in HEADERS]
                message["headers"] = [*theirs, *ours]
            await send(message)

        await self.app(scope, receive, answer)


def main(port, host="127.0.0.1"):
    """Serve the page until a signal ends it."""
    from streamlit.web.server.starlette import App

    page = App(Path(__file__).with_name("ui.py"), middleware=[Middleware(Headers)])
    page.run(config=OPTIONS | {"server.port": port, "server.address": host})


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:3])
