"""The report and the published copies, from runs that papermill really executed."""

import base64
import json
import re
import shutil
from types import SimpleNamespace

import nbformat
import papermill
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from lib.pipeline import recipe, records
from lib.pipeline.files import ROOT
from lib.report import chapters, pages, publish, results

STAGES = ("01_dataset", "02_baseline", "03_sft")
BADGE = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/x)"
)
LINKS = "[the term](../docs/glossary.md#term), [what follows](02_baseline.ipynb)"
FIGURE = """from lib.figures import plots
rows = [{"name": "sft", "value": 0.842, "low": 0.79, "high": 0.883, "n": 240}]
plots.accuracy_bars(rows, chance=0.25, title="Accuracy of two models")"""


def notebook(stage, last="'stored'"):
    """A small chapter: prose, parameters, printed text, a figure tagged headline, and a last cell that may fail."""
    cells = [
        new_markdown_cell(f"# {int(stage[:2])}. The stage {stage[3:]}\n\n{BADGE}"),
        new_code_cell('recipe = "tiny"  # a name in params/\noverrides = {}', metadata={"tags": ["parameters"]}),
        new_markdown_cell(f"## What does it print?\n\nPredict first. {LINKS}"),
        new_code_cell('print("printed by", recipe)\n"<b>"'),
        new_markdown_cell("## How good is it & why?"),
        new_code_cell(FIGURE, metadata={"tags": ["headline"]}),
        new_code_cell(last),
    ]
    for number, cell in enumerate(cells):
        cell["id"] = f"{stage[:2]}-{number:02d}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel})


def record(stage, seconds=61.0, **more):
    """A stage.json as lib.pipeline.run writes it."""
    return {
        "stage": stage, "recipe": "tiny", "run": "tiny", "overrides": {}, "sections": {"sft": {"learning_rate": 0.002}},
        "inputs": {}, "files": {}, "code": {}, "outputs": {"rows.jsonl": "ab" * 32},
        "metrics": {"headline": [
            {"label": f"{stage} accuracy", "value": 0.842, "low": 0.79, "high": 0.883, "n": 240, "unit": "%"},
            {"label": "loss | held out", "value": 1.23456, "unit": "nats"}]},
        "timings": {"wall_s": seconds, "cpu_s": 59.0, "train": 50.4}, "seed": 42,
        "versions": {"python": "3.11.7", "torch": "2.13.0"}, "git": {"commit": "0123456789abcdef", "dirty": False},
        "hardware": {"cpu": "A CPU", "cores": 2, "memory_gib": 23.5, "gpu": None}, "peak_memory_mib": 1234,
        "interactive": False, "accepted": None, "ended": f"2026-11-28T{stage[:2]}:00:00Z",
    } | more  # fmt: skip


def test_stages_side_by_side_take_their_time_once_and_a_pause_none():
    beside = [record("02_baseline", 60.0), record("02_baseline", 20.0), record("02_baseline", 90.0)]
    assert results.elapsed(beside) == 90 and results.elapsed([]) == 0
    assert results.elapsed([*beside, record("01_dataset", 3630.0), record("03_sft", 3590.0)]) == 3630 + 90 + 3600
    assert results.elapsed([*beside, record("01_dataset", 3630.0), record("03_sft", 3500.0)]) == 3630 + 90 + 3500
    older = record("01_dataset", 5.0)
    del older["ended"]
    assert results.elapsed([*beside, older]) == 60 + 20 + 90 + 5


def put(folder, told):
    """Write a stage.json, sealed as lib.pipeline.run seals it."""
    records.write(folder / "stage.json", told)


