"""Which shape a user's file has: told from its columns and first rows, after what the recipe says of them."""

import dataclasses
import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterable

from lib.dataset import choices, converters, sources
from lib.dataset.choices import LETTERS, Reject
from lib.dataset.conversations import listed, void
from lib.dataset.shapes import KEYS, REMEDY, ROLES, ROW_NUMBERS, Shape, Unread, complaint, plain

PEEK = 1000  # rows that a shape is told from
HUB = ("medical_o1", "medical_r1", "medreason", "verifiable", "pubmedqa", "medqa")  # medmcqa's cop counts from 0 or 1
METADATA = {  # columns of published sets that say nothing to learn, by one that tells the set
    "answer_idx": ("meta_info", "metamap_phrases"),
    "cop": ("choice_type", "subject_name", "topic_name"),
}
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
    ignored = frozenset(told.pop("ignore", ()))
    ignored |= {c for known, names in METADATA.items() if known in found for c in names}
    turns = spec.get("turns") or "each"
    for name in HUB if not told else ():
        source = sources.SOURCES[name]
        if set(source.columns) <= found.keys() and not _numbers(present.get("answer_idx")):
            roles = {role: (role,) for role in ("id", "benchmark")[: 1 if source.column else 2] if role in found}
            shape = Shape(where, name, roles, ignored | {*source.columns, *source.optional, *roles}, source=name)
            break
    else:
        columns = [c for c in found if c not in ignored and plain(c) not in ROW_NUMBERS]
        roles = _roles(columns, told, where, present)
        name = next((n for n, words in NAMES if words <= roles.keys() | set(map(plain, found))), "question and answer")
        shape = Shape(where, name, roles, ignored | set(itertools.chain(*roles.values())), None, turns)
        _require(shape, found)
        shape = dataclasses.replace(shape, base=_base(shape, rows, (spec.get("columns") or {}).get("base")))
        shape = dataclasses.replace(
            shape, reasoned=any(_thinks(shape, part) for row in rows for part in shape.parts(row))
        )
    if unread := {column: row[column] for row in reversed(rows) for column in shape.unread(row)}:
        raise Unread(complaint(shape, unread))
    return shape


def counted(source: sources.Source, rows: Iterable, where: str) -> tuple[sources.Source, Iterable]:
    """MedMCQA's Source for a copy, with all of its rows: its authors count `cop` from 1, the hub's files from 0.

    Raises Unread where the first rows do not show which.
    """
    rows = iter(rows)
    first = list(itertools.islice(rows, PEEK))
    cops = {row.get("cop") for row in first if isinstance(row, dict) and type(row.get("cop")) in (int, float)}
    if 4 in cops and not {0, -1} & cops:
        convert = functools.partial(converters.medmcqa, base=1)
        source = dataclasses.replace(source, convert=convert, said=f"{source.said}; cop counts from 1 in {where}")
    elif {1, 2, 3} & cops and not {0, -1, 4} & cops:
        raise Unread(f"{where}: the first rows' cop is never 0 and never 4, so that it may count options from 0 or "
                     "from 1. Read it as name: own, with columns: {base: 0} or {base: 1}")  # fmt: skip
    return source, itertools.chain(first, rows)


def _roles(columns, told, where, present):
    """{role: columns}: those that the recipe names, then those whose name is known."""
    roles, left = dict(told), [c for c in columns if c not in set(itertools.chain(*told.values()))]
    for role, names in ROLES.items():
        known = sorted((c for c in left if plain(c) in names), key=lambda c: names.index(plain(c)))
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
    if isinstance(listed(present.get(roles.get("instruction", ("",))[0])), list) and "messages" not in roles:
        roles["messages"] = roles.pop("instruction") + roles.pop(
            "output", ()
        )  # TRL's conversational prompt, completion
    if "output" not in roles and "options" not in roles and "messages" not in roles and "answer" in roles:
        roles["output"] = roles.pop("answer")
    return roles


def _option_columns(columns) -> tuple:
    """Columns that hold one option each, in order: opa to opd, option_1 to option_4, A to E."""
    marked = {match[1]: c for c in columns if (match := OPTION.fullmatch(plain(c)))}
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
        needed = "answer" if "options" in shape.roles else "output"
        free = [column for column in found if column not in shape.ignored] or list(found)
        for known, what, role in ((asked, "question", "instruction"), (answered, "answer", needed)):
            if not known:
                raise Unread(f"{said}, and none is known as the {what}. "
                             + REMEDY.format(f"{role}: {free[0]}", ", ".join(KEYS)))  # fmt: skip


def _base(shape, rows, told):
    """Number of the first option where answers are numbers: as told, or as the first rows show; None for others."""
    columns = [shape.roles[role][0] for role in ("answer", "index") if role in shape.roles]
    columns = columns or list(shape.roles.get("output", ()))
    if told is not None or "options" not in shape.roles or not columns:
        return told
    seen, beside, numbers = Counter(), Counter(), 0
    for row in rows:
        try:
            options = choices.options_of(listed(shape.cell(row, "options", shape.roles["options"])))
        except Reject:
            continue
        if not _numbers(value := row.get(columns[-1])):
            continue
        number, texts = int(float(value)), [choices.fold(text) for text in options]
        numbers += "index" in shape.roles or str(number) not in texts
        seen.update({"zero": number == 0, "last": number == len(options)})
        if len(columns) > 1 and (text := choices.fold(str(row.get(columns[0])))) in texts:
            beside[number - texts.index(text)] += 1
    if numbers * 2 <= sum(not void(row.get(columns[-1])) for row in rows):
        return None
    shown = beside.most_common(1)[0][0] if beside else None
    if shown not in (0, 1) and bool(seen["zero"]) == bool(seen["last"]):
        raise Unread(f"{shape.where}: {columns[-1]!r} holds numbers, which may count options from 0 or from 1. "
                     "In its entry of the recipe say which, columns: {base: 0} or {base: 1}; or, where they number the "
                     f"rows, columns: {{ignore: [{columns[-1]}]}}")  # fmt: skip
    return shown if shown in (0, 1) else 0 if seen["zero"] else 1


def _numbers(value) -> bool:
    return not isinstance(value, bool) and bool(re.fullmatch(r"\d{1,6}(?:\.0)?", str(value).strip()))


def _thinks(shape, row):
    try:
        return bool(shape.convert(row)["reasoning"])
    except (Reject, Unread):
        return False


def _names(value) -> tuple:
    return tuple(value) if isinstance(value, list) else (value,)


def _quoted(names) -> str:
    return ", ".join(repr(name) for name in list(names)[:12])
