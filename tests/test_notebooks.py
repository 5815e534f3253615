"""The notebooks as sources: stripped, parameterised, readable, portable."""

import ast
import importlib
import json
import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from lib.pipeline import notebook, recipe
from lib.pipeline.files import ROOT
from lib.report import chapters

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
COLAB = "colab"  # tag of the one cell that clones and installs, and does nothing elsewhere


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def code(notebook):
    return [c for c in notebook["cells"] if c["cell_type"] == "code"]


def test_the_seven_chapters_are_there():
    names = ["01_dataset", "02_baseline", "03_sft", "04_qat", "05_export", "06_judge", "07_preference"]
    assert [p.stem for p in NOTEBOOKS] == names


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_source_notebook_is_stripped(path):
    for cell in code(load(path)):
        assert cell["outputs"] == [] and cell["execution_count"] is None
    ids = [cell["id"] for cell in load(path)["cells"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_one_parameters_cell_with_literals_only_and_finish_last(path):
    cells = code(load(path))
    tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1
    tree = ast.parse("".join(tagged[0]["source"]))
    names = {node.targets[0].id: ast.literal_eval(node.value) for node in tree.body}
    assert names == {"recipe": "tiny", "overrides": {}}
    assert cells[0] is tagged[0]  # papermill's values follow it, and Colab's set-up reads them
    assert f'run.start("{path.stem}", recipe, overrides)' in "".join(cells[2]["source"])
    assert ast.unparse(ast.parse("".join(cells[-1]["source"])).body[-1]).startswith("stage.finish(")
    assert load(path)["cells"][-1]["cell_type"] == "code"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_rhythm_of_a_chapter(path):
    cells = load(path)["cells"]
    kinds = "".join("c" if c["cell_type"] == "code" else "m" for c in cells)
    assert "ccc" not in kinds, "more than two code cells without a sentence"
    assert len(cells) <= 40
    for cell in code(load(path)):
        assert len("".join(cell["source"]).splitlines()) <= 15
    prose = " ".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    assert "Before you read on" in prose and "## Exercise" in prose


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_no_absolute_path_and_no_pip_but_in_colab(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/(home|Users|root|work|tmp)/", text)
    for cell in code(load(path)):
        source = "".join(cell["source"])
        colab = COLAB in cell["metadata"].get("tags", [])
        assert colab or not re.search(r"\bpip\b|!git|%pip", source)


def test_the_set_up_for_colab_is_one_cell_and_runs_what_make_would_run_first():
    makefile, found = (ROOT / "Makefile").read_text(encoding="utf-8"), set()
    above = {
        name: set(before.split()) - {"setup"} for name, before in re.findall(r"^(\d\d_\w+): +([^#\n]*)", makefile, re.M)
    }
    for path in NOTEBOOKS:
        cell = next(c for c in code(load(path)) if COLAB in c["metadata"].get("tags", []))
        line = next(line for line in cell["source"] if line.startswith("needs = "))
        wanted = set(above[path.stem])
        while wanted != (more := wanted.union(*(above[name] for name in wanted))):
            wanted = more
        assert ast.literal_eval(line.removeprefix("needs = ")) == sorted(wanted)
        found.add("".join(cell["source"]).replace(line, ""))
    assert len(found) == 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_colab_badge_comes_from_pyproject(path):
    import tomllib

    url = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    slug = url.removeprefix("https://github.com/")
    first = "".join(load(path)["cells"][0]["source"])
    assert f"https://colab.research.google.com/github/{slug}/blob/main/notebooks/{path.name}" in first


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_name_of_lib_that_a_chapter_uses_exists(path):
    cells = [c for c in code(load(path)) if COLAB not in c["metadata"].get("tags", [])]
    nodes = list(ast.walk(ast.parse("\n".join("".join(c["source"]) for c in cells))))
    names = {
        a.asname or a.name: f"{n.module}.{a.name}"
        for n in nodes
        if isinstance(n, ast.ImportFrom) and re.fullmatch(r"lib(\.\w+)?", n.module or "")
        for a in n.names
    }
    used = {(names[n.value.id], n.attr) for n in nodes
            if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id in names}  # fmt: skip
    assert used
    missing = [f"{name}.{attribute}" for name, attribute in sorted(used)
               if not hasattr(importlib.import_module(name), attribute)]  # fmt: skip
    assert missing == []


@pytest.mark.parametrize(
    ("changed", "shown"),
    [({}, ["always", "of qat", "x"]), ({"qat": None, "judge.candidates": ["base", "sft"]}, ["always", "x"])],
)
def test_prose_about_a_section_that_the_recipe_leaves_out_is_in_no_copy(tmp_path, changed, shown):
    optional = new_markdown_cell("of qat", metadata={"tags": ["needs qat"]})
    source, path = new_notebook(cells=[new_markdown_cell("always"), optional, new_code_cell("x")]), tmp_path / "a.ipynb"
    nbformat.write(source, path)
    notebook._leave_out(path, recipe.load("tiny", changed))
    executed = nbformat.read(path, as_version=4)
    assert [cell.source for cell in executed.cells] == shown
    merged, same = chapters.merge(source, executed)
    assert same and [cell.source for cell in merged.cells] == shown


def test_prose_that_may_be_left_out_names_a_section():
    tags = {tag for path in NOTEBOOKS for cell in load(path)["cells"] for tag in cell["metadata"].get("tags", [])}
    assert {tag for tag in tags if tag.startswith("needs ")} <= {f"needs {name}" for name in recipe.SECTIONS}


def assigned(node):
    """(target, value) of each name that a statement binds, those of a tuple one by one; as source."""
    for target in node.targets if isinstance(node, ast.Assign) else ():
        several = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
        pairs = zip(target.elts, node.value.elts, strict=True) if several else [(target, node.value)]
        yield from (tuple(map(ast.unparse, pair)) for pair in pairs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_chapter_gives_a_model_up_before_it_loads_the_next_or_starts_a_server(path):
    """Two of 39 GiB fit no common GPU; what chapter 4's arms load is local to functions."""
    cells = [c for c in code(load(path)) if COLAB not in c["metadata"].get("tags", [])]
    held, serving = set(), {"serve.running"}
    for node in ast.parse("\n".join("".join(c["source"]) for c in cells)).body:
        calls = {ast.unparse(n.func) for n in ast.walk(node) if isinstance(n, ast.Call)}
        if calls & serving:
            serving |= {node.name} if isinstance(node, ast.FunctionDef) else set()
            assert not held, f"{path.stem}: {held} in memory at {ast.unparse(node)}"
        for name, value in assigned(node):
            if re.match(r"loading\.(saved|base)\(|adapter\.trainable\(", value):
                assert not held, f"{path.stem}: {held} in memory at {ast.unparse(node)}"
                held.add(name)
            held -= {name} if value == "None" else set()
        held -= {ast.unparse(t) for n in ast.walk(node) if isinstance(n, ast.Delete) for t in n.targets}
    assert path.stem != "04_qat" or not held
