"""Which shape a user's file has: told from its columns and first rows, after what the recipe says of them."""

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Iterable

from lib.dataset import own, sources
from lib.dataset.choices import LETTERS, Reject
from lib.dataset.shapes import KEYS, REMEDY, ROLES, Shape, Unread, complaint, void

PEEK = 1000  # rows that a shape is told from
HUB = ("medical_o1", "medical_r1", "medreason", "verifiable", "pubmedqa", "medqa")  # medmcqa's cop counts from 0 or 1
METADATA = {  # columns of published sets that say nothing to learn, by one that tells the set
    "answer_idx": ("meta_info", "metamap_phrases"),
    "cop": ("choice_type", "subject_name", "topic_name"),
}
ROW_NUMBERS = {"", "unnamed:_0", "__index_level_0__"}  # that pandas writes beside the columns
OPTION = re.compile(r"(?:op|opt|option|choice|answer)?[_ ]?([a-j]|\d{1,2})")
NAMES = (  # a shape's common name, and roles or columns that tell it
    ("preference pairs", {"chosen", "rejected"}),
    ("ShareGPT", {"conversations"}),
    ("chat messages", {"messages"}),
    ("multiple choice", {"options"}),
    ("alpaca", {"instruction", "input"}),
    ("prompt and completion", {"prompt", "completion"}),
    ("question and answer", {"question"}),
)


def read_as(rows: Iterable, spec: dict, where: str) -> tuple[Shape, Iterable]:
    """(the shape of a file, all of its rows). Raises Unread, saying which columns there are and what to write."""
    rows = iter(rows)
    first = list(itertools.islice(rows, PEEK))
    return recognise([row for row in first if isinstance(row, dict)], spec, where), itertools.chain(first, rows)


def recognise(rows: list[dict], spec: dict, where: str) -> Shape:
    """The Shape of rows. spec: its entry in the recipe, whose `columns` go before what is found."""
    present = {column: cell for row in reversed(rows) for column, cell in row.items() if not void(cell)}
    found = dict.fromkeys(itertools.chain(*rows))  # in order
    told = {key: _names(value) for key, value in (spec.get("columns") or {}).items() if key != "base"}
    missing = [c for names in told.values() for c in names if c not in found]
    if rows and missing:
        raise Unread(f"{where}: columns names {missing[0]!r}, and the file has {_quoted(found)}")
    ignored = frozenset(told.pop("ignore", ())) | {c for c in found if _plain(c) in ROW_NUMBERS}
    ignored |= {c for known, names in METADATA.items() if known in found for c in names}
    turns = spec.get("turns") or "each"
    for name in HUB if not told else ():
        source = sources.SOURCES[name]
        if set(source.columns) <= found.keys():
            known = {*source.columns, *source.optional, "id", "benchmark"}
            shape = Shape(where, name, {}, ignored | known, source=name)
            break
    else:
        roles = _roles([c for c in found if c not in ignored], told, where, present)
        name = next((n for n, words in NAMES if words <= roles.keys() | set(map(_plain, found))), "question and answer")
        shape = Shape(where, name, roles, ignored | set(itertools.chain(*roles.values())), None, turns)
        _require(shape, found)
        shape = dataclasses.replace(shape, base=_base(shape, rows, (spec.get("columns") or {}).get("base")))
        shape = dataclasses.replace(
            shape, reasoned=any(_thinks(shape, part) for row in rows for part in shape.parts(row))
        )
    if unread := [c for c in present if c not in shape.ignored]:
        raise Unread(complaint(shape, {column: present[column] for column in unread}))
    return shape


