"""A connection that ends at its request's deadline, whatever drips through it, and after a bounded number of bytes."""

import threading
import time

import httpcore2
import httpx2

MOST_BYTES = 8_000_000  # of a reply, its headers included


class TooLong(ValueError):
    """More bytes came than MOST_BYTES."""


class _Bounds(threading.local):
    """Until when, and for how many bytes more, the request of a thread may go on."""

    def start(self, seconds):
        self.end, self.room = time.monotonic() + seconds, MOST_BYTES

    def left(self, fault):
        seconds = self.end - time.monotonic()
        if seconds <= 0:
            raise fault("the answer took longer than its deadline")
        return seconds


class _Stream(httpcore2.NetworkStream):
    """A connection that ends with its request's bounds, however often a few bytes come: of headers or of a body."""

    def __init__(self, stream, bounds):
        self.stream, self.bounds = stream, bounds
        self.close, self.get_extra_info = stream.close, stream.get_extra_info

    def read(self, max_bytes, timeout=None):
        part = self.stream.read(max_bytes, self.bounds.left(httpcore2.ReadTimeout))
        self.bounds.room -= len(part)
        if self.bounds.room < 0:
            raise TooLong(f"the reply has more than {MOST_BYTES} bytes")
        return part

    def write(self, buffer, timeout=None):
        self.stream.write(buffer, self.bounds.left(httpcore2.WriteTimeout))

    def start_tls(self, ssl_context, server_hostname=None, timeout=None):
        left = self.bounds.left(httpcore2.ConnectTimeout)
        return _Stream(self.stream.start_tls(ssl_context, server_hostname, left), self.bounds)


class _Backend(httpcore2.SyncBackend):
    def __init__(self):
        self.bounds = _Bounds()

    def connect_tcp(self, host, port, timeout=None, **options):
        left = self.bounds.left(httpcore2.ConnectTimeout)
        return _Stream(super().connect_tcp(host, port, left, **options), self.bounds)


class Transport(httpx2.HTTPTransport):
    """An HTTP transport whose read time-out bounds the whole exchange: connection, headers and body."""

    def __init__(self, proxy):
        super().__init__(proxy=proxy)
        self.backend = self._pool._network_backend = _Backend()

    def handle_request(self, request):
        self.backend.bounds.start(request.extensions["timeout"]["read"])
        request.headers["accept-encoding"] = "identity"
        response = super().handle_request(request)
        response.headers.pop("content-encoding", None)  # unasked: a few packed bytes could fill the memory
        return response
