"""What Make is given reaches Python as it was typed and runs nothing; the Makefile itself, with a stub for Python."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from pipeline import STAGES

from lib import execute
from lib.pipeline import architectures, recipe, terminal
from lib.pipeline.files import ROOT, outputs_dir, rooted

STUB = """#!/bin/sh
exec {python} - "$@" <<'END'
import json, os, sys, time
names, end = {names!r}, time.time() + float(os.environ.get("PATIENCE", 0))
while sys.argv[-1] == "07_preference" and "06_judge" not in open({told!r}).read() and time.time() < end:
    time.sleep(0.05)  # a chapter that takes its time
with open({told!r}, "a") as file:
    file.write(json.dumps([sys.argv[1:], {{name: os.environ.get(name) for name in names}}]) + "\\n")
END
"""
GIVEN = ("RECIPE", "SET", "GPU", "OUTPUTS", "PIP_ARGS", "ROWS", "LAUNCH")
SERVED = ("MODEL", "HOST", "PORT", "UI", "UI_PORT")  # those of the command line alone
NAMES = (*GIVEN, *(f"SERVE_{name}" for name in SERVED), "OVERLAY", "JOBS", "FOO")
ODD = ["qat.seeds='[42, 43, 44]'", "'; touch x; '", "a$b $(touch x) `touch x` $$c", 'é "quoted" \\ #x %y', "x' \"y"]


@pytest.fixture
def make(tmp_path):
    """Runs `make` on the project's Makefile and returns [arguments, environment] of each Python started."""
    folder = tmp_path / "my clône"
    folder.mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    stub, told = folder / "python", folder / "told.jsonl"
    stub.write_text(STUB.format(python=shutil.which("python3"), told=str(told), names=NAMES))
    stub.chmod(0o755)

    def run(*words, **environment):
        told.unlink(missing_ok=True)
        command = ["make", "--no-print-directory", "PYTHON=./python", "PYTHON3=./python", *words]
        done = subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert {path.name for path in folder.iterdir()} == {"Makefile", "python", "told.jsonl"}
        return [json.loads(line) for line in told.read_text().splitlines()]

    return run


@pytest.mark.parametrize("name", [*GIVEN, *SERVED, "OVERLAY", "JUDGE_MODEL", "FOO"])
def test_nothing_on_the_command_line_is_run(make, name):
    """Make exports the variables of its command line, known to it or not, and would expand what they hold."""
    for target in ("plan", "serve", "01_dataset"):
        make(target, f"{name}=$(shell touch x)")  # which fails on a file that it finds


@pytest.mark.parametrize("text", ODD)
@pytest.mark.parametrize(("stage", "module"), [("01_dataset", "lib.execute"), ("03_sft", "lib.pipeline.launch")])
def test_values_arrive_as_they_were_typed(make, text, stage, module):
    told, served = dict.fromkeys(GIVEN, text), {f"SERVE_{name}": text for name in SERVED}
    for words, environment in (([f"{key}={text}" for key in (*GIVEN, *SERVED)], {}), ([], told)):
        setup, *_, last = make(stage, *words, **environment)
        assert setup[0] == ["-m", "lib.pipeline.setup", "--gpu"] and last[0] == ["-m", module, stage]
        assert (
            last[1]
            == setup[1]
            == told | (served if words else dict.fromkeys(served)) | {"OVERLAY": None, "JOBS": None, "FOO": None}
        )


@pytest.mark.parametrize("text", ODD)
def test_what_else_is_given_arrives_too(make, text):
    """make 07_preference OVERLAY=leash, make bench-serve LITELLM=path."""
    _, told = make("07_preference", f"OVERLAY={text}", f"FOO={text}")[-1]
    assert told["OVERLAY"] == told["FOO"] == text


def test_what_is_not_given(make):
    (_, stage) = make("02_baseline")[-1]
    assert stage == dict.fromkeys(NAMES) | dict.fromkeys(GIVEN, "") | {"RECIPE": "tiny"}
    assert make("clean", "RECIPE=")[0][1]["RECIPE"] == ""


