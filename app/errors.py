"""What goes wrong, as clients of the OpenAI protocol read it."""

import json

from starlette.exceptions import HTTPException

KINDS = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
         408: "timeout_error", 413: "invalid_request_error", 422: "invalid_request_error", 429: "rate_limit_error",
         405: "invalid_request_error"}  # fmt: skip
SAID = 3  # exit status of a process of ours that has said itself what is wrong


class Problem(HTTPException):  # FastAPI lets this kind through where it reads a body
    """A request that gets no answer: HTTP status, a sentence, a code, the field at fault, seconds until a retry."""

    def __init__(self, status, message, code, param=None, retry_s=None):
        super().__init__(status, message)
        self.status, self.message, self.code, self.param, self.retry_s = status, message, code, param, retry_s
        self.notices, self.guarded = [], []  # an emergency is told of also where no answer comes

    def envelope(self):
        """The body of the response."""
        told = {
            "message": self.message,
            "type": KINDS.get(self.status, "server_error"),
            "param": self.param,
            "code": self.code,
        }
        return {"error": told | ({"guard": self.notices} if self.notices else {})}

    def fields(self):
        """Its headers as ASGI wants them."""
        found = [(b"content-type", b"application/json"), *self.guarded]
        if self.retry_s is not None:
            found.append((b"retry-after", str(max(1, round(self.retry_s))).encode()))
        if self.status == 401:
            found.append((b"www-authenticate", b"Bearer"))
        if self.status in (408, 413, 500):  # uvicorn closes the connection of a fault
            found.append((b"connection", b"close"))
        return found

    async def send(self, send):
        """Send it as a whole response."""
        body = json.dumps(self.envelope()).encode()
        headers = [*self.fields(), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def refusal(status, data):
    """What a client is told where the backend refused: its own words for a bad request, nothing of them for a fault."""
    error = data.get("error", data) if isinstance(data, dict) else {}
    text = str(error.get("message", "")) if isinstance(error, dict) else str(error)
    if status in (400, 404, 422) or "context" in text or "Jinja" in text or "emplate" in text:
        return Problem(400, text[:300] or "the model's server refused the request", "backend_refused")
    if status in (429, 503):
        return Problem(503, "the model is loading or busy", "backend_busy", retry_s=2)
    return Problem(502, f"the model's server failed with status {status}", "backend_failed", retry_s=2)
