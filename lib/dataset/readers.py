"""Raw rows of a data set, from the hub, from data/samples, from the clinic or from a user's own file."""

import itertools
import json
import os
import re
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from lib.dataset import folders, tables
from lib.dataset.jsonfiles import json_lines
from lib.dataset.sources import Source, lookup, require_columns
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
        file of the user's own or for a copy of a hub data set on this machine, which is read whatever the origin.
    origin: "hub" downloads, "clinic" generates from data/clinic.yaml (`seed` draws the vignettes), "samples" reads
        data/samples.
    stage_file: stage.file, which records a local file as an input of the stage; None reads it unrecorded.
    Raises ValueError for an unknown source or origin, and for anything the hub refuses.
    """
    name, source = spec["name"], lookup(spec["name"])
    local = stage_file or (lambda name: ROOT / name)
    if spec.get("path") or (not source.hub_id and origin != "samples"):
        found = copied_rows(source, spec, local)
    elif origin == "hub":
        found = hub_rows(source, spec)
    elif origin == "clinic":
        from lib.dataset import clinic, clinic_rows

        world, (half, part) = clinic.load(local("data/clinic.yaml")), clinic_split(spec.get("split") or "train")
        return clinic_rows.rows(name, half, seed, world, spec.get("config"))[part]
    elif origin == "samples":
        return json_lines(local(f"data/samples/{name if source.hub_id else 'own'}.jsonl"))
    else:
        raise ValueError(f"data.origin is {origin!r}, expected hub, clinic or samples: mend the recipe in params/")
    return pubmedqa_rows(found, spec, local) if name == "pubmedqa" else found


def copied_rows(source: Source, spec: dict, local: Callable[[str], Path]) -> Iterable:
    """Rows of a file, a folder or a pattern on this machine: a user's own, or a copy of a hub data set.

    A folder that save_to_disk wrote and a snapshot of a hub repository (with its README.md) are read by `datasets`; of
    other folders the split whose name the files bear. Raises ValueError when there is none, or it is of another kind.
    """
    path, name = spec.get("path"), spec["name"]
    split = "train" if name == "pubmedqa" else spec.get("split") or ("train" if source.hub_id else None)
    if not path:
        raise ValueError(f"data.sources, {name}: path is {path!r}, expected a file, from the repository's root on")
    folder = folders.place(path)
    is_saved = any((folder / file).is_file() for file in ("state.json", "dataset_dict.json"))
    if not is_saved and source.hub_id and not source.files and (folder / "README.md").is_file():
        return _told(folder, local, lambda: hub_rows(replace(source, hub_id=str(folder)), spec))
    part = re.fullmatch(r"(\w+)?(?:\[(\d*):(\d*)\])?", split or "")
    if not part:
        raise ValueError(f"data.sources, {name}: split {split!r} of {path}, expected e.g. train or train[:500]")
    if is_saved:
        found = _told(folder, local, lambda: saved_rows(folder, part[1], spec, source))
    else:
        if folder.is_dir() or name == "pubmedqa":
            _need_config(source, spec)
        if folder.is_dir() and source.files:
            path = f"{path}/{source.files[spec['config']]}"
        elif folder.is_dir() and len(source.configs) > 1:
            path = _of_config(path, folder, spec["config"], part[1])
        columns, decode = source.columns + source.optional, tables.decoded if source.hub_id else None
        found = tables.rows(path, local, part[1], columns, decode)
    return itertools.islice(found, *(int(n) if n else None for n in part.group(2, 3)))


def _told(folder, local, read):
    """What `read` gives of a folder, each file of it recorded. A pointer or a web page in a file's place is named."""
    inside = sorted(p for p in folder.rglob("*") if p.is_file())
    for file in inside:
        local(folders.named(file))
    try:
        return read()
    except ValueError:
        for file in inside:
            if folders.readable(file) or file.suffix == ".arrow":
                tables.refuse(file)
        raise


def _of_config(path, folder, config, part):
    """The folder that holds one configuration of a copy without README.md. Raises ValueError where that is open."""
    if (folder / config).is_dir():
        return f"{path}/{config}"
    kinds = {re.sub(r"\d", "", file.name): file.name for file in folders.files(path, part)}
    if len(kinds) > 1:
        raise ValueError(
            f"{path} holds {', '.join(kinds.values())}, and without the README.md of the data set nothing says which "
            f"are its config {config}: copy that too, or name the file, path: {path}/{next(iter(kinds.values()))}"
        )
    return path


def saved_rows(folder: Path, split: str | None, spec: dict, source: Source) -> Iterator[dict]:
    """Rows of a Dataset, or of one split of a DatasetDict, that save_to_disk wrote."""
    import datasets

    parts = folder / "dataset_dict.json"
    if parts.is_file():
        splits = json.loads(parts.read_text(encoding="utf-8"))["splits"]
        split = splits[0] if len(splits) == 1 and not split else split
        if split not in splits:
            raise ValueError(f"{folder.name} has the splits {', '.join(splits)}: set split in its entry, now {split!r}")
        folder = folder / split
    try:
        table = datasets.load_from_disk(str(folder))
    except IndexError as error:
        raise ValueError(f"{folder.name}, a folder of save_to_disk, holds no rows: save it again") from error
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"cannot read {folder.name}, a folder of save_to_disk: {error}. Copy it again") from error
    return _dicts(table, spec, source)


