"""Rows of preference sets as pairs: a user's own, published ones, and answers that a rubric has scored.

As in chapter 1, kept + every reject reason = rows read, and what is read by which column is said.
"""

import itertools

from lib.dataset import clinic, conversations, ingest, readers, sources
from lib.dataset.choices import Reject, clean
from lib.preference import clinic_pairs, pairs

COLUMNS = {  # what a pair is read from: names under which it is known, in lower case
    "prompt": ("prompt", "question", "instruction", "query"),
    "chosen": ("chosen", "preferred"),
    "rejected": ("rejected", "dispreferred"),
    "system": ("system", "system_prompt"),
}
PEEK = 100  # rows whose columns are looked at


def preference(row):
    """question, messages, chosen and rejected of a row with prompt, chosen, rejected, system. Raises Reject.

    The prompt is text or messages; a side is text, the messages after the prompt, or the whole conversation, which may
    do without a prompt. Reasons besides those of lib.dataset.conversations: prompt_conflict, where a conversation asks
    something else than the prompt, and no_common_prompt, where the two sides answer different ones.
    """
    opening = conversations.conversation([{"role": "system", "content": row["system"]}] if row.get("system") else [])
    if row.get("prompt"):
        prompt = conversations.listed(row["prompt"])
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": clean(prompt, "empty_question")}]
        opening += conversations.conversation(prompt)
    sides = [_exchange(opening, row[side]) for side in pairs.SIDES]
    asked, before = ([side[key] for side in sides] for key in ("instruction", "history"))
    if asked[0] != asked[1] or before[0] != before[1]:
        raise Reject("no_common_prompt")
    if row.get("prompt") and asked[0] != opening[-1]["content"]:
        raise Reject("prompt_conflict")
    return {"question": asked[0], "messages": before[0]} | _sides(*sides)


def _exchange(opening, value):
    value = conversations.listed(value)
    if value is None or isinstance(value, str):
        value = [{"role": "assistant", "content": clean(value, "empty_answer")}]
    said = conversations.conversation(value)
    if said and said[0]["role"] != "assistant":  # the whole conversation
        opening = [turn for turn in opening if turn["role"] == "system" != said[0]["role"]]
    return conversations.last_exchange(opening + said)


def _sides(*sides):
    return {name: {part: side[part] for part in ("reasoning", "output")}
            for name, side in zip(pairs.SIDES, sides, strict=True)}  # fmt: skip


def rubric(row):
    """The same of a HealthBench row with "candidates", answers that its rubric has scored: best against worst.

    candidates: [{"output": text, "met": a truth value for each criterion}]; an answer is worth the points it meets.
    Raises Reject: unscored for a candidate without a verdict on each criterion, no_contrast where all are worth alike.
    """
    scored = []
    for candidate in row["candidates"]:
        met = candidate.get("met")
        if not isinstance(met, list) or len(met) != len(row["rubrics"]) or not all(type(m) is bool for m in met):
            raise Reject("unscored")
        points = sum(entry["points"] for entry, hit in zip(row["rubrics"], met, strict=True) if hit)
        scored.append((points, {"output": candidate["output"]}))
    best, worst = pairs.contrast(scored)
    return preference({"prompt": row["prompt"], "chosen": best["output"], "rejected": worst["output"]})


# "prompt_id" of UltraMedical opens with the set that a question comes from; its test file has other columns than the
# rest, so that the files are read one by one. Schemas are those of the cards: no live row was seen.
SOURCES = {
    "own": sources.Source("", "unknown", "", (), preference, commercial=None),
    "rubrics": sources.Source("", "unknown", "", ("prompt", "rubrics", "candidates"), rubric, commercial=None),
    "ultramedical": sources.Source(
        "TsinghuaC3I/UltraMedical-Preference",
        "MIT",
        "Zhang et al. (2024), UltraMedical: Building Specialized Generalists in Biomedicine, arXiv:2406.03949",
        ("prompt", "chosen", "rejected"),
        preference,
        optional=("prompt_id",),
        configs=("train",),
        files={"train": "data/train.json"},
        column="prompt_id",
    ),
    "ultrafeedback": sources.Source(
        "HuggingFaceH4/ultrafeedback_binarized",
        "MIT",
        "Cui et al. (2023), UltraFeedback: Boosting Language Models with High-quality Feedback, arXiv:2310.01377",
        ("prompt", "chosen", "rejected"),
        preference,
    ),
}
USUAL = {"ultramedical": {"config": "train"}, "ultrafeedback": {"split": "train_prefs"}}


