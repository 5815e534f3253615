"""A human looks at a few answers: a blinded sheet of pairs, and how often the machine's preferences were the human's.

make spotcheck                 writes outputs/<run>/spotcheck/sheet.csv, and reads it back once it is filled in
"""

import itertools
import random

import pandas as pd

from lib import stats
from lib.figures.markup import interval
from lib.judge import protocol
from lib.pipeline import files, recipe, records
from lib.pipeline.files import outputs_dir

COLUMNS = ("pair", "question", "ground_truth", "answer_1", "answer_2", "better", "note")
SIGNS = {"1": 1, "2": -1, "tie": 0}  # what a human may write
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would run a cell that opens like this


def pairs(items, count, seed):
    """[(item, two of its models)], drawn with the seed. items: from protocol.items.

    Empty answers and equal texts are not among them: a human learns nothing from them.
    """
    draw, every = random.Random(seed), []
    for item in items:
        said = {model: text for model, text in sorted(item["answers"].items()) if text.strip()}
        every += [
            (item, draw.sample(two, 2)) for two in itertools.combinations(said, 2) if said[two[0]] != said[two[1]]
        ]
    return draw.sample(every, min(count, len(every)))


def write(chosen, folder):
    """Write sheet.csv for the human, and key.json, {pair: [question, models]}, for the way back; returns the sheet."""
    key, lines = {}, []
    for number, (item, models) in enumerate(chosen, 1):
        shown = [item["question"], item["truth"] or "", *(protocol.blind(item["answers"][model]) for model in models)]
        lines.append([number, *(f"'{text}" if text.startswith(FORMULA) else text for text in shown), "", ""])
        key[str(number)] = [item["id"], models]
    files.write_json(folder / "key.json", key)
    text = pd.DataFrame(lines, columns=COLUMNS).to_csv(index=False)
    return files.write_text(folder / "sheet.csv", "\ufeff" + text)  # spreadsheets read UTF-8 by this mark


def read(folder):
    """What the human preferred, of the pairs that were filled in: [(question, models, "1" | "2" | "tie")].

    Raises ValueError, naming the rows, for a value that is not 1, 2 or tie, and for rows that are missing or changed.
    """
    rows = pd.read_csv(folder / "sheet.csv", dtype=str, keep_default_na=False, encoding="utf-8-sig")
    key = files.read_json(folder / "key.json")
    if not {"pair", "better"} <= set(rows) or set(key) != set(rows["pair"]):
        raise ValueError(f"{folder / 'sheet.csv'} should have the columns {', '.join(COLUMNS)} and the pairs 1 to "
                         f"{len(key)}: keep its columns and the column pair as they were")  # fmt: skip
    answers = dict(zip(rows["pair"], rows["better"].str.strip().str.lower(), strict=True))
    if wrong := [f"{pair}: {value!r}" for pair, value in answers.items() if value not in ("", *SIGNS)]:
        raise ValueError(f"column better holds {', '.join(wrong[:10])}: expected 1, 2, tie, or nothing")
    return [(*key[pair], value) for pair, value in answers.items() if value]


def report(preferred, scores_by_judge):
    """Agreement of each judge with the human: [{"judge", "value", "low", "high", "n"}], Wilson intervals.

    preferred: from `read`. scores_by_judge: {judge: {(question, model): score}}. A tie agrees with a tie only.
    """
    found = []
    for judge, scores in scores_by_judge.items():
        told = [([scores.get((question, model)) for model in models], SIGNS[value])
                for question, models, value in preferred]  # fmt: skip
        agrees = [(a > b) - (a < b) == sign for (a, b), sign in told if None not in (a, b)]
        found.append({"judge": judge} | stats.proportion(agrees))
    return found


def main():
    parser = recipe.parser(__doc__)
    parser.add_argument("--pairs", type=int, default=40)
    args = parser.parse_args()
    cfg = recipe.chosen(args)
    stage = outputs_dir() / cfg.run_name / "06_judge"
    if not (stage / "stage.json").exists():
        raise SystemExit(f"no finished 06_judge in {stage.parent}: run make 06_judge {cfg.options} first")
    folder = stage.parent / "spotcheck"
    if not (folder / "sheet.csv").exists():
        sheet = write(pairs(rows_of(stage, "items.jsonl"), args.pairs, cfg.run["seed"]), folder)
        print(f"Wrote {sheet}: put 1, 2 or tie into the column better, save, and run make spotcheck again.")
        return
    preferred = read(folder)
    if not preferred:
        raise SystemExit(f"{folder / 'sheet.csv'} is not filled in yet: put 1, 2 or tie into the column better")
    found = report(preferred, scores_by_judge(stage))
    files.write_json(folder / "agreement.json", found)
    print(f"{len(preferred)} pairs judged by a human; agreement with 95 % intervals:")
    for row in found:
        print(f"  {row['judge']:<28} {interval(row)}")


def rows_of(stage, name):
    """Rows of a file of 06_judge. Raises ValueError where record or file are not as the chapter wrote them."""
    written = records.read(stage / records.STAGE)["outputs"].get(name)
    if written != files.sha256_file(stage / name):
        raise ValueError(f"{stage.name}/{name} has other bytes than were written: run {stage.name} again")
    return files.read_jsonl(stage / name)


def scores_by_judge(stage):
    """{judge: {(question, model): mean score over orders}} of a finished 06_judge folder."""
    rows = pd.DataFrame([row for name in ("overlap.jsonl", "verdicts.jsonl") for row in rows_of(stage, name)])
    means = rows.groupby(["judge", "question", "model"])["score"].mean()
    return {name: means[name].to_dict() for name in means.index.unique("judge")}


if __name__ == "__main__":
    main()
