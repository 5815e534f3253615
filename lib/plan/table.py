"""Every recipe on every GPU, planned and not measured: `python -m lib.plan.table` writes it into the docs.

A recipe is taken as it stands. Where it does not fit, the table says with which settings it does, and plans with them.
"""

import sys
from pathlib import Path

from lib.pipeline.files import ROOT, between, write_text
from lib.plan import fit

from lib.model import shapes  # isort: skip - after fit, which keeps the libraries quiet
from lib.pipeline import recipe  # isort: skip
from lib.plan import budget, memory  # isort: skip

PAGE = ROOT / "docs" / "cluster-and-cloud.md"
GPUS = {"t4": "T4", "l4": "L4", "a100-40gb": "A100 40", "a100-80gb": "A100 80", "h100": "H100", "h200": "H200",
        "mi300x": "MI300X"}  # fmt: skip
START, END = "<!-- plan:start -->", "<!-- plan:end -->"


def names():
    """The recipes whose base is no twin, in the order of their files."""
    found = sorted(path.stem for path in Path(ROOT, "params").glob("*.yaml") if path.stem != "prices")
    return [name for name in found if recipe.load(name).model["base"] != "twin"]


def planned(name, gpu, assumed):
    """{"set": what to change, "hours", "usd", "gib": of disk} of a recipe on a GPU; None where nothing makes it fit.

    gpu: an entry of params/prices.yaml. Chapter 4's training is left out where no micro-batch of it fits.
    """
    sections, said = recipe.load(name).sections(), []
    if not gpu["bf16"] and sections["model"]["dtype"] == "bfloat16":
        sections, said = fit.changed(sections, model={"dtype": "float16"}), ["model.dtype=float16"]
    sections = fit.on(sections, gpu)
    shape = shapes.config(sections["model"]["base"], sections["model"]["twin"])
    if shapes.experts(shape) and not gpu["bf16"]:  # torch multiplies them in bfloat16 only
        return None
    rounded, sections = _on_the_grid(sections, shape, gpu, assumed)
    words, sections = fit.fitted(sections, shape, gpu, assumed)
    if words is None:
        return None
    said += rounded + words
    batch = sections["chat"]["batch_size"]
    while batch > 1 and not _answers(sections, batch, shape, gpu, assumed):
        batch //= 2
    if batch < sections["chat"]["batch_size"]:
        sections = fit.changed(sections, chat={"batch_size": batch})
        said.append(f"chat.batch_size={batch}")
    rows = fit.time(sections, shape, gpu, assumed)
    hours, usd = (sum(row[key] for row in rows) for key in ("hours", "usd"))
    size = sum(fit.disk(sections, shape, assumed).values()) / memory.GIB
    return {"set": said, "hours": hours, "usd": usd, "gib": size}


def _on_the_grid(sections, shape, gpu, assumed):
    """(settings, sections) with which an arm of chapter 4 fits: smaller micro-batches, or chapter 4 left out."""
    said = []
    while sections["qat"] and not _rounds(sections, shape, gpu, assumed):
        smaller = fit.halved(memory.settings(sections, "qat"))
        said = [f"qat.{key}={value}" for key, value in smaller.items()] or _without(sections["judge"])
        sections = fit.changed(sections, qat=smaller) if smaller else sections | {"qat": None}
    return said, sections


def _without(judge):
    """The settings that leave chapter 4's training out, and its model as a candidate of chapter 6."""
    others = [name for name in (judge or {"candidates": []})["candidates"] if name != "qat"]
    return ["qat=null", *([f"judge.candidates=[{','.join(others)}]"] if judge else [])]


def _rounds(sections, shape, gpu, assumed):
    phases = memory.memory(sections, shape, gpu, assumed, "qat", memory.PHASES[:2])
    return all(memory.needed(parts, assumed) <= gpu["memory_gib"] * memory.GIB for parts in phases.values())


def _answers(sections, batch, shape, gpu, assumed):
    smaller = fit.changed(sections, chat={"batch_size": batch})
    [parts] = memory.memory(smaller, shape, gpu, assumed, phases=("generation",)).values()
    return memory.needed(parts, assumed) <= gpu["memory_gib"] * memory.GIB


def lines(name, assumed):
    """(the table's row of a recipe, a line for each GPU on which something is to be changed)."""
    found = {gpu: planned(name, memory.gpu(gpu, assumed), assumed) for gpu in GPUS}
    cells = [_cell(plan) for plan in found.values()]
    sizes = [plan["gib"] for plan in found.values() if plan]
    row = f"| `{name}` | {max(sizes):.0f} | {' | '.join(cells)} |"
    changes = {}
    for gpu, plan in found.items():
        if plan and plan["set"]:
            changes.setdefault(" ".join(plan["set"]), []).append(GPUS[gpu])
    return row, [f"- `{name}` on {', '.join(gpus)}: `{words}`" for words, gpus in changes.items()]


def _cell(plan):
    return f"{_short(plan['hours'])} h, {_short(plan['usd'])} USD{'*' if plan['set'] else ''}" if plan else "no"


def _short(number):
    return f"{number:.0f}" if number >= 10 else f"{number:.1f}" if number >= 1 else f"{number:.1g}"


def table(assumed):
    """The table of all recipes, and what to change, as Markdown."""
    found = [lines(name, assumed) for name in names()]
    head = [f"| recipe | disk, GiB | {' | '.join(GPUS.values())} |", "|:--|--:|" + "--:|" * len(GPUS)]
    changes = [line for _, own in found for line in own]
    return "\n".join([*head, *(row for row, _ in found), "", "To change where there is a star:", "", *changes, ""])


def main():
    made = f"\n{table(budget.load())}"
    write_text(PAGE, between(PAGE.read_text(encoding="utf-8"), START, END, made, PAGE.name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
