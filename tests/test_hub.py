"""Models and data sets from a hub, by the libraries' own loading code, over connections that break and gates that shut.

Every loading runs in a process of its own with HF_ENDPOINT at a small hub on loopback and an empty HF_HOME. That hub
offers no Xet, so nothing has to be switched off.
"""

import hashlib
import json
import os
import random
import subprocess
import sys
from types import SimpleNamespace

import families
import pandas
import pytest
from huggingface_hub import get_token
from pipeline import make
from safetensors.torch import load_file
from smallhub import Hub

from lib.pipeline import hub, recipe
from lib.pipeline.files import ROOT, sha256_file

ROWS = 300
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
FEW = [json.loads(line) for line in (ROOT / "data/samples/medreason.jsonl").read_text().splitlines()[:2]]
LOADING = """
import contextlib, dataclasses, hashlib, io, json, os, sys
from huggingface_hub import constants
from lib.dataset import readers, sources
from lib.pipeline import hub, machine, recipe, run

constants.DOWNLOAD_CHUNK_SIZE = 1000  # bytes written at a time: the files are small


def model(repo, revision=None):
    from lib.model import loading

    fields = {"base": repo, "revision": revision, "twin": None}
    cfg = recipe.load("tiny", {"model": fields, "qat": None, "judge.candidates": ["base", "sft"]})
    tokenizer, weights = loading.tokenizer(cfg), loading.base(cfg).state_dict()
    sums = {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in weights.items()}
    return {"vocabulary": len(tokenizer), "weights": sums}


def data(repo, revision=None):
    source = dataclasses.replace(sources.SOURCES["medreason"], hub_id=repo)
    rows = list(readers.hub_rows(source, {"name": "medreason", "revision": revision}))
    return hashlib.sha256(json.dumps([row["reasoning"] for row in rows]).encode()).hexdigest()


def planned(name):
    from lib.plan import fit

    with contextlib.redirect_stdout(io.StringIO()) as said:
        fit.main(["--recipe", name, "--gpu", "t4"])
    return said.getvalue()


def revisions():
    return machine.describe()["revisions"]


for what, token, *asked in json.loads(sys.argv[1]):
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    try:
        print(json.dumps({"found": globals()[what](*asked)}))
    except Exception as error:
        print(json.dumps({"error": type(error).__name__, "said": str(error)}))
"""


