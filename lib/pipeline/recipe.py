"""Recipes: params/*.yaml loaded, overridden and validated before anything is spent on them."""

import argparse
import os

import yaml

from lib.pipeline import architectures, schema
from lib.pipeline.files import ROOT, sha256_json
from lib.pipeline.overrides import merge, nest, parse, parse_set
from lib.pipeline.schema import QUANTIZATIONS, SECTIONS


class Recipe:
    """One validated recipe. Sections are attributes; which ones a stage read decides when it must run again.

    name: the file's stem in params/, with "@overlay" where one of params/overlays/ lies over it. overrides: nested dict
    laid over both. run_name: the folder in outputs/. cautions: what the overlay says that such a run cannot show.
    used: names of the sections read so far. reads: repository files that reading them brought in.
    """

    def __init__(self, name, overrides, sections, cautions=()):
        self.name, self.overrides, self.cautions = name, overrides, cautions
        self.run_name = name if not overrides else f"{name}+{sha256_json(overrides)[:6]}"
        self._sections = sections
        self.used, self.reads = set(), set()

    def __getattr__(self, section):
        if section in SECTIONS:
            self.used.add(section)
            return self._sections[section]
        raise AttributeError(f"a recipe has no section {section!r}; it has {', '.join(SECTIONS)}")

    def sections(self, names=SECTIONS):
        """The values of the named sections, without counting them as read."""
        return {name: self._sections[name] for name in sorted(names)}


def parser(about, **options):
    """An argparse parser with --recipe and --set; without them RECIPE and SET of the environment count, set by Make.

    about: the module's docstring, whose first line it shows. options: for ArgumentParser, such as prog.
    """
    made = argparse.ArgumentParser(description=about.splitlines()[0], **options)
    made.add_argument("--recipe", default=os.environ.get("RECIPE", "tiny"), help="a file's stem in params/")
    made.add_argument("--set", default=os.environ.get("SET", ""), dest="overrides", help='"section.key=value ..."')
    return made


def chosen(arguments):
    """The recipe that parsed arguments name, under the overlay that OVERLAY of the environment names, if any.

    Raises ValueError as `load` does, and where the recipe's name is empty.
    """
    name, over = arguments.recipe, os.environ.get("OVERLAY")
    if not name:
        raise ValueError("RECIPE is empty: name a recipe of params/, or leave it out for tiny")
    return load(f"{name}@{over}" if over and "@" not in name else name, parse_set(arguments.overrides))


def load(name="tiny", overrides=None):
    """Load params/<name>.yaml with `overrides` laid over it; "<name>@<overlay>" lays params/overlays/ between the two.

    Raises ValueError, naming what was found and what was expected, for an unknown recipe, overlay, section or key,
    a value of the wrong type, or a combination that cannot work.
    """
    stem, at, over = name.partition("@")
    document, cautions, overrides = _read("params", stem, "recipe"), (), nest(overrides)
    if at:
        document, cautions = overlay(document, _read("params/overlays", over, "overlay"))
    document = merge(document, overrides)
    schema.known_keys(document, SECTIONS, "section", "the recipe")
    _launch_files(document)
    sections = {section: schema.section(section, document.get(section)) for section in SECTIONS}
    _combinations(sections)
    return Recipe(name, overrides, sections, cautions)


