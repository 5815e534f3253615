"""The data sets: where each lives, what its rows hold, its licence and citation.

readers.py fetches the raw rows, ingest.py makes records of them. data/README.md lists schemas and licences.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lib.dataset import converters, own
from lib.pipeline import schema

MEDICAL_O1 = ("Question", "Complex_CoT", "Response")
MEDICAL_R1 = ("question", "reasoning (reasoning_content)", "response (content)")
HUATUO = "Chen et al. (2024), HuatuoGPT-o1: Towards Medical Complex Reasoning with LLMs, arXiv:2412.18925"
MEDQA = (
    "Jin et al. (2021), What Disease Does This Patient Have? A Large-Scale Open Domain Question Answering Dataset from "
    "Medical Exams, Applied Sciences 11(14)"
)
OWN_NAMES = ("own", "jsonl", "parquet")  # one source: what a file holds is told from the file


@dataclass(frozen=True)
class Source:
    """A data set: where it lives, what its rows hold, and how one row is converted.

    hub_id: "" for a user's own file. columns: what every row must have; optional: what is read where it is there.
    convert: raw row (dict holding all `columns`) -> the record's content fields, or raises Reject.
    configs: the hub's configuration names; one must be chosen where there are several.
    files: {config: file on the hub}, where these are no configurations of the hub's own.
    variants: {config: fields of this class that differ there}.
    identity: columns that together name a row, the last one its own id; (): no row can be a duplicate_id.
    benchmark: name of the benchmark that the items are; column: the column that says so by row.
    reasoned: False where rows have no reasoning by design, so that its length is not asked for.
    parts: raw row -> the rows to convert, one for each answer of a conversation; None: the row itself.
    said: how its rows are read, for the reader.
    commercial: whether the licence allows commercial use, None where nobody says.
    """

    hub_id: str
    licence: str
    citation: str
    columns: tuple[str, ...]
    convert: Callable[[dict], dict]
    optional: tuple[str, ...] = ()
    configs: tuple[str, ...] = ()
    files: dict | None = None
    variants: dict | None = None
    identity: tuple[str, ...] = ()
    benchmark: str | None = None
    column: str | None = None
    reasoned: bool = True
    parts: Callable | None = None
    said: str = "its own converter"
    commercial: bool | None = True


OWN = Source(
    hub_id="",
    licence="unknown",
    citation="",
    columns=(),  # lib/dataset/shapes.py finds them in the file
    convert=own.own,
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
    **dict.fromkeys(OWN_NAMES, OWN),
}


def lookup(name: str, config: str | None = None) -> Source:
    """The Source of that name, as its config has it. Raises ValueError with the nearest name."""
    if name not in SOURCES:
        raise ValueError(
            f"data.sources names {name!r}{schema.nearest(str(name), list(SOURCES))}: mend the recipe in params/"
        )
    source = SOURCES[name]
    return dataclasses.replace(source, **(source.variants or {}).get(config, {}))


def require_columns(spec: dict, found: Iterable[str], source: Source | None = None) -> None:
    """Raise ValueError when `found` lacks a column that the converter of the entry's source reads."""
    source, found = source or lookup(spec["name"], spec.get("config")), list(found)
    missing = [column for column in source.columns if column not in found]
    if missing:
        remedy = (
            f"{spec['path']} is no copy of that data set; a file with columns of its own is read under name: own"
            if spec.get("path")
            else "Pin data.sources[].revision to one that has them, or adapt the source in lib/dataset/sources.py"
        )
        raise ValueError(
            f"missing_column: {spec['name']} ({source.hub_id}) lacks {missing}; expected {list(source.columns)}, "
            f"found {found}. {remedy}"
        )


def credited(spec: dict, origin: str) -> dict:
    """The entry with what its rows are: "label" in every table and record, "from" where they come from.

    Rows that the clinic or data/samples write in a data set's columns are this repository's: that data set's name,
    licence and citation are not theirs. origin: data.origin. ingest and `terms` read the entry so made.
    """
    source = lookup(spec["name"])
    if origin == "hub" or spec.get("path"):
        return {"label": spec["name"], "from": spec.get("path") or source.hub_id} | spec
    file = "data/clinic.yaml" if origin == "clinic" else f"data/{origin}"
    ours = {"licence": "MIT", "commercial": True, "citation": f"this repository (CITATION.cff), {file}"}
    return spec | ours | {"label": f"{origin}, in {spec['name']}'s columns", "from": f"{file} of this repository"}


def by_name(labels: Iterable[str]) -> dict[str, str]:
    """{the name that a recipe gives a source: the label of its records}, for the labels that `credited` makes."""
    return {re.sub(r"^\w+, in (.*)'s columns$", r"\1", label): label for label in labels}


def terms(spec: dict) -> dict:
    """{"licence", "commercial", "citation"} of a source; commercial is None where nobody says."""
    source = lookup(spec["name"], spec.get("config"))
    return {
        "licence": spec.get("licence") or source.licence,
        "commercial": spec.get("commercial", source.commercial),
        "citation": spec.get("citation") or source.citation,
    }
