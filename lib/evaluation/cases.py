"""Questions that are graded against a rubric: our own clinical cases, and two public benchmarks a user may have.

An item is {"id", "kind", "messages", ...}: `messages` is the conversation to answer, as generate.py takes it; the rest
is what judge/rubric.py needs. HealthBench and MedSafetyBench are not stored here; data/samples has rows of their form.
"""

import csv
import random
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, StrictFloat, StrictInt, create_model, model_validator

from lib.pipeline.files import ROOT, iter_jsonl
from lib.pipeline.forms import Open, Text, Texts, checked

CASES = ROOT / "data" / "cases.yaml"


TEXTS, LISTS = ("id", "specialty", "prompt", "reference"), ("steps", "facts", "traps")
Case = create_model("Case", __base__=Open, **dict.fromkeys(TEXTS, Text), **dict.fromkeys(LISTS, Texts))


class Message(Open):
    role: Literal["system", "user", "assistant"]
    content: Text


class Criterion(Open):
    criterion: Text
    points: StrictInt | StrictFloat
    tags: list


class HealthBench(Open):
    prompt: Annotated[list[Message], Field(min_length=1)]
    prompt_id: Text
    rubrics: list[Criterion]
    example_tags: object

    @model_validator(mode="after")
    def can_be_graded(self):
        if self.prompt[-1].role != "user":
            raise ValueError(f"prompt ends with {self.prompt[-1].role}, expected the user's turn to answer")
        if not any(entry.points > 0 for entry in self.rubrics):
            raise ValueError("no criterion has points above 0, so that no score can be given")
        return self


class MedSafety(Open):
    harmful_medical_request: Text
    safe_response: Text


def load_cases(path=CASES):
    """The clinical cases: items with "specialty", "reference" and lists of text "steps", "facts" and "traps".

    Raises ValueError naming the case and what is wrong with it.
    """
    rows = checked(yaml.safe_load(Path(path).read_text(encoding="utf-8")), list, path)
    for number, row in enumerate(rows, 1):
        checked(row, Case, f"{path}, case {number}")
    kept = ("specialty", "reference", *LISTS)
    items = [_item("case", row["id"], row["prompt"], {key: row[key] for key in kept}) for row in rows]
    return _distinct(items, path)


def load_healthbench(path):
    """HealthBench from one of its published JSONL files (full, hard or consensus): items with "rubrics" and "tags".

    rubrics: [{"criterion", "points", "tags"}], points negative for what an answer should not do.
    Raises ValueError naming line and field. Source: Arora et al. 2025, and openai/simple-evals, healthbench_eval.py.
    """
    items = []
    for number, row in enumerate(iter_jsonl(path), 1):
        checked(row, HealthBench, f"{path}, line {number}")
        rest = {"rubrics": row["rubrics"], "tags": row["example_tags"]}
        items.append(_item("healthbench", row["prompt_id"], row["prompt"], rest))
    return _distinct(items, path)


def load_medsafetybench(path):
    """MedSafetyBench from one of its CSV files, or all of a folder such as datasets/test: items with "safe_response".

    The id is the file's path below the folder and the number of the row. Raises ValueError naming file and row.
    Source: Han et al. 2024 (NeurIPS), github.com/AI4LIFE-GROUP/med-safety-bench; its authors allow research only.
    """
    path, items = Path(path), []
    for file in _files(path):
        name = file.relative_to(path).with_suffix("").as_posix() if path.is_dir() else file.stem
        with open(file, encoding="utf-8-sig", newline="") as lines:
            for number, row in enumerate(csv.DictReader(lines, restkey="more cells than columns"), 1):
                where = f"{file}, row {number}"
                if "more cells than columns" in row:
                    raise ValueError(f"{where}: more cells than columns; quote texts that hold commas")
                found = checked(row, MedSafety, where)
                rest = {"safe_response": found.safe_response}
                items.append(_item("medsafety", f"{name}-{number}", found.harmful_medical_request, rest))
    return _distinct(items, path)


LOADERS = {"healthbench": load_healthbench, "medsafety": load_medsafetybench}


def load_benchmark(entry, seed, opened=None):
    """The items of an entry of judge.benchmarks, in random order.

    entry: {"name", "path", "questions"?}; so many items are drawn with the seed, all where no number is given.
    opened: called with each file's path, from the repository's root on; stage.file records them as read.
    """
    path = ROOT / entry["path"]
    for file in _files(path) if opened else ():
        opened(file.relative_to(ROOT).as_posix() if file.is_relative_to(ROOT) else str(file))
    items = LOADERS[entry["name"]](path)
    return random.Random(seed).sample(items, min(entry.get("questions", len(items)), len(items)))


def _files(path):
    return sorted(path.rglob("*.csv")) if path.is_dir() else [path]


def _item(kind, name, prompt, rest):
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return {"id": name, "kind": kind, "messages": messages} | rest


def _distinct(items, path):
    names = [item["id"] for item in items]
    if not names:
        raise ValueError(f"{path}: found no row, expected at least one")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path}: {', '.join(twice[:3])} occurs more than once: every question needs its own id")
    return items
