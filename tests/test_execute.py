"""The runner on notebooks with one behaviour each, through real papermill and real kernels."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from lib.pipeline.files import ROOT

START = 'from lib.pipeline import run\nstage = run.start("{stage}", recipe, overrides)'
WRITE = '(stage.dir / "out.txt").write_text("42")'
FINISH = 'stage.finish({"answer": 42})'


class Project:
    """A copy of the project with notebooks of the test's own, driven as Make drives it."""

    def __init__(self, root):
        self.root, self.outputs = root, root / "outputs"
        (root / "notebooks").mkdir()
        shutil.copytree(ROOT / "lib", root / "lib", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "params", root / "params")
        for name in ("requirements.lock", "toolchain.txt"):
            shutil.copy(ROOT / name, root)

    def notebook(self, stage, *cells, prose="Prose."):
        parameters = nbformat.v4.new_code_cell('recipe = "tiny"\noverrides = {}', metadata={"tags": ["parameters"]})
        code = [nbformat.v4.new_code_cell(text) for text in (START.format(stage=stage), *cells)]
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(prose), parameters, *code])
        notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, self.root / "notebooks" / f"{stage}.ipynb")

    def command(self, *args, module="lib.execute"):
        return [sys.executable, "-m", module, *args]

    def environment(self):
        return os.environ | {"PYTHONPATH": str(self.root), "OUTPUTS": str(self.outputs)}

    def execute(self, *args, module="lib.execute", **options):
        return subprocess.run(
            self.command(*args, module=module),
            cwd=self.root,
            env=self.environment(),
            capture_output=True,
            text=True,
            **options,
        )

    def record(self, stage, run="tiny"):
        path = self.outputs / run / stage / "stage.json"
        return json.loads(path.read_text()) if path.exists() else None


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def test_a_finished_stage_is_recorded_and_then_fresh_until_what_it_depends_on_changes(project):
    project.notebook("01_a", 'seed = stage.recipe.run["seed"]', WRITE, FINISH)
    first = project.execute("01_a")
    assert first.returncode == 0, first.stderr
    record = project.record("01_a")
    assert record["metrics"] == {"answer": 42} and list(record["outputs"]) == ["out.txt"]
    assert "nonce" not in record and not (project.outputs / "tiny/01_a/stage.pending.json").exists()
    assert "fresh" in project.execute("01_a").stdout

    project.notebook("01_a", 'seed = stage.recipe.run["seed"]', WRITE, FINISH, prose="Other prose.")
    assert "fresh" in project.execute("01_a").stdout, "a prose edit must not re-run a stage"
    recipe = project.root / "params/tiny.yaml"
    recipe.write_text(recipe.read_text().replace("max_usd: 1.0", "max_usd: 2.0"))
    assert "fresh" in project.execute("01_a").stdout, "a section that the stage never read must not re-run it"
    recipe.write_text(recipe.read_text().replace("seed: 42", "seed: 43"))
    assert "run: changed in the recipe" in project.execute("01_a").stdout
    (project.outputs / "tiny/01_a/out.txt").write_text("43")
    assert "out.txt is missing or was changed" in project.execute("01_a").stdout
    project.notebook("01_a", 'seed = stage.recipe.run["seed"]', WRITE, FINISH.replace("42", "41"))
    assert "notebook changed" in project.execute("01_a").stdout


def test_a_stage_runs_again_when_its_input_changes_and_names_a_corrupted_one(project):
    project.notebook("01_a", WRITE, FINISH)
    project.notebook("02_b", 'text = stage.input("01_a")["out.txt"].read_text()', 'stage.finish({"text": text})')
    needs = project.execute("02_b")
    assert needs.returncode == 1 and "02_b needs 01_a" in needs.stderr and "make 01_a" in needs.stderr
    assert project.execute("01_a").returncode == project.execute("02_b").returncode == 0
    (project.outputs / "tiny/01_a/out.txt").write_text("corrupted")
    broken = project.execute("02_b", "--force")
    assert broken.returncode == 1 and "01_a/out.txt has other bytes" in broken.stderr and "make 01_a" in broken.stderr
    project.notebook("01_a", WRITE.replace("42", "44"), FINISH)
    assert project.execute("01_a").returncode == 0
    project.execute("02_b")
    assert project.record("02_b")["metrics"] == {"text": "44"}


