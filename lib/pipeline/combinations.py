"""What is valid key by key in a recipe and cannot work together."""

import re
import typing
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from lib.pipeline import architectures, schema
from lib.pipeline.credentials import scrub
from lib.pipeline.files import ROOT
from lib.pipeline.forms import Strict, checked

MORE_THAN_PAIRS = ("use_dora", "lora_bias", "use_qalora", "layer_replication", "modules_to_save",
                   "trainable_token_indices", "alora_invocation_tokens", "megatron_config")  # fmt: skip
HEADS = ("lm_head", "embed_tokens", "embed_out", "wte", "output")  # the vocabulary's two tables, by their usual names


class Benchmark(Strict):
    """A file that a judge grades by rubric, see lib.evaluation.cases."""

    name: Literal["healthbench", "medsafety"]
    path: str
    questions: int = Field(50, ge=1)


class Pairs(Strict):
    """An entry of preference.data, see lib.preference.converters."""

    name: Literal["clinic", "own", "rubrics", "ultramedical", "ultrafeedback"]
    pairs: int = Field(64, ge=2)  # of each of the clinic's axes
    axes: list[Literal["decision", "escalation", "reassurance", "caution", "length"]] | None = None  # of the clinic
    axis: str | None = None  # of the others: what their pairs are counted under
    path: str | None = None
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    columns: dict[Literal["prompt", "chosen", "rejected", "system"], str] | None = None
    label: str | None = None
    licence: str | None = None
    citation: str | None = None
    max_rejected: float | None = Field(None, ge=0, le=1)

    @model_validator(mode="after")
    def has_rows(self):
        if self.name in ("own", "rubrics") and not self.path:
            raise ValueError(f"path is missing: expected the file of name: {self.name}")
        return self


class Arm(schema.Section):
    method: Literal["sft", "best_of_k", "dpo", "rloo", "grpo"]
    pairs: list | None = None  # dpo: axes, or "samples" for the model's own
    reward: Literal["key", "format", "model", "length"] | None = None  # rloo, grpo
    scheme: Literal["none"] | None = None  # trains without preference.scheme's grid; its file has it all the same


METHODS = {"sft": "sft", "best_of_k": "sft", "dpo": "dpo", "rloo": "rloo", "grpo": "grpo"}  # an arm's library section


def check(recipe):
    """Refuse what is valid key by key and cannot work together."""
    data, model, export, judge, qat = (recipe[k] for k in ("data", "model", "export", "judge", "qat"))
    if not data["sources"]:
        raise ValueError("data.sources is empty: name at least one source")
    for source in data["sources"] + data["test_sources"] + data["truth_sources"]:
        if not isinstance(source, dict) or "name" not in source:
            raise ValueError(f"an entry of data.sources should read {{name: medreason, ...}}, found {source!r}")
    _subset(data["drop_overlaps"], schema.OVERLAPS, "data.drop_overlaps")
    if not model["base"]:
        raise ValueError("model.base is missing: a hub id, a folder, or twin")
    if (model["base"] == "twin") != (model["twin"] is not None):
        raise ValueError(
            f"model.base is {model['base']!r} and model.twin is {model['twin']!r}: "
            "'twin' needs its sizes there, other bases must leave it out"
        )
    if why := architectures.unconvertible(model["base"]):
        raise ValueError(f"model.base {model['base']!r} can be trained but not exported (chapter 5): {why}")
    if model["checkpoint_4bit"] and not (model["quantization"] or {}).get("load_in_4bit"):
        raise ValueError("model.checkpoint_4bit saves the base in 4 bits: say which in model.quantization, or drop it")
    if recipe["chat"]["generator"] == "vllm" and (model["quantization"] or (recipe["preference"] or {}).get("scheme")):
        raise ValueError("chat.generator is vllm with model.quantization or preference.scheme: it would answer for "
                         "other weights than those in memory. Drop these, or generate with transformers")  # fmt: skip
    _subset(export["quantizations"], schema.QUANTIZATIONS, "export.quantizations")
    if not export["quantizations"]:
        raise ValueError(f"export.quantizations is empty: name at least one of {', '.join(schema.QUANTIZATIONS)}")
    if judge:
        arms = (recipe["preference"] or {"arms": ()})["arms"]
        if not all(isinstance(name, str) for name in judge["candidates"] + judge["judges"]):
            raise ValueError("judge.candidates and judge.judges should be lists of names; put api:MODEL in quotes")
        if len(set(judge["candidates"])) < 2:
            raise ValueError(f"judge.candidates is {judge['candidates']}: a comparison needs two or more")
        for name in judge["judges"]:
            _address(name)
        candidates = ["base", "sft", *(["qat"] if qat else []), *export["quantizations"], *arms]
        ours = [name for name in judge["candidates"] if not name.startswith("api:")]  # api:MODEL is asked at a server
        _subset(ours, candidates, "judge.candidates (with this qat and export; api:MODEL for a hosted one)")
        _benchmarks(judge["benchmarks"])
    if recipe["preference"]:
        checked(recipe["preference"]["data"], list[Pairs], "preference.data")
        _check_arms(recipe["preference"])
    _training(recipe, data, model, qat)


