"""The rooms of lib stay small enough to live in, and say what they are for."""

import ast

import pytest

from lib.pipeline.files import ROOT

FILES = sorted([*(ROOT / "lib").rglob("*.py"), *(ROOT / "app").rglob("*.py")])
ROOMS = [path for path in FILES if path.name == "__init__.py" and path.parents[1] == ROOT / "lib"]


def named(paths):
    return {"argvalues": paths, "ids": [path.relative_to(ROOT).as_posix() for path in paths]}


@pytest.mark.parametrize("path", **named(FILES))
def test_a_file_has_at_most_250_lines_and_a_function_50(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 250
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert [f.name for f in functions if f.end_lineno - f.lineno >= 50] == []


@pytest.mark.parametrize("path", **named(ROOMS))
def test_a_room_says_what_it_is_for_and_what_it_may_use_and_holds_no_code(path):
    body = ast.parse(path.read_text(encoding="utf-8")).body
    assert len(body) == 1 and "use" in ast.literal_eval(body[0].value).lower()


def test_few_files_stand_outside_a_room():
    assert sorted(p.name for p in (ROOT / "lib").glob("*.py")) == ["__init__.py", "execute.py", "stats.py"]


def test_lib_never_imports_the_server():
    for path in (ROOT / "lib").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
        assert not [name for name in names if name.split(".")[0] == "app"], path
