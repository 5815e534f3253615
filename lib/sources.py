"""Where training data comes from: raw rows of each data set, and the records made of them.

A record is one example with its provenance. No row can stop a run: kept + every reject reason = rows read.
Raw schemas, licences and reasons are listed in data/README.md.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from lib import converters
from lib.converters import Reject, Source
from lib.files import ROOT

MEDICAL_O1 = ("Question", "Complex_CoT", "Response")
MEDICAL_R1 = ("question", "reasoning (reasoning_content)", "response (content)")
HUATUO = "Chen et al. (2024), HuatuoGPT-o1: Towards Medical Complex Reasoning with LLMs, arXiv:2412.18925"

SOURCES = {
    "medical_o1": Source(
        hub_id="FreedomIntelligence/medical-o1-reasoning-SFT",
        licence="Apache-2.0",
        citation=HUATUO,
        columns=MEDICAL_O1,
        convert=lambda row: converters.open_question(row, MEDICAL_O1),
        configs=("en", "zh", "en_mix", "zh_mix"),
    ),
    "medical_r1": Source(
        hub_id="FreedomIntelligence/Medical-R1-Distill-Data",
        licence="Apache-2.0",
        citation=HUATUO,
        columns=MEDICAL_R1,
        convert=lambda row: converters.open_question(row, MEDICAL_R1),
    ),
    "medreason": Source(
        hub_id="UCSC-VLAA/MedReason",
        licence="Apache-2.0",
        citation="Wu et al. (2025), MedReason: Eliciting Factual Medical Reasoning Steps in LLMs via Knowledge Graphs, "
        "arXiv:2504.00993",
        columns=("dataset_name", "id_in_dataset", "question", "answer", "reasoning", "options"),
        convert=converters.medreason,
        identity=("dataset_name", "id_in_dataset"),
    ),
}


def rows(spec: dict, origin: str, stage_file: Callable[[str], Path] | None = None, seed: int = 0) -> Iterable:
    """Raw rows of one source, as that data set publishes them.

    spec: one entry of the recipe's data.sources: name, and where wanted config, split ("train"), revision.
    origin: "hub" downloads, "clinic" generates from data/clinic.yaml (`seed` draws the vignettes), "samples" reads
        data/samples.
    stage_file: stage.file, which records a local file as an input of the stage; None reads it unrecorded.
    Raises ValueError for an unknown source or origin, and for anything the hub refuses.
    """
    source = lookup(spec["name"])
    local = stage_file or (lambda name: ROOT / name)
    if origin == "hub":
        return hub_rows(source, spec)
    if origin == "clinic":
        from lib import clinic

        world = clinic.load(local("data/clinic.yaml"))
        return clinic.rows(spec["name"], spec.get("split") or "train", seed=seed, world=world)
    if origin == "samples":
        return sample_rows(local(f"data/samples/{spec['name']}.jsonl"))
    raise ValueError(f"data.origin is {origin!r}, expected hub, clinic or samples: mend the recipe in params/")


def lookup(name: str) -> Source:
    """The Source of that name. Raises ValueError listing the known ones."""
    if name not in SOURCES:
        raise ValueError(f"data.sources names {name!r}, known are {', '.join(SOURCES)}: mend the recipe in params/")
    return SOURCES[name]


def sample_rows(path: Path) -> Iterator:
    """Rows of a JSONL file; a line that is not JSON is handed on as text, so that it is counted and not fatal."""
    with open(path, encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            try:
                yield json.loads(line)
            except (json.JSONDecodeError, RecursionError):
                yield line


def hub_rows(source: Source, spec: dict):
    """A datasets.Dataset loaded by hub id, config, split and revision. Raises ValueError saying what to do."""
    import datasets

    config, split = spec.get("config"), spec.get("split") or "train"
    if source.configs and config not in source.configs:
        raise ValueError(
            f"{spec['name']} ({source.hub_id}) needs one of the configs {', '.join(source.configs)}, found {config!r}: "
            f"set config in the recipe's data.sources"
        )
    try:
        table = datasets.load_dataset(source.hub_id, config, split=split, revision=spec.get("revision"))
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        raise ValueError(
            f"cannot load {source.hub_id} (config {config!r}, split {split!r}, revision {spec.get('revision')!r}): "
            f"{type(error).__name__}: {error}. {remedy(error)}"
        ) from error
    require_columns(spec["name"], table.column_names)
    return table


def remedy(error: Exception) -> str:
    """What a user can do about a failure of datasets.load_dataset."""
    if "gated" in str(error):
        return "Accept the data set's terms on its hub page, then run `hf auth login` or set HF_TOKEN."
    if isinstance(error, (ConnectionError, TimeoutError)):
        return "Check the network or HF_ENDPOINT, or set data.origin to clinic or samples, which need neither."
    return "Compare config, split and revision in the recipe's data.sources with the data set's hub page."


def require_columns(name: str, found: Iterable[str]) -> None:
    """Raise ValueError when `found` lacks a column that the source's converter reads."""
    source, found = SOURCES[name], list(found)
    missing = [column for column in source.columns if column not in found]
    if missing:
        raise ValueError(
            f"missing_column: {name} ({source.hub_id}) lacks {missing}; "
            f"expected {list(source.columns)}, found {found}. "
            "Pin data.sources[].revision to one that has them, or adapt the source in lib/sources.py"
        )


