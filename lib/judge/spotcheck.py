"""A human looks at a few answers: a blinded sheet of pairs, and how often the machine's preferences were the human's.

make spotcheck                 writes outputs/<run>/spotcheck/sheet.csv, and reads it back once it is filled in
"""

import itertools
import random

import pandas as pd

from lib import stats
from lib.dataset import answers as reading
from lib.figures.markup import interval
from lib.judge import protocol
from lib.pipeline import files, recipe
from lib.pipeline.files import outputs_dir

COLUMNS = ("pair", "question", "ground_truth", "answer_1", "answer_2", "better", "note")
SIGNS = {"1": 1, "2": -1, "tie": 0}  # what a human may write
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would run a cell that opens like this


def pairs(items, scores_by_judge, count, seed):
    """Half random pairs of answers, half such on which the judges disagree.

    items: from protocol.items. scores_by_judge: {judge: {(question, model): score}}; with one judge only, a
    disagreement is with the answer key. Empty answers and equal texts are not shown: a human learns nothing from them.
    Returns [{"question", "models", "views": {judge: 1 for the first model, -1, 0}, "disagreement", "shown": texts}].
    """
    draw = random.Random(seed)
    every = [
        _pair(item, draw.sample([a, b], 2), scores_by_judge)
        for item in items
        for a, b in itertools.combinations(sorted(item["answers"]), 2)
        if item["answers"][a].strip() and item["answers"][b].strip() and item["answers"][a] != item["answers"][b]
    ]
    draw.shuffle(every)
    disputed = [pair for pair in every if pair["disagreement"]][: count // 2]
    other = [pair for pair in every if pair not in disputed][: count - len(disputed)]
    chosen = disputed + other
    draw.shuffle(chosen)
    return chosen


def _pair(item, models, scores_by_judge):
    texts, views = [item["answers"][model] for model in models], {}
    for name, scores in scores_by_judge.items():
        if all((item["id"], model) in scores for model in models):
            views[name] = _sign(*(scores[item["id"], model] for model in models))
    told = set(views.values())
    if item["letter"] and len(scores_by_judge) == 1:
        told.add(_sign(*(reading.choice(text, item["options"]) == item["letter"] for text in texts)))
    shown = [item["question"], item["truth"] or "", *map(protocol.blind, texts)]
    return {"question": item["id"], "models": models, "views": views, "disagreement": len(told) > 1, "shown": shown}


def _sign(a, b):
    return (a > b) - (a < b)


def write(chosen, folder):
    """Write sheet.csv for the human and key.json for the way back. Raises FileExistsError over a sheet in use."""
    sheet = folder / "sheet.csv"
    if sheet.exists():
        raise FileExistsError(f"{sheet} exists: fill it in, or move it away for a new one")
    folder.mkdir(parents=True, exist_ok=True)
    key, lines = {}, []
    for number, pair in enumerate(chosen, 1):
        cells = [f"'{text}" if text.startswith(FORMULA) else text for text in pair["shown"]]
        lines.append([number, *cells, "", ""])
        key[str(number)] = {name: value for name, value in pair.items() if name != "shown"}
    files.write_json(folder / "key.json", key)
    text = pd.DataFrame(lines, columns=COLUMNS).to_csv(index=False)
    return files.write_text(sheet, "\ufeff" + text)  # spreadsheets read UTF-8 by this mark


def read(folder):
    """The human's preferences beside the machine's: (answers {pair: "1" | "2" | "tie"}, key {pair: as `pairs`}).

    Raises ValueError, naming the rows, for a value that is not 1, 2 or tie, and for rows that are missing or changed.
    """
    rows = pd.read_csv(folder / "sheet.csv", dtype=str, keep_default_na=False, encoding="utf-8-sig")
    key = files.read_json(folder / "key.json")
    if not {"pair", "better"} <= set(rows):
        raise ValueError(f"{folder / 'sheet.csv'} has columns {list(rows)}: expected {list(COLUMNS)}")
    answers = dict(zip(rows["pair"], rows["better"].str.strip().str.lower(), strict=True))
    if wrong := sorted(set(key) ^ set(answers)):
        raise ValueError(
            f"sheet.csv and key.json differ in pairs {', '.join(wrong[:10])}: keep the column pair as it was"
        )
    if wrong := [f"{pair}: {value!r}" for pair, value in answers.items() if value not in ("", *SIGNS)]:
        raise ValueError(f"column better holds {', '.join(wrong[:10])}: expected 1, 2, tie, or nothing")
    return {pair: value for pair, value in answers.items() if value}, key


def report(answers, key):
    """Agreement per judge and part: [{"judge", "pairs", "value", "low", "high", "n"}], Wilson intervals.

    pairs: "all", "random" or "disputed". A tie agrees with a tie only.
    """
    rows = [
        {"judge": judge, "disputed": key[pair]["disagreement"], "agrees": SIGNS[value] == view}
        for pair, value in answers.items()
        for judge, view in key[pair]["views"].items()
    ]
    found = []
    for judge, of in pd.DataFrame(rows).groupby("judge"):
        parts = {"all": of, "random": of[~of["disputed"]], "disputed": of[of["disputed"]]}
        found += [{"judge": judge, "pairs": part} | stats.proportion(rows["agrees"]) for part, rows in parts.items()]
    return found


def main():
    parser = recipe.parser(__doc__)
    parser.add_argument("--pairs", type=int, default=40)
    args = parser.parse_args()
    cfg = recipe.chosen(args)
    stage = outputs_dir() / cfg.run_name / "06_judge"
    if not (stage / "stage.json").exists():
        raise SystemExit(f"no finished 06_judge in {stage.parent}: run make 06_judge RECIPE={args.recipe} first")
    folder = stage.parent / "spotcheck"
    if not (folder / "sheet.csv").exists():
        items = files.read_jsonl(stage / "items.jsonl")
        scores = scores_by_judge(stage)
        sheet = write(pairs(items, scores, args.pairs, cfg.run["seed"]), folder)
        print(f"Wrote {sheet}: put 1, 2 or tie into the column better, save, and run make spotcheck again.")
        return
    answers, key = read(folder)
    if not answers:
        raise SystemExit(f"{folder / 'sheet.csv'} is not filled in yet: put 1, 2 or tie into the column better")
    found = report(answers, key)
    files.write_json(folder / "agreement.json", found)
    print(f"{len(answers)} of {len(key)} pairs judged by a human; agreement with 95 % intervals:")
    for row in found:
        print(f"  {row['judge']:<28} {row['pairs']:<9} {interval(row)}")


def scores_by_judge(stage):
    """{judge: {(question, model): mean score over orders}} of a finished 06_judge folder."""
    rows = pd.DataFrame([row for name in ("overlap.jsonl", "verdicts.jsonl") for row in files.read_jsonl(stage / name)])
    means = rows.groupby(["judge", "question", "model"])["score"].mean()
    return {name: means[name].to_dict() for name in means.index.unique("judge")}


if __name__ == "__main__":
    main()
