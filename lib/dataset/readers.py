"""Raw rows of a data set, from the hub, from data/samples, from the clinic or from a user's own file."""

import itertools
import json
import os
import re
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from lib.dataset.sources import OWN, Source, lookup, require_columns
from lib.pipeline.files import ROOT

PUBMEDQA_IDS = (  # the authors' own split, at the commit that published it: {id: decision}
    "https://raw.githubusercontent.com/pubmedqa/pubmedqa/3e7616d288b52edaf38f5fd5c59821c7806bde86/"
    "data/test_ground_truth.json"
)
PUBMEDQA_FILE = "data/pubmedqa_test_ids.txt"  # the same ids, one a line, for machines without a network
PUBMEDQA_TEST = {"yes": 276, "no": 169, "maybe": 55}
BATCH = 1000  # rows decoded at once


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
        from lib.dataset import clinic, clinic_rows

        world, (half, part) = clinic.load(local("data/clinic.yaml")), clinic_split(spec.get("split") or "train")
        return clinic_rows.rows(name, half, seed, world, spec.get("config"))[part]
    if origin == "samples":
        return json_lines(local(f"data/samples/{'jsonl' if name == 'parquet' else name}.jsonl"))
    raise ValueError(f"data.origin is {origin!r}, expected hub, clinic or samples: mend the recipe in params/")


def clinic_split(text: str) -> tuple[str, slice]:
    """("train" or "test", which of its rows) for a split in the hub's words: "train[:500]", "validation", "test[:10]".

    Raises ValueError for other forms: the clinic has two halves, and rows are counted, not taken by the hundred.
    """
    match = re.fullmatch(r"(train|validation|test)(?:\[(-?\d*):(-?\d*)\])?", text)
    if not match:
        raise ValueError(f"the clinic has no split {text!r}: expected train, validation or test, or train[:500] of one")
    first, last = (int(number) if number else None for number in match.group(2, 3))
    return "train" if match[1] == "train" else "test", slice(first, last)


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

    from lib.pipeline import hub

    config, split_name = spec.get("config"), spec.get("split") or "train"
    if len(source.configs) > 1 and config not in source.configs:
        raise ValueError(
            f"{spec['name']} ({source.hub_id}) needs one of the configs {', '.join(source.configs)}, found {config!r}: "
            f"set config in the recipe's data.sources"
        )
    on_hub = "train" if spec["name"] == "pubmedqa" else split_name
    which = {"data_files": source.files[config]} if source.files else {"name": config}
    asked = source.hub_id, spec.get("revision"), "dataset"
    try:
        with hub.asked(*asked):
            table = datasets.load_dataset(source.hub_id, **which, split=on_hub, revision=spec.get("revision"))
    except hub.Refused:
        raise
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        if isinstance(error, datasets.exceptions.DatasetNotFoundError):
            hub.look(*asked, timeout_s=60)  # raises with the reason, which is lost on the way through datasets
        raise ValueError(
            f"cannot load {source.hub_id} (config {config!r}, split {on_hub!r}, revision {spec.get('revision')!r}): "
            f"{type(error).__name__}: {error}. Compare config, split and revision in the recipe's data.sources with "
            "the data set's hub page"
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
