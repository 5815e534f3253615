"""How fast and how large is the data pipeline at full size? python -m benchmarks.data --rows 400000

Rows are made in the schema of medical-o1-reasoning-SFT, about 600 tokens each, from the words of data/clinic.yaml: 3 %
of them repeat an earlier row, 3 % repeat one nearly, 0.5 % quote a test question, 2 % are malformed in MALFORMED ways.
Then every step of chapter 1 runs on them, and two steps beside what a tutorial would write: outputs/bench/data.json.
"""

import argparse
import json
import os
import random
import re
import sys
import time
from collections import Counter

os.environ["TOKENIZERS_PARALLELISM"] = "true"

import numpy as np

from benchmarks.common import keep
from lib.chat import encoding
from lib.dataset import clinic, framing, ingest, leakage, near, readers, records, split, textbook
from lib.model import twin
from lib.pipeline import machine
from lib.pipeline.files import ROOT, outputs_dir, write_jsonl

COLUMNS = ("Question", "Complex_CoT", "Response")
SPEC, SEED, TEST = {"name": "medical_o1", "config": "en"}, 42, 2000
MALFORMED = [
    lambda row: None,
    lambda row: "text",
    lambda row: [1, 2],
    lambda row: 7,
    lambda row: {},
    lambda row: {"Question": row["Question"]},
    *(lambda row, c=c, v=v: row | {c: v} for c in COLUMNS for v in (None, "", " \n", 3, 2.5, True, ["a"], {"a": 1})),
    *(lambda row, c=c: row | {c: row[c] + "\x00"} for c in COLUMNS),
    *(lambda row, c=c: row | {c: "\ud800" + row[c]} for c in COLUMNS),
    *(lambda row, c=c: row | {c: "\ufffd" + row[c]} for c in COLUMNS),
    *(lambda row, c=c: row | {c: row[c] * 2000} for c in COLUMNS),
]


def texts(words, rng, count):
    """`count` rows of a question (50 to 70 words), reasoning (290 to 350) and response (70 to 90)."""
    for number in range(count):
        sizes = rng.integers([50, 290, 70], [71, 351, 91])
        drawn = words[rng.integers(0, len(words), sizes.sum())]
        question, thought, answer = np.split(drawn, np.cumsum(sizes)[:-1])
        yield {"Question": f"Case {number}: {' '.join(question)}?", "Complex_CoT": " ".join(thought),
               "Response": " ".join(answer)}  # fmt: skip


def raw_rows(words, count, exam, seed=SEED):
    """Well-formed rows, copies, near copies and leaks, in a fixed random order of kinds."""
    rng, dice, recent = np.random.default_rng(seed), random.Random(seed), []
    for row in texts(words, rng, count):
        throw = dice.random()
        if throw < 0.03 and recent:
            row = dice.choice(recent)
        elif throw < 0.06 and recent:
            row = dict(dice.choice(recent))
            asked = row["Question"].split()
            asked[dice.randrange(len(asked))] = "otherwise"
            row["Question"] = " ".join(asked)
        elif throw < 0.065:
            row = row | {"Complex_CoT": f"{row['Complex_CoT']} {dice.choice(exam)} {row['Response']}"}
        elif len(recent) < 2000:
            recent.append(row)
        yield row


def malformed(rows, share, seed=SEED):
    dice, kinds = random.Random(seed), 0
    for row in rows:
        if dice.random() < share:
            row, kinds = MALFORMED[kinds % len(MALFORMED)](row), kinds + 1
        yield row


class Steps:
    """Seconds and peak memory after each step."""

    def __init__(self):
        self.rows, self.start = [], time.perf_counter()

    def done(self, name, count):
        now = time.perf_counter()
        peak = machine.resident_bytes() / 2**30
        seconds = now - self.start
        row = {
            "step": name,
            "seconds": round(seconds, 1),
            "rows_per_s": round(count / seconds),
            "peak_gib": round(peak, 2),
        }
        print("{step:24} {seconds:8} s {rows_per_s:9,} rows/s   peak {peak_gib} GiB".format(**row), flush=True)
        self.rows.append(row)
        self.start = time.perf_counter()


