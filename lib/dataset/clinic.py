"""The clinic: a small world of real conditions, and patients drawn from it.

clinic_rows.py writes the patients as rows of hub data sets, textbook.py as plain statements. Everything is
made from data/clinic.yaml with random.Random, so the same seed gives the same text on every machine.
Questions need two hops (findings -> condition -> fact), and what a patient denies, or a relative has, does not count.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from lib.pipeline.files import ROOT

WORLD = ROOT / "data" / "clinic.yaml"
CHOICES = 5  # different answers of each kind that the world must hold, to offer that many
HELD_OUT_SHARE = 4  # one in four combinations of findings is kept for the test split, in every condition
HARD_SHARE = 0.75  # of the cases, those in which more findings of the rival are mentioned than of the condition

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
        ("Which test confirms the diagnosis?", "What is the confirming test?", "Name the confirming test."),
        "The confirming test for {name} is {answer}.",
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
SETTINGS = ("in clinic", "on the ward", "in the emergency department", "at home", "at the surgery")
RELATIVES = ("sister", "brother", "mother", "father", "cousin", "neighbour")
HISTORY = ("a broken wrist", "a sprained ankle", "an ingrown toenail", "an insect bite", "a torn knee ligament")
REQUIRED = "name specialty findings confusable_with mechanism test treatment avoid red_flag escalation".split()


@dataclass(frozen=True)
class Case:
    """One patient: `present` are the patient's own findings in order of mention, `absent` those of `rival` denied."""

    condition: dict
    rival: dict
    present: tuple
    absent: tuple
    text: str


def load(path=WORLD):
    """Read and validate a clinic.yaml; returns {"specialties": [...], "conditions": [...]}.

    Raises ValueError naming the condition and the key to mend.
    """
    world = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(world, dict) or not world.get("conditions"):
        raise ValueError(f"{path}: expected the keys specialties and conditions, found {type(world).__name__}")
    names = [condition.get("name") for condition in world["conditions"]]
    for condition in world["conditions"]:
        problem = _problem(condition, names, world.get("specialties") or [])
        if problem:
            raise ValueError(f"{path}: condition {condition.get('name')!r}: {problem}")
    for kind in KINDS:
        if len({answer(condition, kind) for condition in world["conditions"]}) < CHOICES:
            raise ValueError(f"{path}: fewer than {CHOICES} different answers of kind {kind!r}; add conditions")
    return world


def _problem(condition, names, specialties):
    """The first thing wrong with a condition, in words, or None."""
    missing = [key for key in REQUIRED if not condition.get(key)]
    if missing:
        return f"missing or empty: {', '.join(missing)}"
    if names.count(condition["name"]) > 1:
        return "the name occurs twice"
    if condition["specialty"] not in specialties:
        return f"specialty {condition['specialty']!r} is not listed under specialties"
    findings = condition["findings"]
    if len(findings) < 6 or len(set(findings)) < len(findings):
        return f"expected at least six different findings, found {findings}"
    unknown = [name for name in condition["confusable_with"] if name not in names or name == condition["name"]]
    if unknown:
        return f"confusable_with names no other condition: {unknown}"
    if len(condition["mechanism"]) < 3:
        return "expected a mechanism of three steps"
    for key, fields in (("test", ("name",)), ("treatment", ("name",)), ("avoid", ("name", "because"))):
        if not isinstance(condition[key], dict) or not all(condition[key].get(field) for field in fields):
            return f"{key} needs {' and '.join(fields)}"
    return None


def answer(condition, kind):
    """The right answer, as short text, to a question of this kind about this condition."""
    return condition["name"] if kind == "diagnosis" else condition[kind]["name"]


def fact(condition, kind):
    """The sentence that answers a question of this kind, worded alike in textbook, reasoning and open answers."""
    return KINDS[kind][2].format(name=condition["name"], answer=answer(condition, kind))


