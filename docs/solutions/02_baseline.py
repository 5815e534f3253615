"""Exercise of chapter 2: would longer answers help the base?"""

import sys
from pathlib import Path

from lib.pipeline.files import read_json, read_jsonl


def main(folder):
    stage = Path(folder) / "02_baseline"
    scores, metrics = read_jsonl(stage / "scores.jsonl"), read_json(stage / "stage.json")["metrics"]
    cut, read = (sum(bool(row[key]) for row in scores) for key in ("truncated", "parsed"))
    print(f"{len(scores) - cut} of {len(scores)} answers end by themselves, {cut} are cut; {read} can be read.")
    print(f"A higher chat.max_new_tokens can change only the {cut} cut ones: truncation falls, lengths may grow.")
    likelihood = metrics["likelihood"]["accuracy"]["value"]
    generated = metrics["generated"]["accuracy"]["value"]
    print(f"Lookup, chance and likelihood ({likelihood:.1%}) do not depend on it, since nothing is generated for them.")
    print(f"Accuracy ({generated:.1%}) and compliance wait for the format, which training teaches: chapter 3.")


if __name__ == "__main__":
    main(sys.argv[1])