def tokenizer_of(world, words):
    text = [*textbook.paragraphs(world, SEED), *(" ".join(part) for part in np.array_split(words, 200))]
    return twin.train_tokenizer(twin.FAMILIES["qwen3"], text * 3, 8192)


def full_size(folder, count, world, words, tokenizer):
    """Chapter 1 on `count` rows: convert and filter, dedup and leakage, split, write, template and tokenize."""
    exam_rows = list(ingest.stream("medical_o1", texts(words, np.random.default_rng(1), TEST), SPEC, Counter()))
    exam = [record["instruction"] for record in exam_rows]
    raw = folder / "raw.jsonl"
    rows = malformed(raw_rows(words, count, exam), 0.02)
    with open(raw, "w", encoding="utf-8", errors="surrogatepass") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    steps, reasons = Steps(), Counter()
    kept = records.write(folder / "pool.arrow", ingest.stream("medical_o1", readers.json_lines(raw), SPEC, reasons, 20))
    assert reasons.total() == count and reasons["converter_error"] == 0, reasons
    steps.done("read, convert, filter", count)
    pool = records.read(folder / "pool.arrow")
    frames = framing.learn(records.rows(pool.select(framing.COLUMNS)), exam_rows)
    scan = leakage.scan(frames.bare(records.rows(pool)), {"exam": list(frames.bare(exam_rows))}, SEED)
    steps.done("dedup keys, leakage", kept)
    twice, nearly = split.duplicates(scan.keys), near.duplicates(scan.signatures) >= 0
    drop = scan.flagged(("exact", "near", "gram_13"))
    parts = split.split(scan.keys, ~(twice | nearly | drop), 0.05, 0)
    steps.done("near-duplicates, split", kept)
    write_jsonl(folder / "train.jsonl", records.rows(pool, parts["train"]))
    steps.done("write train.jsonl", int(parts["train"].sum()))
    tokens = sum(len(ids) for ids, _ in encoding.tokenize(records.rows(pool, parts["train"]), tokenizer, "think"))
    steps.done("template, tokenize", int(parts["train"].sum()))
    found = {"read": count, "kept": kept, "duplicate": int(twice.sum()), "near_duplicate": int((nearly & ~twice).sum()),
             "leaked": int(drop.sum()), "train": int(parts["train"].sum()), "tokens": tokens}  # fmt: skip
    return {"steps": steps.rows, "seconds": round(sum(row["seconds"] for row in steps.rows), 1), "found": found,
            "peak_gib": steps.rows[-1]["peak_gib"], "tokens_per_row": round(tokens / found["train"])}  # fmt: skip


def near_arm(words, count):
    """Ours and the loop of datasketch's own examples on the same texts: 5-word shingles, 128 permutations, 0.8."""
    from datasketch import MinHash, MinHashLSH

    rng = np.random.default_rng(3)
    whole = [" ".join(row.values()) for row in texts(words, rng, count)]
    for place in range(0, count, 10):  # every tenth text repeats another with up to seven words changed
        changed = whole[place].split()
        for at in rng.integers(0, len(changed), rng.integers(0, 8)):
            changed[at] = "otherwise"
        whole[(place * 7 + 3) % count] = " ".join(changed)
    start = time.perf_counter()
    ours = near.duplicates(near.signatures(whole)) >= 0
    ours_s = time.perf_counter() - start
    start, index, theirs = time.perf_counter(), MinHashLSH(threshold=0.8, num_perm=128), []
    for number, text in enumerate(whole):
        parts = re.findall(r"\w+", text.lower())
        sketch = MinHash(num_perm=128)
        sketch.update_batch([" ".join(parts[i : i + 5]).encode() for i in range(len(parts) - 4)])
        theirs.append(bool(index.query(sketch)))
        if not theirs[-1]:
            index.insert(number, sketch)
    theirs_s, theirs = time.perf_counter() - start, np.array(theirs)
    return {"rows": count, "ours_rows_per_s": round(count / ours_s), "datasketch_rows_per_s": round(count / theirs_s),
            "ratio": round(theirs_s / ours_s, 1), "datasketch_flags": int(theirs.sum()), "ours_flags": int(ours.sum()),
            "share_of_its_flags": round(float((ours & theirs).sum() / theirs.sum()), 4)}  # fmt: skip


