"""Bodies, paths and headers that nobody would send: never a fault of ours, and the API answers afterwards."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served import ASK, Backend, api, ending, model, piece, raw, wait, writes
from test_gguf import bf16, twin  # noqa: F401 (fixtures)

from lib.pipeline.files import ROOT

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just("\ud800")
ANY = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
ROLES = st.sampled_from(["user", "assistant", "system", "developer", "tool", ""])
PART = st.fixed_dictionaries({"type": st.sampled_from(["text", "image_url", 1])}, optional={"text": st.text() | ANY})
TURN = st.fixed_dictionaries({"role": ROLES | ANY, "content": st.text(max_size=200) | st.lists(PART, max_size=3) | ANY})
VALUES = {
    "messages": st.lists(TURN, max_size=4),
    "stop": st.text(max_size=4) | st.lists(st.text(max_size=4), max_size=6),
    "stream": st.booleans(),
    "model": st.sampled_from(["tiny/x", "nope", ""]),
}


@pytest.fixture(scope="module")
def client():
    async def choices(writer, body):
        pieces = [part for index in range(body["n"]) for part in (piece("Iron.", index), ending(1, index=index))]
        await writes(*pieces)(writer, body)

    with Backend(choices) as backend:
        with api(model(form="instruction"), backend_url=backend.url, log_file=os.devnull, slots=8) as made:
            made.fields = made.get("/openapi.json").json()["components"]["schemas"]["ChatRequest"]["properties"]
            yield made


def bodies(fields):
    """A valid body with some fields of the schema replaced by valid, half valid or absurd values, or no JSON object."""
    number = st.integers(-3, 9) | st.floats(-3, 3) | ANY
    odd = st.fixed_dictionaries({}, optional={name: VALUES.get(name, number) | ANY for name in fields})
    return odd.map(lambda change: json.dumps(ASK | change).encode()) | ANY.map(lambda v: json.dumps(v).encode())


def answered(client, content, path="/v1/chat/completions", method="POST", **headers):
    """The status of one request; a fault of ours has status 500."""
    reply = client.request(method, path, content=content, headers={"content-type": "application/json"} | headers)
    assert reply.status_code < 500, (reply.status_code, reply.text[:200], content[:500])
    if reply.status_code >= 400:
        error = reply.json()["error"]
        assert error["message"] and error["code"] and error["type"]
    return reply.status_code


def fuzz(client, examples):
    seen = set()

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(bodies(client.fields) | st.binary(max_size=200))
    def once(content):
        seen.add(answered(client, content))

    once()
    assert {200, 400, 422} <= seen, "valid ones, no JSON and wrong fields are all among them"
    assert answered(client, json.dumps(ASK).encode()) == 200
    slots = client.desk.backends["tiny/x"].slots
    wait(lambda: slots.free == slots.count and not client.desk.access.busy["local"])


def test_300_bodies(client):
    fuzz(client, 300)


@pytest.mark.slow
def test_10000_bodies(client):
    fuzz(client, 10000)


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("schemathesis"), reason="schemathesis is not installed: make setup")
def test_requests_drawn_from_the_schema_before_the_real_server(bf16, tmp_path):  # noqa: F811
    """All checks but one: a schema does not know how many tokens a model has room for."""
    with api(model(bf16), slots=8) as client:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{client.base_url}/openapi.json"]
        command += "--checks all --exclude-checks positive_data_acceptance --max-examples 200 --no-color".split()
        path = os.pathsep.join([str(ROOT / "tests"), *sys.path])
        env = os.environ | {"SCHEMATHESIS_HOOKS": "schema_hooks", "PYTHONPATH": path}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0 and "Tested: 6" in done.stdout, done.stdout
        whole = 'medtune_http_requests_total{path="/v1/chat/completions",status="200"} '
        assert float(client.get("/metrics").text.partition(whole)[2].split()[0]) > 50, "the model was asked"


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE", "BREW"])
def test_every_method_on_every_path(client, method):
    for path in [*client.get("/openapi.json").json()["paths"], "/docs", "/openapi.json", "/%00", "//", "/v1/models/x"]:
        reply = client.request(method, path, content=b"{}")
        assert reply.status_code < 500, path
        if reply.status_code == 405:
            assert "allow" in reply.headers, path


SMUGGLED = [
    b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
    b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
    b"Content-Length: +4\r\n\r\nabcd",
    b"Content-Length: 4, 5\r\n\r\nabcde",
    b"Content-Length: -1\r\n\r\n",
    b"Content-Length: 0x4\r\n\r\nabcd",
    b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    b"X: a\r\n\tTransfer-Encoding: chunked\r\n\r\n",
    b"X-A: b\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    b"\x00: x\r\n\r\n",
    b"X: " + bytes(range(1, 9)) + b"\r\n\r\n",
]


@pytest.mark.parametrize("headers", SMUGGLED)
def test_a_request_that_two_servers_could_read_differently_is_refused_or_read_once(client, headers):
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    found, _ = raw(client, head + headers, 1)
    statuses = [line.split()[1] for line in found.split(b"\r\n") if line.startswith(b"HTTP/1.1")]
    assert len(statuses) <= 1 and all(b"400" <= status < b"500" for status in statuses), found[:300]
    assert client.get("/health").status_code == 200


def test_hundreds_of_headers(client):
    many = {f"x-{n}": "a" for n in range(500)}
    assert client.get("/health", headers=many).status_code == 200
    assert client.get("/health", headers=many | {"x-big": "a" * 31000}).status_code == 431
