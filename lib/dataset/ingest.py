"""Records made of raw rows. No row can stop a run: kept + every reject reason = rows read.

A record is one example with its provenance. The reasons are listed in data/README.md.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

from lib.dataset.choices import clean
from lib.dataset.converters import Reject
from lib.dataset.sources import Source, lookup, require_columns


def stream(name: str, rows: Iterable, spec: dict, reasons: Counter, min_reasoning_chars: int = 0) -> Iterator[dict]:
    """Yield the records that raw rows give, one at a time; `reasons` counts where every row went.

    spec: as for `rows`; gives the records' config, split, revision, and label and licence from sources.credited.
    reasons: filled with "kept" and every reject reason; once all is read it sums to the rows read.
    min_reasoning_chars: rows whose reasoning is shorter are counted as reasoning_too_short, but for sources that have
        none by design (verifiable, medqa, medqa_bigbio, ReasonMed's responses). Leave it at 0 for test sources.
    Raises ValueError at the end when there was no row, when a column is missing from all, or when none was kept.
    """
    source, columns, seen = lookup(name, spec.get("config")), {}, set()
    label = spec.get("label") or name  # from sources.credited: whose rows these are
    parts = (label, spec.get("config"), spec.get("split") or "train")
    place, lacking, at_least = ":".join(filter(None, parts)), set(source.columns), min_reasoning_chars
    head = {"id": "", "source": label, "config": parts[1], "split": parts[2], "revision": spec.get("revision"),
            "row": 0, "row_id": None, "benchmark": None, "licence": spec.get("licence") or source.licence}  # fmt: skip
    kept = 0
    for number, row in enumerate(rows):
        if lacking and isinstance(row, dict):
            lacking.difference_update(row)
            columns.update(dict.fromkeys(row))
        try:
            fields = convert_row(source, row, at_least if source.reasoned else 0, seen)
        except Reject as reject:
            reasons[str(reject)] += 1
            continue
        except Exception:  # noqa: BLE001 - a converter's own fault must not stop a run of 400k rows; the count shows it
            reasons["converter_error"] += 1
            continue
        kept += 1
        reasons["kept"] += 1
        record = head | fields
        record["id"], record["row"] = f"{place}:{number}", number
        yield record
    if columns and lacking:
        require_columns(name, columns)
    if not kept:
        raise ValueError(
            f"source {name} gave no record: {reasons.total()} rows read, rejected {dict(reasons)}. "
            f"Check its entry in the recipe's data.sources and the file or split it names"
        )


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
            answer = truths.get(split.normalise_question(record["instruction"]))
            if answer is not None:
                joined[record["source"]] += 1
                record = record | {"answer": answer}
        yield record
