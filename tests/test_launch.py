"""The launch files: YAML of the shape that SkyPilot wants, shell that a shell reads, and what they start."""

import ast
import re
import shutil
import subprocess

import pytest
import yaml

from lib.pipeline import recipe
from lib.pipeline.files import ROOT

LAUNCH = ROOT / "params" / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def test_the_task_of_skypilot_has_the_fields_of_its_schema_and_gives_the_machine_back():
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text(encoding="utf-8"))
    assert set(task) == {"name", "workdir", "resources", "envs", "secrets", "setup", "run"}
    assert task["resources"]["autostop"] == {"idle_minutes": 15, "down": True}
    told = task["envs"] | task["secrets"]
    assert task["workdir"] == "." and all(isinstance(value, str) for value in told.values())
    assert (ROOT / "params" / f"{task['envs']['RECIPE']}.yaml").exists()
    for target in re.findall(r"make ([a-z]\w+)", task["setup"] + task["run"]):
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)
    assert set(task["envs"]) <= set(re.search(r"^GIVEN := (.+)", MAKEFILE, re.MULTILINE)[1].split())


def test_every_set_of_the_pages_on_launching_is_one_that_a_recipe_takes():
    """A row without RECIPE is of the one before it, qwen3_8b."""
    found = []
    for page in (LAUNCH / "README.md", ROOT / "docs" / "cluster-and-cloud.md"):
        for line in page.read_text(encoding="utf-8").splitlines():
            name = re.search(r"RECIPE=(\w+)", line)
            found += [(name[1] if name else "qwen3_8b", text) for text in re.findall(r'SET="([^"]+)"', line)]
    assert len(found) >= 7
    for name, text in found:
        recipe.load(name, recipe.parse_set(text.removesuffix(" ...")))


def test_a_users_own_data_goes_along_and_keys_do_not():
    """SkyPilot reads .skyignore in place of .gitignore, which keeps both back."""
    back, away = ([line.strip("/") for line in (ROOT / name).read_text(encoding="utf-8").splitlines()]
                  for name in (".gitignore", ".skyignore"))  # fmt: skip
    own = {"data/mine*", "data/more", "data/scored*"}
    assert set(back) - set(away) == {"outputs/*", "!outputs/published", *own} and "outputs" in away
    assert ".env" in away


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_one_that_its_shell_reads(path):
    shell = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("#!")
    assert subprocess.run([shell, "-n", str(path)], capture_output=True, text=True).stderr == ""


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path):
    if not (shellcheck := shutil.which("shellcheck")):
        pytest.skip("shellcheck is not installed: apt install shellcheck")
    assert subprocess.run([shellcheck, str(path)], capture_output=True, text=True).stdout == ""


FAKE = """#!/bin/sh
echo "$(basename "$0") $*" >> "$LOG"
[ "$(basename "$0") $1" = "$FAILS" ] && exit 7
exit 0
"""


@pytest.mark.parametrize(
    ("fails", "status", "ran"),
    [("", 0, "launch rsync down"), ("sky launch", 7, "launch rsync down"), ("rsync -az", 1, "launch rsync")],
)
def test_outputs_come_back_and_the_machine_is_given_back_also_after_a_failed_run(tmp_path, fails, status, ran):
    """Stand-ins for sky and rsync: no cloud is asked."""
    for name in ("sky", "rsync"):
        (tmp_path / name).write_text(FAKE)
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "LOG": str(tmp_path / "log"), "FAILS": fails, "RECIPE": "tiny"}
    done = subprocess.run(
        ["sh", str(LAUNCH / "sky.sh"), "--infra", "runpod"], env=env, cwd=tmp_path, capture_output=True
    )
    asked = (tmp_path / "log").read_text()
    assert done.returncode == status
    assert re.findall(r"^(?:sky )?(launch|rsync|down)", asked, re.MULTILINE) == ran.split()
    assert "--env RECIPE=tiny" in asked and "--infra runpod params/launch/skypilot.yaml" in asked


def test_a_slurm_job_starts_torchrun_where_it_has_several_gpus(tmp_path):
    (tmp_path / "srun").write_text('#!/bin/sh\necho "$LAUNCH|$*"\n')
    (tmp_path / "srun").chmod(0o755)
    for gpus, launch in (("1", ""), ("8", "torchrun --nproc_per_node 8")):
        env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_GPUS_ON_NODE": gpus, "RECIPE": "tiny", "SET": "a.b=1 c=2"}
        said = subprocess.run(["bash", str(LAUNCH / "slurm.sh")], env=env, capture_output=True, text=True).stdout
        assert said == f"{launch}|make all RECIPE=tiny SET=a.b=1 c=2\n"
    lines = (LAUNCH / "slurm.sh").read_text().splitlines()
    first = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first:]), "sbatch reads none after the first command"


def test_modals_image_is_ours():
    tree = ast.parse((LAUNCH / "modal_run.py").read_text())
    named = [node.args[0].value for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args
             and getattr(node.func, "attr", "") == "from_dockerfile"]  # fmt: skip
    assert named == ["Dockerfile.gpu"] and (ROOT / named[0]).exists()
