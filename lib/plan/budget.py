"""Hours, dollars and disk of a recipe, before it runs. Every assumed number stands in params/prices.yaml.

FLOPs a token: 6 a trained parameter, 4 a frozen one that it passes through (forward, backward to the activations), and
attention over its document. Time is FLOPs over a planned share of the GPU's dense rate; gradient checkpointing adds a
forward pass. Generation is bound by memory instead: each token of a batch reads all weights once.
"""

import itertools
import re
from collections import Counter

from lib.dataset import curriculum, entries
from lib.model import shapes
from lib.pipeline.machine import LOGITS_BYTES, TIMED
from lib.plan import memory

OPTIONAL = ("07_preference", "04_qat", "05_export", "02_baseline")  # chapters a run can do without, least lost first


def load():
    """params/prices.yaml."""
    from lib.pipeline.files import ROOT
    from lib.pipeline.recipe import parse

    return parse((ROOT / "params" / "prices.yaml").read_text(encoding="utf-8"))


def rows(sections, assumed):
    """Training rows of all sources, each as often as data.stages uses it, before any filter.

    The test questions are not among them where they are drawn from the same sources.
    """
    data = sections["data"]
    counts = Counter()
    for role, source in entries.labelled(data).values():
        if role == "train":
            counts[source.get("label") or source["name"]] += counted(source, assumed)
    stages = curriculum.stages(data["stages"], counts)
    used = sum(counts[source] * weight for _, weights in stages for source, weight in weights.items())
    all_rows = sum(counts.values())
    left = max(0, all_rows - (0 if data["test_sources"] else data["test_questions"])) / max(1, all_rows)
    return int(used * left * (1 - data["eval_fraction"]))


def counted(source, assumed):
    """Rows of one source: those that counting.counted found, else what its split takes of the assumed count."""
    return source["rows"] if "rows" in source else taken(source, assumed["rows"].get(source["name"], 0))


def taken(source, count):
    """Rows that the split of a source, such as "train[:500]", takes of `count`."""
    found = re.search(r"\[(\d*):(\d*)\]", source.get("split") or "")
    return len(range(count)[slice(*(int(n) if n else None for n in found.groups()))]) if found else count


def tokens(sections, assumed, stage="sft"):
    """(training tokens, optimizer steps) of a stage; max_steps, where set, decides, else epochs over all rows."""
    fields = memory.settings(sections, stage)
    batch = fields["per_device_train_batch_size"] * fields["gradient_accumulation_steps"]
    row = min(assumed["lengths"]["row"], fields["max_length"])
    per_row = fields["max_length"] if fields["packing"] else row
    if fields["max_steps"] > 0:
        return fields["max_steps"] * batch * per_row, fields["max_steps"]
    total = rows(sections, assumed) * row * fields["num_train_epochs"]
    return int(total), max(1, round(total / (batch * per_row)))


def flops_per_token(trained, frozen, shape, context, checkpointing=False):
    """FLOPs of a training token from the parameters that it passes through and the tokens before it in its document."""
    size = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    attention = 4 * shape.num_hidden_layers * shape.num_attention_heads * size * context  # scores, and their values
    again = 2 * (trained + frozen) + attention if checkpointing else 0
    return 6 * trained + 4 * frozen + 3 * attention + again


def passed(sections, shape):
    """Parameters that a training token passes through, (trained, frozen), and the name of the rate in utilization."""
    counts = memory.counted(sections, shape)
    found = shapes.active(shape, counts["parts"])
    job = "qlora" if sections["model"]["quantization"] else "lora"
    job = "experts" if counts["parts"]["experts"] else job
    if not sections["lora"]:
        return found, 0, job
    return counts["adapter"] - shapes.idle(shape, counts["adapted experts"]), found, job


def training_hours(sections, shape, gpu, assumed, stage="sft"):
    """Hours of one training run: {"hours", "tokens", "steps", "flops", "job": the utilization planned with}."""
    fields = memory.settings(sections, stage)
    trained, frozen, job = passed(sections, shape)
    number, steps = tokens(sections, assumed, stage)
    context = min(assumed["lengths"]["row"], fields["max_length"]) / 2
    per_token = flops_per_token(trained, frozen, shape, context, fields["gradient_checkpointing"])
    if fields["loss_type"] == "distill":
        per_token += 2 * (frozen or trained)
    seconds = number * per_token / (gpu["tflops"] * 1e12 * assumed["utilization"][job])
    return {"hours": seconds / 3600, "tokens": number, "steps": steps, "flops": number * per_token, "job": job}


