"""Where training data comes from: raw rows of each data set, and the records made of them.

A record is one example with its provenance. No row can stop a run: kept + every reject reason = rows read.
Raw schemas, licences and reasons are listed in data/README.md.
"""

import dataclasses
import itertools
import json
import os
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from lib import converters, schema
from lib.choices import clean
from lib.converters import Reject, Source
from lib.files import ROOT

MEDICAL_O1 = ("Question", "Complex_CoT", "Response")
MEDICAL_R1 = ("question", "reasoning (reasoning_content)", "response (content)")
HUATUO = "Chen et al. (2024), HuatuoGPT-o1: Towards Medical Complex Reasoning with LLMs, arXiv:2412.18925"
MEDQA = (
    "Jin et al. (2021), What Disease Does This Patient Have? A Large-Scale Open Domain Question Answering Dataset from "
    "Medical Exams, Applied Sciences 11(14)"
)
PUBMEDQA_IDS = (  # the authors' own split, at the commit that published it: {id: decision}
    "https://raw.githubusercontent.com/pubmedqa/pubmedqa/3e7616d288b52edaf38f5fd5c59821c7806bde86/"
    "data/test_ground_truth.json"
)
PUBMEDQA_FILE = "data/pubmedqa_test_ids.txt"  # the same ids, one a line, for machines without a network
PUBMEDQA_TEST = {"yes": 276, "no": 169, "maybe": 55}
SPEC_KEYS = ("name", "config", "split", "revision", "path", "licence", "citation")
OWN_KEYS = ("path", "licence", "citation")  # of a user's own file only
BATCH = 1000  # rows decoded at once

OWN = Source(
    hub_id="",
    licence="unknown",
    citation="",
    columns=("instruction", "output"),
    optional=("reasoning", "options", "answer", "id", "benchmark"),
    convert=converters.own,
    identity=("id",),
    column="benchmark",
    commercial=None,
)
R1 = Source(
    hub_id="FreedomIntelligence/Medical-R1-Distill-Data",
    licence="Apache-2.0",
    citation=HUATUO,
    columns=MEDICAL_R1,
    convert=lambda row: converters.open_question(row, MEDICAL_R1),
    configs=("en",),
)
BIGBIO = Source(
    hub_id="bigbio/med_qa",
    licence="unknown",
    citation=MEDQA,
    columns=("question", "answer", "options", "answer_idx"),
    convert=converters.medqa,
    configs=("med_qa_en_source", "med_qa_en_4options_source"),
    benchmark="medqa",
    reasoned=False,
    commercial=None,
)
SOURCES = {
    "medical_o1": Source(
        hub_id="FreedomIntelligence/medical-o1-reasoning-SFT",
        licence="Apache-2.0",
        citation=HUATUO,
        columns=MEDICAL_O1,
        convert=lambda row: converters.open_question(row, MEDICAL_O1),
        configs=("en", "zh", "en_mix", "zh_mix"),
    ),
    "medical_r1": R1,
    "medical_r1_zh": dataclasses.replace(R1, hub_id=f"{R1.hub_id}-Chinese", configs=("zh",)),
    "medreason": Source(
        hub_id="UCSC-VLAA/MedReason",
        licence="Apache-2.0",
        citation="Wu et al. (2025), MedReason: Eliciting Factual Medical Reasoning Steps in LLMs via Knowledge Graphs, "
        "arXiv:2504.00993",
        columns=("dataset_name", "id_in_dataset", "question", "answer", "reasoning", "options"),
        convert=converters.medreason,
        identity=("dataset_name", "id_in_dataset"),
        column="dataset_name",
    ),
    "verifiable": Source(
        hub_id="FreedomIntelligence/medical-o1-verifiable-problem",
        licence="Apache-2.0",
        citation=HUATUO,
        columns=("Open-ended Verifiable Question", "Ground-True Answer"),
        convert=converters.verifiable,
        reasoned=False,
    ),
    "reasonmed": Source(
        hub_id="lingshu-medical-mllm/ReasonMed",
        licence="Apache-2.0",
        citation="Sun et al. (2025), ReasonMed: A 370K Multi-Agent Generated Dataset for Advancing Medical Reasoning, "
        "arXiv:2506.09513",
        columns=("instruction", "output"),
        optional=("input",),
        convert=converters.reasonmed,
        configs=("reasonmed", "cot", "response"),
        files={"reasonmed": "ReasonMed.json", "cot": "CoTMed.json", "response": "ResponseMed.json"},
        variants={"response": {"convert": lambda row: converters.reasonmed(row, reasoned=False), "reasoned": False}},
    ),
    "pubmedqa": Source(
        hub_id="qiaojin/PubMedQA",
        licence="MIT",
        citation="Jin et al. (2019), PubMedQA: A Dataset for Biomedical Research Question Answering, arXiv:1909.06146",
        columns=("pubid", "question", "context", "long_answer", "final_decision"),
        convert=converters.pubmedqa,
        configs=("pqa_labeled", "pqa_artificial"),
        identity=("pubid",),
        benchmark="pubmedqa",
    ),
    "medmcqa": Source(
        hub_id="openlifescienceai/medmcqa",
        licence="Apache-2.0",
        citation="Pal et al. (2022), MedMCQA: A Large-scale Multi-Subject Multi-Choice Dataset for Medical domain "
        "Question Answering, arXiv:2203.14371",
        columns=("id", "question", "opa", "opb", "opc", "opd", "cop"),
        optional=("exp",),
        convert=converters.medmcqa,
        identity=("id",),
        benchmark="medmcqa",
    ),
    "medqa": dataclasses.replace(
        BIGBIO,
        hub_id="GBaker/MedQA-USMLE-4-options",
        licence="CC-BY-4.0 (as the re-uploader says)",
        configs=(),
    ),
    "medqa_bigbio": BIGBIO,
    "jsonl": OWN,
    "parquet": OWN,
}


