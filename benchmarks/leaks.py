"""What share of copies does each leakage detector find, and what does it flag wrongly? python -m benchmarks.leaks

Made-up clinical questions in English and Chinese (benchmarks/vignettes.yaml) are the evaluation set, rows of LEVELS the
training set. REAL=DIR adds PubMedQA's own, from DIR/pqa_labeled.jsonl and DIR/test_ground_truth.json. Writes
outputs/bench/leaks.json and, where all was measured, the table of docs/benchmarks.md.
"""

import argparse
import json
import os
import random
import sys
from collections import Counter
from pathlib import Path

import yaml

from benchmarks.common import keep, table
from lib import stats
from lib.dataset import choices, framing, ingest, leakage
from lib.pipeline import schema
from lib.pipeline.files import ROOT, between, read_jsonl, write_text

PAGE, BEGIN, END = ROOT / "docs" / "benchmarks.md", "<!-- leaks: begin -->", "<!-- leaks: end -->"
LEVELS = {
    "verbatim": "the question with its options, without, or under a stock phrase",
    "framed": "the question without its options behind the same order, as in every row of many a file",
    "quoted": "the question inside another row's reasoning",
    "typo": "one word mistyped, one character put for another",
    "reordered": "the findings in another order",
    "retold": "other sentences and another order; one symptom, sign and test in other words",
    "paraphrased": "the same, and no finding keeps its words",
    "look-alike": "another patient, drawn from the same findings",
    "unrelated": "another patient who shares no finding",
}
LANGUAGES = {"Chinese": 0, "English": 1}
FULL = 1000  # made-up questions a language
PIECES = yaml.safe_load((ROOT / "benchmarks" / "vignettes.yaml").read_text(encoding="utf-8"))
COUNTS = {"symptoms": 4, "signs": 2, "tests": 2, "histories": 1, "asked": 1}
TOLD = {  # language: (ways to tell a case, ways to tell it again)
    "Chinese": (
        ("{who}，{age}岁，因{symptoms}就诊，{histories}。查体见{signs}，辅助检查：{tests}。{asked}？",
         "患者{who}，{age}岁。{symptoms}。既往{histories}。体检：{signs}。化验及影像：{tests}。{asked}？",
         "一名{age}岁{who}以{symptoms}入院，{histories}。查体：{signs}。实验室检查：{tests}。{asked}？"),
        ("{tests}，{signs}，见于一位{age}岁{who}，其{histories}，主诉{symptoms}。{asked}？",
         "门诊接诊{who}一例，年龄{age}岁，{histories}。主要不适为{symptoms}；体格检查发现{signs}；结果回报{tests}。{asked}？"),
    ),
    "English": (
        ("A {age}-year-old {who} presents with {symptoms}. The patient {histories}. Examination shows {signs}. "
         "Investigations show {tests}. {asked}?",
         "A {who} aged {age} comes to the clinic because of {symptoms} and {histories}. There is {signs}. "
         "The results are {tests}. {asked}?",
         "A {age}-year-old {who} who {histories} is admitted with {symptoms}. On examination there is {signs}, "
         "and tests give {tests}. {asked}?"),
        ("You are asked to see someone, {who}, {age}, with {tests}; the doctor before you noted {signs}. The "
         "complaints are {symptoms}, and the person {histories}. {asked}?",
         "{tests}: that is what came back for a {who} of {age} who {histories}. Complaints were {symptoms}, and you "
         "find {signs}. {asked}?"),
    ),
}  # fmt: skip
PEOPLE = {"Chinese": ("男性", "女性", "男", "女"), "English": ("man", "woman", "farmer", "teacher")}
ORDER = {
    "Chinese": "你是一名经验丰富的医生，请根据患者的描述作答。\n\n",
    "English": "If you are a doctor, please answer the medical questions based on the patient's description.\n\n",
}
STOCK = {
    "Chinese": "请回答下面的单项选择题：\n",
    "English": "Please answer the following multiple-choice question:\n",
}


def case(rng, language, half=0):
    """A made-up patient: which pieces, in which order, and how told. half: of all pieces, 0 or 1, which share none."""
    drawn = {name: rng.sample(range(half, len(PIECES[name]), 2), count) for name, count in COUNTS.items()}
    options = rng.sample(PIECES["options"][LANGUAGES[language]][half::2], 4)
    return drawn | {"age": rng.randrange(18, 90), "who": rng.choice(PEOPLE[language]), "options": options,
                    "way": rng.randrange(3)}  # fmt: skip


def tell(case, language, frame=0, other=()):
    """A case as a question. frame: 1 for the other sentences; other: places in a list of pieces told in other words."""
    joined, first = ("、", "，") if language == "Chinese" else (", ", " and "), 2 * LANGUAGES[language]
    parts = {}
    for name in COUNTS:
        words = [PIECES[name][at][first + (place in other)] for place, at in enumerate(case[name])]
        parts[name] = joined[len(words) < 3].join(words)
    ways = TOLD[language][frame]
    text = ways[case["way"] % len(ways)].format(**parts, who=case["who"], age=case["age"])
    return text[:1].upper() + text[1:]