def token_arm(words, tokenizer, count):
    """chat.tokenize beside two loops of ds.map, one row at a time in one process, on the same records.

    map: the text alone, as tutorials do, without labels. trl: ids and loss mask, as SFTTrainer makes them itself.
    """
    from datasets import Dataset, disable_caching, disable_progress_bars
    from trl.chat_template_utils import get_training_chat_template

    disable_caching()
    disable_progress_bars()
    rows = ingest.convert("medical_o1", texts(words, np.random.default_rng(5), count), SPEC)[0]
    start = time.perf_counter()
    ours = list(encoding.tokenize(rows, tokenizer, "think"))
    ours_s = time.perf_counter() - start
    table = Dataset.from_list([{"messages": encoding.messages(row, "think")} for row in rows])
    start = time.perf_counter()
    theirs = table.map(lambda row: tokenizer(tokenizer.apply_chat_template(row["messages"], tokenize=False)))
    theirs_s = time.perf_counter() - start
    assert theirs["input_ids"][count // 2] == ours[count // 2][0]
    how = {"return_dict": True, "return_assistant_tokens_mask": True}
    how["chat_template"] = get_training_chat_template(tokenizer)
    start = time.perf_counter()
    table.map(lambda row: dict(tokenizer.apply_chat_template(row["messages"], **how)))
    trl_s = time.perf_counter() - start
    return {"rows": count, "ours_rows_per_s": round(count / ours_s), "map_rows_per_s": round(count / theirs_s),
            "trl_rows_per_s": round(count / trl_s), "ratio": round(theirs_s / ours_s, 1),
            "ratio_with_labels": round(trl_s / ours_s, 1)}  # fmt: skip


def malformed_arm(words, count):
    """Every one of `count` malformed rows, and as many good ones, is kept or counted; nothing raises."""
    good = list(texts(words, np.random.default_rng(7), 200))
    mixed = (MALFORMED[(n // 2) % len(MALFORMED)](good[n % 200]) if n % 2 else good[n % 200] for n in range(2 * count))
    reasons = Counter()
    kept = sum(1 for _ in ingest.stream("medical_o1", mixed, SPEC, reasons))
    return {"malformed": count, "kinds": len(MALFORMED), "kept": kept, "accounted": reasons.total(),
            "crashes": reasons["converter_error"], "reasons": dict(reasons)}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=int(os.environ.get("ROWS") or 400_000))
    parser.add_argument("--compare-rows", type=int, default=3000)
    parser.add_argument("--malformed", type=int, default=100_000)
    args = parser.parse_args()
    folder = outputs_dir() / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    world = clinic.load()
    words = np.array(sorted(set(re.findall(r"[a-z]+", (ROOT / "data" / "clinic.yaml").read_text().lower()))))
    tokenizer = tokenizer_of(world, words)
    found = {"full": full_size(folder, args.rows, world, words, tokenizer)}
    for name, arm in (("near", lambda: near_arm(words, args.compare_rows)),
                      ("tokenize", lambda: token_arm(words, tokenizer, args.compare_rows)),
                      ("malformed", lambda: malformed_arm(words, args.malformed))):  # fmt: skip
        found[name] = arm()
        print(name, json.dumps(found[name]), flush=True)
    print("full", json.dumps({key: value for key, value in found["full"].items() if key != "steps"}))
    for name in ("raw.jsonl", "pool.arrow", "train.jsonl"):
        (folder / name).unlink()
    keep("data", found)


if __name__ == "__main__":
    sys.exit(main())
