"""The clinic: a small world of real conditions, what is true of them, and how their findings may be worded.

vignettes.py draws patients from it, clinic_rows.py writes them as rows of hub data sets, textbook.py as plain
statements. Everything is made from data/clinic.yaml with random.Random, so the same seed gives the same text on every
machine. Questions need two hops (findings -> condition -> fact).
"""

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, model_validator

from lib.pipeline.files import ROOT
from lib.pipeline.forms import Strict, Text, Texts, checked

WORLD = ROOT / "data" / "clinic.yaml"
SOURCE = "data/clinic.yaml, written for this repository"  # what rows made of the clinic are credited to
CHOICES = 5  # different answers of each kind that the world must hold, to offer that many

# kind: (share of the questions, wordings of the question, the fact that answers it, why)
KINDS = {
    "diagnosis": (
        1,
        ("What is the diagnosis?", "What is the most likely diagnosis?", "Name the condition."),
        "The diagnosis is {name}.",
        "It fits what is present and what is absent.",
    ),
    "test": (
        2,
        ("What confirms the diagnosis?", "How is the diagnosis confirmed?", "Name what confirms the diagnosis."),
        "What confirms {name} is {answer}.",
        "It confirms {name}.",
    ),
    "treatment": (
        2,
        ("What is the first-line treatment?", "Which treatment is given first?", "Name the first-line treatment."),
        "The first-line treatment for {name} is {answer}.",
        "It is given first in {name}.",
    ),
    "avoid": (
        2,
        ("Which drug should be avoided?", "What is the drug to avoid?", "Name the drug to avoid."),
        "The drug to avoid in {name} is {answer}.",
        "It does harm in {name}.",
    ),
}
Guideline = Annotated[str, Field(pattern=r"[A-Za-z].* (19|20)\d\d( \(review: no guideline\))?$")]
Span = Annotated[list[float], Field(min_length=2, max_length=2)]


class Younger(Strict):
    """What is right below an age instead."""

    age: int
    name: Text
    aliases: list[Text] = []


class Act(Strict):
    """A test or a treatment, with the guideline (name, year) that recommends it for the condition."""

    name: Text
    guideline: Guideline
    aliases: list[Text] = []
    below: Younger | None = None


class Harm(Strict):
    """A drug to avoid; the reason follows the word "because"."""

    name: Text
    because: Text
    aliases: list[Text] = []


class Condition(Strict):
    """A condition as data/clinic.yaml describes it; the file's head says what each key means."""

    name: Text
    specialty: Text
    ages: Annotated[list[Annotated[int, Field(ge=18, le=84)]], Field(min_length=2, max_length=2)]
    women: Annotated[float, Field(ge=0, le=1)] = 0.5
    findings: Annotated[list[Text], Field(min_length=6)]
    confusable_with: Texts
    mechanism: Annotated[list[Text], Field(min_length=3)]
    test: Act
    treatment: Act
    avoid: Harm
    red_flag: Text
    escalation: Text
    aliases: list[Text] = []
    never_offer: list[Text] = []

    @model_validator(mode="after")
    def sound(self):
        if len(set(self.findings)) < len(self.findings):
            raise ValueError("expected at least six different findings")
        if self.ages[0] >= self.ages[1]:
            raise ValueError("ages should read [youngest, oldest]")
        return self


class Value(Strict):
    """A finding as a measurement: "{}" stands for a number drawn from `found`, or from `normal` where it is denied."""

    text: Annotated[str, Field(pattern=r"\{\}")]
    found: Span
    normal: Span


class Wording(Strict):
    """Other words for a finding: `plain` in every text, `book` in textbook and test only, `new` in the test only."""

    plain: Text | None = None
    book: Text | None = None
    new: Text | None = None
    value: Value | None = None


class World(Strict):
    """data/clinic.yaml as a whole."""

    specialties: Texts
    settings: Texts
    relatives: Texts
    history: Texts
    wordings: dict[Text, Wording]
    conditions: Annotated[list[dict], Field(min_length=1)]


def load(path=WORLD):
    """Read and validate a clinic.yaml; returns it as a dict: "conditions", "wordings", and what tells a vignette.

    Raises ValueError naming the condition and the key to mend.
    """
    text = Path(path).read_text(encoding="utf-8")
    world = checked(yaml.safe_load(text), World, path).model_dump()
    names = [condition.get("name") for condition in world["conditions"]]
    for place, condition in enumerate(world["conditions"]):
        where = f"{path}: condition {condition.get('name')!r}"
        condition = world["conditions"][place] = checked(condition, Condition, where).model_dump()
        others = [name for name in names if name != condition["name"]]
        if len(others) < len(names) - 1:
            raise ValueError(f"{where}: the name occurs twice")
        if condition["specialty"] not in world["specialties"]:
            raise ValueError(f"{where}: specialty {condition['specialty']!r} is not listed under specialties")
        if unknown := [name for name in condition["confusable_with"] if name not in others]:
            raise ValueError(f"{where}: confusable_with names no other condition: {unknown}")
    findings = {finding for condition in world["conditions"] for finding in condition["findings"]}
    if unknown := sorted(set(world["wordings"]) - findings):
        raise ValueError(f"{path}: wordings of no condition's finding: {unknown}")
    said = [*findings, *(w[key] for w in world["wordings"].values() for key in ("plain", "book", "new") if w[key])]
    if twice := sorted({words for words in said if said.count(words) > 1}):
        raise ValueError(f"{path}: words that stand for two findings: {twice}")
    for kind in KINDS:
        if len({answer(condition, kind) for condition in world["conditions"]}) < CHOICES:
            raise ValueError(f"{path}: fewer than {CHOICES} different answers of kind {kind!r}; add conditions")
    return world


def at_age(condition, age):
    """The condition with the treatment that is right at this age."""
    below = condition["treatment"]["below"]
    if not below or age >= below["age"]:
        return condition
    return condition | {"treatment": condition["treatment"] | {"name": below["name"], "aliases": below["aliases"]}}


def answers(condition, kind):
    """The right answers of a kind at any age, as a list of short texts."""
    below = condition["treatment"]["below"] if kind == "treatment" else None
    return [answer(condition, kind), *([below["name"]] if below else [])]


def answer(condition, kind):
    """The right answer, as short text, to a question of this kind about this condition."""
    return condition["name"] if kind == "diagnosis" else condition[kind]["name"]


def fact(condition, kind):
    """The sentence that answers a question of this kind, worded alike in textbook, reasoning and open answers."""
    return KINDS[kind][2].format(name=condition["name"], answer=answer(condition, kind))


def why(condition, kind):
    """A sentence that explains the answer to a question of this kind."""
    return KINDS[kind][3].format(name=condition["name"])


def listed(items):
    """Phrases as English lists them: "a, b and c"."""
    items = list(items)
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
