"""Patients drawn from the clinic, each told as a short history, with the skill that it takes to see the condition.

What a patient denies, or a relative has, does not count. Rivals share most findings, so that the words in common with
another question decide nothing; which words a finding may be told in depends on the skill (SKILLS).
"""

import hashlib
from dataclasses import dataclass

from lib.dataset import clinic

HELD_OUT_SHARE = 4  # one in four combinations of findings is kept for the test split, in every condition
FEWEST = 3  # findings of a patient's own: fewer would be no history
TRIES = 200  # draws before a condition is said to have no such patient
SKILLS = {  # skill: the wording (a key of the clinic's wordings) in which what decides is told
    "named": None,  # in the textbook's own name for it
    "denied": None,  # as "named", but more findings of the rival are mentioned than of the condition
    "plain words": "plain",  # in everyday words, which training questions use as well
    "values": "value",  # as a number, or what speaks against the rival as a normal number
    "textbook words": "book",  # in words that the textbook explains and no training question uses
    "new words": "new",  # in words that neither has: what a tiny model cannot know, and a real one should
}
TRAINED = ("named", "denied", "named", "denied", "named", "denied", "plain words", "values")  # in training, in turn
TESTED = ("named", "denied", "named", "denied", "plain words", "values", "textbook words", "new words")
READ = ("named", "denied", "named", "denied", "named", "denied", "plain words", "values")  # the textbook's case notes


@dataclass(frozen=True)
class Case:
    """One patient: `present` are the patient's own findings in order of mention, `absent` those of `rival` denied.

    condition: as it is at the patient's age. rival: None where the findings fit two conditions. skill: key of SKILLS.
    """

    condition: dict
    rival: dict | None
    present: tuple
    absent: tuple
    text: str
    skill: str


def split_of(condition, present):
    """ "test" or "train" for one combination of findings; depends on nothing else, whatever the seed."""
    key = "|".join([condition["name"], *sorted(present)])
    return "test" if int(hashlib.sha256(key.encode()).hexdigest(), 16) % HELD_OUT_SHARE == 0 else "train"


def draw(world, condition, split, rng, skill="named"):
    """Draw one patient with `condition` whose combination of findings belongs to `split`.

    Returns a Case, or None where the clinic has no such patient: no finding that decides is worded for the skill. No
    other condition has all the findings.
    """
    by_name = {other["name"]: other for other in world["conditions"]}
    for _ in range(TRIES):
        rival = by_name[rng.choice(condition["confusable_with"])]
        found = _findings(world, condition, rival, skill, rng)
        if not found or split_of(condition, found[0]) != split:
            continue
        present, absent, others = found
        fits = [c for c in world["conditions"] if set(present) <= set(c["findings"])]
        if len(present) >= FEWEST and len(fits) == 1:
            patient = rng.randint(*condition["ages"]), rng.random() < condition["women"]
            said, denied = (list(told.values()) for told in _worded(world, present, absent, skill, rng))
            text = tell(world, patient, said, denied, others, rng)
            return Case(clinic.at_age(condition, patient[0]), rival, tuple(present), tuple(absent), text, skill)
    return None


def _findings(world, condition, rival, skill, rng):
    """(present, absent, what a relative has) of one patient, in order of mention; None where nothing can decide."""
    shared, own = ([f for f in condition["findings"] if (f in rival["findings"]) is both] for both in (True, False))
    theirs = [finding for finding in rival["findings"] if finding not in condition["findings"]]
    rng.shuffle(theirs)
    against = theirs  # what is denied is told like what is present, so that the one helps as much as the other
    if key := SKILLS[skill]:
        own, against = ([f for f in those if (world["wordings"].get(f) or {}).get(key)] for those in (own, theirs))
        if not own:
            return None
    decide = max(2, FEWEST - len(shared))
    deciding = rng.sample(own, min(len(own), decide))
    present = deciding + rng.sample(shared, min(len(shared), rng.choice((3, 4, 4)) - len(deciding)))
    rng.shuffle(present)
    wrong = {"denied": len(deciding) + 1, "named": rng.choice((0, 1, 1))}.get(skill, rng.choice((1, 2)))
    absent = against[: wrong - rng.choice((0, 1))]
    others = [finding for finding in theirs if finding not in absent][: min(1, wrong - len(absent))]
    return present, absent, others


def _worded(world, present, absent, skill, rng):
    """({finding: the words that tell it}, {finding: the words that deny it})."""
    key, said, denied = SKILLS[skill], {}, {}
    for finding in (*present, *absent):
        words, here = world["wordings"].get(finding) or {}, finding in present
        if key == "value" and words.get("value"):
            (said if here else denied)[finding] = measured(words["value"], here, rng)
            continue
        plain = words.get("plain") if key == "plain" or (key and rng.random() < 0.3) else None
        told = (key and key != "value" and words.get(key)) or plain or finding
        (said if here else denied)[finding] = told if here else f"no {told}"
    return said, denied


def measured(value, abnormal, rng):
    """A finding told as a number, of the range that has it or of the normal one; whole where the range's ends are."""
    low, high = value["found" if abnormal else "normal"]
    number = rng.randint(int(low), int(high)) if low == int(low) and high == int(high) else rng.uniform(low, high)
    return value["text"].format(number if isinstance(number, int) else f"{number:.1f}")


def tell(world, patient, present, absent, others, rng):
    """A short history. patient: (age, whether a woman); present, absent: as worded; others: a relative's findings."""
    age, woman = patient
    noun, they, their = ("woman", "She", "Her") if woman else ("man", "He", "His")
    where = rng.choice(world["settings"])
    who = f"{'n' if age == 18 or 80 <= age < 90 else ''} {age}-year-old {noun}"
    seen = f"Seen {where}, a{who} presents with"
    openings = (f"A{who} has", f"A{who} comes with", seen, f"A{who} seen {where} reports")
    rest = [f"There is {clinic.listed(absent)}."] if absent else []
    rest += [f"{their} {rng.choice(world['relatives'])} has {finding}." for finding in others]
    if rng.random() < 0.25:
        rest.append(f"{they} once had {rng.choice(world['history'])}.")
    rng.shuffle(rest)
    return " ".join([f"{rng.choice(openings)} {clinic.listed(present)}.", *rest])


def reasoning(case, kind):
    """From a vignette to an answer: specialty, condition, the findings that decide, by name, and the fact asked for."""
    deciding = [f for f in case.present if not case.rival or f not in case.rival["findings"]]
    found = f"This is {case.condition['specialty']} and fits {case.condition['name']}: {clinic.listed(deciding)}."
    return found if kind == "diagnosis" else f"{found} {clinic.fact(case.condition, kind)}"