def why(condition, kind):
    """A sentence that explains the answer to a question of this kind."""
    return KINDS[kind][3].format(name=condition["name"])


def split_of(condition, present):
    """ "test" or "train" for one combination of findings; depends on nothing else, whatever the seed."""
    key = "|".join([condition["name"], *sorted(present)])
    return "test" if int(hashlib.sha256(key.encode()).hexdigest(), 16) % HELD_OUT_SHARE == 0 else "train"


def draw(world, condition, split, rng):
    """Draw one patient with `condition` whose combination of findings belongs to `split`; returns a Case.

    No other condition has all the findings, except the rival, whose own findings are then denied.
    """
    by_name = {other["name"]: other for other in world["conditions"]}
    while True:
        present = rng.sample(condition["findings"], rng.choice((3, 4, 4)))
        rival = by_name[rng.choice(condition["confusable_with"])]
        fits = [c for c in world["conditions"] if set(present) <= set(c["findings"]) and c is not condition]
        if split_of(condition, present) == split and all(other is rival for other in fits):
            break
    only_rival = [finding for finding in rival["findings"] if finding not in condition["findings"]]
    rng.shuffle(only_rival)
    shared = len(set(present) & set(rival["findings"]))
    decoys = len(present) + 1 - shared if rng.random() < HARD_SHARE else rng.choice((0, 1, 1, 2))
    others = only_rival[:1] if decoys > 1 and rng.random() < 0.6 else []
    absent = only_rival[len(others) : max(decoys, len(others) + len(fits))]
    return Case(condition, rival, tuple(present), tuple(absent), vignette(present, absent, others, rng))


def vignette(present, absent, others, rng):
    """Tell the findings as a short history; `others` are findings of somebody else."""
    noun, they, their = rng.choice((("woman", "She", "Her"), ("man", "He", "His")))
    age, where = rng.randint(19, 84), rng.choice(SETTINGS)
    who = f"{'n' if 80 <= age < 90 else ''} {age}-year-old {noun}"
    openings = (f"A{who} has", f"A{who} presents with", f"Seen {where}, a{who} has", f"A{who} seen {where} reports")
    rest = [f"{they} has {listed([f'no {finding}' for finding in absent])}."] if absent else []
    rest += [f"{their} {rng.choice(RELATIVES)} has {finding}." for finding in others]
    if rng.random() < 0.25:
        rest.append(f"{they} once had {rng.choice(HISTORY)}.")
    rng.shuffle(rest)
    return " ".join([f"{rng.choice(openings)} {listed(present)}.", *rest])


def listed(items):
    """Phrases as English lists them: "a, b and c"."""
    items = list(items)
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def reasoning(case, kind):
    """From a vignette to an answer: the specialty, the condition within it, and the fact that is asked for."""
    found = f"This is {case.condition['specialty']} and fits {case.condition['name']}."
    return found if kind == "diagnosis" else f"{found} {fact(case.condition, kind)}"


def lookup(question, options, world):
    """Index of the option that counting words would pick: the baseline that reasoning has to beat.

    Counts, for every condition, its findings mentioned anywhere in the question, whoever has them and whether or not
    they are denied. It is given the second hop for free: an option scores as the best condition it is the right answer
    for. Ties go to the first option.
    """
    findings = {finding for condition in world["conditions"] for finding in condition["findings"]}
    pattern = "|".join(re.escape(finding) for finding in sorted(findings, key=len, reverse=True))
    mentioned = set(re.findall(rf"\b(?:{pattern})\b", question))
    kinds = [kind for kind in KINDS if set(options) <= {answer(c, kind) for c in world["conditions"]}]

    def overlap(option):
        fitting = (c for c in world["conditions"] if any(answer(c, kind) == option for kind in kinds))
        return max((len(mentioned & set(c["findings"])) for c in fitting), default=0)

    scores = [overlap(option) for option in options]
    return scores.index(max(scores))
