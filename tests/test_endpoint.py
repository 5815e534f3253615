import openai
import pytest
from loopback import Endpoint, completion

from lib import endpoint

REQUEST = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(endpoint, "PAUSE_S", (0.01, 0.05))


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080/v1/"),
        ("http://127.0.0.1:8080/", "http://127.0.0.1:8080/v1/"),
        ("https://host.example/openai", "https://host.example/openai/"),
    ],
)
def test_a_bare_host_gets_the_usual_path(given, used):
    assert str(endpoint.client(given).base_url) == used


def test_a_local_server_is_reached_past_a_proxy(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with Endpoint(lambda body, n: (200, {}, completion("ok"), 0)) as server:
        reply, attempts = endpoint.complete(endpoint.client(server.url), REQUEST, 5)
    assert (reply.choices[0].message.content, attempts) == ("ok", 1)


def test_the_sdk_does_not_retry_on_its_own():
    with Endpoint(lambda body, n: (500, {}, "no", 0) if n < 3 else (200, {}, completion("ok"), 0)) as server:
        _, attempts = endpoint.complete(endpoint.client(server.url), REQUEST, 10)
        assert attempts == len(server.bodies) == 3


def test_the_last_fault_is_raised_at_the_deadline():
    with Endpoint(lambda body, n: (429, {}, "{}", 0)) as server, pytest.raises(openai.RateLimitError):
        endpoint.complete(endpoint.client(server.url), REQUEST, 0.2)


def test_retry_after_is_read_and_bounded():
    assert [endpoint._seconds(text) for text in ("2", "600", "Fri, 20 Nov 2026", None)] == [2.0, 30.0, 0.0, 0.0]
