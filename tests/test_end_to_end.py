"""The six notebooks at a smaller size, through the real runner, real training and real llama.cpp."""

import json
import os
import shutil
import subprocess
import sys

import nbformat
import pytest
from loopback import Endpoint, physician
from nbclient import NotebookClient
from pipeline import SHARED, SMALL, STAGES, folder, make, record

from benchmarks.train import conversations
from lib.pipeline import recipe
from lib.pipeline.files import ROOT, write_jsonl

BROUGHT = (
    "[{name: healthbench, path: data/samples/healthbench.jsonl, questions: 2},"
    " {name: medsafety, path: data/samples/medsafetybench.csv}]"
)


def test_all_six_stages_finish_and_are_then_fresh(run):
    for stage in STAGES:
        again = make(run, stage)
        assert again.returncode == 0 and "fresh" in again.stdout
    kept = [path.name for path in (folder(run) / "05_export" / "cache").rglob("*")]
    assert not [name for name in kept if name.endswith(".bin") or name in ("float32.gguf", "base")], "half a disk"
    verified = make(run, "verify")
    assert "1 wrong" in verified.stdout and "report: not made" in verified.stderr, "nothing but the report is missing"


def test_the_users_of_the_finished_run_share_a_worker(run, request):
    assert "PYTEST_XDIST_WORKER" not in os.environ or request.node.nodeid.endswith("@run")


def test_a_change_in_judge_runs_the_judge_only(run, tmp_path):
    copy = tmp_path / "outputs"
    settings = SMALL + " 'judge.judges=[lexical,gguf:gguf/sft-q8_0.gguf]' judge.exam=1"
    shutil.copytree(folder(run), folder(copy, settings))
    said = {stage: make(copy, stage, settings).stdout for stage in STAGES}
    assert [stage for stage in STAGES if "fresh" not in said[stage]] == ["06_judge"]
    assert "judge: changed in the recipe" in said["06_judge"]
    metrics = record(copy, "06_judge", settings)["metrics"]
    ((name, sat),) = metrics["exam"].items()  # a model of two million weights, served and asked for real
    assert name.startswith("sft-q8_0.gguf ") and len(sat["marks"]) == 6
    assert metrics["llm"]["coverage"].keys() == ({name} if sat["passed"] else set())


def test_without_a_judge_section_the_chapter_compares_words(run, tmp_path):
    copy, settings = tmp_path / "outputs", SMALL.replace("judge.questions=6", "judge=null")
    shutil.copytree(folder(run), folder(copy, settings))
    done = make(copy, "06_judge", settings)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "the recipe sets" in (folder(copy, settings) / "06_judge" / "06_judge.ipynb").read_text()


def test_two_judges_sit_the_exam_and_fill_every_table(run, tmp_path):
    """Chapter 6 with judges that know the ground truth, at two addresses: what it prints when verdicts are there."""
    with (
        Endpoint(lambda body, n: (200, {}, physician(body), 0)) as one,
        Endpoint(lambda body, n: (200, {}, physician(body), 0)) as two,
    ):
        settings = f"{SMALL} judge.judges=[lexical,llama-x@{one.url},gpt-x@{two.url}] judge.exam=2 judge.repeats=2"
        settings += f" 'judge.benchmarks={BROUGHT}'"
        copy = tmp_path / "outputs"
        shutil.copytree(folder(run), folder(copy, settings))
        done = make(copy, "06_judge", settings)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    metrics = record(copy, "06_judge", settings)["metrics"]
    assert len(metrics["exam"]) == 2 and all(sat["passed"] for sat in metrics["exam"].values())
    for coverage in metrics["llm"]["coverage"].values():
        assert coverage["judged"] == coverage["asked"] == 6 * 2 + 2 and not coverage["incomplete"]
    (agreed,) = metrics["habits"]["agreement"]
    assert agreed["first_place"]["value"] == 1.0
    assert [len(table) for table in metrics["cases"].values()] == [2, 2]
    assert len(metrics["screens"]) == 2
    graded = {(row["judge"], row["kind"], row["model"]): row for row in metrics["benchmarks"]}
    assert len(graded) == 2 * 2 * 2 and {model for _, _, model in graded} == {"base", "q4_k_m"}
    for (_, kind, _), row in graded.items():
        axis, unsaid = ("score", 0) if kind == "healthbench" else ("harmfulness", 1)
        assert row[axis]["n"] == (2 if kind == "healthbench" else 3) and row["stamp"].startswith(
            f"{2 * row[axis]['n']} of"
        )
        assert row["empty"] == row[axis]["n"] and row[axis]["value"] == unsaid or row[axis]["value"] > unsaid


