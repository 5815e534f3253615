"""A stage seen from its notebook: its recipe, its folder, what it reads, and the stage.json that makes it count."""

import contextlib
import json
import os
import time

from filelock import FileLock, Timeout

from lib.pipeline import credentials, fingerprint, machine, ranks, recipe, records, stop
from lib.pipeline.files import ROOT, HashCache, outputs_dir, remove, sha256_file, sha256_json, write_json

machine.quiet()  # before the notebook imports what would print
IDLE = {  # what training does not compute with: mended, its checkpoints are still good
    "data": ("test_questions", "screens", "cases"),
    "chat": ("max_new_tokens", "batch_size", "temperature", "top_p"),
    "sft": ("report_to", "run_name", "project", "logging_steps"),
    "qat": ("report_to", "run_name", "project", "logging_steps"),
}
_open = {}  # folder -> the Stage that this process has open there


class Upstream:
    """A finished stage of the same run, read through the stage that depends on it."""

    def __init__(self, name, folder, record, reader):
        self.name, self.dir, self.json, self._reader = name, folder, record, reader

    def __getitem__(self, path):
        """The verified path of an artifact, a file or a folder of files, written by this stage.

        Raises ValueError when the stage wrote no such artifact, or when its bytes are no longer what it wrote.
        """
        outputs = self.json["outputs"]
        names = [n for n in outputs if n == path or n.startswith(f"{path}/")]
        if not names:
            raise ValueError(f"{self.name} wrote no {path!r}; it wrote {', '.join(sorted(outputs)) or 'nothing'}")
        for name in names:
            file = self.dir / name
            if not file.exists() or self._reader.hashes.sha256(file) != outputs[name]:
                found = "is missing" if not file.exists() else "has other bytes than were written"
                remedy = f"make {self.name} {recipe.options(self.json['recipe'], self.json['overrides'])}"
                raise ValueError(f"{self.name}/{name} {found}: run that stage again ({remedy})")
            self._reader.inputs[f"{self.name}/{name}"] = outputs[name]
        return self.dir / path

    @property
    def metrics(self):
        """The stage's metrics; reading them makes them an input of the reader."""
        self._reader.inputs[f"{self.name}#metrics"] = sha256_json(self.json["metrics"])
        return self.json["metrics"]


class Stage:
    """One notebook in one run. Made by `start`, closed by `finish`."""

    def __init__(self, name, cfg, folder):
        self.name, self.recipe, self.dir = name, cfg, folder
        self.nonce = os.environ.get("MEDTUNE_STAGE_NONCE", "")  # set by lib.execute, absent in JupyterLab
        self.hashes = HashCache(folder.parent / ".hashes.json")
        self.code = fingerprint.of_stage(name)
        self.inputs, self.files, self.timings, self.environment = {}, {}, {}, {}
        self._started, self._cpu = time.time(), time.process_time()
        name = ".kernel.lock" if self.nonce else ".lock"
        self._lock = lock(folder, name, wait_s=20 if self.nonce else 0) if ranks.leads() else None

    @property
    def headless(self):
        """Whether lib.execute runs this notebook, rather than a person in JupyterLab or Colab."""
        return bool(self.nonce)

    def input(self, name):
        """A finished upstream stage. Raises ValueError naming the command to run when it has not finished."""
        folder = self.dir.parent / name
        if not (folder / "stage.json").exists():
            raise ValueError(
                f"{self.name} needs {name}, which has not finished in this run: make {name} {self.recipe.options}"
            )
        return Upstream(name, folder, records.read(folder / "stage.json"), self)

    def optional(self, name):
        """Like `input`, but None when the stage has not run; what is read from it never makes this stage stale."""
        folder = self.dir.parent / name
        if not (folder / "stage.json").exists():
            return None
        reader = type("Reader", (), {"hashes": self.hashes, "inputs": {}})()
        return Upstream(name, folder, records.read(folder / "stage.json"), reader)

    def file(self, path):
        """A file of the repository that this stage reads, recorded so that changing it makes the stage stale."""
        self.files[path] = sha256_file(ROOT / path)
        return ROOT / path

    def environ(self, *names):
        """Variables of the environment or of .env, set or None; that one is set, not its value, decides freshness."""
        found = {name: setting(name) for name in names}
        self.environment |= {name: value is not None for name, value in found.items()}
        return found

    @contextlib.contextmanager
    def timer(self, name):
        """Add the wall seconds spent inside the block to timings[name]."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings[name] = round(self.timings.get(name, 0.0) + time.perf_counter() - start, 3)

    def progress(self, done, total, unit):
        """Tell the terminal that runs this notebook how far a long cell is; silent in JupyterLab."""
        if self.nonce and ranks.leads():
            with contextlib.suppress(OSError):  # what is only shown fails no stage
                (self.dir / ".progress").write_text(f"{done}/{total} {unit}")

    def resume_key(self):
        """Hash of all that decides what training computes: a checkpoint under another key is not resumed."""
        sections = self.recipe.sections(self.recipe.used - {"export", "judge"})
        for name, values in sections.items():
            if values and name in IDLE:
                sections[name] = {key: value for key, value in values.items() if key not in IDLE[name]}
        known = {"code": self.code, "sections": sections, "inputs": self.inputs, "files": self.files}
        return sha256_json(known | {"ranks": ranks.world()})

    def finish(self, metrics):
        """Record metrics, inputs and the hash of every output. The last cell of every notebook.

        metrics: nested dict of JSON values; a measured proportion is {"value", "low", "high", "n"}.
        Under lib.execute this leaves stage.pending.json, promoted once the executed notebook is saved. With several
        ranks nothing is recorded before all of them are here.
        """
        together = ranks.gather(self.nonce)
        ranks.leave()
        if not ranks.leads():
            pending(self.dir).write_text(json.dumps({"nonce": self.nonce}))
            return
        for path in sorted(self.recipe.reads):
            self.file(path)
        (self.dir / ".progress").unlink(missing_ok=True)
        outputs = {name: self.hashes.sha256(self.dir / name) for name in records.output_names(self.dir, self.name)}
        wall, cpu = time.time() - self._started, time.process_time() - self._cpu
        record = {
            "stage": self.name,
            "recipe": self.recipe.name,
            "run": self.recipe.run_name,
            "overrides": self.recipe.overrides,
            "sections": self.recipe.sections(self.recipe.used),
            "inputs": self.inputs,
            "files": self.files,
            "environment": self.environment,
            "code": self.code,
            "outputs": outputs,
            "metrics": metrics,
            "timings": {"wall_s": round(wall, 2), "cpu_s": round(cpu, 2), **self.timings},
            "seed": self.recipe.run["seed"],
            **machine.describe(),
            "ranks": len(together),
            "interactive": not self.nonce,
            "accepted": None,
        } | ({"nonce": self.nonce} if self.nonce else {})
        if self.nonce:
            write_json(pending(self.dir), record)
        else:
            records.write(self.dir / "stage.json", record)
        self.hashes.save()
        print(f"{self.name}: {len(outputs)} files, {wall:.0f} s wall, {cpu:.0f} s CPU")
        if not self.nonce:
            self.close()

    def close(self):
        """Give the stage's lock back, so that another kernel or Make can run it."""
        if self._lock:
            self._lock.lock.release()

    def checkpoints(self):
        """The folder for training checkpoints, which survives a restart of the stage."""
        return self.dir / "checkpoints"


