"""`make chat`: the served model in the terminal, through the same API."""

import contextlib
import os
import socket
import sys

from lib.evaluation.endpoint import client

DIM, BOLD, PLAIN = ("\x1b[2m", "\x1b[1;31m", "\x1b[0m") if sys.stdout.isatty() else ("", "", "")


def main(how, models):
    """Talk until the input ends. An API that runs at the configured port is used, else one is started for the talk."""
    from app import __main__ as launcher

    key = asked_with(how)
    if launcher.healthy(launcher.address(how) + "/ready")():
        talk(launcher.address(how), key, models[0].name)
        return 0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {"SERVE_PORT": str(port), "SERVE_UI": "0", "SERVE_HOST": "127.0.0.1", "SERVE_LOG_FILE": os.devnull}
    alone = how.model_copy(update={"port": port, "ui": False, "host": "127.0.0.1"})
    launcher.run(alone, lambda made: talk(launcher.address(alone), key, models[0].name))
    return 0


def asked_with(how):
    """The key of the talk. Raises ValueError where only hashes of keys are known."""
    known = [entry.partition(":")[2] for entry in how.keys.split()]
    plain = [key for key in (how.chat_key, *known) if key and not key.startswith("sha256:")]
    if known and not plain:
        raise ValueError("SERVE_KEYS has nothing but hashes: give make chat its key in SERVE_CHAT_KEY")
    return plain[0] if plain else "none"


def talk(url, key, model):
    """Read questions, write answers, until end of input. Ctrl-C ends an answer, and at the prompt the talk."""
    api, turns = client(url, key), []
    print(f"{model}. Not for clinical use. An empty line or Ctrl-D ends; /new begins anew.")
    while True:
        try:
            question = input("\n> ").strip()
        except EOFError:
            return
        if not question:
            return
        if question == "/new":
            turns = []
            continue
        turns.append({"role": "user", "content": question})
        answer = ""
        with contextlib.suppress(KeyboardInterrupt):
            answer = told(api, model, turns)
        print(PLAIN)
        turns.append({"role": "assistant", "content": answer})


def told(api, model, turns):
    """Write one answer while it comes; returns it."""
    import openai

    answer, colour, thinking = "", "", False
    try:
        for chunk in api.chat.completions.create(model=model, messages=turns, stream=True):
            emergency = any(entry["kind"] == "emergency" for entry in (chunk.model_extra or {}).get("guard", []))
            for choice in chunk.choices:
                reasoning = (choice.delta.model_extra or {}).get("reasoning_content") or ""
                wanted = BOLD if emergency else DIM if reasoning else PLAIN
                text = reasoning or choice.delta.content or ""
                if text and (wanted != colour or thinking != bool(reasoning)):
                    print(("\n\n" if thinking and not reasoning else "") + wanted, end="")
                    colour, thinking = wanted, bool(reasoning)
                print(text, end="", flush=True)
                answer += "" if reasoning else text
    except openai.OpenAIError as error:
        print(f"{PLAIN}\nchat: {error}", file=sys.stderr)
    return answer