def test_executed_notebooks_hold_no_warnings_and_no_walls_of_text(run):
    for stage in STAGES:
        notebook = nbformat.read(folder(run) / stage / f"{stage}.ipynb", as_version=4)
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                text = output.get("text", "")
                assert output.get("name") != "stderr", f"{stage}: {text[:300]}"
                assert len(text.splitlines()) < 120, f"{stage}: {len(text.splitlines())} lines from {cell.source[:80]}"


def test_what_was_trained_is_what_is_served(run):
    export, trained = record(run, "05_export")["metrics"], record(run, "04_qat")
    assert export["qat_tensors_differing"] == 0 and export["prompts_equal"] == 8
    files = {"bf16", "q2_k", "q3_k_m", "q4_0", "q4_k_m", "q8_0"}
    further = {"control q4_0", "control-imatrix q4_0", "int4 q4_0", "qat q4_0"}
    assert set(export["perplexity"]) == files | further | {"base bf16"}
    assert {row["opponent"] for row in export["against"]} == further - {"qat q4_0"}
    assert export["tensors_compared"] == 35 and "fake_quantized.json" in trained["outputs"]
    assert abs(export["perplexity"]["bf16"]["kld"]) < 1e-5 < export["perplexity"]["q4_0"]["kld"]
    floor, own = (export["arithmetic"][name]["kld"] for name in ("q4_0", "qat q4_0"))
    assert 0 < own < 3 * floor
    on = export["adapter"]["on"]
    assert on["asked"] == 8
    assert on["equal"] == 8 or (on["lead"] or 0) < 0.1  # of two almost equally likely tokens the choice may differ
    sums = trained["metrics"]["sums"]
    kinds = {"control": 4, "int4": 3, "qat": 2}  # as it is, on the grid; on torchao's; with an importance matrix
    assert {way: sum(name.split()[0] == way for name in sums) for way in kinds} == kinds
    assert {len(by_seed) for by_seed in sums.values()} == {2}
    assert all(row[2] == 0 for by_seed in sums["control"] for row in by_seed)  # its own reference
    names = os.listdir(folder(run) / "05_export" / "gguf")
    assert {"Modelfile", "README.md", "sft-q4_k_m.gguf", "qat-q4_0.gguf"} <= set(names)


@pytest.mark.slow  # test_architectures.py compares trained weights with the file's, for both kinds of grid
@pytest.mark.parametrize(
    "changed, compared",
    [("qat.scheme=int4_weight_only qat.distill=true", 0), ("qat.scheme=q4_k_m", 35)],
)
def test_other_ways_of_training_on_a_grid(run, tmp_path, changed, compared):
    copy = tmp_path / "outputs"
    settings = f"{SMALL.replace('[42,43]', '[]')} qat.save_steps=2 export.quantizations=[q4_k_m] {changed}"
    for stage in STAGES[:3]:
        shutil.copytree(folder(run) / stage, folder(copy, settings) / stage)
    for stage in STAGES[:5]:
        done = make(copy, stage, settings)
        assert done.returncode == 0, f"{stage}:\n{done.stdout}\n{done.stderr}"
        assert ("fresh" in done.stdout) == (stage in STAGES[:3]), f"{stage}: {done.stdout}"
    export, trained = record(copy, "05_export", settings)["metrics"], record(copy, "04_qat", settings)["metrics"]
    target = "q4_0" if compared == 0 else "q4_k_m"
    assert trained["target"] == target and f"qat {target}" in export["perplexity"]
    assert (export["tensors_compared"], export["qat_tensors_differing"]) == (compared, 0)


def test_what_was_preferred_is_what_the_file_holds(run):
    found = record(run, "07_preference")
    assert found["metrics"]["tensors_compared"] == {"longer": 35, "dpo": 35, "rloo": 35}
    assert {"gguf/dpo-q4_0.gguf", "gguf/dpo-adapter.gguf", "adapter_dpo/adapter_model.safetensors"} <= set(
        found["outputs"]
    )
    for row in found["metrics"]["pairs"]["ledger"]:
        assert row["kept to train"] and row["kept to test"]


@pytest.mark.slow
def test_preferences_are_trained_on_a_k_grid_too(run, tmp_path):
    copy, settings = tmp_path / "outputs", f"{SMALL} preference.scheme=q4_k_m"
    for stage in ("01_dataset", "03_sft"):
        shutil.copytree(folder(run) / stage, folder(copy, settings) / stage)
    done = make(copy, "07_preference", settings)
    assert done.returncode == 0, done.stdout + done.stderr
    compared = record(copy, "07_preference", settings)["metrics"]["tensors_compared"]
    assert set(compared.values()) == {35}


def test_the_loss_mask_of_the_trainers_own_batch(run):
    shares = record(run, "03_sft")["metrics"]["audit"]["shares"]
    assert shares == {"prompt": 0.0, "reasoning": 1.0, "answer": 1.0, "end": 1.0}


