"""The page over all runs, from runs of every age and state."""

import json
import re

import pytest
import yaml

from lib.pipeline.files import ROOT
from lib.report import overview

GPU = {"cpu": "A CPU", "cores": 2, "memory_gib": 23.5, "gpu": "NVIDIA H200"}


def share(value):
    return {"value": value, "low": value - 0.05, "high": value + 0.05, "n": 240}


METRICS = {
    "02_baseline": {"generated": {"accuracy": share(0.1)}, "likelihood": {"accuracy": share(0.3)}, "chance": 0.25},
    "03_sft": {"generated": {"accuracy": share(0.8), "format_compliance": share(0.9)}, "parameters": 1000, "steps": 12,
               "trainable_parameters": 50, "loss": {"first": 3.5, "last": 0.5, "eval": [0.9, 0.6]}},
    "04_qat": {"target": "q4_0", "recovered_share": {"int4": share(-0.4), "qat": share(0.7)}},
    "05_export": {"ladder": [{"name": "bf16", **share(0.8), "change": share(0.0)},
                             {"name": "q4_0", **share(0.7), "change": share(-0.1)}]},
    "06_judge": {"overlap": {"table": [{"model": "sft", "score": {"value": 7.5, "low": 7, "high": 8, "n": 9}, "W": None,
                                        "T": None}]},
                 "llm": {"tables": {"gpt-x": [{"model": "sft", "score": {"value": 6.0}, "W": share(0.6),
                                               "T": share(0.4)}]},
                         "coverage": {"gpt-x": {"usd": 1.5, "incomplete": True}}}},
}  # fmt: skip


def put(outputs, run, stages, **more):
    """stage.json files as lib.pipeline.run writes them; more: values laid over each, None takes one away."""
    for stage in stages:
        record = {"stage": stage, "recipe": run.partition("+")[0], "overrides": {}, "metrics": METRICS.get(stage, {}),
                  "timings": {"wall_s": 3600.0, "cpu_s": 3000.0}, "peak_memory_mib": 1234, "hardware": GPU,
                  "git": {"commit": "0123456789abcdef", "dirty": False}} | more  # fmt: skip
        folder = outputs / run / stage
        folder.mkdir(parents=True)
        (folder / "stage.json").write_text(json.dumps({k: v for k, v in record.items() if v is not None}))


def page_of(outputs):
    return overview.build(outputs).read_text()


def test_every_run_with_its_ladder_recovery_judges_and_cost(tmp_path):
    put(tmp_path, "qwen3_8b", METRICS)
    put(tmp_path, "tiny", ["02_baseline"], hardware=GPU | {"gpu": None})
    page = page_of(tmp_path)
    assert "2 runs" in page and "A CPU, 2 cores, 23.5 GiB memory, NVIDIA H200, commit 0123456789" in page
    assert "5 h 00 min" in page and "1,234 MiB" in page
    hourly = yaml.safe_load((ROOT / "params" / "prices.yaml").read_text())["gpus"]["h200"]["usd_per_hour"]
    assert f"${5 * hourly + 1.5:.2f}" in page and "GPU, stages 02, 03, 04, 05, 06 and judges" in page
    assert page.count("$") == 1  # no price for a CPU
    rungs = re.findall(r'<tr><td class="name">([^<]+)</td><td>(?:<svg|</td>)', page)
    assert rungs[:6] == ["chance", "base, by likelihood", "base, generated", "sft", "bf16, served", "q4_0, served"]
    assert "<b>-10.0 %</b>" in page and "3.5 to 0.5 nats" in page and "0.9 to 0.6 nats" in page
    assert "50 of 1,000" in page
    assert "Rounding to q4_0" in page and re.search(r"the file&#39;s grid</th><td><b>70.0 %</b>.{0,30}65.0-75.0", page)
    assert "gpt-x (INCOMPLETE)" in page and "<b>7.5 points</b>" in page and "<b>60.0 %</b>" in page


