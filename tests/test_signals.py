"""A stage whose terminal goes away ends well; one that is asked to stop, in whatever way, stops and says so."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from test_execute import FINISH, WRITE, Project

from lib.pipeline.files import ROOT

SAY = 'import os; print("said by the notebook"); os.system("echo said by a program")'
WAITS = """import time; (stage.dir / "begun").write_text("")
for _ in range(6000):
    time.sleep(0.1)"""


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def closed_reader():
    """A pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def no_terminal():
    """A terminal that has gone away."""
    ours, theirs = os.openpty()
    os.close(ours)
    return theirs


@pytest.mark.parametrize("out", [closed_reader, no_terminal, lambda: os.open("/dev/full", os.O_WRONLY)],
                         ids=["closed reader", "no terminal", "full disk"])  # fmt: skip
def test_output_that_cannot_be_written_fails_no_stage(project, out):
    project.notebook("01_a", SAY, WRITE, FINISH, prose="# A heading: é \u2192")
    where = out()
    command, environment = project.command("01_a"), project.environment() | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=project.root, env=environment, stdout=where, stderr=where)
    assert done.returncode == 0 and project.record("01_a")["metrics"] == {"answer": 42}
    again = subprocess.run(command, cwd=project.root, env=environment, stdout=where, stderr=where)
    assert again.returncode == 0, "a fresh stage says so to nobody"
    os.close(where)


def test_a_stage_started_without_any_output(project):
    project.notebook("01_a", SAY, WRITE, FINISH)
    command = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *project.command("01_a")]
    assert subprocess.run(command, cwd=project.root, env=project.environment()).returncode == 0
    assert project.record("01_a")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_stops_a_stage_which_can_run_again(project, number):
    project.notebook("01_a", WAITS, FINISH)
    with started(project, project.command("01_a")) as runner:
        runner.send_signal(number)
        said = runner.communicate()[1]
    assert runner.returncode == 1 and "01_a         STOPPED: cell" in said and "run the same command again" in said
    project.notebook("01_a", WRITE, FINISH)
    assert project.execute("01_a").returncode == 0 and project.record("01_a")


@pytest.mark.parametrize("stage", ["01_dataset", "03_sft"])
def test_sigterm_to_make_reaches_the_stage(project, stage):
    project.notebook(stage, WAITS, FINISH)
    shutil.copy(ROOT / "Makefile", project.root)
    python = project.root / "python"
    python.write_text(f'#!/bin/sh\ncase "$2" in lib.pipeline.setup) exit 0;; esac\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    make = ["make", "--no-print-directory", f"PYTHON={python}", f"PYTHON3={python}", "-o", "01_dataset", stage]
    with started(project, make if stage != "01_dataset" else [*make[:-3], stage], stage) as runner:
        runner.send_signal(signal.SIGTERM)
        said = runner.communicate()[1]
    assert runner.returncode != 0 and f"{stage:12} STOPPED: cell" in said, said
    project.notebook(stage, WRITE, FINISH)
    assert project.execute(stage).returncode == 0, "the lock is free"


def heeding():
    """Undo what a shell's background job or nohup has this process ignore, and the stage with it."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def started(project, command, stage="01_a"):
    """The process of a stage whose notebook waits."""
    pipe = subprocess.PIPE
    options = {"cwd": project.root, "env": project.environment(), "stdout": pipe, "stderr": pipe, "text": True}
    runner = subprocess.Popen(command, **options, preexec_fn=heeding)
    begun = project.outputs / "tiny" / stage / "begun"
    while not begun.exists():
        time.sleep(0.1)
        assert runner.poll() is None, runner.communicate()
    return runner
