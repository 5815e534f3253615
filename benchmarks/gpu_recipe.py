"""The tiny recipe's seven stages, end to end on the device there is: the recipe part of benchmarks.gpu."""

import functools
import os
import subprocess
import sys
import time

from lib.figures.markup import interval
from lib.pipeline import recipe, records
from lib.pipeline.files import ROOT, outputs_dir

STAGES = [path.stem for path in sorted((ROOT / "notebooks").glob("0*.ipynb"))]


def jobs(args, rows):
    """Jobs of the part: the stages in order, all of them run anew, in a folder of their own."""
    return [(stage, functools.partial(run, stage, args.overrides, rows)) for stage in STAGES]


def run(stage, overrides, rows):
    """Yields wall time and headline figures of a stage. Raises RuntimeError with what the stage said where it fails."""
    failed = next((row["what"] for row in rows if row["part"] == "recipe" and "error" in row), None)
    if failed:
        raise RuntimeError(f"not run: {failed} failed")
    folder = outputs_dir() / "bench" / "stages"
    command = [sys.executable, "-m", "lib.execute", stage, "--set", overrides, "--force"]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OUTPUTS": str(folder)}, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(next((line for line in done.stderr.splitlines() if "FAILED" in line), done.stderr[-300:]))
    name = recipe.load("tiny", recipe.parse_set(overrides)).run_name
    figures = records.read(folder / name / stage / "stage.json")["metrics"].get("headline") or []
    told = [f"{row['label']}: {interval(row, row.get('unit', '%'))}" for row in figures]
    yield {"seconds": round(seconds, 1), "headline": figures, "measured": "; ".join([f"{seconds:.0f} s", *told])}