def convert(name: str, rows: Iterable, spec: dict, min_reasoning_chars: int = 0) -> tuple[list[dict], Counter]:
    """All records that raw rows yield, and how many rows went where.

    spec: as for `rows`; gives the records' config, split and revision.
    min_reasoning_chars: rows whose reasoning is shorter are counted as reasoning_too_short.
    Returns (records, reasons): `reasons` counts "kept" and every reject reason and sums to the rows read.
    Raises ValueError when there is no row, when a column is missing from all of them, or when none is kept.
    """
    source, reasons, records, columns, seen = lookup(name), Counter(), [], {}, set()
    provenance = {"config": spec.get("config"), "split": spec.get("split") or "train", "revision": spec.get("revision")}
    place = ":".join(filter(None, (name, provenance["config"], provenance["split"])))
    for number, row in enumerate(rows):
        if isinstance(row, dict):
            columns.update(dict.fromkeys(row))
        try:
            fields = convert_row(source, row, min_reasoning_chars, seen)
        except Reject as reject:
            reasons[str(reject)] += 1
            continue
        except Exception:  # noqa: BLE001 - a converter's own fault must not stop a run of 400k rows; the count shows it
            reasons["converter_error"] += 1
            continue
        head = {"id": f"{place}:{number}", "source": name, **provenance, "row": number, "licence": source.licence}
        records.append(head | fields)
        reasons["kept"] += 1
    if columns:
        require_columns(name, columns)
    if not records:
        raise ValueError(
            f"source {name} gave no record: {reasons.total()} rows read, rejected {dict(reasons)}. "
            f"Check its entry in the recipe's data.sources and the file or split it names"
        )
    return records, reasons


def convert_row(source: Source, row, min_reasoning_chars: int, seen: set) -> dict:
    """Content fields of one raw row; adds its identity to `seen`. Raises Reject with the reason."""
    if not isinstance(row, dict):
        raise Reject("not_an_object")
    if any(column not in row for column in source.columns):
        raise Reject("missing_column")
    fields = source.convert(row)
    if len(fields["reasoning"]) < min_reasoning_chars:
        raise Reject("reasoning_too_short")
    identity = tuple(str(row[column]) for column in source.identity if row[column] is not None)
    if source.identity and len(identity) == len(source.identity):
        if identity in seen:
            raise Reject("duplicate_id")
        seen.add(identity)
    return fields
