"""Exercise of chapter 5: which gate catches a wrong chat template?"""

import sys
from pathlib import Path

from transformers import AutoTokenizer

from lib.chat import encoding, turns
from lib.export import release
from lib.pipeline import records
from lib.pipeline.files import read_jsonl

WRONG = "{% for m in messages %}Question: {{ m['content'] }}\nAnswer: {% endfor %}"


def main(folder):
    run = Path(folder)
    chat = records.read(run / "01_dataset" / "stage.json")["sections"]["chat"]
    ours, wrong = (AutoTokenizer.from_pretrained(run / "03_sft" / "merged") for _ in range(2))
    wrong.chat_template = WRONG
    questions = read_jsonl(run / "01_dataset" / "test.jsonl")
    asked = [encoding.messages(record, chat["format"], answer=False) for record in questions]
    try:
        release.parity(
            asked,
            ours,
            lambda messages: turns.render(messages, wrong, generation=True),
            lambda text: wrong(text, add_special_tokens=False)["input_ids"],
            chat["date"],
        )
    except ValueError as error:
        print(f"The gate 'the same prompt on both sides' stops at once: {error}")
    else:
        raise AssertionError("the gate let a wrong template pass")
    print("The proof of the weights would not: no weight changes. Perplexity and divergence would not either: they are")
    print("read on plain text. Of the figures, held-out accuracy as served falls first, with its format compliance.")


if __name__ == "__main__":
    main(sys.argv[1])
