"""A stage seen from Make: is it fresh, is it locked, run its notebook, and promote stage.json only when all is well.

python -m lib.execute 03_sft --recipe tiny --set "sft.learning_rate=1e-3"
python -m lib.execute verify | accept | clean --recipe tiny
"""

import contextlib
import os
import sys
import time

from lib.dataset import curriculum, entries
from lib.pipeline import fingerprint, notebook, ranks, recipe, records, run, terminal
from lib.pipeline.files import ROOT, HashCache, outputs_dir, remove, sha256_file


def main(argv=None):
    parser = recipe.parser(__doc__, prog="python -m lib.execute")
    parser.add_argument("stage", help="a notebook's stem, or verify, accept or clean")
    parser.add_argument("--force", action="store_true", help="run even when fresh")
    args = parser.parse_args(argv)
    try:
        cfg = recipe.chosen(args)
        check_data(**cfg.sections(["data"]))
        ranks.check(os.environ.get("LAUNCH", ""))
        if args.stage == "verify":
            return verify(cfg)
        if args.stage == "accept":
            return accept(cfg)
        if args.stage == "clean":
            return clean(cfg)
        return execute(args.stage, cfg, args.force)
    except (ValueError, RuntimeError) as error:
        return notebook.fail(args.stage, str(error))
    except OSError as error:
        where = error.filename or outputs_dir()
        return notebook.fail(
            args.stage,
            f"cannot write or read {where}: {error.strerror or error}. Free space or mend permissions, then make again",
        )


def check_data(data):
    """Raise ValueError for a data section that names a source, key, config or stage which does not exist.

    Here and not in recipe, so that a mended converter makes 01_dataset stale and not all that imports the recipe.
    """
    for spec in data["sources"] + data["test_sources"] + data["truth_sources"]:
        entries.check_spec(spec)
    named = entries.labelled(data).values()
    curriculum.stages(data["stages"], {spec.get("label") or spec["name"] for role, spec in named if role == "train"})


def execute(stage, cfg, force=False):
    """Run one stage unless it is fresh. Returns a process exit status: 0 only when stage.json stands."""
    fingerprint.of_stage(stage)  # an unknown stage fails before a folder is made
    if why := cfg.left_out(stage):
        print(f"{stage:12} {cfg.run_name}: left out, {why}")
        return 0
    folder = run.made(cfg, stage)
    if not ranks.leads():
        return _follow(stage, cfg, folder, force)
    with run.lock(folder):
        why = stale(folder, cfg, HashCache(folder.parent / ".hashes.json"))
        if not why and not force:
            print(f"{stage:12} {cfg.run_name}: fresh")
            return 0
        print(f"{stage:12} {cfg.run_name}: {why or 'forced'}", flush=True)
        with run.lock(folder, ".kernel.lock", wait_s=20):  # a kernel orphaned by a kill ends within seconds
            pass
        run.clear(folder, stage)
        return notebook.execute(stage, cfg, folder)


def _follow(stage, cfg, folder, force):
    """What a rank other than 0 does: run its own copy of the notebook where rank 0 runs the stage."""
    with contextlib.suppress(FileNotFoundError):  # rank 0 has just cleared what it found stale
        if not stale(folder, cfg, HashCache(folder.parent / ".hashes.json")) and not force:
            return 0
    for path in (run.pending(folder), run.kernel(folder)):
        path.unlink(missing_ok=True)
    return notebook.execute(stage, cfg, folder)


def stale(folder, cfg, hashes):
    """Why a stage has to run, as a short phrase, or "" when nothing that it depends on has changed."""
    path = folder / "stage.json"
    if not path.exists():
        return "not run yet"
    try:
        record = records.read(path)
        changed = records.changed_input(folder, record)
    except ValueError as error:
        return str(error)
    now = fingerprint.of_stage(folder.name)
    for name in sorted(set(now) | set(record["code"])):
        if now.get(name) != record["code"].get(name):
            return f"{name} changed"
    for name, value in cfg.sections(record["sections"]).items():
        if value != record["sections"][name]:
            return f"{name}: changed in the recipe"
    for name, sha in record["files"].items():
        if not (ROOT / name).exists() or sha256_file(ROOT / name) != sha:
            return f"{name} changed"
    for name, was_set in record.get("environment", {}).items():
        if (run.setting(name) is not None) != was_set:
            return f"{name} is {'no longer' if was_set else 'now'} set"
    return changed or _changed_output(folder, record, hashes)


def _changed_output(folder, record, hashes):
    for name, sha in record["outputs"].items():
        if not (folder / name).exists() or hashes.sha256(folder / name) != sha:
            return f"its output {name} is missing or was changed"
    hashes.save()
    return ""


def verify(cfg):
    """Read every byte of a finished run again. Returns 1 and names each file that is missing, changed or unknown."""
    stages = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    stages = [stage for stage in stages if not cfg.left_out(stage)]
    checked, wrong = records.verify(outputs_dir() / cfg.run_name, stages)
    if not any((outputs_dir() / cfg.run_name).glob("*/stage.json")):
        raise ValueError(f"run {cfg.run_name} has no finished stage: make all {cfg.options}")
    for line in wrong:
        print(line, file=sys.stderr)
    print(f"verify       {cfg.run_name}: {checked} files read, {len(wrong)} wrong")
    return 1 if wrong else 0


def accept(cfg):
    """Bless finished stages whose code changed and nothing else; stage.json says so for good."""
    for path in sorted((outputs_dir() / cfg.run_name).glob("*/stage.json")):
        record, now = records.read(path), fingerprint.of_stage(path.parent.name)
        changed = sorted(n for n in set(now) | set(record["code"]) if now.get(n) != record["code"].get(n))
        if not changed:
            continue
        if "pins" in changed:
            raise ValueError(
                f"{path.parent.name}: the pinned packages changed, which is more than a code edit: run it again"
            )
        record["accepted"] = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "changed": changed,
            "ran": record["code"],
        }
        record["code"] = now
        records.write(path, record)
        print(f"accept       {cfg.run_name}/{path.parent.name}: {', '.join(changed)}")
    return 0


def clean(cfg):
    """Remove the outputs of a recipe, of all its SETs; caches and .venv stay."""
    for folder in outputs_dir().glob("*"):
        if folder.name == cfg.name or folder.name.startswith(f"{cfg.name}+"):
            remove(folder)
            print(f"clean        {folder}")
    return 0


if __name__ == "__main__":
    terminal.never_fail()
    sys.exit(main())
