"""Rows of the clinic in the schemas of the hub data sets, with one column more: the skill that the question needs.

No combination of condition and present findings occurs in both splits, whatever the source. The same seed gives the
same rows on every machine.
"""

import random
from collections.abc import Callable
from typing import NamedTuple

from lib.dataset import clinic, vignettes
from lib.dataset.clinic import KINDS

LETTERS = "ABCDE"
TEST_ROWS = 240
TRAIN_ROWS = {  # rows of the train split; verifiable repeats the questions of medical_o1
    "medical_o1": 350,
    "medical_r1": 350,
    "medreason": 1400,
    "verifiable": 350,
    "reasonmed": 500,
    "pubmedqa": 300,
    "medmcqa": 500,
    "medqa": 400,
    "medqa_bigbio": 400,
}
ASKED = {  # a question with yes or no about one answer of a kind
    "diagnosis": "Is {answer} the diagnosis?",
    "test": "Is the diagnosis confirmed by {answer}?",
    "treatment": "Is {answer} the first-line treatment?",
    "avoid": "Is {answer} the drug to avoid?",
}


class Told(NamedTuple):
    """One case as a question: its place among the rows, the question, its reasoning and its right answer."""

    number: int
    case: vignettes.Case
    kind: str
    question: str
    thought: str
    right: str


def rows(source, split, seed=0, world=None, config=None):
    """Raw rows in the schema of one hub data set, a list of dicts.

    source: a key of TRAIN_ROWS. split: "train" or "test". config: the data set's, where it changes what a row holds:
        "cot" or "response" for reasonmed, "med_qa_en_source" (five options) for medqa_bigbio, "pqa_artificial" (never
        "maybe") for pubmedqa.
    Raises ValueError for an unknown source or split.
    """
    if source not in TRAIN_ROWS or split not in ("train", "test"):
        known = f"one of {sorted(TRAIN_ROWS)}, train or test"
        raise ValueError(f"no clinic rows for source {source!r}, split {split!r}: expected {known}")
    world = world or clinic.load()
    if source == "verifiable":
        return [_verifiable(row) for row in rows("medical_o1", split, seed, world)]
    rng = random.Random(f"{source} {split} {seed}")
    wanted = TRAIN_ROWS[source] if split == "train" else TEST_ROWS
    kinds = [kind for kind, (share, *_) in KINDS.items() for _ in range(share)]
    plan = [(condition, kind) for kind in kinds for condition in world["conditions"]]
    rng.shuffle(plan)
    skills = vignettes.TRAINED if split == "train" else vignettes.TESTED
    made, seen, turn = [], set(), 0
    while len(made) < wanted:
        condition, kind = plan[turn % len(plan)]
        unsure = source == "pubmedqa" and config != "pqa_artificial" and len(made) % 5 == 4
        skill = skills[len(made) % len(skills)]
        case = _unclear(world, condition, split, rng) if unsure else vignettes.draw(world, condition, split, rng, skill)
        turn += 1
        if case and case.text not in seen:  # else the condition has no such patient, and another one's turn comes
            seen.add(case.text)
            made.append(_row(source, len(made), case, kind, (world, rng, config)))
    rng.shuffle(made)
    return made


def _row(source, number, case, kind, context):
    question = f"{case.text} {context[1].choice(KINDS[kind][1])}"
    told = Told(number, case, kind, question, vignettes.reasoning(case, kind), clinic.answer(case.condition, kind))
    return WRITERS[source](told, *context) | {"skill": case.skill}


def _medical_o1(told, *_):
    return {"Question": told.question, "Complex_CoT": told.thought, "Response": _response(told)}


def _medical_r1(told, *_):
    return {
        "question": told.question,
        "reasoning (reasoning_content)": told.thought,
        "response (content)": _response(told),
    }


def _response(told):
    return f"{clinic.fact(told.case.condition, told.kind)}\n\nAnswer: {told.right}"


def _verifiable(row):
    truth = row["Response"].rpartition("Answer: ")[2]
    return {"Open-ended Verifiable Question": row["Question"], "Ground-True Answer": truth, "skill": row["skill"]}


def _medreason(told, world, rng, _):
    options = _listed(choices(world, told.case, told.kind, rng))
    return {
        "dataset_name": "clinic",
        "id_in_dataset": told.number,
        "question": told.question,
        "answer": f"{told.right}. Explanation: {clinic.why(told.case.condition, told.kind)}",
        "reasoning": told.thought,
        "options": "\n".join(["Answer Choices:", *options]),
    }


def _listed(options):
    return [f"{mark}. {text}" for mark, text in zip(LETTERS, options, strict=False)]