def _roles(columns, told, where, present):
    """{role: columns}: those that the recipe names, then those whose name is known."""
    roles, left = dict(told), [c for c in columns if c not in set(itertools.chain(*told.values()))]
    for role, names in ROLES.items():
        known = sorted((c for c in left if _plain(c) in names), key=lambda c: names.index(_plain(c)))
        if role in roles or not known:
            continue
        if len(known) > 1 and role not in ("answer", "index"):
            raise Unread(f"{where}: {_quoted(known)} may each be the {role}. "
                         + REMEDY.format(f"{role}: {known[0]}, ignore: [{known[1]}]", ", ".join(KEYS)))  # fmt: skip
        roles[role] = tuple(known[:1])
        left = [c for c in left if c not in roles[role]]
    if "options" not in roles and (options := _option_columns(left)):
        roles["options"] = options
    if "options" not in roles and "index" in roles and "index" not in told:
        del roles["index"]  # a number that no list of options gives a meaning
    if isinstance(own.listed(present.get(roles.get("instruction", ("",))[0])), list) and "messages" not in roles:
        roles["messages"] = roles.pop("instruction") + roles.pop(
            "output", ()
        )  # TRL's conversational prompt, completion
    if "output" not in roles and "options" not in roles and "messages" not in roles and "answer" in roles:
        roles["output"] = roles.pop("answer")
    return roles


def _option_columns(columns) -> tuple:
    """Columns that hold one option each, in order: opa to opd, option_1 to option_4, A to E."""
    marked = {match[1]: c for c in columns if (match := OPTION.fullmatch(_plain(c)))}
    for marks in (LETTERS.lower(), [str(n) for n in range(10)], [str(n) for n in range(1, 11)]):
        run = list(itertools.takewhile(lambda mark: mark in marked, marks))
        if len(run) > 1 and len(run) == len(marked):
            return tuple(marked[mark] for mark in run)
    return ()


def _require(shape, found):
    """Raise Unread where there is no question or no answer, in words for the shape that was seen."""
    said = f"{shape.where} has the columns {_quoted(found)}"
    if shape.name == "preference pairs" and "output" not in shape.roles:
        raise Unread(
            f"{said}: preference pairs (prompt, chosen, rejected), which chapter 7 reads from preference.data. To "
            "train on the chosen answers here, write columns: {output: chosen, ignore: [rejected]}"
        )
    if found and "messages" not in shape.roles:
        asked = shape.roles.keys() & {"instruction", "input", "context"}
        answered = "output" in shape.roles or ("options" in shape.roles and shape.roles.keys() & {"answer", "index"})
        for known, what, role in ((asked, "question", "instruction"), (answered, "answer", "output")):
            if not known:
                raise Unread(f"{said}, and none is known as the {what}. "
                             + REMEDY.format(f"{role}: {next(iter(found))}", ", ".join(KEYS)))  # fmt: skip


def _base(shape, rows, told):
    """Number of the first option where answers are numbers: as told, or as the first rows show; None for others."""
    columns = [shape.roles[role][0] for role in ("answer", "index") if role in shape.roles]
    if told is not None or "options" not in shape.roles or not columns:
        return told
    counted, numbers = Counter(), 0
    for row in rows:
        options = own.listed(shape.cell(row, "options", shape.roles["options"]))
        value = row.get(columns[-1])
        if isinstance(value, bool) or not re.fullmatch(r"\d{1,2}(?:\.0)?", str(value).strip()):
            continue
        texts = {str(text).strip() for text in options} if isinstance(options, list) else set()
        numbers += isinstance(value, int | float) or str(value).strip() not in texts
        counted["zero"] += int(float(value)) == 0
        counted["last"] += int(float(value)) == len(options or ())
    if numbers * 2 <= sum(not void(row.get(columns[-1])) for row in rows):
        return None
    if bool(counted["zero"]) == bool(counted["last"]):
        raise Unread(f"{shape.where}: {columns[-1]!r} holds numbers, which may count options from 0 or from 1. "
                     "In its entry of the recipe say which, columns: {base: 0} or {base: 1}")  # fmt: skip
    return 0 if counted["zero"] else 1


def _thinks(shape, row):
    try:
        return bool(shape.convert(row)["reasoning"])
    except (Reject, Unread):
        return False


def _names(value) -> tuple:
    return tuple(value) if isinstance(value, list) else (value,)


def _plain(column) -> str:
    return str(column).strip().strip("\ufeff").casefold().replace(" ", "_") if column is not None else ""


def _quoted(names) -> str:
    return ", ".join(repr(name) for name in list(names)[:12])
