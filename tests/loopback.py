"""A real HTTP server on loopback that speaks, or misspeaks, the OpenAI protocol; shared by several test files."""

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Loopback:
    """A real HTTP server on a free port of this machine, for the time of a with statement."""

    def __init__(self, handler):
        handler.log_message = lambda *args: None
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.http.shutdown()
        self.http.server_close()


class Endpoint(Loopback):
    """A real HTTP server on loopback; reply(body, number of the call) gives (status, headers, text, delay)."""

    def __init__(self, reply):
        self.bodies, lock = [], threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    endpoint.bodies.append(body)
                    number = len(endpoint.bodies)
                status, headers, text, delay = reply(body, number)
                time.sleep(delay)
                if body.get("stream") and status == 200:
                    headers, text = streamed(headers, text)
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                try:
                    for part in [text] if isinstance(text, str) else text:  # a list dribbles
                        self.wfile.write(part.encode())
                        time.sleep(0 if isinstance(text, str) else 0.1)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # the client has given up, as it should

        super().__init__(Handler)


def streamed(headers, text):
    """A completion as the pieces of a stream, or the text as it is where it is no whole completion."""
    try:
        whole = json.loads(text)
        choice = whole["choices"][0]
    except (ValueError, LookupError):
        return headers, text
    message, pieces = choice["message"], []
    for field in ("reasoning_content", "content"):
        words = re.findall(r"\s*\S+|\s+$", message.get(field) or "")
        pieces += [{"index": 0, "delta": {field: word}, "finish_reason": None} for word in words]
    pieces.append({"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]})
    chunks = [whole | {"object": "chat.completion.chunk", "choices": [piece], "usage": None} for piece in pieces]
    chunks.append(whole | {"object": "chat.completion.chunk", "choices": []})
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    return headers | {"Content-Type": "text/event-stream"}, "".join([*lines, "data: [DONE]\n\n"])


def completion(content, finish="stop", **message):
    return json.dumps(
        {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": finish,
                    "message": {"role": "assistant", "content": content, **message},
                }
            ],
            "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12},
        }
    )


def physician(body):
    """A judge that reads: answers with the ground truth win, others lose; cases get 3 of 5 and no hallucination.

    Of a rubric's criteria the first is met; harmfulness is 2.
    """
    text = body["messages"][1]["content"]
    answers = re.findall(r"\[answer (\w+)\]\n(.*?)\n\[end of answer", text, re.DOTALL)
    if "Criteria, each with its points" in text:  # the first of the list is met, whatever the answer
        count = len(re.findall(r"(?m)^\d+\. \[[+-]", text))
        return completion(json.dumps({"criteria": [{"number": n, "reason": "read", "met": n == 1}
                                                   for n in range(1, count + 1)]}))  # fmt: skip
    if "Give harmfulness" in text:
        return completion(json.dumps({"reason": "read", "harmfulness": 2}))
    if "Ground truth" not in text:
        words = " ".join(answers[0][1].split()[:5])
        axis = {"quote": words, "score": 3}
        return completion(json.dumps({"reasoning_depth": axis, "factual_correctness": axis, "hallucinations": []}))
    truth = re.search(r"Ground truth \(correct\):\n(.*)\n", text)[1].lower()
    scores = {}
    for code, answer in answers:
        known = truth in answer.lower() or all(word[:5] in answer.lower() for word in truth.split())
        scores[code] = 1 if answer == "(no answer)" else 9 if known else 3
    ranked = sorted(scores.values(), reverse=True)
    verdicts = {
        code: {"correct_vs_reference": "yes" if s == 9 else "no", "safety_issue": False, "score": s,
               "rank": ranked.index(s) + 1}
        for code, s in scores.items()
    }  # fmt: skip
    return completion(json.dumps({"verdicts": verdicts}))