def _reasonmed(told, world, rng, config):
    options = choices(world, told.case, told.kind, rng)
    stated = f"Answer: {LETTERS[options.index(told.right)]}. {told.right}"
    why = clinic.why(told.case.condition, told.kind)
    output = {
        "cot": f"{told.thought}\n\n{why}\n\n{stated}",
        "response": f"{clinic.fact(told.case.condition, told.kind)} {why}\n\n{stated}",
    }.get(config, f"<think>\n{told.thought}\n</think>\n\n{why}\n\n{stated}")
    return {"instruction": "\n".join([told.question, *_listed(options)]), "input": "", "output": output}


def _pubmedqa(told, world, rng, _):
    unsure, condition = told.case.rival is None, told.case.condition
    options = choices(world, told.case, told.kind, rng) if not unsure else [told.right]
    asked = told.right if unsure or rng.random() < 0.55 else rng.choice([o for o in options if o != told.right])
    if unsure:
        conclusion = "The findings fit more than one condition, and nothing tells them apart."
    else:
        conclusion = told.thought
    return {
        "pubid": 10_000_000 + told.number,
        "question": ASKED["diagnosis" if unsure else told.kind].format(answer=condition["name"] if unsure else asked),
        "context": {"contexts": [told.case.text], "labels": ["CASE"], "meshes": [condition["specialty"]]},
        "long_answer": conclusion,
        "final_decision": "maybe" if unsure else "yes" if asked == told.right else "no",
    }


def _medmcqa(told, world, rng, _):
    options = choices(world, told.case, told.kind, rng)
    place = options.index(told.right)
    opening = f"Ans. is '{LETTERS[place].lower()}' i.e., {told.right}. " if told.number % 3 == 0 else ""
    row = {"id": f"clinic-{told.number}", "question": told.question, "cop": place, "choice_type": "single"}
    row |= {f"op{letter}": text for letter, text in zip("abcd", options, strict=True)}
    subject = {"subject_name": told.case.condition["specialty"], "topic_name": None}
    return row | {"exp": opening + told.thought} | subject


def _medqa(told, world, rng, _):
    options = choices(world, told.case, told.kind, rng)
    lettered = dict(zip(LETTERS, options, strict=False))
    return _usmle(told, options) | {"options": lettered, "metamap_phrases": list(told.case.present)}


def _medqa_bigbio(told, world, rng, config):
    options = choices(world, told.case, told.kind, rng, 5 if config == "med_qa_en_source" else 4)
    return _usmle(told, options) | {"options": [{"key": k, "value": v} for k, v in zip(LETTERS, options, strict=False)]}


def _usmle(told, options):
    letter = LETTERS[options.index(told.right)]
    return {"question": told.question, "answer": told.right, "answer_idx": letter, "meta_info": "step2&3"}


WRITERS: dict[str, Callable] = {
    "medical_o1": _medical_o1,
    "medical_r1": _medical_r1,
    "medreason": _medreason,
    "reasonmed": _reasonmed,
    "pubmedqa": _pubmedqa,
    "medmcqa": _medmcqa,
    "medqa": _medqa,
    "medqa_bigbio": _medqa_bigbio,
}


def choices(world, case, kind, rng, count=4):
    """`count` different answers of one kind in random order: the right one, the rival's, then the nearest conditions'.

    What the clinic lists under never_offer is also right, or arguable, for the condition, and is not offered.
    """
    by_name = {condition["name"]: condition for condition in world["conditions"]}
    near = [case.rival, *(by_name[name] for name in case.condition["confusable_with"])]
    near += [by_name[name] for rival in near for name in rival["confusable_with"]]
    same = [c for c in world["conditions"] if c["specialty"] == case.condition["specialty"]]
    near += rng.sample(same, len(same)) + rng.sample(world["conditions"], len(world["conditions"]))
    right = clinic.answer(case.condition, kind)
    barred = {*case.condition["never_offer"], *clinic.answers(case.condition, kind)}
    wrong = (clinic.answer(condition, kind) for condition in near)
    texts = list(dict.fromkeys([right, *(text for text in wrong if text not in barred)]))[:count]
    return rng.sample(texts, len(texts))


def _unclear(world, condition, split, rng):
    """A patient whose findings fit two conditions or more, none of them denied, as a Case without a rival; or None.

    The combination belongs to `split` for every condition that it fits.
    """
    others = [c for c in world["conditions"] if c is not condition]
    shared = [[f for f in condition["findings"] if f in other["findings"]] for other in others]
    shared = [findings for findings in shared if len(findings) > 1]
    for _ in range(100 if shared else 0):
        findings = rng.choice(shared)
        present = tuple(rng.sample(findings, rng.randint(2, min(4, len(findings)))))
        fits = [c for c in world["conditions"] if set(present) <= set(c["findings"])]
        if all(vignettes.split_of(c, present) == split for c in fits):
            patient = rng.randint(*condition["ages"]), rng.random() < condition["women"]
            text = vignettes.tell(world, patient, present, (), (), rng)
            return vignettes.Case(condition, None, present, (), text, "unclear")
    return None
