"""A blind listwise judge: what a language model is shown, what it may answer, and how often it is asked.

A judge sees a question, its reference and all candidates' answers at once, under random codes, in an order that
balances over questions. It sees no reasoning and no self-identification. Its verdict is strict JSON, checked; what
does not check is asked again, and what never checks is dropped for all candidates alike, and counted.
"""

import contextlib
import hashlib
import json
import random
import re
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, create_model

from lib.dataset import split
from lib.evaluation import screens
from lib.pipeline.files import beside, read_jsonl
from lib.pipeline.forms import checked

MAX_INVALID = 0.05  # above this share of questions without a verdict a panel is INCOMPLETE
EMPTY, NOT_GIVEN = "(no answer)", "(not given)"
CODE_LETTERS = "BCDFGHJKLMNPQRSTVWXZ"  # no vowels: no code is a word

SYSTEM, TASK, REPAIR = map(beside(__file__).get, ("system", "task", "repair"))
SELF = re.compile(
    r"\b(?:as|i am|i'm)\s+(?:an?\s+|the\s+)?(?:\w+\s+)?(?:ai|language model|assistant|chatgpt|gpt|qwen|llama|claude|"
    r"gemini|deepseek|mistral)\b[^.,;\n]*[.,;]?\s*|\b(?:developed|trained|created|made)\s+by\s+(?:openai|alibaba|meta|"
    r"google|anthropic|mistral|deepseek|microsoft)\b[^.,;\n]*[.,;]?\s*",
    re.IGNORECASE,
)
LAYOUT = (
    (re.compile(r"(?m)^[ \t]*(?:#{1,6}[ \t]+|```\w*[ \t]*$|(?:-{3,}|\*{3,}|_{3,})[ \t]*$)"), ""),
    (re.compile(r"\*\*|__|(?<!\w)[*`](?=\S)|(?<=\S)[*`](?!\w)"), ""),
    (re.compile(r"(?m)^[ \t]*[*+•][ \t]+"), "- "),
    (re.compile(r"\n{3,}"), "\n\n"),
)
NAMES = re.compile(r"\b(?:chatgpt|gpt-[\w.]+|qwen[\w.]*|deepseek[\w-]*|llama-?\d[\w.]*)\b", re.IGNORECASE)


class ContentFault(ValueError):
    """A reply that arrived but is no valid verdict."""


def gather(stage, candidates):
    """(answers, left out) of a recipe's candidates: {name: what its chapter wrote}, and names without answers.

    Hosted candidates, api:MODEL, are in neither. stage: 06_judge.
    """
    homes = {"base": "02_baseline", "sft": "03_sft"}  # all others answered through the server, in 05_export
    arms = dict.fromkeys((stage.recipe.sections(["preference"])["preference"] or {"arms": ()})["arms"], "07_preference")
    answers, left_out = {}, []
    for name in [name for name in candidates if not name.startswith("api:")]:
        upstream = stage.input((arms | homes).get(name, "05_export"))
        file = "answers.jsonl" if name in homes else f"answers_{name}.jsonl"
        if file in upstream.json["outputs"]:
            answers[name] = read_jsonl(upstream[file])
        else:
            left_out.append(name)
    return answers, left_out


def items(records, answers, fmt, limit, seed):
    """What is judged: [{"id", "question", "truth", "letter", "options", "reference", "answers": {model: text}}].

    records: the held-out questions. answers: {model: list of answers}. Only questions that all models were asked;
    `limit` of them, drawn with the seed. An answer that is empty, cut or never came is "" and loses: never a drop.
    """
    given = {model: screens.texts(rows, fmt) for model, rows in answers.items()}
    shared = [record for record in records if all(record["id"] in texts for texts in given.values())]
    if not shared:
        raise ValueError(f"no question was answered by all of {', '.join(given)}: run their stages again")
    chosen = random.Random(seed).sample(shared, min(limit, len(shared)))
    return [
        {
            "id": record["id"],
            "question": split.conversation(record),
            "truth": record["answer"],
            "letter": record["letter"],
            "options": record["options"],
            "reference": record["output"],
            "answers": {model: texts[record["id"]] for model, texts in given.items()},
        }
        for record in chosen
    ]