def clinic_split(text: str) -> tuple[str, slice]:
    """("train" or "test", which of its rows) for a split in the hub's words: "train[:500]", "validation", "test[:10]".

    Raises ValueError for other forms: the clinic has two halves, and rows are counted, not taken by the hundred.
    """
    match = re.fullmatch(r"(train|validation|test)(?:\[(-?\d*):(-?\d*)\])?", text)
    if not match:
        raise ValueError(f"the clinic has no split {text!r}: expected train, validation or test, or train[:500] of one")
    first, last = (int(number) if number else None for number in match.group(2, 3))
    return "train" if match[1] == "train" else "test", slice(first, last)


def hub_rows(source: Source, spec: dict) -> Iterator[dict]:
    """Rows of a hub data set by id, config, split and revision. Raises ValueError, at once, saying what to do."""
    import datasets

    from lib.pipeline import hub, machine

    config, split_name = spec.get("config"), spec.get("split") or "train"
    _need_config(source, spec)
    on_hub = "train" if spec["name"] == "pubmedqa" else split_name
    which = {"data_files": source.files[config]} if source.files else {"name": config}
    asked = source.hub_id, spec.get("revision"), "dataset"
    try:
        with hub.asked(*asked):
            table = datasets.load_dataset(source.hub_id, **which, split=on_hub, revision=spec.get("revision"))
    except hub.Refused:
        raise
    except RuntimeError as error:  # "Dataset scripts are no longer supported"
        raise ValueError(
            f"{source.hub_id} cannot be read: {error}. For MedQA's English questions with four options take "
            f"{{name: medqa}}; for five, give this source the path of a downloaded copy, one of the questions/US files "
            "of its data_clean.zip"
        ) from error
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        if isinstance(error, datasets.exceptions.DatasetNotFoundError):
            hub.look(*asked, timeout_s=60)  # raises with the reason, which is lost on the way through datasets
        raise ValueError(
            f"cannot load {source.hub_id} (config {config!r}, split {on_hub!r}, revision {spec.get('revision')!r}): "
            f"{type(error).__name__}: {error}. Compare config, split and revision in the recipe's data.sources with "
            + (
                "the copy's README.md, and the copy with its checksums"
                if spec.get("path")
                else "the data set's hub page"
            )
        ) from error
    for file in table.cache_files:  # .../<data set>/<config>/<version>/<commit>/<split>.arrow
        if re.fullmatch(r"[0-9a-f]{40}", commit := Path(file["filename"]).parent.name):
            machine.REVISIONS[source.hub_id] = commit  # where the recipe names none, what was the newest
    return _dicts(table, spec, source)


def _need_config(source, spec):
    if len(source.configs) > 1 and spec.get("config") not in source.configs:
        raise ValueError(
            f"{spec['name']} ({source.hub_id}) needs one of the configs {', '.join(source.configs)}, found "
            f"{spec.get('config')!r}: set config in the recipe's data.sources"
        )


def _dicts(table, spec, source) -> Iterator[dict]:
    """Rows of a Dataset as dicts, of the columns that its source reads, or of all of a user's own."""
    require_columns(spec, table.column_names, source)
    if source.hub_id:
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
    beside = folders.place(spec["path"]) if spec.get("path") else None
    ids, picked = pubmedqa_ids(local, beside), {True: [], False: []}
    for row in table:
        picked[isinstance(row, dict) and str(row.get("pubid")) in ids].append(row)
    found = Counter(str(row.get("final_decision")) for row in picked[True])
    if dict(found) != PUBMEDQA_TEST:
        raise ValueError(
            f"the official test ids of PubMedQA pick {dict(found)} of {len(picked[True]) + len(picked[False])} rows, "
            f"expected {PUBMEDQA_TEST}: pin data.sources[].revision, or mend {PUBMEDQA_FILE}"
        )
    return picked[spec.get("split") == "test"]


def pubmedqa_ids(local: Callable[[str], Path], beside: Path | None = None) -> set[str]:
    """The 500 ids of PubMedQA's test set, from the first of: PUBMEDQA_FILE, test_ground_truth.json beside or in a copy
    of the data set, its authors.
    """
    near = [folder / "test_ground_truth.json" for folder in (beside, beside.parent)] if beside else []
    files = [str(ROOT / PUBMEDQA_FILE), *map(str, near)]
    where = next((file for file in files if os.path.isfile(file)), PUBMEDQA_IDS)
    try:
        if where != PUBMEDQA_IDS:
            text = Path(local(folders.named(Path(where)))).read_text(encoding="utf-8-sig")
        else:
            with urllib.request.urlopen(PUBMEDQA_IDS, timeout=30) as answer:
                text = answer.read().decode("utf-8-sig")
        ids = set(json.loads(text)) if text.lstrip().startswith("{") else set(text.split())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot read the ids of PubMedQA's test set from {where} ({error}): check the network, put its "
            f"test_ground_truth.json beside the copy, or the ids, one a line, into {PUBMEDQA_FILE}"
        ) from error
    if len(ids) != sum(PUBMEDQA_TEST.values()):
        raise ValueError(f"{where} holds {len(ids)} different ids of PubMedQA's test set, expected 500")
    return ids
