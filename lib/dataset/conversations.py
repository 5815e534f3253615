"""Conversations, whoever speaks in them: turns of one form, the parts that are trained, and reasoning inside a turn."""

import ast
import json
import re

from lib.dataset import answers
from lib.dataset.cells import Reject, clean
from lib.dataset.converters import optional

SPEAKERS = {  # what chat files call the three who speak
    "user": "user", "human": "user", "prompter": "user", "patient": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "chatbot": "assistant", "model": "assistant",
    "doctor": "assistant", "system": "system", "developer": "system",
}  # fmt: skip
SPEAKER, SAID, THOUGHT = ("role", "from", "speaker"), ("content", "value", "text"), ("reasoning_content", "thinking")
TURN_KEYS = {*SPEAKER, *SAID, *THOUGHT, "id"}
TAGS = re.compile(r"<\s*(/?)\s*(?:think|thinking|thought|reasoning)\s*>", re.IGNORECASE)
HEADINGS = {  # of any level, in any case, also in bold
    "## Thinking": re.compile(r"^#{1,6}[ \t]*\**thinking\**[ \t]*:?\**[ \t]*$", re.IGNORECASE | re.MULTILINE),
    "## Final Response": re.compile(
        r"^#{1,6}[ \t]*\**final (?:response|answer)\**[ \t]*:?\**[ \t]*$", re.IGNORECASE | re.MULTILINE
    ),
}


def void(value) -> bool:
    return value is None or value == [] or (isinstance(value, str) and not value.strip()) or value != value


def taken_apart(text: str) -> tuple[str, str]:
    """(reasoning, answer) of an output that holds both, in think tags, under headings or in harmony's channels.

    Raises Reject where the reasoning never ends.
    """
    if "<" in text:
        text = TAGS.sub(r"<\1think>", text)
    if text.startswith("#") or "\n#" in text:
        for heading, pattern in HEADINGS.items():
            text = pattern.sub(heading, text)
    if "<think>" in text or "</think>" in text:
        form = "think"
        if text.rfind("<think>") > text.rfind("</think>"):
            raise Reject("empty_answer")
    elif text.startswith("## Thinking") or "\n## Final Response" in text:
        form = "thinking_response"
    elif text.startswith("<|channel|>") or "<|channel|>final<|message|>" in text:
        form = "harmony"
    else:
        return "", text
    reasoning, answer, _ = answers.split_reasoning(text, form)
    if not answer:
        raise Reject("empty_answer")
    return reasoning, answer


def listed(value):
    """A cell that holds a list or an object, also where a table stores it as text: JSON, or as Python writes it."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            return read(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return value


def conversation(value) -> list[dict]:
    """[{"role", "content", "reasoning"}] of a cell: a list of messages, or of [question, answer] pairs.

    Turns of one speaker in a row become one. Raises Reject: wrong_type, or "unknown_turn: NAME" for a speaker, a field
    or a kind of content that is not read (tool calls, images).
    """
    return joined([_turn(entry) for entry in _spread(value)])


def _spread(value) -> list[dict]:
    """A cell's entries as messages: a pair is two, or one where there is no answer yet. Raises Reject: wrong_type."""
    value, spread = listed(value), []
    if void(value):
        return []
    if not isinstance(value, list | tuple):
        raise Reject("wrong_type")
    for entry in value:
        if isinstance(entry, list | tuple) and len(entry) == 2:
            pair = zip(("user", "assistant"), entry, strict=True)
            spread += [{"role": role, "content": text} for role, text in pair if not void(text)]
        elif isinstance(entry, dict):
            spread.append(entry)
        else:
            raise Reject("wrong_type")
    return spread


def _speaker(entry: dict):
    return next((entry[key] for key in SPEAKER if not void(entry.get(key))), None)


def beginnings(value, each: bool) -> list:
    """A conversation up to each of its answers (or the last), and up to a first or last turn that none belongs to.

    `exchange` rejects those two, opening_turn and closing_turn, so that they are counted.
    """
    try:
        turns = _spread(value)
    except Reject:
        return [value]
    who = [SPEAKERS.get(str(_speaker(turn)).casefold()) for turn in turns]
    ends = [n for n, one in enumerate(who, 1) if one == "assistant" != (who + [""])[n]]
    found = [end for end in ends if "user" in who[:end]]
    if not found:
        return [value]
    opened = [who.index("user") + 1] if ends[0] < found[0] else []
    closed = [len(turns)] if found[-1] < len(turns) else []
    return [turns[:end] for end in (*opened, *(found if each else found[-1:]), *closed)]


def exchange(turns: list[dict]) -> dict:
    """The same as last_exchange, without what the assistant says before the first question.

    Raises Reject: opening_turn or closing_turn where no answer follows, and last_exchange's reasons.
    """
    who = [turn["role"] for turn in turns]
    if "user" in who and "assistant" in who:
        first = who.index("user")
        if who[-1] != "assistant":
            raise Reject("closing_turn" if "assistant" in who[first:] else "opening_turn")
        turns = joined([turn for turn in turns[:first] if turn["role"] == "system"]) + turns[first:]
    return last_exchange(turns)


def joined(spoken: list[dict]) -> list[dict]:
    """Turns in which no speaker follows himself."""
    turns = []
    for turn in spoken:
        if turns and turns[-1]["role"] == turn["role"]:
            last = turns.pop()
            turn = turn | {key: "\n\n".join(filter(None, (last.get(key), turn.get(key))))
                           for key in ("content", "reasoning")}  # fmt: skip
        turns.append(turn)
    return turns


def _turn(entry: dict) -> dict:
    strange = [key for key, cell in entry.items() if key not in TURN_KEYS and not void(cell)
               and (key, cell) != ("weight", 1)]  # fmt: skip
    speaker = _speaker(entry)
    role = SPEAKERS.get(str(speaker).casefold())
    if strange or not role:
        raise Reject(f"unknown_turn: {(strange or [speaker])[0]}"[:60])
    said = next((entry[key] for key in SAID if not void(entry.get(key))), None)
    if isinstance(said, list):  # OpenAI's parts
        kinds = [part.get("type") if isinstance(part, dict) else part for part in said]
        if strange := [kind for kind in kinds if kind != "text"]:
            raise Reject(f"unknown_turn: {strange[0]}"[:60])
        said = "\n\n".join(str(part.get("text", "")) for part in said)
    thought = next((optional(entry, key) for key in THOUGHT if not void(entry.get(key))), "")
    text = clean(said, "empty_question" if role == "user" else "empty_answer")
    inner, text = taken_apart(text) if role == "assistant" else ("", text)
    return {"role": role, "content": text, "reasoning": thought or inner}


def last_exchange(turns: list[dict]) -> dict:
    """{"instruction", "output", "reasoning", "history"} of a conversation that ends with the answer to learn."""
    if not turns or turns[-1]["role"] != "assistant":
        raise Reject("empty_answer")
    if len(turns) < 2 or turns[-2]["role"] != "user":
        raise Reject("empty_question")
    *before, asked, said = turns
    earlier = [{"role": turn["role"], "content": turn["content"]} for turn in before]
    if next((turn["role"] for turn in earlier if turn["role"] != "system"), "user") != "user":
        raise Reject("empty_question")  # an answer before the first question
    return {"instruction": asked["content"], "output": said["content"], "reasoning": said["reasoning"],
            "history": earlier}  # fmt: skip
