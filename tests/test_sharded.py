"""An adapter whose weights two processes hold in parts (FSDP2, on a CPU) is trained and saved as a whole one is."""

import os
import shutil
import socket
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from pipeline import LAUNCH, SHARED, folder, make, record
from safetensors.torch import load_file
from test_kills import aimed, steps
from tiny_qwen import byte_tokenizer, random_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lib.model import saving
from lib.pipeline.files import ROOT

LIFT = """
from accelerate import state

made = state.AcceleratorState.__init__

def init(self, *args, fsdp_plugin=None, **kwargs):
    made(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None and self.distributed_type == state.DistributedType.MULTI_CPU:
        self.distributed_type, self.fsdp_plugin = state.DistributedType.FSDP, fsdp_plugin
        state.PartialState._shared_state["distributed_type"] = self.distributed_type

state.AcceleratorState.__init__ = init
"""  # the test below says why
TEXTS = ("fever and cough", "rash and fever!")  # as many tokens each: the mean over ranks is the mean over rows
RANK = """
import sys
sys.path.insert(0, {tests!r})
import test_sharded
from lib.pipeline import ranks

ranks.join()
test_sharded.save_one(test_sharded.spread, test_sharded.TEXTS[ranks.rank()], {folder!r})
ranks.leave()
"""


def spread(model):
    """Put every parameter in parts on two processes, a unit per decoder layer, as accelerate's policy does."""
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.get_base_model().model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def save_one(prepare, texts, folder):
    """Two steps of plain gradient descent on the adapter of a prepared model, which is then saved."""
    tokenizer = byte_tokenizer()
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = prepare(get_peft_model(random_model(tokenizer, 1), lora))
    ids = tokenizer(texts, return_tensors="pt")["input_ids"]
    descent = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # B is zero at first, and A learns from the second step on
        model(input_ids=ids, labels=ids).loss.backward()
        descent.step()
        descent.zero_grad()
    saving.save_adapter(model, folder)


def test_an_adapter_in_parts_is_saved_whole(tmp_path):
    save_one(lambda model: model, list(TEXTS), tmp_path / "one")
    script = RANK.format(tests=os.path.dirname(__file__), folder=str(tmp_path / "two"))
    launcher = [sys.executable, "-m", "torch.distributed.run", *LAUNCH.split()[1:], "--no-python"]
    command = [*launcher, sys.executable, "-c", script]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    assert {name: tensor.shape for name, tensor in one.items()} == {name: tensor.shape for name, tensor in two.items()}
    assert len(one) == 2 * 7 * 2 and any(tensor.abs().max() > 1e-3 for name, tensor in one.items() if "lora_B" in name)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_chapter_3_in_parts_gives_the_adapter_of_whole_weights_also_after_a_kill(pair, tmp_path):
    """accelerate offers FSDP2 on GPUs only; with that rule lifted, all that follows it runs on a CPU as well."""
    settings = f"{SHARED} qat=null judge=null sft.gradient_checkpointing=true sft.fsdp=full_shard sft.fsdp_config=fsdp2"
    copy, undisturbed = tmp_path / "outputs", record(pair, "03_sft", SHARED)["metrics"]
    shutil.copytree(folder(pair, SHARED) / "01_dataset", folder(copy, settings) / "01_dataset")
    killed = aimed(tmp_path, copy, "03_sft", "kernel of rank 1", settings, LAUNCH, first=LIFT)
    assert killed.returncode != 0 and steps(folder(copy, settings) / "03_sft") == [2], killed.stderr
    last = aimed(tmp_path, copy, "03_sft", "nothing", settings, LAUNCH, first=LIFT)
    assert last.returncode == 0, last.stderr
    assert "resuming from checkpoint-2" in (folder(copy, settings) / "03_sft" / "03_sft.ipynb").read_text()
    found = record(copy, "03_sft", settings)["metrics"]
    assert found["adapter_sha256"] == undisturbed["adapter_sha256"] and found["loss"] == undisturbed["loss"]


@pytest.mark.slow
def test_two_nodes_train_the_adapter_of_one(pair, tmp_path):
    """Both on this machine, each with a launcher of its own, as a cluster's scheduler starts them."""
    outputs, undisturbed = tmp_path / "outputs", record(pair, "03_sft", SHARED)["metrics"]
    shutil.copytree(folder(pair, SHARED) / "01_dataset", folder(outputs, SHARED) / "01_dataset")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    given = {"MASTER": "127.0.0.1", "PORT": str(port), "GPUS": "1", "RECIPE": "tiny", "SET": SHARED}
    command = ["sh", "params/launch/two_nodes.sh", "03_sft"]
    how = {"cwd": ROOT, "env": os.environ | given | {"OUTPUTS": str(outputs)}, "text": True}
    nodes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **how) for _ in range(2)]
    said = [node.communicate()[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    found = record(outputs, "03_sft", SHARED)["metrics"]
    assert found["adapter_sha256"] == undisturbed["adapter_sha256"] and found["loss"] == undisturbed["loss"]


@pytest.mark.slow
def test_two_ranks_train_the_preferences_of_one(pair, tmp_path):
    """DPO at the same global batch; arms that draw answers finish there too, with all of their tokens."""
    both = f"{SHARED} preference.arms.dpo.max_steps=3 preference.arms.dpo.per_device_train_batch_size=2"
    found = {}
    for launch, settings in (("", f"{both} preference.arms.dpo.gradient_accumulation_steps=2"), (LAUNCH, both)):
        outputs = tmp_path / f"outputs{bool(launch)}"
        for stage in ("01_dataset", "03_sft"):
            done = make(outputs, stage, settings)
            assert done.returncode == 0, done.stdout + done.stderr
        done = make(outputs, "07_preference", settings, launch)
        assert done.returncode == 0, done.stdout + done.stderr
        run = folder(outputs, settings) / "07_preference"
        adapter = load_file(run / "adapter_dpo" / "adapter_model.safetensors")
        found[bool(launch)] = adapter, record(outputs, "07_preference", settings)
    (one, alone), (two, launched) = found[False], found[True]
    assert alone["ranks"] == 1 and launched["ranks"] == 2
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-5)
    tokens, proven = (launched["metrics"][what] for what in ("tokens", "tensors_compared"))
    assert tokens["dpo"] == alone["metrics"]["tokens"]["dpo"] and proven == alone["metrics"]["tensors_compared"]
    assert tokens["rloo"]["generated"] > 0 and all(proven.values())
