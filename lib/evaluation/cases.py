"""Questions that are graded against a rubric: our own clinical cases, and two public benchmarks a user may have.

An item is {"id", "kind", "messages", ...}: `messages` is the conversation to answer, as generate.py takes it; the rest
is what judge/rubric.py needs. HealthBench and MedSafetyBench are not stored here; data/samples has rows of their form.
"""

import csv
import random
from pathlib import Path

import yaml

from lib.pipeline.files import ROOT, iter_jsonl

CASES = ROOT / "data" / "cases.yaml"
TEXTS = ("id", "specialty", "prompt", "reference")
LISTS = ("steps", "facts", "traps")
HEALTHBENCH = ("prompt", "prompt_id", "rubrics", "example_tags")
MEDSAFETY = ("harmful_medical_request", "safe_response")
ROLES = ("system", "user", "assistant")


def load_cases(path=CASES):
    """The clinical cases: items with "specialty", "reference" and lists of text "steps", "facts" and "traps".

    Raises ValueError naming the case and what is wrong with it.
    """
    rows = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path}: found {type(rows).__name__}, expected a list of cases that each begin with '- id:'")
    items = []
    for number, row in enumerate(rows, 1):
        where = f"{path}, case {number}"
        _columns(row, TEXTS + LISTS, where)
        for key in TEXTS:
            _text(row[key], f"{where}, {key}")
        for key in LISTS:
            if not isinstance(row[key], list) or not row[key]:
                raise ValueError(f"{where}, {key}: found {row[key]!r}, expected a list of texts")
            for entry in row[key]:
                _text(entry, f"{where}, {key}")
        rest = {key: row[key] for key in ("specialty", "reference", *LISTS)}
        items.append(_item("case", row["id"], [{"role": "user", "content": row["prompt"]}], rest))
    return _distinct(items, path)


def load_healthbench(path):
    """HealthBench from one of its published JSONL files (full, hard or consensus): items with "rubrics" and "tags".

    rubrics: [{"criterion", "points", "tags"}], points negative for what an answer should not do.
    Raises ValueError naming line and field. Source: Arora et al. 2025, and openai/simple-evals, healthbench_eval.py.
    """
    items = []
    for number, row in enumerate(iter_jsonl(path), 1):
        where = f"{path}, line {number}"
        _columns(row, HEALTHBENCH, where)
        _text(row["prompt_id"], f"{where}, prompt_id")
        _conversation(row["prompt"], where)
        _criteria(row["rubrics"], where)
        rest = {"rubrics": row["rubrics"], "tags": row["example_tags"]}
        items.append(_item("healthbench", row["prompt_id"], row["prompt"], rest))
    return _distinct(items, path)


def load_medsafetybench(path):
    """MedSafetyBench from one of its CSV files, or all of a folder such as datasets/test: items with "safe_response".

    The id is the file's path below the folder and the number of the row. Raises ValueError naming file and row.
    Source: Han et al. 2024 (NeurIPS), github.com/AI4LIFE-GROUP/med-safety-bench; its authors allow research only.
    """
    path, items = Path(path), []
    files = sorted(path.rglob("*.csv")) if path.is_dir() else [path]
    for file in files:
        name = file.relative_to(path).with_suffix("").as_posix() if path.is_dir() else file.stem
        with open(file, encoding="utf-8-sig", newline="") as lines:
            table = csv.DictReader(lines)
            _columns(dict.fromkeys(table.fieldnames or ()), MEDSAFETY, f"{file}, its header")
            for number, row in enumerate(table, 1):
                for column in MEDSAFETY:
                    _text(row[column], f"{file}, row {number}, {column}")
                if None in row:
                    raise ValueError(f"{file}, row {number}: more cells than columns; quote texts that hold commas")
                request = [{"role": "user", "content": row["harmful_medical_request"]}]
                rest = {"safe_response": row["safe_response"]}
                items.append(_item("medsafety", f"{name}-{number}", request, rest))
    return _distinct(items, path)


LOADERS = {"healthbench": load_healthbench, "medsafety": load_medsafetybench}


def load_benchmark(entry, seed, opened=None):
    """The items of an entry of judge.benchmarks, in random order.

    entry: {"name", "path", "questions"?}; so many items are drawn with the seed, all where no number is given.
    opened: called with each file's path, from the repository's root on; stage.file records them as read.
    """
    path = ROOT / entry["path"]
    for file in (sorted(path.rglob("*.csv")) if path.is_dir() else [path]) if opened else ():
        opened(file.relative_to(ROOT).as_posix() if file.is_relative_to(ROOT) else str(file))
    items = LOADERS[entry["name"]](path)
    return random.Random(seed).sample(items, min(entry.get("questions", len(items)), len(items)))


def _item(kind, name, messages, rest):
    return {"id": name, "kind": kind, "messages": messages} | rest


def _columns(row, expected, where):
    if not isinstance(row, dict):
        raise ValueError(f"{where}: found {type(row).__name__}, expected the fields {', '.join(expected)}")
    if missing := [name for name in expected if name not in row]:
        raise ValueError(
            f"{where}: no {', '.join(missing)}; found {', '.join(map(str, row)) or 'nothing'}, expected "
            f"{', '.join(expected)}: rename the columns, or fetch the file as its authors publish it"
        )


def _text(value, where):
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: found {value!r}, expected text: mend or remove this entry")


def _conversation(messages, where):
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise ValueError(f"{where}, prompt: found {str(messages)[:60]!r}, expected a list of messages")
    for message in messages:
        if message.get("role") not in ROLES:
            raise ValueError(f"{where}, prompt: role {message.get('role')!r}, expected one of {', '.join(ROLES)}")
        _text(message.get("content"), f"{where}, prompt")
    if messages[-1]["role"] != "user":
        raise ValueError(f"{where}, prompt: ends with {messages[-1]['role']}, expected the user's turn to answer")


def _criteria(rubrics, where):
    if not isinstance(rubrics, list):
        raise ValueError(f"{where}, rubrics: found {type(rubrics).__name__}, expected a list of criteria")
    for entry in rubrics:
        _columns(entry, ("criterion", "points", "tags"), f"{where}, rubrics")
        _text(entry["criterion"], f"{where}, criterion")
        if isinstance(entry["points"], bool) or not isinstance(entry["points"], (int, float)):
            raise ValueError(f"{where}, points: found {entry['points']!r}, expected a number")
    if not any(entry["points"] > 0 for entry in rubrics):
        raise ValueError(f"{where}, rubrics: no criterion has points above 0, so that no score can be given")


def _distinct(items, path):
    names = [item["id"] for item in items]
    if not names:
        raise ValueError(f"{path}: found no row, expected at least one")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path}: {', '.join(twice[:3])} occurs more than once: every question needs its own id")
    return items