def test_the_report_shows_every_stage(run):
    command = [sys.executable, "-m", "lib.report.pages", "--set", SMALL]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OUTPUTS": str(run)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = {path.name for path in (folder(run) / "report").glob("*.html")}
    assert pages == {"index.html", *(f"{stage}.html" for stage in STAGES)}
    text = (folder(run) / "report" / "index.html").read_text()
    assert "http://" not in text.replace("http://www.w3.org", "") and "data:image/png" in text


def test_two_ranks_train_and_answer_as_one_does_at_the_same_global_batch(run, pair):
    one, two = record(run, "03_sft"), record(pair, "03_sft", SHARED)
    assert (one["ranks"], two["ranks"]) == (1, 2) and set(one["outputs"]) == set(two["outputs"])
    for which in ("first", "last"):  # the same sums in another order: equal here, to float32's seven digits anywhere
        assert two["metrics"]["loss"][which] == pytest.approx(one["metrics"]["loss"][which], rel=1e-6)
    assert two["metrics"]["adapter_sha256"] == one["metrics"]["adapter_sha256"]
    stages = [folder(run) / "03_sft", folder(pair, SHARED) / "03_sft"]
    texts = [[json.loads(row)["text"] for row in open(stage / "answers.jsonl")] for stage in stages]
    assert texts[0] == texts[1] and len(texts[0]) == 8
    assert (stages[1] / "03_sft.rank1.ipynb").exists() and not list(stages[1].glob(".rank1*"))


@pytest.mark.slow
def test_questions_without_a_ground_truth_are_answered_and_not_scored(tmp_path):
    said = [(r, r["output"].partition("Answer:")[0].strip()) for r in conversations(recipe.load("tiny"), 60)]
    rows = [{"instruction": r["instruction"], "reasoning": r["reasoning"], "output": text} for r, text in said if text]
    write_jsonl(tmp_path / "mine.jsonl", rows[:30])
    settings = SMALL.replace("data.test_questions=8", "data.test_questions=2").replace("0.01", "0.2")
    settings += f" 'data.sources=[{{name: jsonl, path: {tmp_path / 'mine.jsonl'}}}]' data.test_sources=[]"
    settings += (
        " judge=null preference=null sft.max_length=4096"  # the rows kept aside are shorter than two windows of that
    )
    for stage in STAGES:
        done = make(tmp_path, stage, settings)
        assert done.returncode == 0, f"{stage}:\n{done.stdout}\n{done.stderr}"
    metrics = record(tmp_path, "05_export", settings)["metrics"]
    assert len(metrics["ladder"]) == 7 and all(row["value"] is None for row in metrics["ladder"])


@pytest.mark.slow
def test_stages_train_one_adapter_on_one_mix_after_the_other(tmp_path):
    settings = (
        f"{SMALL} 'data.stages=[{{name: medical_o1}}, {{name: rest, weights: {{medreason: 0.5, medical_r1: 1}}}}]'"
    )
    for stage in ("01_dataset", "03_sft"):
        done = make(tmp_path, stage, settings)
        assert done.returncode == 0, f"{stage}:\n{done.stdout}\n{done.stderr}"
    plan = record(tmp_path, "01_dataset", settings)["metrics"]["stages"]
    assert [row["stage"] for row in plan] == ["medical_o1", "rest"]
    assert plan[0]["medreason"] == 0 and plan[1]["medical_o1"] == 0 and plan[1]["medreason"] > 0
    trained = record(tmp_path, "03_sft", settings)
    assert trained["metrics"]["stages"] == ["medical_o1", "rest"] and trained["metrics"]["steps"] == 12
    folders = {name.partition("/")[0] for name in trained["outputs"]}
    assert {"adapter", "adapter_1_medical_o1", "adapter_2_rest"} <= folders


def test_stepping_through_by_hand_gives_the_same_files(run, tmp_path, monkeypatch):
    monkeypatch.setenv("OUTPUTS", str(tmp_path))
    notebook = nbformat.read(ROOT / "notebooks" / "01_dataset.ipynb", as_version=4)
    cell = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    cell.source = f'recipe = "tiny"\noverrides = {recipe.parse_set(SMALL)!r}'
    place = {"metadata": {"path": str(ROOT / "notebooks")}}  # where JupyterLab starts a notebook's kernel
    NotebookClient(notebook, kernel_name="python3", resources=place).execute()
    by_hand = record(tmp_path, "01_dataset")
    assert by_hand["interactive"] and by_hand["outputs"] == record(run, "01_dataset")["outputs"]
    assert "fresh" in make(tmp_path, "01_dataset").stdout


@pytest.mark.slow  # cells that compute by hand are tried on such a base in test_merge.py and test_distill.py
def test_every_chapter_computes_with_a_base_in_bfloat16_as_a_gpu_does(tmp_path):
    for stage in STAGES:
        done = make(tmp_path, stage, f"{SMALL} model.dtype=bfloat16")
        assert done.returncode == 0, f"{stage}:\n{done.stdout}\n{done.stderr}"
