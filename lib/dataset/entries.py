"""The entries of a recipe's data section: what each may say, and the name under which its rows stand in every table."""

from lib.dataset import shapes
from lib.dataset.sources import OWN_NAMES, SOURCES, credited, lookup
from lib.pipeline import schema

SPEC_KEYS = ("name", "config", "split", "revision", "path", "max_rejected")
OWN_KEYS = ("label", "columns", "turns", "licence", "citation")  # of a user's own file only
KEY_TYPES = {"columns": ["dict", "null"], "max_rejected": ["float", "null"]}
ROLES = {"train": "sources", "test": "test_sources", "truth": "truth_sources"}  # what rows are for: its list in `data`


def check_spec(spec: dict) -> None:
    """Check one entry of data.sources, test_sources or truth_sources before anything is read.

    Raises ValueError with the nearest valid name for an unknown source, key, config or split of ours.
    """
    where = "an entry of the recipe's data.sources"
    if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
        raise ValueError(f"{where} should read {{name: medreason, ...}}, found {spec!r}")
    source, name = lookup(spec["name"]), spec["name"]
    is_own = not source.hub_id
    text, splits = {"types": ["str", "null"], "choices": []}, ["train", "test"]
    allowed = dict.fromkeys(SPEC_KEYS + OWN_KEYS * is_own, text)
    allowed |= {key: {"types": types, "choices": []} for key, types in KEY_TYPES.items() if key in allowed}
    allowed["config"] = {"types": ["null"], "choices": list(source.configs)}
    if is_own:
        allowed["turns"] = {"types": ["null"], "choices": ["each", "last"]}
    if name == "pubmedqa":
        allowed["split"] = {"types": ["null"], "choices": splits[: 1 if spec.get("config") == "pqa_artificial" else 2]}
    schema.check(spec, allowed, f"data.sources, {name}")
    schema.known_keys(spec.get("columns") or {}, shapes.KEYS, "key", f"data.sources, {name}.columns")
    if is_own and not spec.get("path"):
        raise ValueError(f"data.sources, {name}: path is missing, expected the file, folder or pattern to read")


def labelled(data: dict) -> dict[str, tuple[str, dict]]:
    """{name in every table: (role, spec)} of all entries of a recipe's data section; role: train, test or truth.

    Rows written in a data set's columns are credited to whoever wrote them (sources.credited).
    A file of the user's own is known by its `label`, else by its name without suffixes, and by its whole path where
    that is not its alone: spec["label"] holds it. Raises ValueError for an entry that is listed twice for one role.
    """
    entries = [(role, spec if spec["name"] in OWN_NAMES else credited(spec, data.get("origin", "hub")))
               for role, section in ROLES.items() for spec in data[section]]  # fmt: skip
    own_paths = {}
    for _, spec in entries:
        if spec["name"] in OWN_NAMES:
            own_paths.setdefault(_label(spec), set()).add(spec["path"])
    named = {}
    for role, spec in entries:
        label = _label(spec)
        if spec["name"] in OWN_NAMES:
            if not spec.get("label") and (len(own_paths[label]) > 1 or label in SOURCES):
                label = spec["path"]
            spec = spec | {"label": label}
        name = "/".join(filter(None, (label, spec.get("config"), spec.get("split"))))
        if name in named and named[name][0] != role:
            name = f"{name} ({role})"
        if name in named:
            raise ValueError(
                f"data.{ROLES[role]} lists {name!r} twice: once is enough, and data.stages says how often rows are "
                "used; give two files of one name a label each"
            )
        named[name] = role, spec
    return named


def _label(spec):
    if spec.get("label") or spec["name"] not in OWN_NAMES:
        return spec.get("label") or spec["name"]
    parts = [part for part in spec["path"].split("/") if part and "*" not in part and "?" not in part]
    return parts[-1].partition(".")[0] or parts[-1] if parts else spec["path"]
