import time

import openai
import pytest
from loopback import Endpoint, completion

from lib.evaluation import endpoint

REQUEST = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


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


def test_retry_after_is_read_and_bounded():
    assert [endpoint._seconds(text) for text in ("2", "600", "Fri, 20 Nov 2026", None)] == [2.0, 30.0, 0.0, 0.0]


def test_a_server_that_dribbles_is_left_at_the_deadline():
    with Endpoint(lambda body, n: (200, {}, list(completion("late")), 0)) as server:  # 0.1 s a character
        start = time.monotonic()
        with pytest.raises(openai.APITimeoutError):
            endpoint.complete(endpoint.client(server.url), REQUEST, 0.8)
        with pytest.raises(openai.OpenAIError):
            endpoint.stream(endpoint.client(server.url), REQUEST, 0.8)
        assert time.monotonic() - start < 20  # either answer, whole, takes more


def test_a_hung_connection_is_tried_again_before_the_deadline():
    def reply(body, number):
        return 200, {}, completion("ok"), 60 if number == 1 else 0

    with Endpoint(reply) as server:
        got, attempts = endpoint.complete(endpoint.client(server.url), REQUEST, 4)
    assert (got.choices[0].message.content, attempts) == ("ok", 2)


def test_faults_last_until_the_deadline_whatever_the_server_asks_for():
    with Endpoint(lambda body, n: (429, {"Retry-After": "600"}, "{}", 0)) as server:
        start = time.monotonic()
        with pytest.raises(openai.RateLimitError):
            endpoint.complete(endpoint.client(server.url), REQUEST, 1.0)
        assert 0.85 <= time.monotonic() - start < 25  # one wait as the server asks for takes 30 s


def test_a_stream_gives_the_text_the_count_and_the_first_token():
    with Endpoint(lambda body, n: (200, {}, completion("one two", reasoning_content="why"), 0.1)) as server:
        got = endpoint.stream(endpoint.client(server.url), REQUEST, 5)
    assert (got["content"], got["reasoning"], got["tokens"], got["finish"]) == ("one two", "why", 7, "stop")
    assert 0.1 <= got["first_s"] <= got["seconds"]


def test_a_stream_that_ends_early_is_asked_again():
    cut = 'data: {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": []}\n\n'

    def reply(body, number):
        return (
            200,
            {"Content-Type": "text/event-stream"} if number == 1 else {},
            cut if number == 1 else completion("ok"),
            0,
        )

    with Endpoint(reply) as server:
        assert endpoint.stream(endpoint.client(server.url), REQUEST, 5)["content"] == "ok"
        assert len(server.bodies) == 2