def _address(judge):
    """Refuse a judge MODEL@ADDRESS whose address nobody can ask: chapter 6 is hours away."""
    name, at, url = judge.partition("@")
    parts = urlsplit(url)
    try:
        known = name and parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port beyond 65535, or no number
        known = False
    if at and not known:
        raise ValueError(
            f"judge.judges, {scrub(judge)!r}: an address such as http://127.0.0.1:8080/v1 should follow the @"
        )


def _training(recipe, data, model, qat):
    _adapter(recipe["lora"] or {})
    if not recipe["sft"].get("max_length"):
        raise ValueError(
            "sft.max_length is missing: set the tokens that a row may have, which chapters 3 to 5 count on"
        )
    trained = recipe["sft"] | (qat or {})
    if not trained["max_length"]:
        raise ValueError("qat.max_length is 0 or null: leave it out to take sft's, or set the tokens of a row")
    _logged(recipe["sft"], "sft")
    _logged(trained, "qat")
    spread = [key for key in ("fsdp", "deepspeed") if trained.get(key)]
    if spread and (spread == ["fsdp"] or trained["deepspeed"]["zero_optimization"]["stage"] == 3):
        remedy = "qat: null" if qat else "data.stages: []" if len(data["stages"]) > 1 else None
        if remedy:  # chapter 4 rounds W + BA; after each stage chapter 3 asks questions, each rank its own number
            raise ValueError(
                f"{remedy.partition(':')[0]} needs whole weight matrices on each rank, which sft.{spread[0]} spreads "
                f"over them: set {remedy}"
            )
    if trained.get("fsdp") and (model["quantization"] or re.match("paged_|.*8bit", str(trained.get("optim")))):
        raise ValueError(
            "sft.fsdp spreads 16-bit weights and torch's own optimizers: accelerate leaves 4-bit weights whole, and "
            "bitsandbytes' optimizers know no spread tensors. Set model.quantization=null model.checkpoint_4bit=false "
            "sft.optim=adamw_torch_fused"
        )
    if (trained.get("fsdp_config") or {}).get("activation_checkpointing"):
        raise ValueError(
            "fsdp_config.activation_checkpointing wraps layers, and PEFT then saves an adapter without tensors: set it "
            "to false and sft.gradient_checkpointing to true"
        )
    if recipe["lora"] and qat and model["quantization"]:
        raise ValueError(
            "qat over a 4-bit base (model.quantization) is not supported: set qat: null or load the base in 16 bits"
        )


def _logged(fields, where):
    """Refuse a training whose loss would never be logged: its chapter may be hours away."""
    if fields.get("logging_strategy") == "no":
        raise ValueError(f"{where}.logging_strategy is 'no', so its loss would never be logged: set steps or epoch")
    steps, every = fields.get("max_steps") or 0, fields.get("logging_steps", 10)  # TRL's default
    by_steps = fields.get("logging_strategy", "steps") == "steps" and not fields.get("logging_first_step")
    if 0 < steps < every and by_steps:
        raise ValueError(
            f"{where} trains {steps} steps and logs every {every} (logging_steps), so its loss would never be logged: "
            f"set {where}.logging_steps to {steps} or less"
        )