def environment(server, home):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    paths = {"HF_ENDPOINT": server.url, "HF_HOME": str(home), "XDG_CACHE_HOME": str(home)}
    return kept | paths | {"HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}  # other test files switch the hub off


def load(server, home, *cases):
    """What each case, [function of LOADING, HF_TOKEN, its arguments], found or was told; one process for all."""
    command = [sys.executable, "-c", LOADING, json.dumps(cases)]
    done = subprocess.run(command, cwd=ROOT, env=environment(server, home), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [SimpleNamespace(**json.loads(line)) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def made(small_base, tmp_path_factory):
    """A model and a data set in folders, and what loading each must give."""
    base, rows = small_base, tmp_path_factory.mktemp("rows")
    tokenizer = families.qwen3()
    weights = load_file(base / "model.safetensors")
    sums = {name: hashlib.sha256(t.float().numpy().tobytes()).hexdigest() for name, t in weights.items()}
    draw = random.Random(0)
    reasoning = [f"{FEW[n % 2]['reasoning']} {draw.randbytes(300).hex()}" for n in range(ROWS)]
    table = [{**FEW[n % 2], "id_in_dataset": str(n), "reasoning": text} for n, text in enumerate(reasoning)]
    pandas.DataFrame(table).to_parquet(rows / "train.parquet")
    return SimpleNamespace(
        base=base, rows=rows, weights=sums, vocabulary=len(tokenizer),
        model_bytes=(base / "model.safetensors").stat().st_size, data_bytes=(rows / "train.parquet").stat().st_size,
        digest=hashlib.sha256(json.dumps(reasoning).encode()).hexdigest(),
    )  # fmt: skip


def right(made, case):
    """Whether a case loaded the model, or the data set, to the last bit."""
    if isinstance(getattr(case, "found", None), str):
        return case.found == made.digest
    return vars(case).keys() == {"found"} and case.found["vocabulary"] == made.vocabulary and all(
        case.found["weights"][name] == value for name, value in made.weights.items()
    )  # fmt: skip


@pytest.fixture(scope="module")
def seen(made, tmp_path_factory):
    """Two runs over the same HF_HOME, between them what was sent so far: (server, first, second, transfers of each)."""
    home, cut = tmp_path_factory.mktemp("home"), made.model_bytes // 3000 * 1000
    with Hub() as server:
        for name in ("whole", "cut", "lost"):
            server.add(f"lab/{name}", made.base)
            server.add(f"rows/{name}", made.rows, "datasets")
        server.add("lab/gated", made.base, gate="sesame")
        server.add("rows/gated", made.rows, "datasets", gate="sesame")
        server.add(LLAMA, made.base, gate="sesame", commit=recipe.load("llama31_8b_t4").model["revision"])
        server.cuts["lab/cut/model.safetensors"] = [(cut, "close"), (0, "close"), (2000, "close")]
        server.cuts["rows/cut/train.parquet"] = [(5000, "close")]
        server.cuts["lab/lost/model.safetensors"] = [(cut, "close"), (1000, "reset")]
        server.cuts["rows/lost/train.parquet"] = [(5000, "reset")]
        first = load(
            server, home,
            ["model", "", "lab/whole"], ["model", "", "lab/cut"], ["model", "", "lab/lost"],
            ["data", "", "rows/whole"], ["data", "", "rows/cut"], ["data", "", "rows/lost"],
            ["model", "", "lab/gated"], ["model", "open", "lab/gated"], ["model", "stale", "lab/gated"],
            ["data", "", "rows/gated"], ["data", "open", "rows/gated"],
            ["model", "", "lab/whole", "v9"], ["model", "", "lab/whoel"], ["data", "", "rows/whole", "v9"],
            ["data", "", "rows/whoel"], ["revisions", ""],
        )  # fmt: skip
        after = dict(server.sent)
        left = sorted((p.name, p.stat().st_size) for p in home.rglob("*.incomplete"))
        second = load(
            server, home, ["model", "", "lab/lost"], ["data", "", "rows/lost"], ["model", "sesame", "lab/gated"],
            ["data", "sesame", "rows/gated"], ["model", "", "lab/whole"],
            *(["planned", token, "llama31_8b_t4"] for token in ("", "open", "sesame")),
        )  # fmt: skip
        yield SimpleNamespace(server=server, first=first, second=second, after=after, left=left, home=home, cut=cut)


def test_a_model_and_a_data_set_load_whole(made, seen):
    assert right(made, seen.first[0]) and right(made, seen.first[3])
    assert seen.server.sent["lab/whole/model.safetensors"] == made.model_bytes  # and not again by the second run
    assert right(made, seen.second[4])


def test_the_commit_that_was_read_is_recorded_of_models_and_data_sets(seen):
    read = {f"lab/{name}": "models" for name in ("whole", "cut", "lost")}  # of the last the weights were lost alone
    read |= {"rows/whole": "datasets", "rows/cut": "datasets"}
    found, recorded = seen.first[-1].found, {name: seen.server.repos[kind, name][1] for name, kind in read.items()}
    assert found == recorded and all(len(commit) == 40 for commit in found.values())


def test_a_connection_that_closes_goes_on_where_it_closed(made, seen):
    assert right(made, seen.first[1]) and right(made, seen.first[4])
    assert seen.server.ranges["lab/cut/model.safetensors"] == [0, seen.cut, seen.cut, seen.cut + 2000]
    assert seen.server.sent["lab/cut/model.safetensors"] == made.model_bytes
    assert seen.server.ranges["rows/cut/train.parquet"] == [0, 5000]
    assert seen.server.sent["rows/cut/train.parquet"] == made.data_bytes


def test_a_download_given_up_is_told_as_such_and_leaves_whole_files_only(made, seen):
    for case, name in ((seen.first[2], "lab/lost"), (seen.first[5], "rows/lost")):
        assert case.error == "Unreachable"
        assert case.said.startswith(f"cannot fetch {name} from {seen.server.url} (")
        assert "run again, files that arrived whole are kept. To go without a network, " in case.said
    assert seen.left == []
    for path in seen.home.rglob("blobs/*"):
        if len(path.name) == 64:
            assert sha256_file(path) == path.name


def test_the_next_run_fetches_again_only_the_file_that_was_cut(made, seen):
    assert right(made, seen.second[0]) and right(made, seen.second[1])
    assert seen.server.ranges["lab/lost/model.safetensors"] == [0, seen.cut, 0]
    assert seen.server.ranges["rows/lost/train.parquet"] == [0, 0]
    assert seen.server.ranges["lab/lost/tokenizer.json"] == [0]


def test_a_gate_is_named_with_its_page_and_the_token(made, seen):
    server, bare, open_, stale, rows, rows_open = seen.server, *seen.first[6:11]
    for case, page in ((bare, f"{server.url}/lab/gated"), (rows, f"{server.url}/datasets/rows/gated")):
        assert f"is gated: accept its terms at {page}. HF_TOKEN is not set: put a token" in case.said
    for case, page in ((open_, f"{server.url}/lab/gated"), (rows_open, f"{server.url}/datasets/rows/gated")):
        assert f"accept its terms at {page}. HF_TOKEN is set: its account has not been let in" in case.said
    assert stale.said == f"the hub does not know the token in HF_TOKEN: make a new one at {server.url}/settings/tokens"
    assert right(made, seen.second[2]) and right(made, seen.second[3])


def test_a_wrong_revision_or_name_is_told_from_a_lost_network(seen):
    revision, name, data_revision, data_name = seen.first[11:15]
    assert revision.said.startswith("lab/whole has no revision 'v9': mend the revision of model.base in the recipe")
    assert data_revision.said.startswith("rows/whole has no revision 'v9': mend the revision of data.sources")
    assert f"{seen.server.url} has no model lab/whoel, or it is private: check the spelling of model.base" in name.said
    assert "has no dataset rows/whoel, or it is private: check the spelling of data.sources" in data_name.said
    assert {case.error for case in seen.first[6:15]} == {"Refused"}


def test_a_plan_asks_at_the_gate(seen):
    bare, open_, sesame = (case.found for case in seen.second[5:])
    gate = f"WARNING: {LLAMA} is gated: accept its terms at {seen.server.url}/{LLAMA}. HF_TOKEN is"
    assert f"{gate} not set: put a token of" in bare
    assert f"{gate} set: its account has not been let in" in open_
    assert "WARNING: meta" not in sesame


def test_the_token_of_dotenv_reaches_the_libraries(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")  # so that what is set below is gone after the test
    monkeypatch.setattr(hub, "setting", lambda name: {"HF_TOKEN": "of .env"}[name])
    with hub.asked("lab/tiny"):
        assert get_token() == "of .env"


def test_a_stage_ends_with_the_hubs_reason(made, tmp_path):
    first = "UCSC-VLAA/MedReason"  # chapter 1 follows one of its rows before all others
    with Hub() as server:
        server.add(first, made.rows, "datasets", gate="sesame")
        env = environment(server, tmp_path)
        done = make(tmp_path / "outputs", "01_dataset", "data.origin=hub", env=env)
        page = f"{server.url}/datasets/{first}"
    assert done.returncode == 1
    assert f"Refused: {first} is gated: accept its terms at {page}. HF_TOKEN is not set" in done.stderr
    assert not list((tmp_path / "outputs").rglob("stage.json"))
