"""Exercise of chapter 3: what `assistant_only_loss: false` would train, and what the loss curve would hide."""

import sys
from pathlib import Path

from lib.pipeline import records


def main(folder):
    run = Path(folder)
    mask = records.read(run / "01_dataset" / "stage.json")["metrics"]["loss_mask"]
    prompt, all_tokens = mask["regions"]["prompt"], mask["tokens"]
    print(f"With the mask {mask['trained']:,} of {all_tokens:,} tokens carry loss, and none of the question.")
    print(f"Without it the {prompt:,} tokens of questions and marks would too: {prompt / all_tokens:.0%} of all.")
    loss = records.read(run / "04_qat" / "stage.json")["metrics"].get("loss", {}).get("sft")
    if loss:
        print(f"On held-out rows the trained model's loss is {loss['bf16']:.3f} nats in its answers and")
        print(f"{loss['questions']:.3f} nats in the questions, which it never learnt to write. Trained on both, the")
        print("curve would fall further, because questions of one clinic resemble each other: that looks better, and")
        print("the model would have spent most of its steps on writing questions.")


if __name__ == "__main__":
    main(sys.argv[1])
