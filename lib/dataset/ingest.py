"""Records made of raw rows. No row can stop a run: kept + every reject reason = rows read.

A record is one example with its provenance. The reasons are listed in data/README.md.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from lib.dataset import recognise
from lib.dataset.choices import Reject, clean
from lib.dataset.shapes import Unread
from lib.dataset.sources import Source, lookup, require_columns

CHOSEN = ("reasoning_too_short", "answer_hidden",  # what the recipe or the publisher keeps out,
          "opening_turn", "closing_turn")  # and what no question or no answer belongs to  # fmt: skip


def stream(name: str, rows: Iterable, spec: dict, reasons: Counter, min_reasoning_chars: int = 0) -> Iterator[dict]:
    """Yield the records that raw rows give, one at a time; `reasons` counts where every row went.

    spec: as for `rows`; gives the records' config, split, revision, and label and licence from entries.labelled; for a
        user's own file also columns.
    reasons: filled with "kept" and every reject reason; once all is read it sums to the rows read, where a conversation
        counts once for each answer that is trained.
    min_reasoning_chars: rows whose reasoning is shorter are counted as reasoning_too_short, but for sources that have
        none by design (verifiable, medqa, medqa_bigbio, ReasonMed's responses) and files without any. 0 for tests.
    Raises ValueError at the end when there was no row, when a column is missing from all, when none was kept, or when
    more rows of a file than its entry's max_rejected (a fifth) failed; shapes.Unread for a cell that nothing reads.
    """
    source, rows = read_as(name, rows, spec)
    columns, seen, failed = {}, set(), {}
    parts = (spec.get("label") or name, spec.get("config"), spec.get("split") or "train")
    place, lacking, at_least = ":".join(filter(None, parts)), set(source.columns), min_reasoning_chars
    at_least = at_least if source.reasoned else 0
    head = {"id": "", "source": parts[0], "config": parts[1], "split": parts[2], "revision": spec.get("revision"),
            "row": 0, "row_id": None, "benchmark": None, "licence": spec.get("licence") or source.licence,
            "history": []}  # fmt: skip
    for number, whole in enumerate(rows):
        if lacking and isinstance(whole, dict):
            lacking.difference_update(whole)
            columns.update(dict.fromkeys(whole))
        for part, row in enumerate(source.parts(whole) if source.parts else (whole,)):
            try:
                fields = convert_row(source, row, at_least, seen)
            except Reject as reject:
                reasons[str(reject)] += 1
                lacks = [c for c in source.columns if c not in row] if isinstance(row, dict) else []
                failed.setdefault(str(reject), (number, row, lacks))
                continue
            except Unread:
                raise
            except Exception:  # noqa: BLE001 - a converter's own fault must not stop a run of 400k rows: it is counted
                reasons["converter_error"] += 1
                failed.setdefault("converter_error", (number, row))
                continue
            reasons["kept"] += 1
            record = head | fields
            record["id"], record["row"] = f"{place}:{number}.{part}" if part else f"{place}:{number}", number
            yield record
    if columns and lacking:
        require_columns({"name": name} | spec, columns)
    check(reasons, failed, spec, parts[0], at_least)


def read_as(name: str, rows: Iterable, spec: dict) -> tuple[Source, Iterable]:
    """(the Source that tells how rows are read, all of the rows); of a user's own file, as its first rows show."""
    source = lookup(name, spec.get("config"))
    if source.hub_id:
        copied = name == "medmcqa" and spec.get("path")
        return recognise.counted(source, rows, spec["path"]) if copied else (source, rows)
    shape, rows = recognise.read_as(rows, spec, spec.get("path") or name)
    named = {role: shape.roles[role][0] for role in ("id", "benchmark") if role in shape.roles}
    known = {"identity": (named["id"],) if "id" in named else (), "column": named.get("benchmark")}
    if shape.source:
        hub = lookup(shape.source)
        known = {field: getattr(hub, field) or value for field, value in known.items()}
        return replace(hub, benchmark=None, licence=source.licence, convert=shape.convert, said=shape.said,
                       **known), rows  # fmt: skip
    return replace(
        source,
        columns=shape.required,
        convert=shape.convert,
        parts=shape.parts if "messages" in shape.roles else None,
        **known,
        reasoned=shape.reasoned,
        said=shape.said,
    ), rows


def check(reasons: Counter, failed: dict, spec: dict, label: str, min_reasoning_chars: int) -> None:
    """Raise ValueError, with the commonest reasons and an example of each, when too many rows of a source failed.

    failed: {reason: (row's number, row, columns it lacks)}, the first of each. Of a file on this machine a fifth may
    fail, or as many as max_rejected of its entry says; what the recipe asks for and hidden answers are no failures. Of
    others not all.
    """
    read, at_most = reasons.total(), spec.get("max_rejected")
    lost = sum(count for reason, count in reasons.items() if reason not in ("kept", *CHOSEN))
    at_most = (0.2 if at_most is None else at_most) if spec.get("path") else 1
    if reasons["kept"] and lost <= at_most * read:
        return
    shown = [f"{count} {reason}, e.g. {_example(*failed[reason])}" for reason, count in
             Counter({reason: reasons[reason] for reason in failed}).most_common(3)]  # fmt: skip
    said = f"{read} rows read, rejected { {reason: n for reason, n in reasons.items() if reason != 'kept'} }"
    remedy = "check its entry in the recipe and the split it names"
    if spec.get("path") and read:
        remedy = (
            f"mend {spec['path']}, say in its entry of the recipe what its columns are (columns: ...), or let more "
            "rows go (max_rejected: 0.5). data/README.md explains the reasons, docs/own-data.md the columns"
        )
    if reasons["reasoning_too_short"]:
        remedy = (
            f"set data.min_reasoning_chars: 0, it is {min_reasoning_chars}, to keep rows of less reasoning; {remedy}"
        )
    few = "no record" if not reasons["kept"] else f"{lost / read:.0%} of bad rows where {at_most:.0%} may be"
    raise ValueError("\n".join([f"source {label} gave {few}: {said}", *shown, f"To do: {remedy}"]))


def _example(number, row, lacks=()):
    where = getattr(row, "where", None)
    without = f", without {', '.join(map(repr, lacks))}" if lacks else ""
    return f"{where}: {row[:80].strip()!r}" if where else f"row {number + 1}{without}: {str(row)[:120]}"


def convert(name: str, rows: Iterable, spec: dict, min_reasoning_chars: int = 0) -> tuple[list[dict], Counter]:
    """(records, reasons) of `stream` as a list, for a few rows."""
    reasons = Counter()
    return list(stream(name, rows, spec, reasons, min_reasoning_chars)), reasons


def convert_row(source: Source, row, min_reasoning_chars: int, seen: set) -> dict:
    """Content fields, row_id, benchmark and skill of one raw row; adds its identity to `seen`. Raises Reject."""
    if not isinstance(row, dict):
        raise Reject("not_an_object")
    for column in source.columns:
        if column not in row:
            raise Reject("missing_column")
    fields = source.convert(row)
    if len(fields["reasoning"]) < min_reasoning_chars:
        raise Reject("reasoning_too_short")
    fields["skill"] = identifier(row.get("skill"))
    if source.benchmark:
        fields["benchmark"] = source.benchmark
    if source.identity or source.column:
        cells = {column: identifier(row.get(column)) for column in {*source.identity, source.column} - {None}}
        if source.column and cells[source.column]:
            fields["benchmark"] = cells[source.column].casefold()
        if source.identity:
            fields["row_id"] = cells[source.identity[-1]]
            key = tuple(cells[column] for column in source.identity)
            if None not in key:
                if (key := hash(key)) in seen:  # 64 bits: one false alarm expected in 10^8 runs of 400k rows
                    raise Reject("duplicate_id")
                seen.add(key)
    return fields


def identifier(value) -> str | None:
    """An id or a name as text, None where the cell is void. Raises Reject for all but text and whole numbers."""
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if type(value) is int and abs(value) < 2**64 else clean(value, "")


def truths(records: Iterable[dict]) -> dict[str, str]:
    """{normalised question: answer} of records with a ground truth; a question with two different ones is left out."""
    from lib.dataset import split  # numpy is not needed to check a recipe

    found = {}
    for record in records:
        if record["answer"]:
            answers = found.setdefault(split.question(record), {})
            answers.setdefault(split.normalise_question(record["answer"]), record["answer"])
    return {asked: next(iter(known.values())) for asked, known in found.items() if len(known) == 1}


def join_truth(records: Iterable[dict], truths: dict[str, str], joined: Counter) -> Iterator[dict]:
    """Yield the records, with the answer of `truths` where an open question has none; `joined` counts by source."""
    from lib.dataset import split

    for record in records:
        if record["answer"] is None and not record["options"] and truths:
            answer = truths.get(split.question(record))
            if answer is not None:
                joined[record["source"]] += 1
                record = record | {"answer": answer}
        yield record
