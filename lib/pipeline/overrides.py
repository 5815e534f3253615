"""YAML as recipes are written in, and what SET lays over them: text to nested values."""

import math
import re
import shlex

import yaml

from lib.pipeline.credentials import scrub


class _Loader(yaml.SafeLoader):
    """Numbers as in YAML 1.2, so that 2e-4 is a float and not a string; a key that stands twice is an error."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise ValueError(f"key {twice[0]!r} stands twice, line {node.start_mark.line + 1}: keep one of them")
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node):
        if ":" in node.value:  # 12:30 is 750 in YAML 1.1
            return node.value
        if re.match(r"[-+]?0[0-9]", node.value):
            line = node.start_mark.line + 1
            raise ValueError(f"{node.value} is octal to some readers of YAML, line {line}: leave out the leading 0")
        return super().construct_yaml_int(node)

    def construct_yaml_float(self, node):
        if ":" in node.value:
            return node.value
        value = super().construct_yaml_float(node)
        if not math.isfinite(value):
            raise ValueError(f"{node.value} is no finite number, line {node.start_mark.line + 1}")
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)
_Loader.add_implicit_resolver(  # YAML 1.1 wants a point and a sign in such numbers
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def parse(text):
    """Parse YAML text with the loader above. Raises ValueError for a value that JSON does not know, such as a date."""
    return _known(yaml.load(text, Loader=_Loader))  # a SafeLoader subclass


def _known(value):
    if isinstance(value, dict | list):
        for part in [*value, *value.values()] if isinstance(value, dict) else value:
            _known(part)
    elif not isinstance(value, str | int | float | None):
        raise ValueError(f"{value} is a {type(value).__name__}: put it in quotes if text is meant")
    return value


def parse_set(text):
    """'sft.learning_rate=1e-3 judge.questions=50' -> {"sft": {"learning_rate": 0.001}, "judge": {"questions": 50}}."""
    overrides = {}
    try:
        items = shlex.split(text or "")
    except ValueError as error:
        raise ValueError(f"SET {scrub(text)!r} has a quotation mark without its other half ({error})") from error
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise ValueError(
                f"SET item {scrub(item)!r} should read section.key=value, for example sft.learning_rate=1e-3"
            )
        try:
            overrides[key] = parse(value)
        except yaml.YAMLError as error:
            why = getattr(error, "problem", error)  # what reads the characters knows no problem
            raise ValueError(
                f"SET item {scrub(item)!r} is no YAML value ({why}): one with blanks in it is put in quotes whole, "
                "such as 'data.sources=[{name: medreason}]'"
            ) from error
    return nest(overrides)


def nest(overrides):
    """Overrides with dotted or nested keys, or both, as one nested dict. Raises ValueError for a key that is none."""
    nested = {}
    for key, value in (overrides or {}).items():
        if not isinstance(key, str) or "" in key.split("."):
            raise ValueError(f"{key!r} names no setting: names joined by dots are needed, such as sft.learning_rate")
        for part in reversed(key.split(".")):
            value = {part: value}
        nested = merge(nested, value)
    return nested


def merge(base, over):
    """Lay `over` on `base`: dicts merge, everything else (lists too) replaces, nothing deletes."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return base | {key: merge(base.get(key), value) for key, value in over.items()}


def as_set(overrides):
    """Overrides as SET takes them: "sft.learning_rate=0.001 judge.questions=50"."""
    return " ".join(f"{key}={shlex.quote(_flow(value))}" for key, value in _flat(overrides))


def options(name, overrides):
    """What follows a make target to reach a run: RECIPE=tiny SET="judge.questions=50"."""
    return f"RECIPE={name}" + (f' SET="{as_set(overrides)}"' if overrides else "")


def _flat(tree, prefix=""):
    for key, value in tree.items():
        yield from _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]


def _flow(value):
    return re.sub(r"\n(\.\.\.\n)?$", "", yaml.safe_dump(value, default_flow_style=True, width=10**6))