SAY = "import json, os, sys; print(json.dumps([os.environ.get('A'), os.environ['PATH'], sys.argv[1:]]))"
STAGE = [sys.executable, "-m", "lib.execute", "03_sft"]


def launched(text, tmp_path):
    environment = os.environ | {"LAUNCH": text, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "lib.pipeline.launch", "03_sft"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert list(tmp_path.iterdir()) == []
    return done


@pytest.mark.parametrize("text", ["; touch x", "$(touch x)", "`touch x`", "&& touch x", "torchrun > x", "a | tee x"])
def test_launch_is_words_before_the_command_and_no_shell_reads_them(text, tmp_path):
    program = shlex.join([sys.executable, "-c", SAY])
    for given in (f"env 'A=b c' {program} {text}", f"'A=b c' {program} {text}"):
        a, path, words = json.loads(launched(given, tmp_path).stdout)
        assert a == "b c" and path.split(os.pathsep)[0] == os.path.dirname(sys.executable)
        assert words == [*text.split(), *(["--no-python"] if "torchrun" in text else []), *STAGE]
    assert launched(f"x; touch y; {program} {text}", tmp_path).returncode == 127, "no program 'x;'"


def test_a_launch_that_ends_within_a_quote_is_said_to(tmp_path):
    assert 'LAUNCH is "nice \'x": No closing quotation\n' == launched("nice 'x", tmp_path).stderr


@pytest.mark.parametrize("target, words", [("serve", ["-m", "app"]), ("chat", ["-m", "app", "chat"])])
def test_what_to_serve_reaches_the_program_from_the_command_line_only(make, target, words):
    given = {"MODEL": "q8_0 a$b", "PORT": "8001", "HOST": "127.0.0.2", "UI": "0", "UI_PORT": "8502"}
    for environment in ({}, {"PORT": "1", "HOST": "box", "UI": "x"}):
        called, told = make(target, *[f"{name}={value}" for name, value in given.items()], **environment)[-1]
        assert called == words
        assert {name: value for name, value in told.items() if name.startswith("SERVE_")} == {
            f"SERVE_{name}": value for name, value in given.items()
        }
        told = make(target, **environment)[-1][1]
        assert not [name for name, value in told.items() if name.startswith("SERVE_") and value is not None]


@pytest.mark.parametrize("text", ODD[:3])
def test_a_rehearsal_passes_them_on(make, text):
    said, *stages = [(words, told) for words, told in make("rehearse", f"SET={text}", "RECIPE=qwen3_8b")
                     if "lib.pipeline.setup" not in words]  # fmt: skip
    assert said[0] == ["-m", "lib.plan.rehearsal"] and len(stages) == 8
    assert {(told["SET"], told["RECIPE"], told["OVERLAY"]) for _, told in stages} == {(text, "qwen3_8b", "rehearsal")}


@pytest.mark.parametrize(
    ("words", "waits"),
    [
        ([], False),
        (["SET=sft.learning_rate=1e-3"], False),
        (["SET=judge.candidates='[sft, dpo]'"], True),
        (["SET=preference.arms.dpo.beta=0.2"], True),
        (["OVERLAY=leash"], True),
        (["RECIPE=qwen3_8b", "JOBS=2"], True),
    ],
)
def test_the_judge_waits_for_the_arms_unless_the_recipe_judges_none(make, words, waits):
    cfg = recipe.load("tiny")
    assert not set(cfg.judge["candidates"]) & set(cfg.preference["arms"]), "then Make has to wait here too"
    stages = [called[-1] for called, _ in make("all", *words, PATIENCE="2" if waits else "60") if called[-1] in STAGES]
    assert (stages.index("06_judge") > stages.index("07_preference")) == waits


def test_all_runs_what_needs_nothing_of_one_another_side_by_side(make):
    """Two at once: the default recipe; one: what may train on a GPU."""
    for words, jobs in (([], "2"), (["RECIPE=tiny"], "2"), (["JOBS=1"], "1"), (["RECIPE=qwen3_8b"], "1")):
        told = [(called[-1], told["JOBS"]) for called, told in make("all", *words) if called[-1] in STAGES]
        stages, said = zip(*told, strict=True)
        assert set(said) == {jobs} and sorted(stages) == STAGES
        assert jobs == "2" or stages == (*STAGES[:5], "07_preference", "06_judge")
    assert "JOBS" not in os.environ and make("all", JOBS="8")[0][1]["JOBS"] == "2", "a shell may have JOBS too"
    alone = make("06_judge", JOBS="8")[1:]
    assert [(words[-1], told["JOBS"]) for words, told in alone] == [(stage, None) for stage in STAGES[:6]]


@pytest.mark.parametrize("jobs", ["", "0", "5", "2 3", "two", "$(shell touch x)"])
def test_how_many_at_once(make, jobs):
    with pytest.raises(AssertionError, match="say how many chapters may run at once, 1 to 4"):
        make("all", f"JOBS={jobs}")


def test_a_chapter_that_runs_beside_another_draws_no_bar_over_its_line(monkeypatch, tmp_path, capsys):
    cells = [nbformat.v4.new_markdown_cell("# One"), nbformat.v4.new_code_cell("1")]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    for jobs, lines in (("1", 0), ("2", 1)):
        monkeypatch.setenv("JOBS", jobs)
        shown = terminal.Terminal(tmp_path / "02_baseline")
        shown.at(cells, 1)
        shown.close()
        assert len(re.findall(r"^02_baseline +0 s  One$", capsys.readouterr().out, re.M)) == lines


def test_recipe_and_set_of_the_environment_and_the_words_that_go_before_them(monkeypatch):
    monkeypatch.setenv("RECIPE", "qwen3_8b")
    monkeypatch.setenv("SET", "judge.candidates='[base, sft]' run.seed=7")
    cfg = recipe.chosen(recipe.parser("About.").parse_args([]))
    assert cfg.name == "qwen3_8b" and cfg.judge["candidates"] == ["base", "sft"] and cfg.run["seed"] == 7
    monkeypatch.setenv("OVERLAY", "rehearsal")
    assert recipe.chosen(recipe.parser("About.").parse_args(["--set", ""])).run_name == "qwen3_8b@rehearsal"
    assert recipe.chosen(recipe.parser("About.").parse_args(["--recipe", "tiny@rehearsal", "--set", ""]))
    monkeypatch.setenv("RECIPE", "")
    with pytest.raises(ValueError, match="RECIPE is empty: name a recipe of params/"):
        recipe.chosen(recipe.parser("About.").parse_args([]))


def test_folders_count_from_the_root_of_the_repository(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for given, found in (
        ("my rüns", ROOT / "my rüns"),
        (str(tmp_path / "a b"), tmp_path / "a b"),
        ("", ROOT / "outputs"),
    ):
        monkeypatch.setenv("OUTPUTS", given)
        assert outputs_dir() == found
    model = tmp_path / "my modèl"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(architectures.SHAPES["Qwen3-8B"]))
    given = os.path.relpath(model, ROOT)
    assert Path(rooted(given)).samefile(model) and rooted("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B"
    assert architectures.published(given)["model_type"] == "qwen3"


@pytest.mark.parametrize("name", ["", "../docs", "my run", "t*", "published", ".", "tiny+*", "/", "tiny@nothing"])
def test_clean_removes_nothing_where_no_recipe_is_named(name, tmp_path, monkeypatch):
    kept = [tmp_path / "out" / run for run in ("tiny", "tiny+abc123", "tiny2", "published", "my run")]
    for folder in (*kept, tmp_path / "docs"):
        folder.mkdir(parents=True)
    monkeypatch.setenv("OUTPUTS", str(tmp_path / "out"))
    assert execute.main(["clean", "--recipe", name]) == 1
    assert all(path.exists() for path in (*kept, tmp_path / "docs"))


def test_clean_removes_the_runs_of_its_recipe(tmp_path, monkeypatch):
    for run in ("tiny", "tiny+abc123", "tiny2", "tiny@rehearsal", "qwen3_8b"):
        (tmp_path / run).mkdir()
    monkeypatch.setenv("OUTPUTS", str(tmp_path))
    assert execute.main(["clean", "--recipe", "tiny"]) == 0
    assert sorted(os.listdir(tmp_path)) == ["qwen3_8b", "tiny2", "tiny@rehearsal"]
