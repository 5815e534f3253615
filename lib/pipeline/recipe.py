"""Recipes: params/*.yaml loaded, overridden and validated before anything is spent on them."""

import argparse
import os

import yaml

from lib.pipeline import architectures, combinations, credentials, schema
from lib.pipeline.files import ROOT, sha256_json
from lib.pipeline.overrides import merge, nest, options, parse, parse_set
from lib.pipeline.schema import SECTIONS


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

    @property
    def options(self):
        """What follows a make target to reach this run."""
        return options(self.name, self.overrides)

    def left_out(self, stage):
        """Why this recipe has no such stage, or ""."""
        if stage == "07_preference" and self._sections["preference"] is None:
            return "the recipe has no section preference: docs/preference.md"
        return ""

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
        document, cautions = overlay(document, _read("params/overlays", over, "overlay"), overrides)
    document = merge(document, overrides)
    credentials.refuse(document)
    schema.known_keys(document, SECTIONS, "section", "the recipe")
    _launch_files(document)
    sections = {section: schema.section(section, document.get(section)) for section in SECTIONS}
    combinations.check(sections)
    return Recipe(name, overrides, sections, cautions)


def _read(folder, name, kind):
    names = sorted(p.stem for p in (ROOT / folder).glob("*.yaml") if p.stem != "prices")
    if name not in names:
        raise ValueError(f"no {kind} {name!r} in {folder}/: there is {', '.join(names)}{schema.nearest(name, names)}")
    try:
        return parse((ROOT / folder / f"{name}.yaml").read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{folder}/{name}.yaml is not valid YAML: {error}") from error


def overlay(document, over, overrides=None):
    """(document with the overlay over it, what the overlay says that it cannot show).

    A section that the recipe leaves out stays out, unless overrides name it ({"preference": {}}). An overlay with
    model.twin gets the twin of the recipe's own architecture; what the overlay says of it goes before.
    """
    over = dict(over)
    cautions = over.pop("cannot_show", ())
    named = document | {section: values for section, values in (overrides or {}).items() if values is not None}
    over = {section: values for section, values in over.items() if named.get(section) is not None}
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
