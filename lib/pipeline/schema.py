"""What a recipe may hold: our own sections as pydantic models, the libraries' sections from their type hints."""

import contextlib
import dataclasses
import difflib
import enum
import importlib
import importlib.metadata
import inspect
import types
import typing

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lib.pipeline.files import cache_dir, read_json, sha256_file, write_json

SECTIONS = ("run", "data", "model", "chat", "lora", "sft", "qat", "export", "judge", "preference")
NULLABLE = ("lora", "qat", "judge", "preference")
OVERLAPS = ("provenance", "exact", "near", "gram_13", "content", "gram_8")  # of lib.dataset.leakage, the surest first
QUANTIZATIONS = ("q2_k", "q3_k_m", "q4_0", "q4_k_m", "q5_k_m", "q8_0", "mxfp4_moe")
DEVICE_FIELDS = ("output_dir", "use_cpu", "bf16", "fp16", "disable_tqdm", "seed", "data_seed")
LIBRARIES = {
    "lora": ("peft", "LoraConfig"),
    "quantization": ("transformers", "BitsAndBytesConfig"),
    **{name: ("trl", f"{name.upper()}Config") for name in ("sft", "dpo", "rloo", "grpo")},
    "reward": ("trl", "RewardConfig"),
}
TYPE_NAMES = {bool: "bool", int: "int", float: "float", str: "str", list: "list", dict: "dict", type(None): "null"}
SEED = typing.Annotated[int, Field(ge=0, le=2**32 - 1)]


class Section(BaseModel):
    """A section of ours. Types and names are checked by `check`, which has words for them; ranges here."""

    model_config = ConfigDict(extra="ignore", strict=True)  # qat holds fields of SFTConfig too


class RunSection(Section):
    seed: SEED = 42
    threads: int = Field(1, ge=1, le=1024)


class DataSection(Section):
    origin: typing.Literal["hub", "clinic", "samples"] = "hub"
    sources: list = Field(default_factory=list)
    test_sources: list = Field(default_factory=list)
    truth_sources: list = Field(default_factory=list)  # joined by question: a short ground truth for open questions
    test_questions: int = Field(200, ge=1, le=1000000)
    screens: int = Field(129, ge=1, le=129)  # pairs of safety prompts that the base and the tuned model are asked
    cases: int = Field(25, ge=1, le=25)  # clinical cases that they are asked
    eval_fraction: float = Field(0.05, ge=0.001, le=0.5)
    min_reasoning_chars: int = 0
    drop_overlaps: list = Field(default_factory=lambda: ["provenance", "exact", "near", "gram_13"])  # others are listed
    banned: list = Field(default_factory=list)  # benchmarks no training row may come from
    stages: list = Field(default_factory=list)  # [{name, weights: {source: epochs}}], in training order
    max_cut: float = Field(0.05, ge=0, le=1)  # share of training rows that may lose their end to sft.max_length
    drop_cut: bool = False  # leave such rows out of training instead


class ModelSection(Section):
    base: str = ""
    revision: str | None = None
    backend: typing.Literal["auto", "unsloth", "transformers"] = "transformers"  # trains the adapter: model/unsloth
    dtype: typing.Literal["auto", "float32", "bfloat16", "float16"] = "bfloat16"  # auto: loading.precision
    attn_implementation: str | typing.Annotated[list[str], Field(min_length=1)] = "sdpa"  # loading.attention
    quantization: dict | None = None
    checkpoint_4bit: bool = False  # the base is saved in 4 bits once, in the cache, and loaded from there
    twin: dict | None = None


class ChatSection(Section):
    format: typing.Literal["think", "harmony", "thinking_response", "instruction"] = "think"
    reasoning_effort: typing.Literal["low", "medium", "high"] | None = None  # harmony writes it into its system turn
    date: str | None = None  # YYYY-MM-DD for templates that write today's
    generator: typing.Literal["transformers", "vllm"] = "transformers"  # what answers in chapters 2, 3 and 7
    max_new_tokens: int = Field(512, ge=1, le=1000000)
    batch_size: int = Field(16, ge=1, le=10000)
    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float = Field(1.0, ge=0.01, le=1)  # draw among the likeliest that hold this share; idle at temperature 0


