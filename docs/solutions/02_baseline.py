"""Exercise of chapter 2: would longer answers help the base? It answers 20 questions in up to 400 tokens."""

import sys
from pathlib import Path

from transformers import AutoTokenizer

from lib.chat import encoding
from lib.evaluation import generate, metrics
from lib.model import loading
from lib.pipeline import recipe, records
from lib.pipeline.files import read_jsonl


def main(folder):
    run = Path(folder)
    record, scores = (
        records.read(run / "02_baseline" / "stage.json"),
        read_jsonl(run / "02_baseline" / "scores.jsonl")[:20],
    )
    cfg = recipe.load(record["recipe"], record["overrides"])
    fmt, questions = cfg.chat["format"], read_jsonl(run / "01_dataset" / "test.jsonl")[:20]
    prompts = [{"id": r["id"], "messages": encoding.messages(r, fmt, answer=False)} for r in questions]
    tokenizer = AutoTokenizer.from_pretrained(run / "03_sft" / "merged")
    longer = generate.transformers(loading.base(cfg), tokenizer, prompts, 400, date=cfg.chat["date"])
    new = metrics.score(longer, questions, fmt, tokenizer)
    for name, rows in ((f"up to {cfg.chat['max_new_tokens']} tokens", scores), ("up to 400 tokens", new)):
        cut, read, right = (sum(bool(row[key]) for row in rows) for key in ("truncated", "parsed", "correct"))
        print(f"{name}: {len(rows) - cut} of {len(rows)} answers end by themselves, {read} are readable, {right} right")
    print("Only answers that were cut can change. Likelihood, lookup and chance do not: nothing is generated for them.")
    print("Accuracy and format compliance wait for the format, which training teaches: chapter 3.")


if __name__ == "__main__":
    main(sys.argv[1])
