"""Training checkpoints that can be trusted: a checksum manifest, written last, decides which one is resumed."""

import shutil
from pathlib import Path

from accelerate.state import AcceleratorState
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerState

from lib.pipeline import ranks, stop
from lib.pipeline.files import read_json, sha256_file, write_json

MANIFEST = "manifest.json"
PATIENCE_S = 15  # of the 30 s that schedulers usually leave between SIGTERM and SIGKILL


class Manifests(TrainerCallback):
    """Writes a manifest into each checkpoint after the trainer has saved it, and reports steps to the terminal.

    key: what the training computes (Stage.resume_key); a checkpoint of another key is never resumed.
    progress: called with (step, total, unit) after every step.
    """

    def __init__(self, key, progress=None):
        self.key, self.progress, self.stopping = key, progress, False

    def on_train_begin(self, args, state, control, **kwargs):
        if args.world_size != ranks.world():
            raise RuntimeError(
                f"the trainer sees {args.world_size} processes where {ranks.world()} were started: gradients would not "
                "be shared. Start with torchrun, and leave accelerate's own settings out"
            )
        late = args.logging_strategy == "steps" and state.logging_steps > state.max_steps
        if args.logging_strategy == "no" or (late and not args.logging_first_step):
            raise ValueError(
                f"{state.max_steps} steps are trained, and the loss would never be logged: set logging_steps to "
                f"{state.max_steps} or less (found {state.logging_steps}), and logging_strategy to steps"
            )
        self.stopping = False
        stop.training(True)
        found = str(getattr(AcceleratorState().distributed_type, "value", "NO"))
        if (args.fsdp and found != "FSDP") or (args.deepspeed and found != "DEEPSPEED"):
            raise RuntimeError(
                f"sft.{'fsdp' if args.fsdp else 'deepspeed'} is set and accelerate trains as {found}: nothing would be "
                'spread over ranks. It takes GPUs and LAUNCH="torchrun ..."'
            )

    def on_step_end(self, args, state, control, **kwargs):
        if self.progress:
            self.progress(state.global_step, state.max_steps, "steps")
        # all ranks stop after the same step, whichever got the signal first
        self.stopping = self.stopping or any(s is not None for s in ranks.gather(stop.asked()))
        if self.stopping:
            control.should_save = control.should_training_stop = True

    def on_prediction_step(self, args, state, control, **kwargs):
        if (stop.asked() or 0) > PATIENCE_S:
            raise stop.Stopped(f"stopped by SIGTERM in a long evaluation; the newest checkpoint stands, {stop.AGAIN}")

    def on_train_end(self, args, state, control, **kwargs):
        stop.training(False)
        if self.stopping:
            raise stop.Stopped(f"stopped by SIGTERM after saving checkpoint-{state.global_step}; {stop.AGAIN}")

    def on_save(self, args, state, control, **kwargs):
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        ranks.gather("saved")  # every rank has written its share
        if ranks.leads():
            write_json(folder / MANIFEST, {"key": self.key, "files": _hashes(folder)})


def train(trainer, resume):
    """Train to the end, from a checkpoint that `newest` gave, or from the start for None.

    From a checkpoint of its last step the trainer itself would train one step too many, unless an epoch ends there.
    """
    state = TrainerState.load_from_json(f"{resume}/trainer_state.json") if resume else None
    if not state or state.global_step < state.max_steps:
        trainer.train(resume_from_checkpoint=resume)
        return
    trainer._load_from_checkpoint(resume)  # what its train() calls to resume
    trainer.state = state
    if trainer.args.load_best_model_at_end and state.best_model_checkpoint:
        trainer._load_best_model()  # what its train() ends with


@ranks.led
def newest(folder, key):
    """The checkpoint with most steps whose manifest has this key and matches its files, or None.

    The trainer's own rule, the largest step number, would resume from a half-written checkpoint after a kill,
    and its rotation would count checkpoints of other values: what cannot be resumed is removed here.
    """
    found = sorted(Path(folder).glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]), reverse=True)
    good = [path for path in found if verified(path, key)]
    for path in set(found) - set(good):
        shutil.rmtree(path)
    return str(good[0]) if good else None


def verified(path, key):
    """Whether a checkpoint's manifest exists, has this key, and every file in it has the bytes it lists."""
    try:
        manifest = read_json(path / MANIFEST)
    except (OSError, ValueError):
        return False
    return manifest.get("key") == key and manifest.get("files") == _hashes(path)


def _hashes(folder):
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != MANIFEST)
    return {p.relative_to(folder).as_posix(): sha256_file(p) for p in files}