def check_spec(spec: dict) -> None:
    """Check one entry of data.sources, test_sources or truth_sources before anything is read.

    Raises ValueError with the nearest valid name for an unknown source, key, config or split of ours.
    """
    where = "an entry of the recipe's data.sources"
    if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
        raise ValueError(f"{where} should read {{name: medreason, ...}}, found {spec!r}")
    source, name = lookup(spec["name"]), spec["name"]
    is_own = not source.hub_id
    schema.known_keys(spec, [k for k in SPEC_KEYS if is_own or k not in OWN_KEYS], "key", f"data.sources, {name}")
    for key, value in spec.items():
        if not isinstance(value, str | None):
            raise ValueError(f"data.sources, {name}: {key} is {value!r}, expected text")
    config = spec.get("config")
    if is_own and not spec.get("path"):
        raise ValueError(f"data.sources, {name}: path is missing, expected the file to read")
    if config and config not in source.configs:
        known = schema.nearest(config, list(source.configs)) if source.configs else "; it has none"
        raise ValueError(f"unknown config {config!r} of {name} in data.sources{known}")
    if (
        name == "pubmedqa"
        and spec.get("split") not in (None, "train", "test")[: 2 if config == "pqa_artificial" else 3]
    ):
        raise ValueError(
            f"pubmedqa has no split {spec['split']!r}: pqa_labeled has train and test, pqa_artificial train"
        )


def lookup(name: str, config: str | None = None) -> Source:
    """The Source of that name, as its config has it. Raises ValueError with the nearest name."""
    if name not in SOURCES:
        raise ValueError(
            f"data.sources names {name!r}{schema.nearest(str(name), list(SOURCES))}: mend the recipe in params/"
        )
    source = SOURCES[name]
    return dataclasses.replace(source, **(source.variants or {}).get(config, {}))


def rows(spec: dict, origin: str, stage_file: Callable[[str], Path] | None = None, seed: int = 0) -> Iterable:
    """Raw rows of one source, as that data set publishes them.

    spec: one entry of the recipe's data.sources: name, and where wanted config, split ("train"), revision; path for a
        file of the user's own, which is read whatever the origin.
    origin: "hub" downloads, "clinic" generates from data/clinic.yaml (`seed` draws the vignettes), "samples" reads
        data/samples.
    stage_file: stage.file, which records a local file as an input of the stage; None reads it unrecorded.
    Raises ValueError for an unknown source or origin, and for anything the hub refuses.
    """
    name, source = spec["name"], lookup(spec["name"])
    local = stage_file or (lambda name: ROOT / name)
    if not source.hub_id and (spec.get("path") or origin != "samples"):
        return file_rows(spec, local)
    if origin == "hub":
        table = hub_rows(source, spec)
        return pubmedqa_rows(table, spec, local) if name == "pubmedqa" else table
    if origin == "clinic":
        from lib import clinic, clinic_rows

        world = clinic.load(local("data/clinic.yaml"))
        return clinic_rows.rows(name, spec.get("split") or "train", seed, world, spec.get("config"))
    if origin == "samples":
        return json_lines(local(f"data/samples/{'jsonl' if name == 'parquet' else name}.jsonl"))
    raise ValueError(f"data.origin is {origin!r}, expected hub, clinic or samples: mend the recipe in params/")