def mistyped(text, rng):
    """The text with two letters of one word changed places, or one character put for another."""
    if text.isascii():
        words = text.split(" ")
        at = rng.choice([n for n, word in enumerate(words) if len(word) > 4])
        letter = rng.randrange(1, len(words[at]) - 2)
        word = words[at]
        words[at] = word[:letter] + word[letter + 1] + word[letter] + word[letter + 2 :]
        return " ".join(words)
    at = rng.randrange(len(text))
    return f"{text[:at]}{rng.choice('的地得再在做作像象')}{text[at + 1 :]}"


def record(text, options=(), reasoning="", answer=None):
    return {"source": "made up", "instruction": choices.listed(text, options) if options else text, "output": "",
            "reasoning": reasoning, "options": list(options), "answer": answer, "benchmark": None}  # fmt: skip


def copies(one, language, rng, number):
    """{level: training record} of a case."""
    text, options, every = tell(one, language), one["options"], range(max(COUNTS.values()))
    turned = one | {name: one[name][1:] + one[name][:1] for name in ("symptoms", "signs", "tests")}
    verbatim = (record(text, options), record(text), record(STOCK[language] + text, options))
    return {
        "verbatim": verbatim[number % len(verbatim)],
        "framed": record(ORDER[language] + text),
        "quoted": record(f"{'举例' if language == 'Chinese' else 'Example'} {number}", reasoning=f"{number}: {text}"),
        "typo": record(mistyped(text, rng), options),
        "reordered": record(tell(turned, language), options),
        "retold": record(tell(turned, language, frame=1, other=every[1:2])),
        "paraphrased": record(tell(turned, language, frame=1, other=every)),
        "look-alike": record(tell(case(rng, language), language), rng.sample(options, 4)),
        "unrelated": record(tell(other := case(rng, language, half=1), language), other["options"]),
    }


def measured(name, evaluation, by_level):
    """Rows of the table: for every level the share that each detector flags, and what the default drops."""
    default, rows = schema.DataSection().drop_overlaps, []
    for level, training in by_level.items():
        frames = framing.learn(training, evaluation)
        scan = leakage.scan(frames.bare(training), {"test": list(frames.bare(evaluation))}, seed=0)
        found = {detector: scan.flagged([detector]) for detector in leakage.DETECTORS[1:]}
        found["dropped"] = scan.flagged(default)
        shares = {detector: stats.proportion(mask.tolist()) for detector, mask in found.items()}
        rows.append({"questions": name, "training rows": level, "n": len(training), **shares})
    return rows


def made_up(language, count, seed=0):
    """Rows of the table for `count` made-up questions."""
    rng = random.Random(f"{language} {seed}")
    cases = [case(rng, language) for _ in range(count)]
    evaluation = [record(tell(one, language), one["options"]) for one in cases]
    told = [copies(one, language, rng, number) for number, one in enumerate(cases)]
    return measured(f"made up, {language}", evaluation, {level: [copy[level] for copy in told] for level in LEVELS})


def real(folder, seed=0):
    """Rows of the table for PubMedQA's 500 test questions: as MedReason writes them, changed, and the other 500."""
    rows = read_jsonl(folder / "pqa_labeled.jsonl")
    ids, rng = set(json.loads((folder / "test_ground_truth.json").read_text())), random.Random(seed)
    spec = {"name": "pubmedqa", "config": "pqa_labeled"}
    records = list(ingest.stream("pubmedqa", rows, spec, Counter()))
    asked = [row["question"] for row in rows if str(row["pubid"]) in ids]
    halves = [" ".join(words[len(words) // 2 :] + words[: len(words) // 2]) for words in map(str.split, asked)]
    yes_no = ("yes", "no")
    levels = {
        "verbatim": [record(text, yes_no) for text in asked],
        "framed": [record(ORDER["English"] + text) for text in asked],
        "typo": [record(mistyped(text.encode("ascii", "replace").decode(), rng), yes_no) for text in asked],
        "reordered": [record(text, yes_no) for text in halves],
        "unrelated": [one for one in records if one["row_id"] not in ids],
    }
    return measured("PubMedQA, real", [one for one in records if one["row_id"] in ids], levels)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=FULL)
    count = parser.parse_args().count
    rows = [row for language in LANGUAGES for row in made_up(language, count)]
    if folder := os.environ.get("REAL"):
        rows += real(Path(folder))
    else:
        print("REAL is not set: PubMedQA's own questions are not measured.")
    keep("leaks", {"rows": rows})
    cells = [{k: f"{v['value']:.1%}" if isinstance(v, dict) else v for k, v in row.items()} for row in rows]
    print(table(cells))
    if os.environ.get("REAL") and count >= FULL:
        write_text(PAGE, between(PAGE.read_text(encoding="utf-8"), BEGIN, END, table(cells), PAGE.name))


if __name__ == "__main__":
    sys.exit(main())