class QatSection(Section):
    scheme: typing.Literal[*QUANTIZATIONS, "int4_weight_only"] = "q4_0"
    seeds: list[SEED] = Field(default_factory=list)
    distill: bool = True


class ExportSection(Section):
    outtype: typing.Literal["bf16", "f16"] = "bf16"
    quantizations: list = Field(default_factory=lambda: ["q4_0", "q4_k_m", "q5_k_m", "q8_0"])
    questions: int | None = Field(None, ge=1, le=1000000)  # of the test that each file is asked; null: all
    slots: int = Field(1, ge=1, le=1024)
    servers: int = Field(1, ge=1, le=1024)


class JudgeSection(Section):
    questions: int = Field(200, ge=1, le=1000000)
    candidates: list = Field(default_factory=lambda: ["base", "sft", "qat", "q4_k_m"])
    judges: list = Field(default_factory=lambda: ["lexical"])
    hosted_tokens: int | None = Field(None, ge=1, le=1000000)  # of api: candidates, what they think too; null: chat's
    max_usd: float = Field(1.0, ge=0, le=1000000)
    timeout_s: float = Field(120.0, ge=1, le=86400)
    orders: int = Field(2, ge=1, le=20)  # in which each question is shown: two tell how often the order decides
    repeats: int = Field(20, ge=0, le=100000)  # calls made a second time under other codes
    exam: int = Field(12, ge=0, le=1000)  # questions of the exam that a judge must pass first; 0 leaves it out
    benchmarks: list = Field(default_factory=list)  # files of yours, [{name: healthbench, path, questions}]


class PreferenceSection(Section):
    scheme: typing.Literal[*QUANTIZATIONS] | None = None
    data: list = Field(default_factory=lambda: [{"name": "clinic"}])  # of pairs: chapter 7's converters
    questions: int = Field(60, ge=1, le=100000)  # of the test, that are answered `samples` times
    learn_from: int = Field(120, ge=1, le=1000000)  # training questions that best_of_k and pairs of samples draw on
    samples: int = Field(8, ge=2, le=1024)
    kl_limit: float = Field(1.0, ge=0.0001, le=100)  # nats a token from chapter 3's model, of rloo and grpo
    seeds: list[SEED] = Field(default_factory=list)
    reward: dict = Field(default_factory=dict)  # fields of trl.RewardConfig
    arms: dict = Field(default_factory=dict)  # {name: {method, pairs or reward, fields of the method's Config}}


OWN = {
    "run": RunSection,
    "data": DataSection,
    "model": ModelSection,
    "chat": ChatSection,
    "qat": QatSection,
    "export": ExportSection,
    "judge": JudgeSection,
    "preference": PreferenceSection,
}


def section(name, values):
    if values is None:
        if name in NULLABLE:
            return None
        raise ValueError(f"section {name!r} is missing from the recipe: only {', '.join(NULLABLE)} may be null")
    if not isinstance(values, dict):
        raise ValueError(f"section {name!r} should hold keys and values, found {values!r}")
    hints = typing.get_type_hints(OWN[name]) if name in OWN else {}
    own = {key: kinds(hint) for key, hint in hints.items() if key in OWN[name].model_fields}
    library = fields("sft" if name == "qat" else name) if name in ("lora", "sft", "qat") else {}
    allowed = {k: v for k, v in (library | own).items() if not (name in ("sft", "qat") and k in DEVICE_FIELDS)}
    for key in set(values) & set(DEVICE_FIELDS) if name in ("sft", "qat") else ():
        raise ValueError(f"{name}.{key} is not a recipe's to set: it follows from the device, the run and run.seed")
    check(values, allowed, name)
    if name == "model" and values.get("quantization"):
        check(values["quantization"], fields("quantization"), "model.quantization")
    return _complete(name, values) if name in OWN else values