def terms(spec):
    """{"licence", "commercial", "citation"} of an entry of preference.data; its own words go before."""
    if spec["name"] == "clinic":
        return sources.terms(sources.credited({"name": "own"}, "clinic"))
    source = SOURCES[spec["name"]]
    return {key: spec.get(key, getattr(source, key)) for key in ("licence", "commercial", "citation")}


def read(spec, reasons, local=None, count=64, seed=0, split="train"):
    """Yield the pairs of one entry of preference.data.

    spec: {"name": "clinic", "axes"}, or the name of a source with path, config, split, revision, columns ({role:
    column}, of a file of one's own), axis (`name` when absent), label, max_rejected. local: stage.file. count, seed,
    split: of the clinic's pairs, see clinic_pairs.pairs. reasons: see pairs.counted. Raises ValueError where a column
    is missing, none is kept, or of a file more than max_rejected (a fifth) is rejected. Other columns are not read.
    """
    local = local or (lambda name: readers.ROOT / name)
    if spec["name"] == "clinic":
        axes, world = spec.get("axes") or clinic_pairs.AXES, clinic.load(local("data/clinic.yaml"))
        made = clinic_pairs.pairs(axes, count, seed, split, world)
        yield from pairs.counted(made, lambda _, pair: pair, reasons)
        return
    spec = USUAL.get(spec["name"], {}) | {key: value for key, value in spec.items() if value is not None}
    source, label, failed = SOURCES[spec["name"]], spec.get("label") or spec["name"], {}
    if spec.get("path") or not source.hub_id:
        rows = iter(readers.copied_rows(source, spec, local))
    else:
        rows = readers.hub_rows(source, spec)
    first = list(itertools.islice(rows, PEEK))
    found = dict.fromkeys(column for row in first if isinstance(row, dict) for column in row)
    sources.require_columns(spec, found, source)
    columns = _columns(found, spec) if spec["name"] == "own" else {}

    def made(number, row):
        if not isinstance(row, dict):
            raise Reject("not_an_object")
        if any(column not in row for column in (*source.columns, *columns.values())):
            raise Reject("missing_column")
        cells = {role: row[column] for role, column in columns.items()} if columns else row
        pair = {"id": f"{label}:{number}", "axis": spec.get("axis") or spec["name"], "source": label}
        named = str(row.get(source.column) or "").partition(",")[0].casefold()
        try:
            return pair | source.convert(cells) | ({"benchmark": named} if named else {})
        except (AttributeError, KeyError, TypeError) as error:  # a cell of another form than the set's card shows
            raise Reject("wrong_type") from error

    yield from pairs.counted(itertools.chain(first, rows), made, reasons, failed)
    ingest.check(reasons, failed, spec, label, 0)


def _columns(found, spec):
    """{role: column} of a user's own file, as its entry says or as its columns are known. Raises ValueError."""
    told = spec.get("columns") or {}
    known = {role: next((c for c in found if str(c).strip().casefold() in names), None)
             for role, names in COLUMNS.items()}  # fmt: skip
    columns = {role: column for role, column in (known | told).items() if column}
    wrong = [role for role in pairs.SIDES if columns.get(role) not in found]
    if wrong or not set(columns.values()) <= set(found) or not set(columns) <= set(COLUMNS):
        raise ValueError(
            f"preference.data, {spec.get('path')}: found the columns {list(found)}, read as {columns}; expected chosen "
            "and rejected, and prompt unless these are whole conversations. In its entry say which they are: "
            "columns: {prompt: ..., chosen: ..., rejected: ..., system: ...}"
        )
    return columns
