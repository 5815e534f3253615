"""The process that trains an adapter apart from its notebook, for lib/sft/apart.py: python -m lib.sft.child FOLDER

Unsloth rewrites classes of transformers, PEFT and TRL in every process that imports it. So it is imported here alone,
and the notebook asks, measures and merges with those libraries as they are. Without Unsloth this trains with them.
Functions import them, for it has to come first.
"""

import contextlib
import copy
import ctypes
import importlib
import os
import signal
import sys
from pathlib import Path

import torch

from lib.pipeline import machine, recipe, stop
from lib.pipeline.files import read_json, sha256_json, whole_folder, write_json, write_text

JOB, STOPPED = "job.json", "stopped.txt"
TRAINED, STATE, TOLD = "trained", "trainer_state.json", "told.json"  # the adapter, in PEFT's format, and two files more
SPACINGS = 4  # between two ways to compute one mean loss, of the numbers that the model computes with


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
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(folder / "compiled"))  # else the folder it was started in
    if job["backend"] == "unsloth":
        importlib.import_module("unsloth")  # before the libraries that it rewrites
    from lib.sft import checkpoint

    cfg = recipe.load(job["recipe"], job["overrides"])
    machine.seed(cfg.run["seed"], cfg.run["threads"])
    trainer = _trainer(folder, job, cfg)
    _compare(job, first(trainer), cfg)
    checkpoint.train(trainer, job["resume"])
    with whole_folder(folder / TRAINED) as partial:
        trainer.model.save_pretrained(partial)
        trainer.state.save_to_json(partial / STATE)
        write_json(partial / TOLD, {"loss": mean_loss(trainer.model, job["rows"])})


def _compare(job, here, cfg):
    """Raise RuntimeError unless the first batch and its loss are those of the notebook's trainer."""
    from lib.model import loading

    there, limit = job["first"], near(job["first"]["loss"], loading.precision(cfg))
    if here["batch"] != there["batch"]:
        raise RuntimeError(f"{job['backend']} makes another first batch of the rows than the one that was audited")
    if not abs(here["loss"] - there["loss"]) <= limit:
        raise RuntimeError(
            f"{job['backend']} computes another loss of the first batch, {here['loss']:.6f} nats a token where "
            f"transformers finds {there['loss']:.6f} and {limit:.1e} is allowed"
        )


def _trainer(folder, job, cfg):
    from datasets import load_from_disk
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    from lib.model import adapter, head, loading
    from lib.sft import checkpoint, tracking

    def report(done, total, unit):
        with contextlib.suppress(OSError):  # what is only shown fails no training
            Path(job["progress"]).write_text(f"{done}/{total} {unit}")

    model, (train, held_out) = _model(folder, job, cfg), (load_from_disk(folder / name) for name in ("train", "eval"))
    kind = SFTTrainer if job["backend"] == "unsloth" else head.HeadTrainer  # its models take no columns to keep
    with adapter.in_float32(model):
        trainer = kind(
            model=model,
            args=SFTConfig(**job["fields"]),
            train_dataset=train,
            eval_dataset=held_out,
            processing_class=loading.tokenizer(cfg),
            callbacks=[checkpoint.Manifests(job["key"], report)],
        )
    trainer.remove_callback(PrinterCallback)
    return tracking.attach(trainer, Path(job["logs"]))


def _model(folder, job, cfg):
    """The base with the notebook's adapter on it, as it stands before training.

    Raises RuntimeError where a tensor of it finds no place, or a place no tensor.
    """
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


def first(trainer):
    """{"batch": hash of a trainer's first batch as it is collated, "loss": of it before training, in nats a token}."""
    with machine.random_state():
        torch.manual_seed(trainer.args.seed)  # rows of similar length are drawn with torch's own generator
        batch = next(iter(trainer.get_train_dataloader()))
    counted, mode = copy.deepcopy(trainer._metrics), trainer.model.training
    trainer.model.eval()
    with torch.no_grad(), trainer.compute_loss_context_manager():
        loss = float(trainer.compute_loss(trainer.model, dict(batch)))
    trainer.model.train(mode)
    trainer._metrics = counted  # of TRL's trainers, which compute_loss adds to
    names = ("input_ids", "labels", "position_ids")
    return {"batch": sha256_json({name: batch[name].tolist() for name in names if name in batch}), "loss": loss}


def near(loss, precision):
    """How far apart two computations of a mean loss may be, in nats a token. precision: name of the model's dtype."""
    return SPACINGS * torch.finfo(getattr(torch, precision)).eps * max(1.0, loss)


def mean_loss(model, rows):
    """Loss in nats a labelled token over (ids, labels) rows, one at a time, as the model itself computes it."""
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