def start(stage, recipe_name="tiny", overrides=None):
    """Open a stage: load the recipe, take the stage's lock, clear what an earlier attempt left, seed everything.

    From any working directory. ValueError on a bad recipe; RuntimeError if it runs, or torch sees not our GPU.
    """
    ranks.one_device()
    machine.refuse_unseen()
    cfg = recipe.load(recipe_name, overrides)
    folder = made(cfg, stage)
    if folder in _open:  # the cell was run again in the same kernel
        _open.pop(folder).close()
    if os.environ.get("MEDTUNE_STAGE_NONCE"):
        stop.listen()
        kernel(folder).write_text(str(os.getpid()))
        ranks.join()
    opened = _open[folder] = Stage(stage, cfg, folder)
    if not opened.nonce:  # lib.execute has done so before it started this kernel
        clear(folder, stage)
    machine.seed(cfg.run["seed"], cfg.run["threads"])
    if cfg.cautions:
        print(f"{cfg.run_name} is no run of {cfg.name.partition('@')[0]}. It cannot show:")
        print(*(f"- {caution}" for caution in cfg.cautions), sep="\n")
    return opened


def made(cfg, stage):
    """The folder of a stage, made where it is missing. Raises ValueError for a link: `clear` would empty its target."""
    folder = outputs_dir() / cfg.run_name / stage
    if folder.is_symlink():
        remedy = "remove the link, or move the run's folder as a whole with OUTPUTS="
        raise ValueError(f"{folder} is a symbolic link to {folder.readlink()}: {remedy}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def pending(folder):
    """What this rank's last cell leaves for lib.execute."""
    return folder / ("stage.pending.json" if ranks.leads() else f".rank{ranks.rank()}.pending.json")


def kernel(folder):
    """The file with the process id of the kernel that runs this rank's notebook."""
    return folder / f".rank{ranks.rank()}.pid"


def setting(name):
    """A variable of the environment, else of .env; None where unset."""
    return os.environ.get(name) or credentials.dotenv().get(name)


def lock(folder, name=".lock", wait_s=0):
    """Hold folder/name until the block of the returned lock or the process ends. Raises RuntimeError when taken."""
    try:
        return FileLock(folder / name, timeout=wait_s, thread_local=False).acquire(poll_interval=0.2)
    except Timeout:
        raise RuntimeError(
            f"{folder.name} of run {folder.parent.name} is already running: wait for it, or close its kernel"
        ) from None


def clear(folder, stage):
    """Remove what an earlier attempt left, stage.json first, except checkpoints, caches and the executed notebook.

    What the other ranks have here stays too: they may have started before this one.
    """
    (folder / "stage.json").unlink(missing_ok=True)
    others = [f".rank{rank}." for rank in range(1, ranks.world())]
    for path in folder.iterdir():
        kept = (*records.KEPT, f"{stage}.ipynb", ".lock", ".kernel.lock")
        if path.name in kept or any(other in path.name for other in others):
            continue
        remove(path)
