"""What several test files share: one finished run of all stages, one small base model."""

import os
import shutil
import subprocess
import sys

import pytest
from pipeline import LAUNCH, SHARED, STAGES, folder, make

from lib.evaluation import endpoint
from lib.judge import verdicts

for name in "RECIPE SET OVERLAY OUTPUTS GPU LAUNCH MAKEFLAGS MAKELEVEL".split():
    os.environ.pop(name, None)  # make exports what it was given


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks in its own
def pytest_collection_modifyitems(items):
    """With `pytest -n 2`: the users of the finished run stay together and begin first, other files stay whole."""
    for item in items:
        values = item.callspec.params if hasattr(item, "callspec") else ()  # of parameters that happen to be called so
        shares = {"run", "pair"} & set(item.fixturenames) - set(values)
        item.add_marker(pytest.mark.xdist_group("run" if shares else item.path.stem))
    items.sort(key=lambda item: item.get_closest_marker("xdist_group").args != ("run",))


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """outputs/ with one finished run of all stages."""
    outputs = tmp_path_factory.mktemp("outputs")
    for stage in STAGES:
        done = make(outputs, stage)
        assert done.returncode == 0, f"{stage}:\n{done.stdout}\n{done.stderr}"
    return outputs


@pytest.fixture(scope="session")
def pair(run, tmp_path_factory):
    """outputs/ with 03_sft of `run`, trained and answered by two ranks at the same global batch."""
    outputs = tmp_path_factory.mktemp("pair")
    shutil.copytree(folder(run) / "01_dataset", folder(outputs, SHARED) / "01_dataset")
    done = make(outputs, "03_sft", SHARED, LAUNCH)
    assert done.returncode == 0, done.stdout + done.stderr
    return outputs


@pytest.fixture(scope="session")
def small_base(tmp_path_factory):
    """Folder of a random Qwen3 in bfloat16 with its tokenizer, large enough to be quantized."""
    import families
    import torch
    from tiny_qwen import tiny_config
    from transformers import Qwen3ForCausalLM

    tokenizer, path = families.qwen3(), tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "initializer_range": 0.1}
    config = tiny_config(vocab_size=len(tokenizer), **shape)
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def denormals():
    """Give the processor back as it was: a stage flushes denormal numbers to zero, and hypothesis needs them."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    """Faults of the servers on loopback are over at once."""
    monkeypatch.setattr(endpoint, "PAUSE_S", (0.01, 0.05))


@pytest.fixture
def store(tmp_path):
    """An empty store of verdicts."""
    return verdicts.Store(tmp_path / "verdicts.jsonl")


@pytest.fixture
def rendered(tmp_path):
    """Function of a page's path: its HTML once chromium has run it, as text. Skips where there is no chromium."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("chromium is not installed: no browser looks at the page")
    quiet = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
    command = [chromium, "--headless", *quiet, "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'user'}",
               "--virtual-time-budget=4000", "--dump-dom"]  # fmt: skip
    return lambda page: subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120).stdout
