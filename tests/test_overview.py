"""The page over all runs, from runs of every age and state."""

import re

import pytest
from test_report import record

from lib.pipeline import records
from lib.report import overview

GPU = {"cpu": "A CPU", "gpu": "NVIDIA H200"}
STAGES = ("01_dataset", "03_sft")
HEADLINE = [{"label": "SFT accuracy", "value": 0.8, "low": 0.75, "high": 0.85, "n": 240}, {"label": "x", "value": 1.0}]


def put(outputs, run, stages, **more):
    """stage.json files as lib.pipeline.run writes them; more: values laid over each, None takes one away."""
    for stage in stages:
        measured = {"headline": HEADLINE} if stage == "03_sft" else {}
        told = record(stage, 3600.0, metrics=measured, hardware=GPU) | more
        folder = outputs / run / stage
        folder.mkdir(parents=True)
        told["run"] = run
        records.write(folder / "stage.json", {k: v for k, v in told.items() if v is not None})


def table_of(outputs):
    """(the page, the texts of its table's cells, row by row)."""
    page = overview.build(outputs).read_text()
    body = re.search("<tbody>(.*)</tbody>", page, re.S)[1]
    rows = [re.findall("<td[^>]*>(.*?)</td>", row, re.S) for row in body.split("</tr>")[:-1]]
    return page, [[re.sub("<[^>]+>", "", cell) for cell in row] for row in rows]


def test_every_stage_of_every_run_is_a_row(tmp_path):
    put(tmp_path, "qwen3_8b+ab", STAGES, overrides={"judge": {"questions": 5}})
    put(tmp_path, "tiny", STAGES[:1], hardware=GPU | {"gpu": None}, error="out of memory")
    page, rows = table_of(tmp_path)
    assert "2 runs, 3 stages" in page
    rest = ["1 h 00 min", "1,234", "NVIDIA H200", "A CPU", "0123456789"]
    dash = "\u2013"
    assert rows[0] == ["qwen3_8b+ab", "judge.questions=5", "01_dataset", dash, dash, *rest]
    assert rows[1][2:5] == ["03_sft", dash, "SFT accuracy: 80.0 % (75.0-85.0, n = 240)"]
    assert rows[2][:4] == ["tiny", "", "01_dataset", "out of memory"] and rows[2][7] == dash


def test_the_page_needs_no_network_and_its_links_lead_somewhere(tmp_path):
    put(tmp_path, "tiny", STAGES)
    put(tmp_path, "tiny+ab12cd", ["03_sft"])
    (tmp_path / "tiny" / "report").mkdir()
    (tmp_path / "tiny" / "report" / "index.html").write_text("x")
    page, _ = table_of(tmp_path)
    links = set(re.findall(r'href="([^"]+)"', page))
    assert "://" not in page and links == {"index.html", "../tiny/report/index.html"}


def test_names_and_values_from_files_are_escaped(tmp_path):
    evil = "<script>alert(1)</script>"
    put(tmp_path, "a<b>", STAGES, overrides={"judge": {"candidates": [evil]}}, git={"commit": evil[:10]}, error=evil,
        metrics={"headline": [{"label": evil, "value": 1.0, "unit": evil}]}, hardware=GPU | {"gpu": evil})  # fmt: skip
    page, rows = table_of(tmp_path)
    assert evil not in page and page.count("<script>") == 1 and page.count("&lt;script&gt;") == 2 * 6
    assert rows[0][0] == "a&lt;b&gt;" and "judge.candidates=" in rows[0][1]


@pytest.mark.parametrize("gone", ["metrics", "timings", "hardware", "git", "peak_memory_mib", "overrides"])
def test_a_stage_json_that_lacks_something_is_shown_without_it(tmp_path, gone):
    put(tmp_path, "tiny", STAGES, **{gone: None})
    put(tmp_path, "other", STAGES)
    page, found = table_of(tmp_path)
    assert len(found) == 4 and not re.search("None|Undefined|nan", page)


def test_without_runs_it_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="holds no run with a stage.json: make all"):
        overview.build(tmp_path)
