"""Exercise of chapter 4: labels or distillation? Pass the folders of several finished runs to compare them."""

import sys
from pathlib import Path

from lib.pipeline import records


def main(*folders):
    losses = {}
    for folder in folders:
        run = Path(folder)
        record = records.read(run / "04_qat" / "stage.json")
        qat, loss = record["sections"]["qat"], record["metrics"]["loss"]
        teacher = "the unrounded model" if qat["distill"] else "the labels"
        print(f"{run.name}: {qat['max_steps']} steps, learning from {teacher}")
        losses[bool(qat["distill"])] = loss["qat"]["grid"]
        for way in ("sft", "control", "qat"):
            print(f"  {way:8} loss of the file {loss[way]['grid']:.5f} nats, unrounded {loss[way]['bf16']:.5f}")
        served = records.read(run / "05_export" / "stage.json")["metrics"]["perplexity"] if _exported(run) else {}
        for name, row in served.items():
            if name.startswith("qat") and "bf16" not in name:
                print(f"  {name}: {row['kld']:.5f} nats of KL divergence from the control, unrounded")
    if len(losses) < 2:
        print("Pass a run of qat.distill=true and one of false: one alone says nothing of the other.")
        return
    lower = "labels" if losses[False] < losses[True] else "distillation"
    print(f"Of these runs the file's loss is lower with {lower}, by {abs(losses[True] - losses[False]):.5f} nats.")
    print("Labels teach more of the data, and so change the answers; distillation's target is the model itself.")


def _exported(run):
    return (run / "05_export" / "stage.json").exists()


if __name__ == "__main__":
    main(*sys.argv[1:])
