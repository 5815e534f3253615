"""Known questions of the clinic told again: copies of which a leakage detector should find as many as it can."""

import random

from lib.dataset import vignettes
from lib.dataset.clinic import KINDS

LEVELS = ("punctuation", "reordered", "retold", "unrelated")
PLACES = ("a walk-in centre", "a night clinic", "the medical ward", "a nursing home", "a school sickroom")
TRADES = ("schoolteacher", "farmer", "bus driver", "student", "cook")
RETOLD = {
    "diagnosis": "State what this patient suffers from.",
    "test": "How would you prove what is wrong?",
    "treatment": "How would you begin to treat this?",
    "avoid": "What must not be prescribed here?",
}


def rewritten(world, seed, count):
    """`count` known questions of the test split, each told again at every level: what leakage detectors should find.

    Returns a list of {"level", "original", "rewritten"}. original: a question without options. rewritten, by level:
    "punctuation" changes case, punctuation and blanks; "reordered" names the findings in another order; "retold" has
    another age, sex and setting, another order, and another wording of everything but the findings; "unrelated" is
    another patient with another condition, which no detector should flag.
    """
    rng, pairs = random.Random(f"rewritten {seed}"), []
    for _ in range(count):
        condition, other = rng.sample(world["conditions"], 2)
        kind, draw = rng.choice(list(KINDS)), rng.random()
        case, another = (vignettes.draw(world, of, "test", rng) for of in (condition, other))
        asked, asked_too = rng.choice(KINDS[kind][1]), rng.choice(KINDS[rng.choice(list(KINDS))][1])

        patient = rng.randint(*condition["ages"]), rng.random() < condition["women"]

        def tell(present, absent=case.absent, draw=draw, patient=patient):  # one draw: only the findings' order differs
            denied = [f"no {finding}" for finding in absent]
            return vignettes.tell(world, patient, present, denied, (), random.Random(draw))

        original = f"{tell(case.present)} {asked}"
        order = case.present[1:] + case.present[:1]
        again = (
            " ".join(original.upper().replace(".", " ;").replace(",", " -").replace("?", " ??").split()),
            f"{tell(order, case.absent[::-1])} {asked}",
            f"{_retell(case, original, rng)} {RETOLD[kind]}",
            f"{another.text} {asked_too}",
        )
        pairs += [
            {"level": name, "original": original, "rewritten": text} for name, text in zip(LEVELS, again, strict=True)
        ]
    return pairs


def _retell(case, original, rng):
    present = rng.sample(case.present, len(case.present))
    absent = f"There is no {' and no '.join(rng.sample(case.absent, len(case.absent)))}. " if case.absent else ""
    age = rng.choice([years for years in range(20, 90) if f"{years}-year" not in original])
    who = f"{'male' if ' woman ' in original else 'female'} {rng.choice(TRADES)} aged {age}"
    return f"{absent}In {rng.choice(PLACES)} you meet a {who} who complains of {'; '.join(present)}."
