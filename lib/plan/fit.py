"""Will it fit, how long, how much: `python -m lib.plan.fit --recipe x --gpu y`, before anything is downloaded.

Memory by part and phase (memory.py), hours, dollars and disk (budget.py), and what to change where a phase does
not fit. One GPU; what is assumed is printed, and stands in params/prices.yaml.
"""

import itertools
import os
import sys
from pathlib import Path

import pandas as pd

from lib.pipeline import compilers, machine

machine.quiet()  # before the libraries below are loaded, which say what they lack on this machine

from lib.model import layout, shapes  # noqa: E402
from lib.pipeline import hub, recipe  # noqa: E402
from lib.pipeline.files import rooted  # noqa: E402
from lib.plan import budget, counting, memory  # noqa: E402

GIB = memory.GIB
NF4_SET = "{load_in_4bit: true, bnb_4bit_quant_type: nf4, bnb_4bit_use_double_quant: true}"
NF4 = recipe.parse(NF4_SET)
SHORTEST = 512  # tokens; below it most answers would be cut


def changed(sections, **overrides):
    """The sections with overrides laid over them: changed(s, sft={"max_length": 512})."""
    return sections | {name: recipe.merge(sections[name], values) for name, values in overrides.items()}


def on(sections, gpu):
    """The sections as this GPU runs them: dtype auto, and what 4-bit weights compute in, follow from it."""
    dtype = sections["model"]["dtype"]
    if dtype == "auto":
        dtype = "bfloat16" if gpu["bf16"] else "float16"
    quantization = sections["model"]["quantization"]
    if quantization and quantization.get("load_in_4bit"):
        quantization = {"bnb_4bit_compute_dtype": dtype} | quantization
    return changed(sections, model={"dtype": dtype, "quantization": quantization})


