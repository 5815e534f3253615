"""All checks that need a GPU, in one table: python -m benchmarks.gpu [--part train ...]. Run by hand.

    exactness  are the grids on CUDA those of the CPU, value for value?
    qat        step time and memory of exact QAT beside plain LoRA
    train      speed and memory of chapter 3's training at real size, random weights, beside what `make plan` says
    generate   tokens a second of answers, by transformers and by vLLM
    recipe     the tiny recipe's seven stages, end to end on the GPU

Each result goes to outputs/bench/gpu.json and into the table of docs/benchmarks.md as soon as it is there; a check that
fails has its error in the table and ends nothing else. Parts may run one by one: earlier results of the same machine
and versions stay. `--device cpu --shape tiny` tries the program out anywhere, and leaves docs/ alone. The exit status
is 1 when a check failed or a value differed.
"""

import argparse
import importlib
import os
import sys
import time
import traceback

import torch

from benchmarks import common
from lib.pipeline import machine
from lib.pipeline.files import ROOT, between, outputs_dir, read_json, write_json, write_text

PARTS = {  # name: (module, function that gives its jobs), imported late, for what one needs another need not
    "exactness": ("gpu_qat", "exactness"),
    "qat": ("gpu_qat", "cost"),
    "train": ("gpu_train", "jobs"),
    "generate": ("gpu_generate", "jobs"),
    "recipe": ("gpu_recipe", "jobs"),
}
PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def said(error):
    """An exception in one line: out of memory, which package is missing, or the message's first line."""
    text = (str(error).strip().splitlines() or [""])[0]
    if "out of memory" in str(error).lower():
        return "out of memory"
    link = error
    while link:
        if isinstance(link, ModuleNotFoundError) and link.name:
            return f"the package {link.name} is missing here (requirements.txt)"
        link = link.__cause__ or link.__context__
    return f"{type(error).__name__}: {text}"[:300]


def attempt(row, job, keep):
    """Run a job and put each dict that it yields into the row, or what went wrong; keep() after each."""
    try:
        for found in job():
            row.update(found)
            keep()
    except Exception as error:  # whatever a driver, a kernel or a library raises: the other checks go on
        row["error"] = said(error)
        keep()
        if row["error"].startswith(type(error).__name__):  # unforeseen: whoever mends it needs the place
            traceback.print_exc()
    machine.release()
    print(f"{row['part']}, {row['what']}: {cells(row)['measured']}", flush=True)


def run(part, args, rows, keep):
    """Run all jobs of a part; their rows take the place of those that the part had."""
    rows[:] = [row for row in rows if row["part"] != part]
    module, name = PARTS[part]
    try:
        jobs = getattr(importlib.import_module(f"benchmarks.{module}"), name)(args, rows)
    except Exception as error:  # whatever a package raises that is missing, or does not fit the others
        rows.append({"part": part, "what": "all of it", "error": said(error)})
        keep()
        print(f"{part}: {said(error)}", flush=True)
        return
    for what, job in jobs:
        rows.append({"part": part, "what": what})
        attempt(rows[-1], job, keep)


def cells(row):
    """The cells of a row of the table, as text under its heading."""

    def number(key, form):
        return "" if row.get(key) is None else format(row[key], form)

    measured = "; ".join(text for text in (row.get("measured"), row.get("error")) if text)
    peak = number("peak_gib", ".2f") + (f" (reserved {row['reserved_gib']:.2f})" if row.get("reserved_gib") else "")
    reached = "failed" if "error" in row else {True: "yes", False: "no"}.get(row.get("reached"), "")
    return {"part": row["part"], "what": row["what"], "measured": measured, "MFU, %": number("mfu", ".1f"),
            "peak, GiB": peak, "plan, GiB": number("plan_gib", ".2f"), "plan's error, %": number("plan_error", "+.1f"),
            "aim": row.get("aim", ""), "reached": reached}  # fmt: skip


def table(found):
    """What was found as Markdown, with where and when."""
    rows = sorted(found["rows"], key=lambda row: list(PARTS).index(row["part"]))
    return f"{common.table(map(cells, rows))}\n\n{found['where']}, {found['when']}."


def page(text, found):
    """The page's text with the table between its markers replaced."""
    return between(text, BEGIN, END, table(found), PAGE.name)


def keeper(found, real):
    """A function that writes the JSON and the page; docs/ only where the shapes are real and on a GPU."""
    folder, text = outputs_dir() / "bench", PAGE.read_text(encoding="utf-8")

    def keep():
        found["when"] = time.strftime("%Y-%m-%d")
        write_json(folder / "gpu.json", found)
        for path in [folder / "benchmarks.md", *([PAGE] if real else [])]:
            write_text(path, page(text, found))

    return keep


def about(args):
    """What the numbers are of: results of another machine, other versions or other shapes are not kept beside these."""
    described = machine.describe()
    versions = {name: described["versions"][name] for name in ("torch", "transformers", "peft", "trl", "bitsandbytes")
                if name in described["versions"]}  # fmt: skip
    hardware = described["hardware"]
    device = hardware["gpu"] if args.device == "cuda" else f"{hardware['cpu']}, {hardware['cores']} cores"
    where = ", ".join([device, *(f"{name} {version}" for name, version in versions.items())])
    return {"where": where + (", tiny shapes: a try-out of the program" if args.tiny else "")}


def parsed(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", action="append", choices=PARTS, help="default: all")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument(
        "--shape", action="append", choices=("tiny", "1b", "8b"), help="qat: default 1b and 8b; tiny: all"
    )
    parser.add_argument("--rows", type=int, default=4, help="qat: rows a step")
    parser.add_argument("--length", type=int, default=1024, help="qat: tokens a row")
    parser.add_argument("--checkpointing", action="store_true", help="qat: gradient checkpointing")
    parser.add_argument("--steps", type=int, default=8, help="timed steps")
    parser.add_argument("--set", default="", dest="overrides", help='train, recipe: "section.key=value ..."')
    args = parser.parse_args(argv)
    args.shape, args.part = args.shape or ["1b", "8b"], args.part or list(PARTS)
    args.tiny = args.shape == ["tiny"]
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; --device cpu --shape tiny tries the program out")
    return args


def main(argv=None):
    """The command line; returns the exit status."""
    args = parsed(argv)
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # for the libraries, which take a GPU where there is one
        torch.set_num_threads(1)  # more are many times slower beside any other load
    machine.quiet()
    found, path = about(args) | {"when": "", "rows": []}, outputs_dir() / "bench" / "gpu.json"
    if path.exists() and (earlier := read_json(path)).get("where") == found["where"]:
        found["rows"] = earlier["rows"]
    keep = keeper(found, args.device == "cuda" and not args.tiny)
    for part in [name for name in PARTS if name in args.part]:
        run(part, args, found["rows"], keep)
    keep()
    print(table(found))
    wrong = [row for row in found["rows"] if row["part"] in args.part and ("error" in row or row.get("differing"))]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
