"""README, docs and notebooks: sizes, links and anchors, tables that repeat the code, solutions that run."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pipeline import STAGES, make

from lib.model import twin
from lib.pipeline import architectures, recipe
from lib.pipeline.files import ROOT
from lib.plan import fit

PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "data/README.md", ROOT / "params/launch/README.md"]
)
NOTEBOOKS = sorted([*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("outputs/published/**/*.ipynb")])
QUESTIONS = ("own-data own-model serving cluster-and-cloud resume judging quantization preference benchmarks "
             "reliability troubleshooting glossary libraries results").split()  # fmt: skip
TARGET = re.compile(r"\]\(<?([^)\s>]+)>?\)")


def prose(path):
    """The Markdown of a page or of a notebook's prose cells, without fenced code and inline code."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(path):
    """The anchors that GitHub makes of a page's headings."""
    found = []
    for heading in re.findall(r"^#+ +(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        found.append(re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-"))
    return found


def broken(path):
    """The relative links of a page that lead nowhere."""
    wrong = []
    for link in TARGET.findall(prose(path)):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = link.partition("#")
        target = (path.parent / place).resolve() if place else path
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_and_anchors_exist(path):
    assert broken(path) == []


def test_a_broken_link_and_a_broken_anchor_are_found(tmp_path):
    (tmp_path / "b.md").write_text("# Why `this`, and how?\n")
    page = tmp_path / "a.md"
    page.write_text("[x](b.md#why-this-and-how) [y](b.md#other) [z](c.md) `[q](d.md)` [w](https://example.org/none)\n")
    assert broken(page) == ["b.md#other", "c.md"]


def test_the_front_page_fits():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 130 and max(map(len, lines)) <= 120
    start, end = lines.index("<!-- results:start -->"), lines.index("<!-- results:end -->")
    assert sum(line.startswith("| [") for line in lines[start:end]) == 6
    assert sum(line.startswith("![") for line in lines) == 1, "one picture"


def test_the_front_page_lists_every_recipe():
    listed = re.findall(r"^\| `(\w+)` \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(path.stem for path in ROOT.glob("params/*.yaml") if path.stem != "prices")


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_page_asks_its_question_and_begins_with_a_command(name):
    lines = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ") and lines[0].endswith("?") and lines[1] == "" and lines[2].startswith("    ")
    assert f"docs/{name}.md" in (ROOT / "README.md").read_text(encoding="utf-8"), "the front page leads to it"


def test_every_make_target_that_the_pages_name_exists():
    made = set(re.findall(r"^([a-z0-9_-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        named = set(re.findall(r"(?:`|^ {4}|^|&& )make ([a-z0-9_-]+)", text, re.MULTILINE)) - {"bench-"}
        assert named <= made, f"{path.name} names {named - made}"


def test_every_recipe_overlay_and_setting_that_the_pages_type_loads():
    """`make all RECIPE=qwen3_8b SET="..."` as it stands there; "..." and "$SET" are the reader's."""
    commands = set()
    for path in [*PAGES, ROOT / "Makefile", *ROOT.glob("params/**/*.*")]:
        typed = re.findall(r'make [a-z0-9_-]+((?: +[A-Z_]+=(?:"[^"]*"|[^\s`|]+))+)', path.read_text(encoding="utf-8"))
        commands |= {text for text in typed if "..." not in text and "$" not in text}
    assert len(commands) > 20
    for text in commands:
        given = dict(word.split("=", 1) for word in shlex.split(text))
        name, over = given.get("RECIPE", "tiny"), given.get("OVERLAY")
        recipe.load(f"{name}@{over}" if over else name, recipe.parse_set(given.get("SET", "")))


def test_every_term_has_two_sentences_and_one_anchor():
    page = ROOT / "docs" / "glossary.md"
    entries = re.findall(r"^### (.+)\n\n(.+)\n", page.read_text(encoding="utf-8"), re.MULTILINE)
    terms = [term for term, _ in entries]
    assert terms == sorted(terms, key=str.lower) and len(set(anchors(page))) == len(terms) + 1
    for term, text in entries:
        assert len(re.findall(r"[.!?](?:\s|$)", text)) == 2, term


def test_supported_families_are_those_of_the_code():
    text = (ROOT / "docs" / "own-model.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", text, re.MULTILINE)
    assert {family for family, _ in rows} == set(twin.FAMILIES)
    assert {kind for _, kind in rows} == set(architectures.FAMILY)
    assert all(architectures.FAMILY[kind] in (family, "llama") for family, kind in rows)


def test_every_module_that_the_table_of_libraries_names_exists():
    """The first column of docs/libraries.md: room/module, then modules of the same room."""
    named = []
    for line in (ROOT / "docs/libraries.md").read_text(encoding="utf-8").splitlines():
        room = ""
        for name in re.findall(r"`([a-z_]+(?:/[a-z_]+)?)`", line.split("|")[1]) if line.startswith("| `") else ():
            room = name.rpartition("/")[0] or room
            named.append((line, name, f"{room}/{name.rpartition('/')[2]}"))
    assert len(named) > 30
    for line, name, where in named:
        places = [ROOT / top / own for top in ("lib", ".") for own in (name, f"{name}.py", f"{where}.py")]
        assert any(place.exists() for place in places), f"no module {name}: {line}"


def test_my_model_loads_and_plans(capsys):
    cfg = recipe.load("my_model")
    assert cfg.data["sources"][0]["name"] == "own" and cfg.sft["learning_rate"] <= 3e-4
    assert recipe.load("my_model@rehearsal").model["base"] == "twin"
    assert fit.main(["--recipe", "my_model", "--gpu", "l4"]) == 0
    assert re.search(r"fits in 22.5 +yes +yes +yes +yes", capsys.readouterr().out)
    commented = (ROOT / "params" / "my_model.yaml").read_text(encoding="utf-8")
    assert commented.count("# CHANGE") >= 4


def test_the_container_the_workflow_and_the_citation_are_those_of_the_repository():
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
    assert {"run": ".ci/run"} in workflow["jobs"]["test"]["steps"] and (ROOT / ".ci/run").exists()
    json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    images = "".join(path.read_text() for path in ROOT.glob("Dockerfile*"))
    copied = re.findall(r"^COPY (.+) \S+$", images, re.MULTILINE)
    names = {name for line in copied for name in line.split()} - {"."}
    assert len(copied) == 6 and len(names) > 4 and all(list(ROOT.glob(name)) for name in names)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{citation["version"]}"' in project and citation["repository-code"] in project


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished default run: outputs/tiny where it is there, else one made here."""
    if (ROOT / "outputs/tiny/06_judge/stage.json").exists():
        return ROOT / "outputs/tiny"
    outputs = tmp_path_factory.mktemp("outputs")
    for stage in STAGES:
        done = make(outputs, stage, "")
        assert done.returncode == 0, done.stderr
    return outputs / "tiny"


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(ROOT.glob("docs/solutions/*.py")), ids=lambda path: path.stem)
def test_a_solution_answers_its_exercise(path, finished):
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(path), str(finished)], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 3 and Path(ROOT / "notebooks" / f"{path.stem}.ipynb").exists()