def asked(sections, chapter="02_baseline"):
    """{what: prompts} that a chapter has answered: the test questions, both sides of the screens, the cases.

    Chapter 3 asks the questions after each of several stages as well. Chapter 5 asks each file the questions alone, or
    as many as export.questions says, and the first TIMED again, by themselves.
    """
    data = sections["data"]
    questions, stages = data["test_questions"], len(data["stages"])
    if chapter == "05_export":
        questions = min(questions, sections["export"]["questions"] or questions)
        return {"test questions": questions, "of these alone": min(TIMED, questions)}
    again = {"of these again after stages": stages * questions} if chapter == "03_sft" and stages > 1 else {}
    return {"test questions": questions} | again | {"safety prompts": 2 * data["screens"], "cases": data["cases"]}


def prompts(sections, chapter="02_baseline"):
    """All of `asked`."""
    return sum(asked(sections, chapter).values())


def answering_hours(sections, shape, gpu, assumed, bytes_read, chapter="02_baseline"):
    """Hours to answer the `prompts` of a chapter, in chapter 5 of one file, when all answers take max_new_tokens.

    bytes_read: of weights a token.
    """
    chat, served = sections["chat"], chapter == "05_export"
    questions, job = prompts(sections, chapter), "served" if served else "decode"
    at_once = sections["export"]["slots"] * sections["export"]["servers"] if served else chat["batch_size"]
    batches = -(-questions // at_once)
    return reading_hours(batches * chat["max_new_tokens"] * bytes_read, gpu, assumed, job)


def reading_hours(bytes_read, gpu, assumed, job):
    """Hours to read so many bytes of weights, all batches and tokens together. job: decode or served."""
    return bytes_read / (gpu["bandwidth_gb_s"] * 1e9 * assumed["utilization"][job]) / 3600


def arms(sections):
    """Training runs of chapter 4: a control, the usual way and ours, each over all seeds; 0 without qat."""
    if not sections["qat"]:
        return 0
    ways = 2 if sections["qat"]["scheme"] == "int4_weight_only" else 3
    return ways * len({sections["run"]["seed"], *sections["qat"]["seeds"]})


def on_the_grid(sections, assumed, sizes):
    """Bytes of chapter 4's files: control, the same with an importance matrix, usual int4, ours; [] without qat."""
    if not sections["qat"]:
        return []
    scheme = sections["qat"]["scheme"]
    usual = scheme == "int4_weight_only"  # is ours then, and exported as q4_0
    bits = assumed["disk"]["q4_0" if usual else scheme][0] / assumed["disk"]["bf16"][0]
    return (3 if usual else 4) * [int(bits * sizes["bf16"])]


def time(sections, shape, gpu, assumed):
    """[{"stage", "what", "hours", "usd"}] for one GPU; stages whose time is the CPU's are left out."""
    parts = memory.counted(sections, shape)["parts"]
    answers = {}
    for chapter in ("02_baseline", "03_sft"):
        hours = answering_hours(sections, shape, gpu, assumed, 2 * sum(parts.values()), chapter)
        made_of = ", ".join(f"{number:,} {what}" for what, number in asked(sections, chapter).items() if number)
        answers[chapter] = (f"{prompts(sections, chapter):,} answers: {made_of}", hours)
    sizes = files(sections, shape, assumed)
    read = [*sizes.values(), *on_the_grid(sections, assumed, sizes)]
    served = sum(answering_hours(sections, shape, gpu, assumed, size, "05_export") for size in read)
    sft = training_hours(sections, shape, gpu, assumed)
    found = [("02_baseline", *answers["02_baseline"])]
    what = f"{sft['steps']:,} steps, {sft['tokens'] / 1e6:,.0f}M tokens, {sft['flops']:.1e} FLOP, at {sft['job']} rate"
    found += [("03_sft", what, sft["hours"]), ("03_sft", *answers["03_sft"])]
    if number := arms(sections):
        qat = training_hours(sections, shape, gpu, assumed, "qat")
        found.append(("04_qat", f"{number} runs of {qat['steps']:,} steps", number * qat["hours"]))
    found.append(("05_export", f"answers of {len(read)} files", served))
    return [
        {"stage": stage, "what": what, "hours": hours, "usd": hours * gpu["usd_per_hour"]}
        for stage, what, hours in found
    ]


def judging(sections, assumed):
    """[{"judge", "calls", "usd"}] of chapter 6; usd is None for a judge without a price."""
    judge, found = sections["judge"] or {"judges": []}, []
    for name in judge["judges"]:
        if name == "lexical":
            continue
        models = len(judge["candidates"])
        calls = judge["questions"] * models * (1 + models % 2)  # Williams squares: an odd number takes twice the rows
        price = next((p for n, p in assumed["judges"].items() if name == n or name.startswith(f"{n}-20")), None)
        lengths = assumed["lengths"]
        sent = lengths["prompt"] + models * lengths["judged"]
        usd = price and calls * (sent * price["input"] + lengths["verdict"] * price["output"]) / 1e6
        found.append({"judge": name, "calls": calls, "usd": usd})
    return found


def files(sections, shape, assumed):
    """{GGUF type: bytes} of one model's files, the 16-bit one first."""
    counts = memory.counted(sections, shape)
    total = sum(counts["parts"].values())
    types = ["bf16", *sections["export"]["quantizations"]]
    return {type: int(total * assumed["disk"][type][0 if counts["whole"] else 1] / 8) for type in types}


def disk(sections, shape, assumed):
    """{what: bytes} that chapters 1 to 5 have on disk at most: caches are kept, so a run again is short."""
    counts, fields = memory.counted(sections, shape), memory.settings(sections)
    total, runs = sum(counts["parts"].values()), arms(sections)
    whole, seeds = 2 * total, len({sections["run"]["seed"], *sections["qat"]["seeds"]}) if runs else 0
    trained, stages = counts["adapter"] if sections["lora"] else total, len(sections["data"]["stages"])
    gguf, kept = files(sections, shape, assumed), fields["save_total_limit"] or 3
    grid = on_the_grid(sections, assumed, gguf)
    unrounded = (runs // seeds - 1) * (2 if seeds > 1 else 1) if runs else 0  # further seeds share the cache
    found = {
        "base from the hub": whole,
        "base in 4 bits, cached": sum(memory.weights(sections, shape).values())
        if sections["model"]["checkpoint_4bit"]
        else 0,
        f"checkpoints, {kept} of each run": kept * (max(1, stages) + runs) * trained * 12,  # and two states, float32
        "adapters": 4 * counts["adapter"] * (1 + (stages if stages > 1 else 0) + (runs // seeds if runs else 0)),
        "merged models of chapters 3 and 4": whole * (2 if runs else 1),  # that of an arm is gone before chapter 5
        "GGUF files of chapter 4": unrounded * gguf["bf16"] + grid[0] if runs else 0,
        "GGUF files of chapter 5": sum(gguf.values()) + (2 if runs else 1) * gguf["bf16"] + sum(grid),
        # the base's weights are gone once its file is there, before anything is measured
        "chapter 5: the base, then logits and a file in float32": max(
            whole, (2 * whole + 2 * LOGITS_BYTES) if runs else LOGITS_BYTES
        ),
    }
    return {what: size for what, size in found.items() if size}


def remaining(sections, left, time, disk):
    """(hours, GiB) of a recipe without the chapters in `left`; time and disk count those of sections."""
    nulls = {"04_qat": "qat", "07_preference": "preference"}
    cut = sections | {nulls[name]: None for name in left if name in nulls}
    hours = sum(row["hours"] for row in time(cut) if row["stage"] not in left)
    export = "05_export" not in left
    return hours, sum(size for what, size in disk(cut).items() if export or "chapter 5" not in what) / memory.GIB


def session(sections, gpu, time, disk):
    """Yield what a hosted session with this GPU does not hold, and the fewest chapters to leave out, if that helps."""
    limits = (gpu.get("session_h"), gpu.get("disk_gib"))
    said = (f"longer than a {limits[0]} h session", f"more than {limits[1]} GiB of Colab's disk")
    ways = [way for size in range(len(OPTIONAL) + 1) for way in itertools.combinations(OPTIONAL, size)]
    ways = [way for way in ways if "02_baseline" not in way or "05_export" in way]  # which needs it
    for place, limit in enumerate(limits):
        way = next((way for way in ways if not limit or remaining(sections, way, time, disk)[place] <= limit), None)
        if way != ():
            yield said[place] + (f": leave out {' and '.join(way)}" if way else ", whatever chapter is left out")
