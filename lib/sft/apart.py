"""A training in a process of its own, and the audit of the adapter that comes back from it.

The process is lib/sft/child.py. It begins with the notebook's adapter, trains on the rows that the notebook has
audited, and resumes, stops and reports as a training in the notebook does.
"""

import subprocess
import sys
from pathlib import Path

from transformers.trainer_callback import TrainerState

from lib.chat.turns import IGNORE_INDEX
from lib.evaluation import probability
from lib.model import loading, unsloth
from lib.pipeline import machine, stop
from lib.pipeline.commands import tail
from lib.pipeline.files import ROOT, read_json, remove, write_json
from lib.sft import child

COMMAND = [sys.executable, "-m", child.__name__]


def train(stage, trainer, backend, fields, key, resume, rows):
    """What `checkpoint.train` does, in another process; returns the trained model, loaded from the adapter it wrote.

    backend: "unsloth", or anything else for transformers and PEFT. fields: of trl.SFTConfig, by name; those left out
    are written out as TRL has them. rows: (input_ids, labels) of single conversations for the audit.
    The trainer's own model is given up, so that one base at a time is in memory. Raises RuntimeError with the last
    lines of a process that failed, stop.Stopped where one was asked to stop, and ValueError as `audit` does.
    """
    cfg, about = stage.recipe, Path(trainer.args.output_dir)
    folder, logs, length = about / "apart", stage.dir / "logs" / about.name, trainer.args.max_length
    remove(folder)
    rows = [(ids[:length], labels[:length]) for ids, labels in rows]
    rows = [row for row in rows if any(label != IGNORE_INDEX for label in row[1][1:])]
    trainer.model.save_pretrained(folder / "begun")
    for name, data in (("train", trainer.train_dataset), ("eval", trainer.eval_dataset)):
        data.save_to_disk(folder / name)
    given = {"output_dir": str(about), "disable_tqdm": True, "dataset_kwargs": {"skip_prepare_dataset": True}}
    job = {"recipe": cfg.name, "overrides": cfg.overrides, "backend": backend, "key": key, "resume": resume}
    job |= {"fields": unsloth.defaults() | fields | given, "rows": rows, "first": child.first(trainer)}
    write_json(folder / child.JOB, job | {"logs": str(logs), "progress": str(stage.dir / ".progress")})
    for parameter in trainer.model.parameters():
        parameter.data = parameter.data.new_empty(0)
    machine.release()
    logs.mkdir(parents=True, exist_ok=True)
    _run(folder, logs / "training.log")
    trainer.state = TrainerState.load_from_json(folder / child.TRAINED / child.STATE)
    trainer.model = loading.adapted(loading.base(cfg), folder / child.TRAINED, trainable=True)
    found = audit(trainer.model, rows, read_json(folder / child.TRAINED / child.TOLD)["loss"], loading.precision(cfg))
    remove(folder)
    print("loss on {rows} held-out rows: {told:.6f} where it was trained, {loss:.6f} here".format(**found))
    return trainer.model


def _run(folder, log):
    """Run the process to its end; a SIGTERM or an interrupt goes on to it, and it saves a checkpoint first."""
    with open(log, "w", encoding="utf-8") as sink:
        command = [*COMMAND, str(folder)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            status = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        finally:
            said = folder / child.STOPPED
            if said.exists():
                raise stop.Stopped(said.read_text(encoding="utf-8"))
    if status:
        raise RuntimeError(
            f"the training process ended with exit status {status}. The last lines of {log}:\n{tail(log)}\n"
            "Its newest checkpoint stands. model.backend=transformers trains in the notebook's own process"
        )


def audit(model, rows, told, precision):
    """Whether a loaded adapter does what it did where it was trained: {"told", "loss", "limit", "rows"}.

    told: the loss on these rows there, in nats a token. precision: name of the dtype that the model computes in.
    Raises ValueError where the two are further apart than `child.near` allows.
    """
    loss = probability.perplexity(model, rows)["loss"]
    limit = child.near(told, precision)
    if not abs(loss - told) <= limit:
        raise ValueError(
            f"the adapter is not what was trained: on {len(rows)} held-out rows its loss is {told:.6f} nats a token "
            f"where it was trained and {loss:.6f} here, {abs(loss - told):.1e} apart where {limit:.1e} is allowed. "
            "Train it with model.backend=transformers"
        )
    return {"told": told, "loss": loss, "limit": limit, "rows": len(rows)}