def _complete(name, values):
    """A section of ours with its defaults. Raises ValueError for a number out of its range."""
    try:
        OWN[name].model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        range_ = OWN[name].model_fields[first["loc"][0]].metadata
        should = f" should be between {range_[0].ge} and {range_[1].le}" if range_ else f": {first['msg']}"
        raise ValueError(f"{name}.{'.'.join(map(str, first['loc']))}{should}, found {first['input']}") from None
    return OWN[name]().model_dump() | values


def check(values, allowed, where):
    """Check a dict against {name: kinds}; raises ValueError with the nearest valid name or the expected types."""
    known_keys(values, allowed, "key", where)
    for key, value in values.items():
        if not accepts(value, allowed[key]):
            raise ValueError(
                f"{where}.{key}: found {value!r} ({type(value).__name__}), {_expected(value, allowed[key])}"
            )


def _expected(value, kind):
    if isinstance(value, str) and kind["choices"]:
        return f"which is none of its values{nearest(value, list(map(str, kind['choices'])))}"
    return f"expected {' or '.join([*map(repr, kind['choices']), *kind['types']]) or 'nothing: it cannot be set here'}"


def known_keys(values, allowed, noun, where):
    for key in values:
        if key not in allowed:
            raise ValueError(f"unknown {noun} {key!r} in {where}{nearest(str(key), list(allowed))}")


def nearest(name, names):
    folded = {each.casefold(): each for each in reversed(names)}  # of two that differ in case alone, the first
    close = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)
    return f"; the nearest valid name is {folded[close[0]]!r}" if close else f"; valid are {', '.join(names[:12])}"


def kinds(hint):
    """A type hint as {"types": [names], "choices": [values]}, the part of it that YAML can express."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        parts = [kinds(part) for part in typing.get_args(hint)]
        enums = [part for part in parts if part["choices"]]
        merged = sorted({t for part in parts for t in part["types"]})
        if enums and "str" in merged:  # `SchedulerType | str`: the enum says which strings
            merged.remove("str")
        return {"types": merged, "choices": [c for part in enums for c in part["choices"]]}
    if typing.get_origin(hint) is typing.Literal:
        return {"types": [], "choices": list(typing.get_args(hint))}
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return {"types": [], "choices": [member.value for member in hint]}
    plain = typing.get_origin(hint) or hint
    return {"types": [TYPE_NAMES[plain]] if plain in TYPE_NAMES else [], "choices": []}


def accepts(value, kind):
    """Whether a YAML value fits; an int is a float too, a bool is not an int."""
    name = TYPE_NAMES.get(type(value), "other")
    if any(value == choice and type(value) is type(choice) for choice in kind["choices"]):
        return True
    return name in kind["types"] or (name == "int" and "float" in kind["types"])


def fields(section):
    """{field: kinds} of the library class behind a section, read from its type hints and kept per version.

    Importing trl takes seconds, so the answer is cached under the installed version.
    """
    package, cls = LIBRARIES[section]
    version = f"{importlib.metadata.version(package)}-{sha256_file(__file__)[:8]}"
    path = cache_dir() / "fields" / f"{cls}-{version}.json"
    with contextlib.suppress(OSError, ValueError):
        return read_json(path)
    config = getattr(importlib.import_module(package), cls)
    if section != "quantization":
        hints = typing.get_type_hints(config)
        found = {f.name: kinds(hints[f.name]) for f in dataclasses.fields(config) if f.init}
    else:
        found = _signature_kinds(config)
    with contextlib.suppress(OSError):  # no cache, no harm
        write_json(path, found)
    return found


def _signature_kinds(config):
    """Kinds from a constructor without type hints, by the types of its defaults (BitsAndBytesConfig)."""
    found = {}
    for name, parameter in inspect.signature(config.__init__).parameters.items():
        if name in ("self", "kwargs") or parameter.kind is parameter.VAR_KEYWORD:
            continue
        unknown = {"types": ["str", "list", "null"], "choices": []}
        found[name] = unknown if parameter.default is None else kinds(type(parameter.default))
    if "bnb_4bit_quant_type" in found:
        found["bnb_4bit_quant_type"] = {"types": [], "choices": ["nf4", "fp4"]}
    return found
