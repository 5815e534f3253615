"""Exercise of chapter 1: reasoning shorter than that of one row, and a mask that trains the question."""

import sys
from collections import Counter
from pathlib import Path

from transformers import AutoTokenizer

from lib.chat import encoding, lossmask
from lib.pipeline import records
from lib.pipeline.files import read_jsonl


def main(folder):
    run = Path(folder)
    rows = read_jsonl(run / "01_dataset" / "train.jsonl")
    limit = len(rows[0]["reasoning"])
    had = Counter(record["source"] for record in rows)
    lost = Counter(record["source"] for record in rows if len(record["reasoning"]) < limit)
    print(f"The first row's reasoning has {limit} characters. With that as data.min_reasoning_chars would go:")
    for source, number in had.items():
        print(f"  {source}: {lost[source]} of {number} rows, {lost[source] / number:.0%}")
    worst = max(had, key=lambda source: lost[source] / had[source])
    print(f"{worst} loses most, counted as reasoning_too_short; the histogram of lengths loses its left part.")

    tokenizer = AutoTokenizer.from_pretrained(run / "03_sft" / "merged")
    chat = records.read(run / "01_dataset" / "stage.json")["sections"]["chat"]
    audit = lossmask.Audit(tokenizer, chat["format"], chat["date"], chat["reasoning_effort"])
    try:
        for record in rows[:20]:
            turns = encoding.messages(record, chat["format"])
            ids, _ = encoding.encode(turns, tokenizer, chat["date"], chat["reasoning_effort"])
            audit.add(ids, ids)
        audit.result()
    except ValueError as error:
        print(f"The audit of a mask that trains everything: {error}")
    else:
        raise AssertionError("the audit let a trained question pass")


if __name__ == "__main__":
    main(sys.argv[1])
