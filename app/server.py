"""The API: OpenAI's chat completions over the run's model, with health, models, adapters and meters."""

import asyncio
import signal
import sys

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from app import catalogue, edge, settings
from app.desk import Desk
from app.errors import SAID, Problem
from app.protocol import ChatRequest

ABOUT = "The model of a finished run. Not for clinical use: it was never tested on patients."


def build(desk):
    """The FastAPI application over a Desk."""
    app = FastAPI(title="medtune", version=str(desk.guard.version), description=ABOUT, redoc_url=None)
    _routes(app, desk)
    _errors(app, desk)
    app.add_middleware(edge.Edge, desk=desk)
    if desk.settings.cors_origins:
        allowed = {"allow_methods": ["GET", "POST"], "allow_headers": ["Authorization", "Content-Type"]}
        app.add_middleware(CORSMiddleware, allow_origins=desk.settings.cors_origins.split(), **allowed)
    return app


def _routes(app, desk):
    told = {
        status: {"description": "OpenAI's error envelope"}
        for status in (400, 401, 404, 408, 413, 422, 429, 502, 503, 504)
    }

    answer = {200: {"description": "The answer, or its events", "content": {"text/event-stream": {}}}}

    @app.post("/v1/chat/completions", responses=told | answer, response_model=None)
    async def chat(ask: ChatRequest, request: Request):
        """An answer, whole or as a stream of events."""
        return await desk.admit(ask, request.state.id, request.state.key)

    @app.get("/v1/models", responses=told)
    async def models():
        """The files that are served."""
        return {"object": "list", "data": [_card(name, backend.model) for name, backend in desk.backends.items()]}

    @app.get("/v1/adapters", responses=told)
    async def adapters():
        """The adapters that a request may name, and the model that each one belongs to."""
        found = [{"id": adapter, "object": "adapter", "model": name}
                 for name, backend in desk.backends.items() for adapter in backend.model.adapters]  # fmt: skip
        return {"object": "list", "data": found}

    @app.get("/health")
    async def health():
        """Whether this process lives."""
        return {"status": "ok"}

    @app.get("/ready", responses={503: {"description": "a model is not ready"}})
    async def ready():
        """Whether every model answers."""
        states = {name: backend.state for name, backend in desk.backends.items()}
        fine = all(state == "ready" for state in states.values())
        return JSONResponse(
            {"ready": fine, "models": states}, 200 if fine else 503, {} if fine else {"Retry-After": "2"}
        )

    @app.get("/metrics", responses=told, response_class=PlainTextResponse)
    async def metrics():
        """Meters in Prometheus' text format."""
        return Response(desk.meters.text(desk.backends), media_type="text/plain; version=0.0.4; charset=utf-8")


def _card(name, model):
    about = {"id": name, "object": "model", "created": 0, "owned_by": "medtune"}
    return about | {"context_window": model.context, "adapters": list(model.adapters)}


def _errors(app, desk):
    def told(problem, more=None):
        desk.meters.errors.labels(problem.code).inc()
        headers = {name.decode(): value.decode() for name, value in problem.fields()} | (more or {})
        return JSONResponse(problem.envelope(), problem.status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request, error):
        first, *more = error.errors()
        for other in more:  # of the forms that a field may have, the one that the value comes nearest to
            first = other if other["loc"][:2] == first["loc"][:2] and len(other["loc"]) > len(first["loc"]) else first
        if first["type"] == "json_invalid":
            return told(Problem(400, "the body is no JSON", "invalid_json"))
        field = ".".join(str(part) for part in first["loc"][1:])
        return told(
            Problem(
                422, f"{field or 'body'}: {first['msg'].removeprefix('Value error, ')}", "invalid_field", field or None
            )
        )

    @app.exception_handler(HTTPException)
    async def refused(request, error):
        if isinstance(error, Problem):
            return told(error)
        code = "not_found" if error.status_code == 404 else "refused"
        return told(Problem(error.status_code, str(error.detail), code), error.headers)

    @app.exception_handler(Exception)
    async def fault(request, error):
        desk.log.error("fault", id=getattr(request.state, "id", None), error=repr(error)[:300])
        return told(Problem(500, "this server has a fault; the log has it under the request id", "internal"))


async def run(desk, server):
    """A uvicorn server while the desk is open. Raises RuntimeError where a backend does not come up."""
    async with desk.open():
        await server.serve()


def serve(desk):
    """Run the API until a signal ends it. Raises RuntimeError where a backend does not come up."""
    how = desk.settings
    quiet = {"log_level": "warning", "access_log": False, "server_header": False, "ws": "none"}
    limits = {"timeout_graceful_shutdown": 2, "h11_max_incomplete_event_size": 32768, "backlog": 2048}
    where = {"host": how.host, "port": how.port, "http": edge.protocol(how.header_s)}
    server = uvicorn.Server(uvicorn.Config(build(desk), **where, **quiet, **limits))
    for number in (signal.SIGINT, signal.SIGTERM):  # also while the backends come up and end
        signal.signal(number, server.handle_exit)
    asyncio.run(run(desk, server))


def main():
    """`python -m app.server`: the API alone. Its exit status is SAID where one line has said what is wrong."""
    try:
        how = settings.load()
        serve(Desk(catalogue.asked(how), how))
    except (ValueError, FileNotFoundError, RuntimeError, OSError) as error:
        print(f"serve: {error}", file=sys.stderr)
        return SAID
    return 0


if __name__ == "__main__":
    sys.exit(main())
