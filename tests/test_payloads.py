"""Script in rows, recipe values, model names, judge replies and titles: none runs in the report or is published."""

import html
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from test_report import put, record

from lib.figures import markup
from lib.report import chapters, pages, publish

RUN = "document.documentElement.setAttribute('data-ran',1)"
FORMS = yaml.safe_load(Path(__file__).with_name("payloads.yaml").read_text(encoding="utf-8"))
PAYLOADS = [form.replace("{}", RUN) for form in FORMS]
PAGE = {"html", "head", "meta", "title", "body", "nav", "button", "main", "figure", "figcaption", "style", "script"}


class Tags(HTMLParser):
    """Every tag of a page with its attributes."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    handle_startendtag = handle_starttag


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A repository with one finished stage; every payload stands in every place that takes others' text."""
    root = tmp_path_factory.mktemp("hostile")
    folder = root / "outputs" / "tiny" / "01_dataset"
    folder.mkdir(parents=True)
    (root / "notebooks").mkdir()
    (root / "docs").mkdir()
    for page in ("README.md", "docs/results.md"):
        (root / page).write_text(f"# R\n\n{publish.START}\nold\n{publish.END}\n")
    cells = [new_markdown_cell(f"# 1. {PAYLOADS[0]}")]
    source = [new_markdown_cell("# 1. Data")]
    for number, text in enumerate(PAYLOADS):
        item = {"question": text, "reference": text, "id": text,
                "answers": [{"name": text, "text": text, "verdict": text}]}  # fmt: skip
        shown = [markup.table([{text: text}], text), markup.transcripts([item])]
        outputs = [new_output("display_data", {"text/html": one.data, "text/plain": text}) for one in shown]
        outputs += [new_output("display_data", {"text/markdown": f"Values: {markup.plain(text)}."})]
        kinds = ("text/html", "text/markdown", "text/latex", "image/svg+xml", "application/javascript")
        outputs += [new_output("display_data", {kind: text}) for kind in kinds]
        outputs += [new_output("stream", name="stdout", text=text)]
        picture = {"image/png": {"alt": text, "width": text}}
        outputs += [new_output("display_data", {"image/png": "AAAA"}, metadata=picture)]
        told = {"metadata": {"tags": ["headline"]}, "execution_count": number + 1}
        code = new_code_cell(f"# {number}", outputs=outputs, **told)
        cells.append(code)
        source.append(new_code_cell(f"# {number}", metadata={"tags": ["headline"]}))
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    nbformat.write(new_notebook(cells=source, metadata=kernel), root / "notebooks" / "01_dataset.ipynb")
    nbformat.write(new_notebook(cells=cells, metadata=kernel), folder / "01_dataset.ipynb")
    entries = [{"label": text, "value": 0.5, "unit": text} for text in PAYLOADS]
    more = {"metrics": {"headline": entries}, "sections": {"sft": {"run_name": PAYLOADS}}}
    more |= {"outputs": dict.fromkeys(PAYLOADS, "ab" * 32), "versions": {"python": "3", **dict.fromkeys(PAYLOADS, "1")}}
    put(folder, record("01_dataset", **more))
    pages.build(root / "outputs" / "tiny", notebooks=root / "notebooks")
    return root


def harmless(tags, more=frozenset()):
    """Whether nothing in them runs or loads anything; names the first that would."""
    for tag, attributes in tags:
        assert tag in chapters.TAGS | more, tag
        assert not [name for name in attributes if name.startswith("on") or name == "srcdoc"], (tag, attributes)
        for name in {"href", "src"} & set(attributes):
            assert re.match(r"#|https?:|data:image/|(\.\./)*[\w./]+(#|$)", attributes[name]), (tag, attributes)
    return True


def reports(root):
    return sorted((root / "outputs" / "tiny" / "report").glob("*.html"))


def test_there_are_at_least_fifty():
    assert len(set(PAYLOADS)) >= 50 and all(RUN in text for text in PAYLOADS)


def test_no_page_holds_a_tag_or_an_attribute_that_could_run(hostile):
    for page in reports(hostile):
        text = page.read_text()
        assert text.count("<script>") == 1 and "Content-Security-Policy" in text, page.name
        assert harmless(Tags(text).found, PAGE), page.name


@pytest.mark.slow
def test_in_a_browser_none_of_them_runs(hostile, rendered, tmp_path):
    bait = tmp_path / "bait.html"
    bait.write_text("<html><body>" + "".join(PAYLOADS))
    assert "data-ran" in rendered(bait).partition(">")[0], "the browser runs what is not escaped"
    for page in reports(hostile):
        found = rendered(page)
        assert "data-ran" not in found[: found.index("<head>")], page.name
        assert "Show all code" in found or page.name == "index.html", "the page's own script runs under its policy"
        bare = tmp_path / page.name
        bare.write_text(re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text()))
        found = rendered(bare)
        assert "data-ran" not in found[: found.index("<head>")], f"{page.name} without its policy"


def test_nothing_of_them_is_published(hostile):
    copied = shutil.copytree(hostile, hostile.with_name("copy"))
    target = publish.publish(copied / "outputs" / "tiny", None, copied)
    told = json.loads((target / "01_dataset.ipynb").read_text())
    for cell in told["cells"]:
        for output in cell.get("outputs", []):
            for kind, text in output.get("data", {}).items():
                assert kind in ("text/html", "text/markdown", "text/plain", "image/png"), kind
                if kind in ("text/html", "text/markdown"):
                    assert harmless(Tags("".join(text)).found), text
    for page in ("README.md", "docs/results.md"):
        assert not re.search(r"<(?!!-- results)", (copied / page).read_text())


@given(st.text(st.sampled_from("<>&\"'`|\\[]*_=/! \nab;:"), max_size=40))
def test_text_comes_back_as_it_went_in(text):
    shown = markup.table([{"k": text}], text or "c").data
    cell = re.search("<td[^>]*>(.*?)</td>", shown, re.S)[1]
    assert " ".join(html.unescape(cell).split()) == " ".join(text.split()) and not re.search("[<>]", cell)
    assert "<" not in markup.plain(text) and "\n" not in markup.plain(text)
