"""Content of a row of a user's own file, whatever its shape, once its cells are named by role.

The roles are listed in lib/dataset/shapes.py, which finds out what holds them.
"""

import ast
import json
import re

from lib.dataset import answers, choices
from lib.dataset.choices import LETTERS, Reject, clean
from lib.dataset.converters import TAIL_CHARS, choice, content, last_answer, optional, states

SPEAKERS = {  # what chat files call the three who speak
    "user": "user", "human": "user", "prompter": "user", "patient": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "chatbot": "assistant", "model": "assistant",
    "doctor": "assistant", "system": "system",
}  # fmt: skip
SPEAKER, SAID, THOUGHT = ("role", "from", "speaker"), ("content", "value", "text"), ("reasoning_content", "thinking")
TURN_KEYS = {*SPEAKER, *SAID, *THOUGHT}
TAGS = re.compile(r"<(/?)(?:thinking|thought|reasoning)>", re.IGNORECASE)


def own(row: dict) -> dict:
    """Content fields of a row by role: instruction, context, input, output, reasoning, options, answer, index, base,
    system, history, messages. Raises Reject.

    Of `messages` the last assistant turn is the answer, the user turn before it the question, and what stood before
    that is `history`, without its reasoning.
    """
    if row.get("messages") is not None:
        row = row | last_exchange(conversation(row["messages"]))
    question = "\n\n".join(filter(None, (optional(row, role) for role in ("context", "instruction", "input"))))
    question = clean(question, "empty_question")
    system = {"role": "system", "content": optional(row, "system")}
    spoken = conversation([system] if system["content"] else []) + conversation(row.get("history"))
    earlier = [{"role": turn["role"], "content": turn["content"]} for turn in _joined(spoken)]
    given = clean(row["output"], "empty_answer") if "output" in row else ""  # options and a truth can do without
    reasoning, output = taken_apart(given)
    if column := optional(row, "reasoning"):
        if reasoning not in ("", column):
            raise Reject("two_reasonings")
        reasoning = column
    fields = _answered(row, question, reasoning, output)
    return fields | {"history": earlier} if earlier else fields


def _answered(row, question, reasoning, output):
    """The content of one question and answer, multiple choice where options are listed."""
    stem, options = question, choices.options_of(listed(row.get("options")))
    stated = [value for role in ("answer", "index") if not _void(value := row.get(role))]
    if not options:
        stem, options = choices.inside_or_none(question)
        letter = answers.choice(output[-TAIL_CHARS:], options) if options and _says(output) else None
        if options and not stated and not letter:  # a list, and nothing that names one of its lines: an open question
            stem, options = question, []
        if letter and not stated:
            stated = [options[LETTERS.index(letter)]]
    elif not stated:
        stated = [last_answer(output) or _mentioned(output, options)]
    if not options:
        said = clean(stated[0], "") if stated else last_answer(output)
        return content(question, reasoning, clean(output, "empty_answer"), said)
    places = {choices.find(value, options, base=row.get("base")) for value in stated}
    if len(places) > 1:
        raise Reject("answer_conflict")
    return choice(stem, reasoning, _explanation(output, options), options, *places)


def _void(value) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _says(output: str) -> bool:
    """Whether an output states an answer, or is one: it then has a single line."""
    return states(output[-TAIL_CHARS:]) or "\n" not in output


def _mentioned(output: str, options: list[str]) -> str | None:
    letter = answers.choice(output[-TAIL_CHARS:], options) if states(output[-TAIL_CHARS:]) else None
    return options[LETTERS.index(letter)] if letter else None


def _explanation(output: str, options: list[str]) -> str:
    """What an output says beside naming its option: the record says that in a last line of its own."""
    if last_answer(output):
        output = output[: output.rfind("\n") + 1].strip()
    try:
        return "" if output and choices.find(output, options) is not None else output
    except Reject:
        return output


def taken_apart(text: str) -> tuple[str, str]:
    """(reasoning, answer) of an output that holds both, in think tags, under headings or in harmony's channels.

    Raises Reject where the reasoning never ends.
    """
    tagged = TAGS.sub(r"<\1think>", text) if "<" in text else text
    if "</think>" in tagged or tagged.startswith("<think>"):
        form = "think"
    elif text.startswith("## Thinking") or "\n## Final Response" in text:
        form = "thinking_response"
    elif text.startswith("<|channel|>") or "<|channel|>final<|message|>" in text:
        form = "harmony"
    else:
        return "", text
    reasoning, answer, _ = answers.split_reasoning(tagged, form)
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

    Turns of one speaker in a row become one. Raises Reject: wrong_type, or unknown_turn for a speaker, a field or a
    kind of content that is not read (tool calls, images).
    """
    value = listed(value)
    if _void(value):
        return []
    if not isinstance(value, list | tuple):
        raise Reject("wrong_type")
    return _joined([turn for entry in value for turn in _turns(entry)])


def _joined(spoken: list[dict]) -> list[dict]:
    """Turns in which no speaker follows himself."""
    turns = []
    for turn in spoken:
        if turns and turns[-1]["role"] == turn["role"]:
            last = turns.pop()
            turn = turn | {key: "\n\n".join(filter(None, (last.get(key), turn.get(key))))
                           for key in ("content", "reasoning")}  # fmt: skip
        turns.append(turn)
    return turns


def _turns(entry):
    """The turns of one entry of a conversation."""
    if isinstance(entry, list | tuple):  # [question, answer], the answer None where there is none yet
        if len(entry) != 2:
            raise Reject("wrong_type")
        pairs = zip(("user", "assistant"), entry, strict=True)
        entry = [{"role": role, "content": text} for role, text in pairs if not _void(text)]
        return [turn for said in entry for turn in _turns(said)]
    if not isinstance(entry, dict):
        raise Reject("wrong_type")
    if any(not _void(value) and value != [] for key, value in entry.items() if key not in TURN_KEYS):
        raise Reject("unknown_turn")
    speaker = next((entry[key] for key in SPEAKER if not _void(entry.get(key))), None)
    role = SPEAKERS.get(str(speaker).casefold())
    if not role:
        raise Reject("unknown_turn")
    said = next((entry[key] for key in SAID if not _void(entry.get(key))), None)
    if isinstance(said, list):  # OpenAI's parts
        if any(not isinstance(part, dict) or part.get("type") != "text" for part in said):
            raise Reject("unknown_turn")
        said = "\n\n".join(str(part.get("text", "")) for part in said)
    thought = next((optional(entry, key) for key in THOUGHT if not _void(entry.get(key))), "")
    text = clean(said, "empty_question" if role == "user" else "empty_answer")
    inner, text = taken_apart(text) if role == "assistant" else ("", text)
    return [{"role": role, "content": text, "reasoning": thought or inner}]


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