def _adapter(lora):
    """Refuse an adapter that is more than a pair of matrices beside an unchanged weight: hours later the quantizer's
    gate and llama.cpp's adapter file would.
    """
    found = [f"lora.{key}" for key in MORE_THAN_PAIRS if lora.get(key)]
    found += ["lora.bias"] if lora.get("bias", "none") != "none" else []
    if lora.get("init_lora_weights", True) not in (True, False, "gaussian", "orthogonal", None):
        found.append(f"lora.init_lora_weights={lora['init_lora_weights']}, which changes the base")
    _meets(lora.get("exclude_modules"), "")  # is it an expression at all?
    for key in ("target_modules", "target_parameters"):
        met = [name for name in HEADS if _meets(lora.get(key), name) and not _meets(lora.get("exclude_modules"), name)]
        found += [f"lora.{key}={name}" for name in met]
    if found:
        raise ValueError(
            f"{', '.join(found)}: chapters 4 and 5 quantize and serve pairs of matrices on layers of an unchanged "
            "base, and no other adapter: leave it out of the recipe"
        )


def _meets(targets, name):
    """Whether PEFT would adapt a table of that name: a string is an expression over whole names, a list has endings."""
    if not isinstance(targets, str):
        return any(str(target).removesuffix(".weight").rpartition(".")[2] == name for target in targets or [])
    try:
        return any(re.fullmatch(targets, prefix + name) for prefix in ("", "model.", "transformer."))
    except re.error as error:
        raise ValueError(f"lora names layers by {targets!r}, which is no regular expression: {error}") from None


def _benchmarks(entries):
    """Refuse an entry of judge.benchmarks that names no known benchmark or no file: chapter 6 is hours away."""
    for entry in checked(entries, list[Benchmark], "judge.benchmarks"):
        if not (ROOT / entry.path).is_file():
            raise ValueError(
                f"judge.benchmarks, {entry.name}: no file {entry.path!r}, from the repository's root on; "
                "data/README.md says what it should hold"
            )
    names = [entry["name"] for entry in entries]
    if len(set(names)) < len(names):
        raise ValueError(f"judge.benchmarks names {max(names, key=names.count)} twice: put its rows into one file")


def _subset(found, allowed, where):
    for name in found:
        if name not in allowed:
            raise ValueError(f"unknown {name!r} in {where}{schema.nearest(str(name), list(allowed))}")


def _check_arms(values):
    schema.check(values.get("reward") or {}, _given(schema.fields("reward")), "preference.reward")
    _logged(values.get("reward") or {}, "preference.reward")
    own = {key: schema.kinds(hint) for key, hint in typing.get_type_hints(Arm).items() if key in Arm.model_fields}
    values["arms"] = {name: arm for name, arm in values["arms"].items() if arm is not None}  # an overlay's null
    for name, arm in values["arms"].items():
        taken = ("base", "sft", "qat", *schema.QUANTIZATIONS)
        if not re.fullmatch(r"[a-z][a-z0-9_]*", str(name)) or name in taken:
            raise ValueError(
                f"preference.arms: {name!r} names files and a candidate: small letters, digits and _ are needed, "
                f"and none of {', '.join(taken)}"
            )
        where, method = f"preference.arms.{name}", arm.get("method") if isinstance(arm, dict) else None
        if method not in METHODS:
            raise ValueError(f"{where}.method should be one of {', '.join(METHODS)}, found {method!r}")
        schema.check(arm, _given(schema.fields(METHODS[method])) | own, where)
        _logged(arm, where)
        needs = {"dpo": "pairs", "rloo": "reward", "grpo": "reward"}.get(method)
        if needs and not arm.get(needs):
            raise ValueError(f"{where} trains by {method} and needs {needs!r}: see docs/preference.md")


def _given(known):
    return {key: kind for key, kind in known.items() if key not in schema.DEVICE_FIELDS}