def test_the_page_needs_no_network_and_its_links_lead_somewhere(tmp_path):
    put(tmp_path, "tiny", METRICS)
    put(tmp_path, "tiny+ab12cd", ["03_sft"])
    (tmp_path / "tiny" / "report").mkdir()
    (tmp_path / "tiny" / "report" / "index.html").write_text("x")
    page = page_of(tmp_path)
    assert "://" not in page
    links = re.findall(r'href="([^"]+)"', page)
    assert "../tiny/report/index.html" in links and "../tiny+ab12cd/report/index.html" not in links
    for link in links:
        assert f'id="{link[1:]}"' in page if link[0] == "#" else (tmp_path / "report" / link).exists(), link


def test_names_and_values_from_files_are_escaped(tmp_path):
    evil = "<script>alert(1)</script>"
    put(tmp_path, "tiny", ["03_sft"], recipe=evil, overrides={"judge": {"candidates": [evil]}})
    put(tmp_path, "a<b>", ["06_judge"], metrics={"overlap": {"table": [{"model": evil, "score": share(0.5)}]}},
        hardware=GPU | {"gpu": evil})  # fmt: skip
    page = page_of(tmp_path)
    assert evil not in page and page.count("&lt;script&gt;") >= 4 and "a&lt;b&gt;" in page and '<b>"' not in page
    assert "judge.candidates=" in page


@pytest.mark.parametrize("stage", METRICS)
@pytest.mark.parametrize("gone", ["metrics", "timings", "hardware", "git", "peak_memory_mib", "recipe", "overrides"])
def test_a_stage_json_that_lacks_something_is_shown_without_it(tmp_path, stage, gone):
    put(tmp_path, "tiny", [stage], **{gone: None})
    page = page_of(tmp_path)
    assert f'<th class="number">{stage}</th>' in page
    assert "None" not in page and "Undefined" not in page


def test_every_metric_may_be_missing(tmp_path):
    for number, (stage, metrics) in enumerate(METRICS.items()):
        for key in metrics:
            put(tmp_path, f"run{number}-{key}", [stage], metrics={k: v for k, v in metrics.items() if k != key})
            put(tmp_path, f"null{number}-{key}", [stage], metrics=metrics | {key: None})
    assert "None" not in page_of(tmp_path)


def test_a_failed_stage_and_an_unreadable_file_are_named(tmp_path):
    put(tmp_path, "tiny", ["02_baseline"])
    put(tmp_path, "other", ["03_sft"], error="out of memory", metrics={})
    for name, text in (("broken", "{"), ("listed", "[]")):
        (tmp_path / name / "01_dataset").mkdir(parents=True)
        (tmp_path / name / "01_dataset" / "stage.json").write_text(text)
    (tmp_path / "published").mkdir()
    page = page_of(tmp_path)
    assert "failed: 03" in page and "No stage of this run has measured anything yet" in page
    assert "Left out: broken/01_dataset/stage.json is not valid JSON" in page
    assert "Left out: listed/01_dataset/stage.json should hold an object, found list" in page
    assert "2 runs" in page and "published" not in page


def test_without_runs_it_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="holds no run with a stage.json: make all"):
        overview.build(tmp_path)


def test_prices_go_by_the_words_of_the_drivers_name():
    gpus = {
        name: {"usd_per_hour": number} for number, name in enumerate(("t4", "l4", "a100-40gb", "a100-80gb", "h100"))
    }
    told = {"Tesla T4": 0, "NVIDIA L4": 1, "NVIDIA L40S": None, "NVIDIA A100-SXM4-80GB": 3, "NVIDIA A100-PCIE-40GB": 2,
            "NVIDIA H100 80GB HBM3": 4, "NVIDIA A100-SXM4-80GB MIG 1g.10gb": None, None: None}  # fmt: skip
    assert {name: overview.price(name, gpus) for name in told} == told