def file_rows(spec: dict, local: Callable[[str], Path]) -> Iterator:
    """Rows of a user's own JSONL or Parquet file. Raises ValueError when there is none, or it is another kind."""
    import pyarrow
    from pyarrow import parquet

    name, path = spec["name"], spec.get("path")
    if not path or not os.path.isfile(ROOT / path):
        raise ValueError(f"data.sources, {name}: path is {path!r}, expected a file, from the repository's root on")
    if name == "jsonl":
        return json_lines(local(path))
    try:
        file = parquet.ParquetFile(local(path))
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"data.sources, parquet: {path} is no Parquet file ({error})") from error
    require_columns(name, file.schema_arrow.names)
    wanted = [column for column in OWN.columns + OWN.optional if column in file.schema_arrow.names]
    return itertools.chain.from_iterable(map(batch_rows, file.iter_batches(BATCH, columns=wanted)))


def batch_rows(batch) -> Iterator[dict]:
    """Rows of a pyarrow.RecordBatch; a cell that is not UTF-8 reads "\\ufffd", so that its row is counted as such."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for place in range(len(batch)):
            yield {name: _cell(batch.column(name)[place]) for name in batch.schema.names}


def _cell(scalar):
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return "\ufffd"


def json_lines(path: Path) -> Iterator:
    """Rows of a JSONL file; a line that is not JSON is handed on as text, so that it is counted and not fatal."""
    with open(path, encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            try:
                yield json.loads(line)
            except (ValueError, RecursionError):  # ValueError: not JSON, or a number of too many digits
                yield line


def hub_rows(source: Source, spec: dict) -> Iterator[dict]:
    """Rows of a hub data set by id, config, split and revision. Raises ValueError, at once, saying what to do."""
    import datasets

    config, split_name = spec.get("config"), spec.get("split") or "train"
    if len(source.configs) > 1 and config not in source.configs:
        raise ValueError(
            f"{spec['name']} ({source.hub_id}) needs one of the configs {', '.join(source.configs)}, found {config!r}: "
            f"set config in the recipe's data.sources"
        )
    on_hub = "train" if spec["name"] == "pubmedqa" else split_name
    which = {"data_files": source.files[config]} if source.files else {"name": config}
    try:
        table = datasets.load_dataset(source.hub_id, **which, split=on_hub, revision=spec.get("revision"))
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        raise ValueError(
            f"cannot load {source.hub_id} (config {config!r}, split {on_hub!r}, revision {spec.get('revision')!r}): "
            f"{type(error).__name__}: {error}. {remedy(error)}"
        ) from error
    require_columns(spec["name"], table.column_names)
    table = table.select_columns([c for c in source.columns + source.optional if c in table.column_names])
    return (
        dict(zip(batch, cells, strict=True))
        for batch in table.iter(batch_size=BATCH)
        for cells in zip(*batch.values(), strict=True)
    )


def pubmedqa_rows(table: Iterable[dict], spec: dict, local: Callable[[str], Path]) -> list[dict]:
    """Rows of the split asked for: of pqa_labeled, "test" is the authors' 500 items and "train" the other 500.

    Raises ValueError when the ids cannot be had, or do not pick 276 yes, 169 no and 55 maybe.
    """
    if spec.get("config") != "pqa_labeled":
        if spec.get("split") not in (None, "train"):
            raise ValueError(f"pubmedqa {spec['config']} has no split {spec['split']!r}, only train")
        return table
    ids, picked = pubmedqa_ids(local), {True: [], False: []}
    for row in table:
        picked[str(row["pubid"]) in ids].append(row)
    found = Counter(str(row["final_decision"]) for row in picked[True])
    if dict(found) != PUBMEDQA_TEST:
        raise ValueError(
            f"the official test ids of PubMedQA pick {dict(found)} of {len(picked[True]) + len(picked[False])} rows, "
            f"expected {PUBMEDQA_TEST}: pin data.sources[].revision, or mend {PUBMEDQA_FILE}"
        )
    return picked[spec.get("split") == "test"]


def pubmedqa_ids(local: Callable[[str], Path]) -> set[str]:
    """The 500 ids of PubMedQA's test set, from PUBMEDQA_FILE where the user has put it, else from its authors."""
    if os.path.isfile(ROOT / PUBMEDQA_FILE):
        where, ids = PUBMEDQA_FILE, set(Path(local(PUBMEDQA_FILE)).read_text(encoding="utf-8").split())
    else:
        where = PUBMEDQA_IDS
        try:
            with urllib.request.urlopen(PUBMEDQA_IDS, timeout=30) as answer:
                ids = set(json.load(answer))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"cannot read the ids of PubMedQA's test set from {where} ({error}): check the network, or put the "
                f"ids, one a line, into {PUBMEDQA_FILE}"
            ) from error
    if len(ids) != sum(PUBMEDQA_TEST.values()):
        raise ValueError(f"{where} holds {len(ids)} different ids of PubMedQA's test set, expected 500")
    return ids


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
            f"missing_column: {name} ({source.hub_id or 'your own file'}) lacks {missing}; "
            f"expected {list(source.columns)}, found {found}. "
            "Pin data.sources[].revision to one that has them, or adapt the source in lib/sources.py"
        )


