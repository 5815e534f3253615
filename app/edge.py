"""What every request passes before FastAPI, as plain ASGI: key, size and time of its body, id, headers, a log line."""

import asyncio
import re
import secrets
import time

from uvicorn.protocols.http.h11_impl import H11Protocol

from app.errors import Problem

SAFE = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"), (b"x-frame-options", b"DENY"),
        (b"cross-origin-resource-policy", b"same-origin")]  # fmt: skip
HEADER_BYTES = 32768  # h11 counts only what is incomplete
OPEN = ("/health", "/ready", "/docs", "/openapi.json")


class Edge:
    """ASGI middleware around `app`. desk: the Desk, with settings, access, meters and log."""

    def __init__(self, app, desk):
        self.app, self.desk = app, desk

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, start = dict(scope["headers"]), time.perf_counter()
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        rid = given if re.fullmatch(r"[\w-]{1,64}", given, re.ASCII) else secrets.token_hex(12)
        scope["state"] = scope.get("state", {}) | {"id": rid}
        status = 0

        async def answer(message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *SAFE, (b"x-request-id", rid.encode())]
            await send(message)

        try:
            self._check(scope, headers)
            await self.app(scope, self._patient(receive, headers), answer)
        except Problem as problem:
            self.desk.meters.errors.labels(problem.code).inc()
            await problem.send(answer)
        finally:
            path = scope["path"] if scope.get("route") or status < 400 else "other"
            self.desk.meters.requests.labels(
                path if path.startswith(("/v1/", *OPEN, "/metrics")) else "other", status
            ).inc()
            took = {"key": scope["state"].get("key"), "ms": round(1000 * (time.perf_counter() - start), 1)}
            about = {"id": rid, "method": scope["method"], "path": scope["path"][:100], "status": status}
            self.desk.log.info("request", **about, **took)

    def _check(self, scope, headers):
        names = [name for name, _ in scope["headers"]]
        if b"transfer-encoding" in names and b"content-length" in names:
            raise Problem(400, "Content-Length beside Transfer-Encoding: send one of them", "bad_headers")
        if sum(len(name) + len(value) for name, value in scope["headers"]) > HEADER_BYTES:
            raise Problem(431, f"the headers are larger than {HEADER_BYTES} bytes", "headers_too_large")
        if scope["path"] not in OPEN and scope["method"] != "OPTIONS":
            scope["state"]["key"] = self.desk.access.name(headers.get(b"authorization", b"").decode("latin-1"))
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.desk.settings.body_bytes:
            raise self._large()

    def _large(self):
        return Problem(413, f"the body is larger than {self.desk.settings.body_bytes} bytes", "body_too_large")

    def _patient(self, receive, headers):
        """`receive` with a deadline and a size for the body; what comes after the body is passed as it is."""
        loop, whole, size = asyncio.get_running_loop(), False, 0
        deadline = loop.time() + self.desk.settings.body_s

        async def limited():
            nonlocal whole, size
            if whole:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise Problem(
                    408, f"the body did not arrive within {self.desk.settings.body_s:g} s", "body_timeout"
                ) from None
            size += len(message.get("body", b""))
            if size > self.desk.settings.body_bytes:
                raise self._large()
            whole = not message.get("more_body", False)
            return message

        return limited


def protocol(header_s):
    """uvicorn's HTTP protocol, closing connections whose first or next request's headers take longer than header_s."""

    class Patient(H11Protocol):
        def connection_made(self, transport):
            super().connection_made(transport)
            self._deadline = None
            self._arm()

        def _arm(self):
            self._disarm()
            self._deadline = self.loop.call_later(header_s, self._late)

        def _disarm(self):
            if self._deadline:
                self._deadline.cancel()
                self._deadline = None

        def _late(self):
            if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
                self.transport.close()

        def data_received(self, data):
            if self._deadline is None and (self.cycle is None or self.cycle.response_complete):
                self._arm()  # the first bytes of another request on this connection
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._disarm()

        def connection_lost(self, exc):
            self._disarm()
            super().connection_lost(exc)

    return Patient
