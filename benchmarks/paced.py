"""`python -m benchmarks.paced PORT RATE`: a backend that streams answers at a stated rate and computes nothing.

It speaks as llama-server does: max_tokens pieces of text, RATE of them a second to each stream, then usage. Every piece
repeats the question's last word, so that it can be seen in each whose answer it is.
"""

import asyncio
import json
import sys
import time

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
FINE = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n{"status":"ok"}'
FRAME = {"created": 1, "id": "chatcmpl-x", "model": "paced", "object": "chat.completion.chunk"}


async def answer(reader, writer, rate):
    """One connection, request by request."""
    try:
        while line := await reader.readline():
            length = 0
            while (header := await reader.readline()).strip():
                if header.lower().startswith(b"content-length:"):
                    length = int(header.split(b":")[1])
            body = await reader.readexactly(length)
            if b"chat/completions" in line:
                await stream(writer, json.loads(body), rate)
            else:
                writer.write(FINE)
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def stream(writer, body, rate):
    """The answer to one request."""
    tokens, said = body.get("max_completion_tokens") or body["max_tokens"], body["messages"][-1]["content"]
    mark = (said if isinstance(said, str) else said[-1]["text"]).split()[-1]
    writer.write(HEAD)
    start = time.perf_counter()
    for number in range(tokens):
        await asyncio.sleep(max(0.0, start + number / rate - time.perf_counter()))
        event(writer, [{"finish_reason": None, "index": 0, "delta": {"content": f" {mark}.{number}"}}])
    event(writer, [{"finish_reason": "length", "index": 0, "delta": {}}])
    event(writer, [], usage={"prompt_tokens": 20, "completion_tokens": tokens, "total_tokens": 20 + tokens})
    chunk(writer, b"data: [DONE]\n\n")
    writer.write(b"0\r\n\r\n")
    await writer.drain()


def event(writer, choices, **more):
    """One event of the stream."""
    chunk(writer, b"data: " + json.dumps({"choices": choices} | FRAME | more, separators=(",", ":")).encode() + b"\n\n")


def chunk(writer, data):
    """Bytes as HTTP frames them."""
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


async def main(port, rate):
    """Serve until it is ended."""
    server = await asyncio.start_server(lambda r, w: answer(r, w, rate), "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2])))