def halved(fields):
    """The fields of half a micro-batch, with as many rows a step; {} for one that has no half."""
    rows, times = fields["per_device_train_batch_size"], 2 * fields["gradient_accumulation_steps"]
    if rows % 2:
        return {}
    found = {"per_device_train_batch_size": rows // 2, "gradient_accumulation_steps": times}
    return found | {"per_device_eval_batch_size": min(rows // 2, fields["per_device_eval_batch_size"])}


def changes(sections):
    """Ever smaller versions of a recipe: yields (what was changed so far, sections), in the order to try them.

    Checkpointing first, which costs a third more time and changes no number; then micro-batches, with as many rows a
    step; then what changes results: 4-bit weights, shorter rows.
    """
    said = []
    fields = memory.settings(sections)

    def now(text, **overrides):
        nonlocal sections
        said.append(text)
        sections = changed(sections, **overrides)
        return list(said), sections

    if not fields["gradient_checkpointing"]:
        yield now("sft.gradient_checkpointing=true", sft={"gradient_checkpointing": True})
    while smaller := halved(fields):
        fields |= smaller
        said = [text for text in said if "batch_size" not in text and "accumulation" not in text]
        yield now(" ".join(f"sft.{key}={value}" for key, value in smaller.items()), sft=smaller)
    if fields["per_device_eval_batch_size"] > 1 == fields["per_device_train_batch_size"]:
        yield now("sft.per_device_eval_batch_size=1", sft={"per_device_eval_batch_size": 1})
    if sections["lora"] and not sections["model"]["quantization"] and not sections["qat"]:
        yield now(f"model.quantization='{NF4_SET}'", model={"quantization": NF4})
    length = fields["max_length"]
    while length >= 2 * SHORTEST:
        length //= 2
        said = [text for text in said if "max_length" not in text]
        yield now(f"sft.max_length={length}", sft={"max_length": length})


def fits(sections, shape, gpu, assumed):
    """Whether training and evaluation of chapter 3 fit on the GPU."""
    phases = memory.memory(sections, shape, gpu, assumed, phases=("training", "evaluation"))
    return all(memory.needed(parts, assumed) <= gpu["memory_gib"] * GIB for parts in phases.values())


def fitted(sections, shape, gpu, assumed):
    """(settings, the sections with them): the first of `changes` with which training fits, none where it does already.

    (None, None) where nothing makes it fit.
    """
    tried = itertools.chain([([], sections)], changes(sections))
    return next((found for found in tried if fits(found[1], shape, gpu, assumed)), (None, None))


def remedy(sections, shape, gpu, assumed):
    """The settings of `fitted`."""
    return fitted(sections, shape, gpu, assumed)[0]


def fit(sections, shape, assumed):
    """{GPU: {phase: GiB needed, "remedy": as `remedy`}} for every GPU of params/prices.yaml."""
    found = {}
    for name, gpu in assumed["gpus"].items():
        phases = memory.memory(sections, shape, gpu, assumed)
        found[name] = {phase: memory.needed(parts, assumed) / GIB for phase, parts in phases.items()}
        found[name]["remedy"] = remedy(sections, shape, gpu, assumed)
    return found


def access(model, look=hub.look):
    """What stands between this machine and a base of the hub, in words that say what to do; "" where nothing does.

    model: the recipe's section. look(base, revision) asks the hub.
    """
    base = model["base"]
    if base == "twin" or "/" not in base or Path(rooted(base)).is_dir():
        return ""
    try:
        look(base, model["revision"])
    except hub.Unreachable:
        return "the hub is not reachable from here: model.base must be a local folder when the recipe runs"
    except hub.Refused as refusal:
        return str(refusal)
    return ""


def _table(title, rows):
    """Print a frame with numbers in two decimals; what is missing stays blank."""
    print(f"\n{title}", rows.to_string(float_format="{:,.2f}".format, na_rep=""), sep="\n")


def _memory_tables(sections, shape, gpu, assumed):
    found = {"chapter 3": memory.memory(sections, shape, gpu, assumed)}
    if sections["qat"]:  # merge and generation are as in chapter 3
        found["an arm of chapter 4"] = memory.memory(sections, shape, gpu, assumed, "qat", memory.PHASES[:2])
    if sections["preference"]:
        found["chapter 7"] = _preference().memory_phases(sections, shape, gpu, assumed)
    for chapter, phases in found.items():
        rows = pd.concat([pd.Series(parts, name=phase) for phase, parts in phases.items()], axis=1) / GIB
        needed = pd.Series({phase: memory.needed(parts, assumed) for phase, parts in phases.items()}) / GIB
        rows.loc["allocated"], rows.loc["needed"] = rows.sum(), needed
        rows = rows.astype(object)  # words below numbers
        rows.loc[f"fits in {gpu['memory_gib']}"] = (needed <= gpu["memory_gib"]).map({True: "yes", False: "NO"})
        _table(f"Memory, GiB, {chapter}", rows)


def _preference():
    from lib.plan import preference  # loads TRL's trainers, which few recipes need

    return preference


def time(sections, shape, gpu, assumed):
    """Rows of budget.time, chapter 7's among them where the recipe has it."""
    found = budget.time(sections, shape, gpu, assumed)
    return found + (_preference().time(sections, shape, gpu, assumed) if sections["preference"] else [])


def disk(sections, shape, assumed):
    """What budget.disk counts, chapter 7's files among it where the recipe has it."""
    found = budget.disk(sections, shape, assumed)
    return found | (_preference().disk(sections, shape, assumed) if sections["preference"] else {})


def _warnings(sections, shape, gpu, assumed):
    if compilers.missing():
        served = sum(row["hours"] for row in budget.time(sections, shape, gpu, assumed) if row["stage"] == "05_export")
        hours = served * gpu["bandwidth_gb_s"] / assumed["cpu_bandwidth_gb_s"]
        yield f"no nvcc beside this machine's GPU: llama.cpp runs on the CPU, and chapter 5 answers for {hours:,.1f} h"
    model = sections["model"]
    compute = (model["quantization"] or {}).get("bnb_4bit_compute_dtype")
    if not gpu["bf16"] and "bfloat16" in (model["dtype"], compute):
        yield "this GPU has no bfloat16 arithmetic: set model.dtype (and bnb_4bit_compute_dtype) to float16"
    if refused := access(model):
        yield refused
    if (model["quantization"] or {}).get("load_in_4bit") and shapes.experts(shape):
        yield "the experts are no linear layers: 4 bits leave them as they are"
    yield from counting.warnings(sections, assumed)
    yield from budget.session(
        sections, gpu, lambda cut: time(cut, shape, gpu, assumed), lambda cut: disk(cut, shape, assumed)
    )


def report(sections, shape, name, assumed):
    """Print the plan of a recipe for one GPU, with the GPUs that fit and all assumptions."""
    gpu, fields = memory.gpu(name, assumed), memory.settings(sections)
    counts = memory.counted(sections, shape)
    total = sum(counts["parts"].values())
    print(f"{sections['model']['base']}: {total:,} parameters, {counts['adapter']:,} in the adapter")
    print({key: fields[key] for key in ("per_device_train_batch_size", "gradient_accumulation_steps", "max_length",
          "packing", "gradient_checkpointing", "optim", "loss_type", "per_device_eval_batch_size")})  # fmt: skip
    _memory_tables(sections, shape, gpu, assumed)
    found = fit(sections, shape, assumed)
    has = pd.Series({n: assumed["gpus"][n]["memory_gib"] for n in found}, name="has")
    rows = pd.DataFrame(found).T.drop(columns="remedy")
    marks = rows.apply(lambda phase: phase.map("{:.1f}".format) + (phase > has).map({True: " NO", False: ""}))
    _table("Needed on each GPU, GiB", pd.concat([has.map("{:.1f}".format), marks], axis=1))
    for n, v in found.items():
        if v["remedy"] is None or v["remedy"]:
            print(f'  {n}, to train: SET="{" ".join(v["remedy"])}"' if v["remedy"] else f"  {n}: nothing here fits")
    if found[name]["merge"] > gpu["memory_gib"]:
        print("  merge: chapter 3 adds the adapter to one matrix after the other, on the training device")
    print("", *counting.lines(sections, assumed), sep="\n")
    rows = pd.DataFrame(time(sections, shape, gpu, assumed)).set_index("stage")
    rows.loc["total"] = ["", *rows[["hours", "usd"]].sum()]
    _table(f"Time on one {name}", rows.rename(columns={"usd": "USD"}).rename_axis(None))
    for j in budget.judging(sections, assumed):
        price = "no price known" if j["usd"] is None else f"{j['usd']:.2f} USD"
        print(f"06_judge  {j['judge']}: {j['calls']} calls, {price} (judge.max_usd {sections['judge']['max_usd']})")
    left = pd.Series(disk(sections, shape, assumed)) / GIB
    left.loc["total"] = left.sum()
    _table("Disk", left.to_frame("GiB"))
    for warning in _warnings(sections, shape, gpu, assumed):
        print(f"WARNING: {warning}")
    print(f"\nAssumed (params/prices.yaml): {name} {gpu}; utilization {assumed['utilization']}; margins "
          f"{assumed['margins']}; lengths {assumed['lengths']}")  # fmt: skip


def main(arguments=None):
    """The command line; returns the exit status, 1 when training does not fit on the GPU."""
    parser = recipe.parser(__doc__)
    parser.add_argument("--gpu", default=os.environ.get("GPU"), help="an entry of gpus in params/prices.yaml")
    given = parser.parse_args(arguments)
    try:
        assumed = budget.load()
        name = memory.gpu_name(given.gpu or "a100-80gb", assumed)
        sections = counting.counted(on(recipe.chosen(given).sections(), gpu := memory.gpu(name, assumed)))
        shape = shapes.config(sections["model"]["base"], sections["model"]["twin"])
        if shapes.experts(shape) and sections["model"]["dtype"] != "bfloat16":
            raise ValueError("torch multiplies stacked experts in bfloat16 only: add SET=model.dtype=bfloat16")
        try:
            layout.check(shape, bool(sections["qat"]))
        except FileNotFoundError as error:
            print(f"Whether this family has a GGUF form was not checked: {error}")
        report(sections, shape, name, assumed)
    except (ValueError, FileNotFoundError) as error:
        print(f"plan: {error}", file=sys.stderr)
        return 2
    return 0 if fits(sections, shape, gpu, assumed) else 1


if __name__ == "__main__":
    sys.exit(main())