def _read(folder, name, kind):
    names = sorted(p.stem for p in (ROOT / folder).glob("*.yaml") if p.stem != "prices")
    if name not in names:
        raise ValueError(f"no {kind} {name!r} in {folder}/: there is {', '.join(names)}{schema.nearest(name, names)}")
    try:
        return parse((ROOT / folder / f"{name}.yaml").read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{folder}/{name}.yaml is not valid YAML: {error}") from error


def overlay(document, over):
    """(document with the overlay over it, what the overlay says that it cannot show).

    A section that the recipe leaves out with null stays out. An overlay with model.twin gets the twin of the recipe's
    own architecture; what the overlay says of it goes before.
    """
    over = dict(over)
    cautions = over.pop("cannot_show", ())
    over = {section: values for section, values in over.items() if document.get(section) is not None}
    base = document["model"]["base"]
    if over.get("model", {}).get("twin") and base != "twin":
        over = merge({"model": {"twin": architectures.twin(base)}}, over)
    return merge(document, over), cautions


def _launch_files(document):
    """Put the values of params/launch/<name>.yaml where sft or qat names it as fsdp_config or deepspeed."""
    for name in ("sft", "qat"):
        values = document.get(name)
        for key in ("fsdp_config", "deepspeed") if isinstance(values, dict) else ():
            if not isinstance(values.get(key), str):
                continue
            path = ROOT / "params" / "launch" / f"{values[key]}.yaml"
            names = sorted(p.stem for p in path.parent.glob("*.yaml"))
            if values[key] not in names:
                raise ValueError(f"{name}.{key} names {values[key]!r}; params/launch/ has {', '.join(names)}")
            document[name] = values = values | {key: parse(path.read_text(encoding="utf-8"))}


def _combinations(recipe):
    """Refuse what is valid key by key and cannot work together."""
    data, model, export, judge, qat = (recipe[k] for k in ("data", "model", "export", "judge", "qat"))
    for value, where, low, high in (
        (data["eval_fraction"], "data.eval_fraction", 0, 0.5),
        (data["max_cut"], "data.max_cut", 0, 1),
        (recipe["chat"]["temperature"], "chat.temperature", 0, 2),
        (recipe["chat"]["top_p"], "chat.top_p", 0.01, 1),
        (recipe["run"]["threads"], "run.threads", 1, 1024),
        (data["test_questions"], "data.test_questions", 1, 10**6),
        (recipe["chat"]["max_new_tokens"], "chat.max_new_tokens", 1, 10**6),
        (recipe["chat"]["batch_size"], "chat.batch_size", 1, 10**4),
        (judge["orders"] if judge else 1, "judge.orders", 1, 20),
        (judge["exam"] if judge else 0, "judge.exam", 0, 1000),
    ):
        if not low <= value <= high:
            raise ValueError(f"{where} should be between {low} and {high}, found {value}")
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
    if model["checkpoint_4bit"] and not (model["quantization"] or {}).get("load_in_4bit"):
        raise ValueError("model.checkpoint_4bit saves the base in 4 bits: say which in model.quantization, or drop it")
    _subset(export["quantizations"], QUANTIZATIONS, "export.quantizations")
    if judge:
        candidates = ["base", "sft", *(["qat"] if qat else []), *export["quantizations"]]
        ours = [name for name in judge["candidates"] if not name.startswith("api:")]  # api:MODEL is asked at a server
        _subset(ours, candidates, "judge.candidates (with this qat and export; api:MODEL for a hosted one)")
        _benchmarks(judge["benchmarks"])
    if qat and not all(type(seed) is int for seed in qat["seeds"]):
        raise ValueError(f"qat.seeds should list whole numbers, found {qat['seeds']!r}")
    trained = recipe["sft"] | (qat or {})
    spread = [key for key in ("fsdp", "deepspeed") if trained.get(key)]
    if spread and (spread == ["fsdp"] or trained["deepspeed"]["zero_optimization"]["stage"] == 3):
        remedy = "qat: null" if qat else "data.stages: []" if len(data["stages"]) > 1 else None
        if remedy:  # chapter 4 rounds W + BA; after each stage chapter 3 asks questions, each rank its own number
            raise ValueError(
                f"{remedy.partition(':')[0]} needs whole weight matrices on each rank, which sft.{spread[0]} spreads "
                f"over them: set {remedy}"
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


def _benchmarks(entries):
    """Refuse an entry of judge.benchmarks that names no known benchmark or no file: chapter 6 is hours away."""
    for entry in entries:
        if not isinstance(entry, dict) or not {"name", "path"} <= set(entry) <= {"name", "path", "questions"}:
            raise ValueError(
                f"judge.benchmarks: found {entry!r}, expected {{name: healthbench, path: FILE, questions: 50}}"
            )
        _subset([entry["name"]], schema.GRADED, "judge.benchmarks")
        if not isinstance(entry["path"], str) or not (ROOT / entry["path"]).exists():
            raise ValueError(
                f"judge.benchmarks, {entry['name']}: no file {entry['path']!r}, from the repository's root on; "
                "data/README.md says what it should hold"
            )
        if type(entry.get("questions", 1)) is not int or entry.get("questions", 1) < 1:
            raise ValueError(
                f"judge.benchmarks, {entry['name']}: questions is {entry['questions']!r}, expected 1 or more"
            )
    names = [entry["name"] for entry in entries]
    if len(set(names)) < len(names):
        raise ValueError(f"judge.benchmarks names {max(names, key=names.count)} twice: put its rows into one file")


def _subset(found, allowed, where):
    for name in found:
        if name not in allowed:
            raise ValueError(f"unknown {name!r} in {where}{schema.nearest(str(name), list(allowed))}")