def stream(name: str, rows: Iterable, spec: dict, reasons: Counter, min_reasoning_chars: int = 0) -> Iterator[dict]:
    """Yield the records that raw rows give, one at a time; `reasons` counts where every row went.

    spec: as for `rows`; gives the records' config, split, revision and, for a user's own file, licence.
    reasons: filled with "kept" and every reject reason; once all is read it sums to the rows read.
    min_reasoning_chars: rows whose reasoning is shorter are counted as reasoning_too_short, but for sources that have
        none by design (verifiable, medqa, medqa_bigbio, ReasonMed's responses). Leave it at 0 for test sources.
    Raises ValueError at the end when there was no row, when a column is missing from all, or when none was kept.
    """
    source, columns, seen = lookup(name, spec.get("config")), {}, set()
    parts = (name, spec.get("config"), spec.get("split") or "train")
    place, lacking, at_least = ":".join(filter(None, parts)), set(source.columns), min_reasoning_chars
    head = {"id": "", "source": name, "config": parts[1], "split": parts[2], "revision": spec.get("revision"), "row": 0,
            "row_id": None, "benchmark": None, "licence": spec.get("licence") or source.licence}  # fmt: skip
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
    """Content fields, row_id and benchmark of one raw row; adds its identity to `seen`. Raises Reject."""
    if not isinstance(row, dict):
        raise Reject("not_an_object")
    for column in source.columns:
        if column not in row:
            raise Reject("missing_column")
    fields = source.convert(row)
    if len(fields["reasoning"]) < min_reasoning_chars:
        raise Reject("reasoning_too_short")
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
    from lib import split  # numpy is not needed to check a recipe

    found = {}
    for record in records:
        if record["answer"]:
            answers = found.setdefault(split.question(record), {})
            answers.setdefault(split.normalise_question(record["answer"]), record["answer"])
    return {asked: next(iter(known.values())) for asked, known in found.items() if len(known) == 1}


def join_truth(records: Iterable[dict], truths: dict[str, str], joined: Counter) -> Iterator[dict]:
    """Yield the records, with the answer of `truths` where an open question has none; `joined` counts by source."""
    from lib import split

    for record in records:
        if record["answer"] is None and not record["options"] and truths:
            answer = truths.get(split.normalise_question(record["instruction"]))
            if answer is not None:
                joined[record["source"]] += 1
                record = record | {"answer": answer}
        yield record


def terms(spec: dict) -> dict:
    """{"licence", "commercial", "citation"} of a source; commercial is None where nobody says."""
    source = lookup(spec["name"], spec.get("config"))
    return {
        "licence": spec.get("licence") or source.licence,
        "commercial": source.commercial,
        "citation": spec.get("citation") or source.citation,
    }