@pytest.mark.parametrize(
    "deed", ["import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "import sys; sys.exit(0)", "1 / 0"]
)
def test_a_stage_whose_kernel_leaves_early_or_fails_is_none_and_can_run_again(project, deed):
    project.notebook("01_a", WRITE, deed, FINISH)
    failed = project.execute("01_a")
    told = ("ZeroDivisionError: division by zero",) if "/" in deed else ("ended before its last cell", "DeadKernel")
    assert failed.returncode == 1 and any(text in failed.stderr for text in told), failed.stderr
    assert project.record("01_a") is None
    kept = nbformat.read(project.outputs / "tiny/01_a/01_a.ipynb", as_version=4)
    assert "failed" in kept.cells[0].source or "error" in str(kept.cells[0].metadata)
    project.notebook("01_a", WRITE, FINISH)
    assert project.execute("01_a").returncode == 0


def test_a_runner_killed_right_after_the_last_cell_leaves_no_stage_and_its_key_until_the_next_run(project):
    show = "from ipykernel.connect import get_connection_file\n(stage.dir / 'key').write_text(get_connection_file())"
    project.notebook("01_a", show, WRITE, FINISH + "\nimport os, signal; os.kill(os.getppid(), signal.SIGKILL)")
    killed = project.execute("01_a")
    key = Path((project.outputs / "tiny/01_a/key").read_text())
    assert killed.returncode == -signal.SIGKILL and "hmac" in key.read_text()
    assert (project.outputs / "tiny/01_a/stage.pending.json").exists() and project.record("01_a") is None
    project.notebook("01_a", WRITE, FINISH)
    assert project.execute("01_a").returncode == 0 and project.record("01_a")
    assert not key.parent.exists() and key.parent.parent.name == "kernels"


def test_two_runs_of_one_stage_at_once(project):
    wait = 'import time; (stage.dir / "begun").write_text("")\n'
    wait += '[time.sleep(0.1) for _ in range(1200) if not (stage.dir / "refused").exists()]'
    project.notebook("01_a", wait, FINISH)
    first = subprocess.Popen(project.command("01_a"), cwd=project.root, env=project.environment())
    begun = project.outputs / "tiny/01_a/begun"
    while not begun.exists():
        assert first.poll() is None, "the first run ended before its notebook began"
        time.sleep(0.1)
    second = project.execute("01_a")
    begun.with_name("refused").write_text("")
    assert second.returncode == 1 and "already running" in second.stderr
    assert first.wait() == 0 and project.record("01_a")


def test_outputs_that_cannot_be_written(project):
    project.notebook("01_a", WRITE, FINISH)
    project.outputs.write_text("a file where a folder should be")
    failed = project.execute("01_a")
    assert failed.returncode == 1 and "outputs" in failed.stderr and "Traceback" not in failed.stderr


def test_a_stage_folder_that_is_a_link_is_refused_and_what_it_points_to_stays(project):
    project.notebook("01_a", WRITE, FINISH)
    mine, link = project.root / "mine", project.outputs / "tiny" / "01_a"
    for folder in (mine, link.parent):
        folder.mkdir(parents=True)
    (mine / "bait.txt").write_text("mine")
    link.symlink_to(mine)
    opened = f"from lib.pipeline import run; run.start({link.name!r})"  # as a notebook in JupyterLab does
    for command in (project.command("01_a"), project.command("01_a", "--force"), [sys.executable, "-c", opened]):
        failed = subprocess.run(command, cwd=project.root, env=project.environment(), capture_output=True, text=True)
        assert failed.returncode == 1 and f"01_a is a symbolic link to {mine}: remove the link" in failed.stderr
        assert os.listdir(mine) == ["bait.txt"]


def test_a_file_that_does_not_fit_leaves_no_stage(project):
    project.notebook("01_a", '(stage.dir / "big.bin").write_bytes(bytes(50_000_000))', FINISH)
    limit = 20_000_000  # bytes: the kernel's write fails as it does on a full disk, with an OSError
    failed = project.execute("01_a", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert failed.returncode == 1 and "OSError" in failed.stderr and project.record("01_a") is None
    assert project.execute("01_a").returncode == 0


def test_a_record_that_was_edited_is_named_and_its_stage_runs_again(project):
    project.notebook("01_a", WRITE, FINISH)
    assert project.execute("01_a").returncode == 0
    path = project.outputs / "tiny/01_a/stage.json"
    path.write_text(path.read_text().replace('"answer": 42', '"answer": 99'))
    again = project.execute("01_a")
    assert again.returncode == 0 and "its seal does not fit" in again.stdout and "01_a" in again.stdout, again.stdout
    assert project.record("01_a")["metrics"] == {"answer": 42} and "fresh" in project.execute("01_a").stdout


def test_verify_reads_every_byte_and_accept_blesses_code_only(project):
    project.notebook("01_a", WRITE, FINISH)
    assert project.execute("01_a").returncode == 0
    assert "report: not made" in project.execute("verify").stderr
    made = project.execute(module="lib.report.pages")
    assert made.returncode == 0, made.stderr
    assert project.execute("verify").returncode == 0
    out, record = project.outputs / "tiny/01_a/out.txt", project.outputs / "tiny/01_a/stage.json"
    kept = record.read_text()
    record.write_text(kept.replace('"answer": 42', '"answer": 43'))
    edited = project.execute("verify")
    assert edited.returncode == 1 and "seal does not fit: run 01_a again" in edited.stderr
    record.write_text(kept)
    stamp = out.stat().st_mtime_ns
    out.write_text("43")
    os.utime(out, ns=(stamp, stamp))
    wrong = project.execute("verify")
    assert (
        wrong.returncode == 1 and "01_a/out.txt: it has other bytes than were written: run 01_a again" in wrong.stderr
    )
    out.write_text("42")
    project.notebook("01_a", WRITE, "# a comment", FINISH)
    assert project.execute("accept").returncode == 0
    record = project.record("01_a")
    assert record["accepted"]["changed"] == ["notebook"] and "fresh" in project.execute("01_a").stdout
    pins = project.root / "requirements.lock"
    pins.write_text(pins.read_text() + "\n")
    refused = project.execute("accept")
    assert refused.returncode == 1 and "pinned packages changed" in refused.stderr


def test_unknown_names_are_one_clear_line(project):
    for args, said in (
        (("09_none",), "no notebook notebooks/09_none.ipynb"),
        (("01_a", "--recipe", "tinny"), "the nearest valid name is 'tiny'"),
        (("01_a", "--set", "sft.lerning_rate=1"), "the nearest valid name is 'learning_rate'"),
        (("01_a", "--set", "nonsense"), "section.key=value"),
    ):
        failed = project.execute(*args)
        assert failed.returncode == 1 and said in failed.stderr and "Traceback" not in failed.stderr


def test_a_key_that_is_set_later_makes_the_stage_stale(project):
    project.notebook("01_key", 'print(sorted(stage.environ("MEDTUNE_A_KEY").values(), key=str))', WRITE, FINISH)
    assert project.execute("01_key").returncode == 0
    assert "fresh" in project.execute("01_key").stdout
    (project.root / ".env").write_text("# keys\nMEDTUNE_A_KEY='secret-7'\n")
    again = project.execute("01_key")
    assert again.returncode == 0 and "MEDTUNE_A_KEY is now set" in again.stdout
    assert project.record("01_key")["environment"] == {"MEDTUNE_A_KEY": True}
    assert "secret-7" not in (project.outputs / "tiny" / "01_key" / "stage.json").read_text()
    assert "fresh" in project.execute("01_key").stdout


def test_an_unknown_source_or_stage_of_the_curriculum_stops_before_anything_runs(project):
    project.notebook("01_data", WRITE, FINISH)
    for setting, message in (
        ("'data.sources=[{name: medraeson}]'", "the nearest valid name is 'medreason'"),
        ("'data.stages=[{name: medmcqa}]'", "no source 'medmcqa' in stage 'medmcqa'"),
    ):
        failed = project.execute("01_data", "--set", setting)
        assert failed.returncode == 1 and message in failed.stderr, failed.stderr
    assert not project.outputs.exists()
