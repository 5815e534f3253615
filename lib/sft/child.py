"""The process that trains an adapter apart from its notebook, for lib/sft/apart.py: python -m lib.sft.child FOLDER

Unsloth rewrites classes of transformers, PEFT and TRL in every process that imports it. So it is imported here alone,
and the notebook asks, measures and merges with those libraries as they are. Without Unsloth this trains with them.
"""

import contextlib
import ctypes
import importlib
import signal
import sys
from pathlib import Path

from lib.pipeline import machine, recipe, stop
from lib.pipeline.files import read_json, sha256_json, whole_folder, write_json, write_text

JOB, STOPPED, TRAINED = "job.json", "stopped.txt", "trained"  # TRAINED: the adapter, in PEFT's format, with
STATE, TOLD = "trainer_state.json", "told.json"


def main(folder):
    """Train what folder/job.json says; returns the exit status.

    folder/trained is there, whole, when it ends well, and folder/stopped.txt where SIGTERM ended it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it ends with the notebook, however that ends
    stop.listen()
    machine.quiet()
    try:
        _run(Path(folder), read_json(Path(folder, JOB)))
    except stop.Stopped as reason:
        write_text(Path(folder, STOPPED), str(reason))
        return 1
    return 0


def _run(folder, job):
    if job["backend"] == "unsloth":
        importlib.import_module("unsloth")  # before the libraries that it rewrites
    from lib.sft import checkpoint

    cfg = recipe.load(job["recipe"], job["overrides"])
    machine.seed(cfg.run["seed"], cfg.run["threads"])
    trainer = _trainer(folder, job, cfg)
    if first_batch(trainer) != job["first_batch"]:
        raise RuntimeError(f"{job['backend']} makes another first batch of the rows than the one that was audited")
    checkpoint.train(trainer, job["resume"])
    with whole_folder(folder / TRAINED) as partial:
        trainer.model.save_pretrained(partial)
        trainer.state.save_to_json(partial / STATE)
        write_json(partial / TOLD, {"loss": mean_loss(trainer.model, job["rows"])})


def _trainer(folder, job, cfg):
    from datasets import load_from_disk
    from transformers import PrinterCallback
    from trl import SFTConfig

    from lib.model import adapter, head, loading
    from lib.sft import checkpoint, tracking

    def report(done, total, unit):
        with contextlib.suppress(OSError):  # what is only shown fails no training
            Path(job["progress"]).write_text(f"{done}/{total} {unit}")

    model, (train, held_out) = _model(folder, job, cfg), (load_from_disk(folder / name) for name in ("train", "eval"))
    trainer = head.HeadTrainer(
        model=model,
        args=SFTConfig(**job["fields"]),
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=loading.tokenizer(cfg),
        callbacks=[checkpoint.Manifests(job["key"], report)],
    )
    adapter.in_float32(model)
    trainer.remove_callback(PrinterCallback)
    return tracking.attach(trainer, Path(job["logs"]))


def _model(folder, job, cfg):
    """The base with the notebook's adapter on it, as it stands before training.

    Raises RuntimeError where a tensor of it finds no place, or a place no tensor.
    """
    import torch
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    from lib.model import loading, unsloth

    if job["backend"] == "unsloth":
        dtype, revision = getattr(torch, loading.precision(cfg)), cfg.model["revision"]
        model = unsloth.trainable(cfg, loading.source(cfg), dtype, revision)
    else:
        model = get_peft_model(loading.base(cfg), LoraConfig(**cfg.lora))
    begun = load_file(folder / "begun" / "adapter_model.safetensors")
    places = get_peft_model_state_dict(model, save_embedding_layers=False)
    shapes = [{(name, tuple(tensor.shape)) for name, tensor in found.items()} for found in (begun, places)]
    if unlike := shapes[0] ^ shapes[1]:
        raise RuntimeError(
            f"{job['backend']} lays the adapter out in another way than PEFT, {min(unlike)} for one: set "
            "model.backend to transformers"
        )
    set_peft_model_state_dict(model, begun)
    return model


def first_batch(trainer):
    """Hash of the first batch that a trainer collates, as it is trained on."""
    batch = next(iter(trainer.get_train_dataloader()))
    names = ("input_ids", "labels", "position_ids")
    return sha256_json({name: batch[name].tolist() for name in names if name in batch})


def mean_loss(model, rows):
    """Loss in nats a labelled token over (ids, labels) rows, one at a time, as the model itself computes it."""
    import torch

    from lib.evaluation import batching

    total, tokens = 0.0, 0
    with batching.evaluation(model):
        for row in rows:
            ids, labels = (torch.tensor([part], device=model.device) for part in row)
            labelled = int((labels[:, 1:] != -100).sum())
            total += float(model(input_ids=ids, labels=labels).loss) * labelled
            tokens += labelled
    return total / tokens


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
