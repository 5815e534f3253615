"""The clinic's textbook: the plain statements that a tiny base model is pretrained on."""

import random

from lib.dataset import clinic, vignettes

CASE_NOTES = 120  # case notes per condition
REPEATS = 8  # how often each fact that questions ask for is stated by itself
SAID_AGAIN = 4  # how often each other wording of a finding is explained
TOPICS = {
    "diagnosis": "Noted for the diagnosis.",
    "test": "Noted for what confirms the diagnosis.",
    "treatment": "Noted for the first-line treatment.",
    "avoid": "Noted for the drug to avoid.",
}
PREFACE = (
    "The reader of this book learns what is present, what is absent and which condition the findings fit.",
    "Answer and explanation belong together. Explanation without findings is a guess, and a guess is no answer.",
    "A choice is a list of options. That is option A, then option B, then option C, then option D.",
    "How it is confirmed, which drug and which treatment follow from the condition.",
    "What is absent speaks against a condition. Other words may mean the same finding.",
    "Name the findings before the condition. The user of a drug should know which drug should be avoided.",
    "The most likely diagnosis is what the findings fit, and what a relative has does not count.",
)


def paragraphs(world, seed=0):
    """Short paragraphs of plain statements, shuffled: findings, mechanism, facts, and case notes.

    No questions and no lists of options; the case notes use only combinations of findings of the train split.
    """
    rng = random.Random(f"textbook {seed}")
    text = list(PREFACE) * 10
    for number, condition in enumerate(world["conditions"]):
        lines = _statements(condition, rng)
        rng.shuffle(lines)
        text += _by_three(lines)
        for note in range(CASE_NOTES):
            skill = vignettes.READ[(number + note) % len(vignettes.READ)]
            case = vignettes.draw(world, condition, "train", rng, skill) or vignettes.draw(
                world, condition, "train", rng
            )
            text.append(_note(case, "diagnosis" if note % 2 else rng.choice(list(TOPICS))))
    lines = [line for finding in world["wordings"] for line in _explained(world, finding, rng)]
    rng.shuffle(lines)
    text += _by_three(lines)
    rng.shuffle(text)
    return text


def _by_three(lines):
    return [" ".join(lines[start : start + 3]) for start in range(0, len(lines), 3)]


def _note(case, kind):
    """A case note: what was found, what it was noted for, and what follows from it."""
    return f"{case.text} {TOPICS[kind]}\n{vignettes.reasoning(case, kind)}"


def _explained(world, finding, rng):
    """What other words mean a finding, and which numbers do; the words of the test only (`new`) are left out."""
    words, lines = world["wordings"][finding], []
    for _ in range(SAID_AGAIN):
        lines += [f"{words[key].capitalize()} means {finding}." for key in ("plain", "book") if words[key]]
        if words["value"]:
            high, normal = (vignettes.measured(words["value"], abnormal, rng) for abnormal in (True, False))
            lines.append(f"Of {high} and {normal}, only the first means {finding}.")
    return lines


def _statements(condition, rng):
    """What the textbook says of one condition: facts that questions ask for REPEATS times, all else once or twice."""
    name, findings = condition["name"], condition["findings"]
    first, second, third = condition["mechanism"][:3]
    lines = [clinic.fact(condition, kind) for kind in clinic.KINDS if kind != "diagnosis" for _ in range(REPEATS)]
    lines += [f"The findings of {name} are {clinic.listed(rng.sample(findings, len(findings)))}." for _ in range(2)]
    lines += [f"{clinic.fact(condition, 'avoid')[:-1]}, because {condition['avoid']['because']}."]
    if below := condition["treatment"]["below"]:
        young = clinic.fact(clinic.at_age(condition, 0), "treatment")
        lines += [f"Below the age of {below['age']} this holds: {young}"] * REPEATS
    lines += [f"The red flag of {name} is {condition['red_flag']}: {condition['escalation']}."]
    lines += [f"Another name for {name} is {alias}." for alias in condition["aliases"]]
    lines += [f"The mechanism of {name} begins with {first}, then {second}, then {third}."]
    return lines