@pytest.fixture(scope="session")
def executed(tmp_path_factory):
    """A repository of three notebooks, and a run whose first two stages finished and whose third failed."""
    root = tmp_path_factory.mktemp("repository")
    for stage in STAGES:
        fails = stage == "03_sft"
        path, folder = root / "notebooks" / f"{stage}.ipynb", root / "outputs" / "tiny" / stage
        path.parent.mkdir(exist_ok=True)
        folder.mkdir(parents=True)
        nbformat.write(notebook(stage, 'raise ValueError("no tokens carry loss")' if fails else "'stored'"), path)
        parameters = {"recipe": "tiny", "overrides": {"sft": {"max_steps": 2}} if fails else {}}
        try:
            papermill.execute_notebook(
                path, folder / path.name, parameters, progress_bar=False, kernel_name="python3", cwd=ROOT
            )
            put(folder, record(stage))
        except papermill.PapermillExecutionError:
            assert fails
    (root / "docs").mkdir()
    (root / "docs" / "serving.md").touch()
    (root / "docs" / "glossary.md").touch()
    for page in ("README.md", "docs/results.md"):
        (root / page).write_text(f"# R\n\n{publish.START}\nold\n{publish.END}\n\nafter\n")
    return root


@pytest.fixture
def repository(executed, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(executed, tmp_path / "repository")


def build(root):
    return pages.build(root / "outputs" / "tiny", notebooks=root / "notebooks")


def without_third(root):
    (root / "notebooks" / "03_sft.ipynb").unlink()
    return root


def edit(root, stage, old, new):
    path = root / "notebooks" / f"{stage}.ipynb"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_summary_of_a_run_with_a_failed_stage(repository):
    page = build(repository).read_text()
    assert "2 of 3 stages are finished" in page
    assert "03_sft failed: ValueError: no tokens carry loss. To mend: make 03_sft" in page
    assert page.count("<figure>") == 2 and 'alt="Accuracy of two models"' in page
    row = re.search("<tr>.*01_dataset accuracy.*</tr>", page)[0]
    assert re.findall("<td[^>]*>(.*?)</td>", row)[1:] == ["01_dataset accuracy", "<b>84.2 %</b>", "79.0-88.3", "240"]
    assert "<b>1.235 nats</b>" in page and "loss | held out" in page
    assert "1 min 01 s" in page and "2 min 02 s" in page and "train 50 s" in page
    failed = (repository / "outputs" / "tiny" / "report" / "03_sft.html").read_text()
    assert "This stage failed: ValueError: no tokens carry loss." in failed and "max_steps" in failed
    assert "An Exception was encountered" in failed and "output_error" in failed
    assert "A CPU, 2 cores, 23.5 GiB memory, no GPU" in page and "commit 0123456789" in page and "torch 2.13.0" in page
    assert "learning_rate: 0.002" in page and "01_dataset/rows.jsonl" in page


def test_pages_are_self_contained_and_linked(repository):
    build(repository)
    folder = repository / "outputs" / "tiny" / "report"
    assert {path.stem for path in folder.glob("*.html")} == {*STAGES, "index"}
    for path in folder.glob("*.html"):
        page = path.read_text()
        assert not re.search(r'(src|rel="stylesheet" href|@import|url\()\s*=?\s*"?(https?:)?//', page), path.name
        assert "MathJax" not in page and "require.js" not in page and page.count("<script>") == 1
        for link in re.findall(r'href="([^"#:]+)(?:#[^"]*)?"', page):
            assert (folder / link).exists(), link
        wanted = "docs/serving.md" if path.stem == "index" else "docs/glossary.md#term"
        assert f'href="../../../{wanted}"' in page and (path.stem == "index" or 'href="02_baseline.html">what' in page)


def test_a_chapter_has_prose_foldable_code_and_outputs(repository):
    page = (build(repository).parent / "02_baseline.html").read_text()
    assert (
        '<details class="code"><summary><span><code>print("printed by", recipe)</code> (2 lines)</span></summary>'
        in page
    )
    assert "printed by tiny" in page and "'&lt;b&gt;'" in page
    assert '<a href="#What-does-it-print?">What does it print?</a>' in page and 'id="What-does-it-print?"' in page
    assert ">How good is it &amp; why?</a></li>" in page
    assert ">Open in Colab</a>" in page and "injected" not in page
    assert page.count("overrides") == 1  # the injected cell repeats the parameters and is left out
    assert 'alt="Accuracy of two models"' in page
    assert "02_baseline of run tiny, 1 min 01 s on A CPU" in page


def test_nothing_that_a_file_says_becomes_markup(repository):
    """Labels, errors, titles, versions, artifacts and recipe values are others' text: a page shows them as text."""
    evil = "<img src=x onerror=alert(1)>"
    edit(repository, "01_dataset", "# 1. The stage dataset", f"# {evil}")
    folder = repository / "outputs" / "tiny"
    entry = {"label": evil, "value": 0.5, "unit": evil}
    told = record("01_dataset", metrics={"headline": [entry]}, versions={evil: evil}, outputs={evil: evil})
    told |= {"sections": {"sft": {evil: evil}}, "git": {"commit": evil[:10], "dirty": False}, "accepted": {"why": evil}}
    told |= {"timings": {"wall_s": 1.0, "cpu_s": 1.0, evil: 2.0}, "hardware": told["hardware"] | {"cpu": evil}}
    put(folder / "01_dataset", told)
    put(folder / "02_baseline", record("02_baseline", error=evil))
    index = build(repository)
    for path in (index, index.parent / "02_baseline.html"):
        assert "<img src=x" not in path.read_text() and "&lt;img src=x onerror" in path.read_text(), path.name
    assert index.read_text().count("&lt;img src=x") >= 14
    run = results.read_run(folder, None, repository / "notebooks")[:2]
    assert evil not in publish.results_block(run, [], "make all")


def measured(page, rendered, tmp_path, width=390):
    """document.scrollWidth of a page in a frame of `width` pixels; chromium's own windows are wider than a phone."""
    script = "onload=()=>{document.title=document.querySelector('iframe').contentDocument.documentElement.scrollWidth}"
    frame = f'<iframe src="{page.as_uri()}" style="width:{width}px;height:800px;border:0"></iframe>'
    (tmp_path / "frame.html").write_text(f"<title></title>{frame}<script>{script}</script>")
    return int(re.search(r"<title>(\d+)</title>", rendered(tmp_path / "frame.html"))[1])


def test_no_page_is_wider_than_a_phone(repository, rendered, tmp_path):
    long = record("01_dataset", outputs={f"{'deep/' * 20}rows.jsonl": "ab" * 32})
    long["metrics"]["headline"].append({"label": "a_label_without_a_blank_" * 4, "value": 1234.5678, "unit": "nats"})
    put(repository / "outputs" / "tiny" / "01_dataset", long)
    index = build(repository)
    unfolded = index.read_text().replace("<details", "<details open")
    (index.parent / "open.html").write_text(unfolded)
    for name in ("index", "open", "02_baseline"):
        assert measured(index.parent / f"{name}.html", rendered, tmp_path) <= 390, name


def test_missing_and_interactive_stages(repository):
    shutil.rmtree(repository / "outputs" / "tiny" / "03_sft")
    path = repository / "outputs" / "tiny" / "02_baseline" / "stage.json"
    put(path.parent, record("02_baseline", interactive=True))
    page = build(repository).read_text()
    assert "03_sft is missing: not run yet. To mend: make 03_sft" in page
    assert not (repository / "outputs/tiny/report/02_baseline.html").exists() and "02_baseline accuracy" in page
    put(path.parent, record("02_baseline", error="out of memory"))
    assert "02_baseline failed: out of memory" in build(repository).read_text()
    shutil.rmtree(repository / "outputs" / "tiny")
    with pytest.raises(ValueError, match="no stage to report on: make all"):
        build(repository)


def test_prose_reaches_the_report_without_a_run(repository):
    index = build(repository)
    edit(repository, "02_baseline", "Predict first.", "Predict before you look.")
    build(repository)
    page = (index.parent / "02_baseline.html").read_text()
    assert "Predict before you look." in page and "printed by tiny" in page and "changed since" not in page


def test_changed_code_keeps_the_executed_copy_and_says_so(repository):
    edit(repository, "02_baseline", r"recipe = \"tiny\"", r"recipe = \"qwen3_8b\"")  # no change of code
    edit(repository, "02_baseline", '"headline"', '"detail"')  # tags come from the source
    index = build(repository)
    assert "changed since" not in (index.parent / "02_baseline.html").read_text()
    assert index.read_text().count("<figure>") == 1
    edit(repository, "02_baseline", "printed by", "said by")
    edit(repository, "02_baseline", "Predict first.", "Predict before you look.")
    page = (build(repository).parent / "02_baseline.html").read_text()
    assert "code has changed since this run" in page and "printed by" in page and "Predict first." in page


def test_publish_needs_a_finished_run(repository):
    with pytest.raises(ValueError, match="03_sft: ValueError: no tokens carry loss. Run make 03_sft first"):
        publish.publish(repository / "outputs" / "tiny", root=repository)
    assert not (repository / "outputs" / "published").exists() and "old" in (repository / "README.md").read_text()


def links(copy):
    return re.findall(r"\]\(([^)]*)\)", copy.cells[2].source)


def test_published_notebooks_and_readme(repository):
    root = without_third(repository)
    target = publish.publish(root / "outputs" / "tiny", root=root)
    names = [f"{stage}{end}" for stage in STAGES[:2] for end in ("-1.png", ".ipynb")]
    assert sorted(p.name for p in target.iterdir()) == names
    copy = nbformat.read(target / "01_dataset.ipynb", as_version=4)
    nbformat.validate(copy)
    assert "papermill" not in json.dumps(copy) and str(root) not in json.dumps(copy) and copy.cells[3].outputs
    assert links(copy) == ["../../docs/glossary.md#term", "02_baseline.ipynb"]
    assert (target / "01_dataset-1.png").read_bytes().startswith(b"\x89PNG")
    first, readme = (root / "README.md").read_text(), (root / "docs" / "results.md").read_text()
    assert "| [1](outputs/published/01_dataset.ipynb) | 01_dataset accuracy | 84.2 % | 79.0-88.3 | 240 |" in first
    assert first.count("](outputs/published/") == 4 and "old" not in first and "![" not in first
    assert "old" not in readme and readme.startswith("# R\n") and readme.endswith(f"{publish.END}\n\nafter\n")
    link = "[1. The stage dataset](../outputs/published/01_dataset.ipynb)"
    assert f"| {link} | 01_dataset accuracy | 84.2 % | 79.0-88.3 | 240 |" in readme
    assert r"| | loss \| held out | 1.235 nats | | |" in readme
    assert "Measured by `make all` on A CPU, 2 cores, 23.5 GiB memory, no GPU, in 2 min 02 s after set-up" in readme
    assert "![Accuracy of two models](../outputs/published/01_dataset-1.png)" in readme
    again = {p.name: p.read_bytes() for p in target.iterdir()}
    publish.publish(root / "outputs" / "tiny", root=root)
    assert (
        again == {p.name: p.read_bytes() for p in target.iterdir()}
        and readme == (root / "docs" / "results.md").read_text()
    )


def test_an_edited_record_is_stale_on_the_page_and_is_not_published(repository):
    root = without_third(repository)
    path = root / "outputs" / "tiny" / "02_baseline" / "stage.json"
    path.write_text(path.read_text().replace("0.842", "0.997"))
    page = build(root).read_text()
    assert "02_baseline is out of date: " in page and "its seal does not fit" in page and "99.7 %" not in page
    with pytest.raises(ValueError, match="cannot publish tiny: 02_baseline: .*its seal does not fit.*Run make 02_base"):
        publish.publish(root / "outputs" / "tiny", root=root)
    assert not (root / "outputs" / "published").exists() and "old" in (root / "README.md").read_text()


def test_another_recipe_is_published_beside_the_default_one_and_what_has_not_run_is_named(repository, monkeypatch):
    """Each has files of its own; publishing one leaves the other's, and the README, as they are."""
    monkeypatch.setattr(results.execute, "stale", lambda *args: "")
    (repository / "docs" / "results-gemma.md").write_text(f"{publish.START}\n{publish.END}\n")
    shutil.rmtree(repository / "outputs" / "tiny" / "03_sft")
    cfg = SimpleNamespace(name="gemma", overrides={"model": {"base": "copies/gemma"}})
    readme = (repository / "README.md").read_text()
    target = publish.publish(repository / "outputs" / "tiny", cfg, repository)
    page = (repository / "docs" / "results-gemma.md").read_text()
    assert target == repository / "outputs/published/gemma" and (target / "01_dataset.ipynb").exists()
    assert links(nbformat.read(target / "01_dataset.ipynb", 4))[0] == "../../../docs/glossary.md#term"
    assert "](../outputs/published/gemma/01_dataset.ipynb)" in page and "/published/gemma/02_baseline-1.png" in page
    assert "Not run: 03_sft." in page and 'make all RECIPE=gemma SET="model.base=copies/gemma"' in page
    assert readme == (repository / "README.md").read_text()
    publish.publish(without_third(repository) / "outputs" / "tiny", root=repository)
    assert (target / "01_dataset.ipynb").exists() and (target.parent / "01_dataset.ipynb").exists()


def test_of_an_overlay_those_stages_are_published_that_read_what_it_changes(repository, monkeypatch):
    monkeypatch.setattr(results.execute, "stale", lambda *args: "")
    (repository / "docs" / "results-tiny-leash.md").write_text(f"{publish.START}\n{publish.END}\n")
    folder = without_third(repository) / "outputs" / "tiny"
    put(folder / "02_baseline", records.read(folder / "02_baseline" / "stage.json") | {"sections": {"preference": {}}})
    target = publish.publish(folder, recipe.load("tiny@leash"), repository)
    assert target == repository / "outputs/published/tiny-leash"
    assert sorted(path.name for path in target.glob("*.ipynb")) == ["02_baseline.ipynb"]
    page = (repository / "docs" / "results-tiny-leash.md").read_text()
    assert "`make all RECIPE=tiny@leash`" in page and "](../outputs/published/tiny-leash/02_baseline.ipynb)" in page


def test_publish_refuses_too_much_and_a_readme_without_marks(repository, monkeypatch):
    root = without_third(repository)
    monkeypatch.setattr(publish, "LIMIT_MIB", 0.01)
    with pytest.raises(ValueError, match=r"allowed are 0.01: shrink 0\d_"):
        publish.publish(root / "outputs" / "tiny", root=root)
    monkeypatch.undo()
    (root / "README.md").write_text("no marks")
    with pytest.raises(ValueError, match="results:start"):
        publish.publish(root / "outputs" / "tiny", root=root)
    assert not (root / "outputs" / "published").exists()


def printed(*texts):
    """A notebook of one cell that has printed these texts."""
    outputs = [nbformat.v4.new_output("stream", text=text) for text in texts]
    png = base64.b64encode(b"png").decode()
    outputs.append(nbformat.v4.new_output("display_data", {"image/png": png, "text/html": f"<p>{ROOT}/lib</p>"}))
    cell = new_code_cell("x", outputs=outputs, metadata={"papermill": {"start_time": "now"}, "execution": {}})
    return new_notebook(cells=[cell], metadata={"papermill": {"output_path": "/x"}, "widgets": {}})


def test_scrub_replaces_what_tells_the_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setattr(chapters.getpass, "getuser", lambda: "ada.l")
    monkeypatch.setattr(chapters.socket, "gethostname", lambda: "box17")
    clean = chapters.scrub(printed(f"{ROOT}/outputs/x", "/home/ada/.cache/medtune/y of ada.l at box17, not box170"))
    first, second, shown = clean.cells[0].outputs
    assert first.text == "./outputs/x"
    assert second.text == "~/.cache/medtune/y of <name> at <name>, not box170"
    assert shown.data == {"image/png": base64.b64encode(b"png").decode(), "text/html": "<p>./lib</p>"}
    assert clean.metadata == {} and clean.cells[0].metadata == {}
    with pytest.raises(ValueError, match="output of cell 1 shows the absolute path /home/grace/data.csv"):
        chapters.scrub(printed("read /home/grace/data.csv"))


def test_widgets_and_scripts_are_left_out():
    live = [
        nbformat.v4.new_output("display_data", {chapters.WIDGET: {"model_id": "1"}, "text/plain": "HBox"}),
        nbformat.v4.new_output("display_data", {"application/javascript": "alert(1)"}),
        nbformat.v4.new_output("stream", text="kept"),
    ]
    source = new_notebook(cells=[new_code_cell("x")])
    merged, same = chapters.merge(source, new_notebook(cells=[new_code_cell("x", outputs=live)]))
    assert same and [output.output_type for output in merged.cells[0].outputs] == ["stream"]


def test_times_in_words():
    told = {0.04: "0.0 s", 9.94: "9.9 s", 9.96: "10 s", 59.6: "1 min 00 s", 200: "3 min 20 s", 7500: "2 h 05 min"}
    assert {seconds: results.clock(seconds) for seconds in told} == told


def test_facts_name_the_stages_where_they_differ():
    stages = [results.Result(s, s, "fresh", "", record(s), None, True) for s in STAGES]
    stages[2].record["seed"] = 7
    told = results.facts(stages)
    assert ("Machine", "A CPU, 2 cores, 23.5 GiB memory, no GPU") in told
    assert ("Seed", "42 (01_dataset, 02_baseline)") in told and ("Seed", "7 (03_sft)") in told


def test_the_make_command_of_a_run():
    class Recipe:
        name, overrides = "qwen3_8b", {"sft": {"learning_rate": 0.001}, "judge": {"candidates": ["base", "sft"]}}

    assert results.options("tiny") == ""
    options = results.options("x", Recipe)
    assert options == """ RECIPE=qwen3_8b SET="sft.learning_rate=0.001 judge.candidates='[base, sft]'\""""


def test_the_front_page_shows_six_rows_of_a_run():
    """The wanted ones in the order of the chapters, and others where a recipe has no QAT; lines fit the README."""
    labels = {"02_baseline": ["Accuracy: nearest training question", "Accuracy: base, best form", "Accuracy: lookup"],
              "03_sft": ["SFT accuracy, held-out questions", "SFT format compliance", "Red flags not sent on: sft"],
              "04_qat": ["price of rounding to q4_0 (PTQ)", "loss of qat on q4_0 minus PTQ"],
              "05_export": ["control q4_0 served, accuracy", "qat q4_0 served, accuracy"]}  # fmt: skip
    rows = [{"stage": stage, "title": "", "label": label, "value": "50.0 %", "interval": "", "n": ""}
            for stage, of in labels.items() for label in of]  # fmt: skip
    shown = [row["label"] for row in publish.front_rows(rows)]
    wanted = [*labels["02_baseline"][:2], *labels["03_sft"][::2], labels["04_qat"][1], labels["05_export"][1]]
    assert shown == wanted
    without = [row["label"] for row in publish.front_rows([row for row in rows if row["stage"] != "04_qat"])]
    assert len(without) == 6 and without[2] == "Accuracy: lookup"
    block = publish.front_block(rows, "Measured by `make all` on a machine with a long name, " * 4)
    assert max(map(len, block.splitlines())) <= 120 and block.count("\n| [") == 6
