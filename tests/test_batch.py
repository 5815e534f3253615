import email
import json
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler

import pytest
from loopback import Loopback, completion
from test_panel import honest, items

from lib.judge import batch, judges, panel, verdicts


class Batches(Loopback):
    """The file and batch endpoints of OpenAI's protocol on loopback; answer(body) gives a completion's JSON text."""

    def __init__(self, answer, looks=2):
        self.files, self.batches, self.created = {}, {}, 0
        home = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/v1/files":
                    head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
                    parts = email.message_from_bytes(head + raw, policy=HTTP).get_payload()
                    content = next(p.get_content() for p in parts if p.get_filename())
                    home.files["in"] = content if isinstance(content, str) else content.decode()
                    return self.json({"id": "in", "object": "file", "bytes": 1, "created_at": 0, "filename": "f",
                                      "purpose": "batch", "status": "processed"})  # fmt: skip
                home.created += 1
                home.batches["b1"] = looks
                self.json(home.state("validating"))

            def do_GET(self):
                if self.path.startswith("/v1/files/out"):
                    return self.send(200, home.files["out"])
                home.batches["b1"] -= 1
                if home.batches["b1"] > 0:
                    return self.json(home.state("in_progress"))
                lines = [json.loads(line) for line in home.files["in"].splitlines()]
                done = [{"custom_id": line["custom_id"], "response": {"status_code": 200, "body":
                         json.loads(answer(line["body"]))}} for line in reversed(lines)]  # fmt: skip
                home.files["out"] = "\n".join(map(json.dumps, done))
                self.json(home.state("completed") | {"output_file_id": "out"})

            def json(self, value):
                self.send(200, json.dumps(value))

            def send(self, status, text):
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(text.encode())

        super().__init__(Handler)

    def state(self, status):
        return {"id": "b1", "object": "batch", "status": status, "created_at": 0, "input_file_id": "in",
                "endpoint": "/v1/chat/completions", "completion_window": "24h"}  # fmt: skip


def one_bad(body):
    return completion("prose" if "Question 3?" in body["messages"][1]["content"] else honest(body))


def test_a_batch_fills_the_store_at_half_the_price(tmp_path):
    store, work = verdicts.Store(tmp_path / "v.sqlite"), panel.tasks(items(6))
    with Batches(one_bad) as server:
        asked = judges.Judge("m", server.url, usd_per_mtok=(1000.0, 1000.0))
        found = batch.run(asked, work, store, max_usd=99.0, poll_s=0.01)
        assert (found["asked"], found["valid"], found["faulty"], found["status"]) == (6, 5, 1, "completed")
        assert found["usd"] == pytest.approx(6 * 0.012 / 2) == store.spent()
        again = batch.run(asked, work, store, max_usd=99.0, poll_s=0.01)
        assert (again["asked"], again["faulty"], server.created) == (1, 1, 1)
    assert sum(store.get(task.key(asked)) is not None for task in work) == 5


def test_a_killed_runner_goes_on_waiting_for_its_batch(tmp_path):
    store, work = verdicts.Store(tmp_path / "v.sqlite"), panel.tasks(items(4))
    with Batches(lambda body: completion(honest(body)), looks=30) as server:
        asked = judges.Judge("m", server.url)
        with pytest.raises(TimeoutError, match="run this stage again"):
            batch.run(asked, work, store, max_usd=9.0, wait_s=0.05, poll_s=0.01)
        store.close()
        store = verdicts.Store(tmp_path / "v.sqlite")
        assert batch.run(asked, work, store, max_usd=9.0, poll_s=0.01)["valid"] == 4 and server.created == 1


def test_the_cap_holds_before_anything_is_sent(tmp_path):
    store, work = verdicts.Store(tmp_path / "v.sqlite"), panel.tasks(items(4))
    with Batches(lambda body: completion(honest(body))) as server:
        asked = judges.Judge("m", server.url, usd_per_mtok=(1000.0, 1000.0))
        with pytest.raises(ValueError, match="left of judge.max_usd"):
            batch.run(asked, work, store, max_usd=0.5, poll_s=0.01)
        assert server.created == 0
