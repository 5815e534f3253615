"""Answers over connections that are used again, and the soak that looks for lost and mixed-up ones."""

import asyncio
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from served import ASK, Backend, api, ending, model, piece, writes

from benchmarks import soak


class Closing(BaseHTTPRequestHandler):
    """A server that keeps a connection and closes it when the next request is on it already, as an idle one may be."""

    protocol_version, served, closed = "HTTP/1.1", False, 0

    def do_GET(self):
        self.say(b"")

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if "chat" not in self.path:
            self.say(b"{}")
        elif self.served:
            Closing.closed += 1
            self.close_connection = True
        else:
            self.served = True
            self.say(piece("fine") + ending(1))

    def say(self, data):
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


def test_a_connection_that_closes_as_it_is_used_again_loses_no_answer():
    with ThreadingHTTPServer(("127.0.0.1", 0), Closing) as server:
        threading.Thread(target=server.serve_forever).start()
        with api(model(form="instruction"), backend_url=f"http://127.0.0.1:{server.server_port}") as client:
            replies = [client.post("/v1/chat/completions", json=ASK) for _ in range(4)]
        server.shutdown()
    assert [reply.json()["choices"][0]["message"]["content"] for reply in replies] == ["fine"] * 4
    assert Closing.closed, "no connection was used again"


class Open(Closing):
    """A server that keeps its connections, and says when a question has come."""

    come = threading.Event()

    def do_POST(self):
        self.served = False
        self.come.set()
        super().do_POST()


@pytest.mark.parametrize("how", ["notice", "refuse"])
def test_the_guard_reads_a_question_while_the_backend_does_unless_it_decides_whether_that_is_asked(how):
    with ThreadingHTTPServer(("127.0.0.1", 0), Open) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}"
        with api(model(form="instruction"), backend_url=url, out_of_scope=how) as client:
            client.post("/v1/chat/completions", json=ASK)  # opens the connection
            ask, come = client.desk.guard.question, []

            def question(text):  # in the event loop's own thread: nothing is sent meanwhile
                come.append(Open.come.wait(2))
                return ask(text)

            client.desk.guard.question = question
            Open.come.clear()
            reply = client.post("/v1/chat/completions", json=ASK)
        server.shutdown()
    assert reply.status_code == 200 and come == [how == "notice"]


def test_the_soak_passes_where_all_is_well(capfd):
    assert soak.main("--seconds 3 --streams 8 --rate 200".split()) == 0
    assert "0 lost, 0 mixed up" in capfd.readouterr().out


def test_the_soak_sees_answers_that_are_lost_and_those_of_others():
    how = SimpleNamespace(seconds=2, streams=2, tokens=2)
    for script, fault in (
        (writes(piece(" q7.0"), piece(" q7.1"), ending(2)), "mixed"),
        (writes(piece(" q7.0")), "lost"),
    ):
        with Backend(script) as backend:
            counts, memory = asyncio.run(soak.ask((backend.url, "none", "m"), os.getpid(), how))
        assert counts[fault] > 0 and counts["right"] <= 1 and memory[0] > 10