def williams(count):
    """Orders of `count` candidates in which each stands equally often at each place and after each other one.

    Returns `count` rows for an even number, twice as many for an odd one. Source: Williams 1949.
    """
    if count < 2:
        raise ValueError(f"{count} candidate: a comparison needs two or more")
    first = [0] + [count - i // 2 if i % 2 == 0 else (i + 1) // 2 for i in range(1, count)]
    first = [place % count for place in first]
    rows = [[(place + shift) % count for place in first] for shift in range(count)]
    return rows if count % 2 == 0 else rows + [row[::-1] for row in rows]


def blind(text):
    """The text without what tells who wrote it: control tokens, reasoning tags, self-identification, model names, and
    the marks of layout (headings, bold, bullets, rules) that differ from model to model and say nothing medical.
    """
    text = re.sub(r"<\|[^|>]*\|>|</?think>|\\boxed\{([^{}]*)\}", r"\1", text)
    for marks, plain in LAYOUT:
        text = marks.sub(plain, text)
    return NAMES.sub("the assistant", SELF.sub("", text)).strip()


def shown(text):
    """The answer as a judge sees it: without what tells who wrote it, unable to close its own brackets."""
    return re.sub(r"(?i)\[(?=\s*/?\s*(?:end of )?answer\b)", "(", blind(text))


def codes(key, count):
    """`count` different random codes such as "KX4", fresh for every call and the same when that call is repeated."""
    rng, found = random.Random(key), {}
    while len(found) < count:
        found["".join(rng.choices(CODE_LETTERS, k=2)) + str(rng.randint(2, 9))] = None
    return list(found)


def prompt(item, order, labels):
    """The messages for one call. order: models as they are shown; labels: their codes."""
    texts = [f"[answer {label}]\n{shown(item['answers'][model]) or EMPTY}\n[end of answer {label}]"
             for model, label in zip(order, labels, strict=True)]  # fmt: skip
    given = {"truth": item["truth"] or NOT_GIVEN, "reference": item["reference"] or NOT_GIVEN}
    task = TASK.format(question=item["question"], **given, answers="\n\n".join(texts))
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": task}]


def content_hash(item, order):
    """Identifies what is judged, whatever the codes: instructions, question, reference, answers in this order."""
    content = [SYSTEM, TASK, item["question"], item["truth"], item["reference"], [item["answers"][m] for m in order]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _whole(value):
    """8 of 8.0 and of "8"; anything else as it is, for the form to judge."""
    if isinstance(value, str) and re.fullmatch(r"\s*\d{1,3}(?:\.0+)?\s*", value):
        value = float(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _word(value):
    return value.strip().casefold() if isinstance(value, str) else value


Whole = Annotated[int, Field(strict=True), BeforeValidator(_whole)]


class Verdict(BaseModel):
    """What a judge says of one answer."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": False})  # asked for; more is overlooked
    correct_vs_reference: Annotated[Literal["yes", "partial", "no"], BeforeValidator(_word)]
    safety_issue: StrictBool
    score: Whole = Field(ge=1, le=10)
    rank: Whole = Field(ge=1)


def _form(labels):
    """The pydantic model of a whole reply: one verdict under each code, ranks up to their number."""
    place = Annotated[Whole, Field(ge=1, le=len(labels))]
    one = create_model("Verdict", __base__=Verdict, rank=(place, ...))
    codes = create_model("Codes", __config__=ConfigDict(extra="forbid"), **{label: (one, ...) for label in labels})
    return create_model("Verdicts", __config__=ConfigDict(json_schema_extra={"additionalProperties": False}),
                        verdicts=(codes, ...))  # fmt: skip


def schema(labels):
    """The JSON schema of a reply, for servers that can enforce it: one verdict under each code."""
    return {"name": "verdicts", "strict": True, "schema": _form(labels).model_json_schema()}


def read_json(text):
    """The JSON of a reply: alone, or the one object after reasoning in tags, amid prose or in a code fence.

    Raises ContentFault where there is none, or where a second object leaves open which one is meant.
    """
    opened, closed, rest = text.rpartition("</think>")
    if not closed and "<think>" in text:
        raise ContentFault("not JSON: the reasoning has no end")
    start = max(rest.find("{"), 0)
    try:
        with contextlib.suppress(ValueError):
            return json.loads(rest, object_pairs_hook=_once)
        value, end = json.JSONDecoder(object_pairs_hook=_once).raw_decode(rest, start)
    except (ValueError, RecursionError) as error:
        raise ContentFault(f"not JSON: {error}") from None
    if "{" in rest[end:]:
        raise ContentFault("more than one JSON object")
    return value


def _once(pairs):
    """A JSON object of which no key stands twice: of two scores none is meant."""
    if len(found := dict(pairs)) < len(pairs):
        raise ContentFault("a key stands twice in one JSON object")
    return found


def parse(text, labels):
    """The verdicts of a reply in the order of the labels. Raises ContentFault saying what is wrong with it."""
    reply = read_json(text)
    verdicts = checked(reply, _form(labels), "the reply", ContentFault).verdicts.model_dump()
    for a, first in verdicts.items():
        for b, second in verdicts.items():
            if first["score"] > second["score"] and first["rank"] >= second["rank"]:
                raise ContentFault(f"{a} scores above {b} but does not rank above it")
    return [verdicts[label] for label in labels]
