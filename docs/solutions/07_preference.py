"""Exercises of chapter 7: what the model that was not tuned gains when it answers several times and votes.

07_preference.py outputs/tiny [RUN ...]: of further runs, what form and accuracy did off the leash.
"""

import sys
from collections import Counter, defaultdict
from pathlib import Path

from lib import stats
from lib.dataset import answers as reading
from lib.figures.markup import interval
from lib.pipeline import records
from lib.pipeline.files import read_jsonl


def main(folder, *others):
    stage, data = Path(folder) / "07_preference", Path(folder) / "01_dataset"
    record = records.read(stage / "stage.json")
    fmt = records.read(Path(folder) / "03_sft" / "stage.json")["sections"]["chat"]["format"]
    known, drawn = {r["id"]: r for r in read_jsonl(data / "test.jsonl")}, defaultdict(list)
    for answer in read_jsonl(stage / "samples_sft.jsonl"):
        text = reading.split_reasoning(answer["text"], fmt)[1]
        drawn[answer["id"]].append(reading.choice(text, known[answer["id"]]["options"]))
    votes = {name: Counter(letter for letter in letters if letter).most_common(1) for name, letters in drawn.items()}
    voted = stats.proportion([bool(v) and v[0][0] == known[name]["letter"] for name, v in votes.items()])
    count = max(map(len, drawn.values()))
    print(
        f"The commonest of {count} drawn answers of the untuned model is right in {interval(voted)} of the questions,"
    )
    print(f"at {count} times the tokens of one answer. Drawn once, the arms are right in:")
    for row in record["metrics"]["arms"]:
        print(f"  {row['arm']}: {interval(row['pass@1'])}")
    print("An arm that is not above the vote has moved the model's own knowledge to its first answer, and added none.")
    for other in (folder, *others) if others else ():
        print(f"{Path(other).name}:")
        for row in records.read(Path(other) / "07_preference" / "stage.json")["metrics"]["arms"]:
            if row["arm"] in ("sft", "rloo"):
                form, right, moved = row["format"], row["accuracy"], row["KL (nats a token)"]["value"]
                print(f"  {row['arm']}: format {interval(form)}, accuracy {interval(right)}, KL {moved:.3f} nats")


if __name__ == "__main__":
    main(*sys.argv[1:])
