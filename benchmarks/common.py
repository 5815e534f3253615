"""What the benchmarks share: a clock, the spread of repeated measurements, a table, a command line, a JSON file."""

import resource
import statistics
import time

import pandas as pd
import torch

from lib.pipeline import machine, recipe
from lib.pipeline.files import outputs_dir, read_json, write_json


def now():
    """(wall, CPU) seconds of this process, when the GPU has done all that it was asked."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def since(start):
    """{"wall_s", "cpu_s"} from `start`, a value of now()."""
    return dict(zip(("wall_s", "cpu_s"), (end - begin for end, begin in zip(now(), start, strict=True)), strict=True))


def children_s():
    """CPU seconds of the programs that this process has run so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def spread(values, digits=2):
    """{"median", "low", "high"}: the extremes, not an interval."""
    found = {"median": statistics.median(values), "low": min(values), "high": max(values)}
    return {name: round(value, digits) for name, value in found.items()}


def spread_text(found):
    """A spread as a cell: 12 (11-14)."""
    return "{median:,} ({low:,}-{high:,})".format(**found)


def table(rows):
    """Rows of one kind of dict as Markdown; what is missing or None stays blank."""
    cells = pd.DataFrame(rows).map(lambda cell: "" if pd.isna(cell) else str(cell).replace("|", "\\|"))
    return cells.to_markdown(index=False, disable_numparse=True)


def parser(doc, **numbers):
    """A command line with a recipe, --set and options of whole numbers, {name: default}. doc: the module's own."""
    made = recipe.parser(doc)
    for name, default in numbers.items():
        made.add_argument(f"--{name}", type=int, default=default)
    return made


def started(args):
    """The recipe of a command line, with libraries quiet and its seed and threads set."""
    machine.quiet()
    cfg = recipe.chosen(args)
    machine.seed(cfg.run["seed"], cfg.run["threads"])
    return cfg


def keep(name, found, beside=False):
    """Write outputs/bench/<name>.json with the hardware; beside: keep what an earlier run wrote under other keys."""
    path = outputs_dir() / "bench" / f"{name}.json"
    earlier = read_json(path) if beside and path.exists() else {}
    write_json(path, earlier | found | {"hardware": machine.describe()["hardware"]})
