"""A training in a process of its own: the same adapter, after a kill and a stop too, and an audit that can fail."""

import contextlib
import importlib.util
import shutil
import signal
import sys
from types import SimpleNamespace

import families
import pytest
import torch
from peft import LoraConfig, get_peft_model
from pipeline import folder, record
from safetensors.torch import load_file, save_file
from test_kills import aimed, steps
from test_merging import adapted, bases
from tiny_qwen import over_base
from transformers import AutoModelForCausalLM
from trl import SFTConfig

from lib.chat import encoding
from lib.model import loading
from lib.model.head import HeadTrainer
from lib.pipeline import stop
from lib.sft import apart, checkpoint, child

APART = "from lib.model import unsloth\nunsloth.backend = lambda cfg: ('another process', 'a test says so')\n"
AIMED = APART + "import sys\nfrom lib.sft import apart\napart.COMMAND = [sys.executable, '-c', {!r}]\n"
CHILD = "\nimport sys\nfrom lib.sft import child\nsys.exit(child.main(sys.argv[1]))"
AIM = """
import os, psutil, signal, time, transformers
from lib.pipeline import stop
real, calls = transformers.Trainer.{name}, []

def call(self, *args, **kwargs):
    calls.append(1)
    if len(calls) == {at}:
        {deed}
        while stop.asked() is None:
            time.sleep(0.01)
    return real(self, *args, **kwargs)

transformers.Trainer.{name} = call
"""
PARENT = "psutil.Process(os.getppid())"
KILL = AIM.format(name="_save_optimizer_and_scheduler", at=2, deed="os.kill(os.getpid(), signal.SIGKILL)") + CHILD
STOP = AIM.format(name="training_step", at=1, deed="{}.terminate()") + CHILD  # it waits for the signal to come back
WITHOUT_GPU = """
import os, types
os.environ |= {{"UNSLOTH_ALLOW_CPU": "1", "TRITON_INTERPRET": "1", "UNSLOTH_COMPILE_DISABLE": "1"}}
os.environ["UNSLOTH_COMPILE_LOCATION"] = {!r}
import torch
told = {{"name": "none", "total_memory": 4 * 2**30, "major": 8, "minor": 0, "multi_processor_count": 1}}
torch.cuda.get_device_properties = lambda device=0: types.SimpleNamespace(**told)
import unsloth
from unsloth.models import llama

class One(list):  # what it keeps for each GPU, it keeps for the CPU
    def __getitem__(self, device):
        return super().__getitem__(0)

    def __setitem__(self, device, value):
        super().__setitem__(0, value)

llama.DEVICE_COUNT = type("Count", (), {{"__rmul__": lambda self, kept: One(kept)}})()
llama.get_current_device = lambda: torch.device("cpu")
"""
RECORDS = [{"instruction": f"Which test, {n}?", "reasoning": "Step one.", "output": "Two."} for n in range(12)]


def prepared(base, tmp_path):
    """What chapter 3 has before it trains: (stage, trainer, fields, rows for the audit)."""
    lora = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    sft = {"max_steps": 6, "save_steps": 2, "packing": False, "eval_strategy": "no", "logging_steps": 1}
    sft |= {"report_to": "none"}
    cfg = over_base(base, {"lora": lora, "sft": sft})
    stage, tokenizer = SimpleNamespace(recipe=cfg, dir=tmp_path / "stage", headless=True), loading.tokenizer(cfg)
    torch.manual_seed(0)
    model = get_peft_model(loading.base(cfg), LoraConfig(**cfg.lora))
    fields = cfg.sft | loading.device_fields(cfg, stage)
    rows = encoding.rows(RECORDS, tokenizer, "think")
    trainer = HeadTrainer(model, SFTConfig(**fields), None, rows, rows, processing_class=tokenizer)
    return stage, trainer, fields, list(encoding.tokenize(RECORDS[:4], tokenizer, "think"))


@pytest.fixture
def listening():
    """SIGTERM reaches the test as it reaches a stage."""
    before = signal.getsignal(signal.SIGTERM)
    stop.listen()
    yield
    stop.listen()  # forgets what it was told
    signal.signal(signal.SIGTERM, before)


def test_a_process_that_is_killed_and_stopped_ends_in_the_adapter_of_a_training_here(
    small_base, tmp_path, monkeypatch, listening
):
    stage, trainer, fields, rows = prepared(small_base, tmp_path)
    trainer.train()
    expected = [p.detach().clone() for p in trainer.model.parameters() if p.requires_grad]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    shutil.rmtree(stage.dir)
    for code, error, said, left in (
        (KILL, RuntimeError, "ended with exit status -9", "checkpoint-2"),
        (STOP.format(PARENT), stop.Stopped, "stopped by SIGTERM after saving checkpoint-3", "checkpoint-3"),
        (CHILD, None, None, "checkpoint-6"),
    ):
        monkeypatch.setattr(apart, "COMMAND", [sys.executable, "-c", code])
        stage, trainer, fields, rows = prepared(small_base, tmp_path)
        resume = checkpoint.newest(trainer.args.output_dir, "key")
        with pytest.raises(error, match=said) if error else contextlib.nullcontext():
            model = apart.train(stage, trainer, "another process", fields, "key", resume, rows)
        assert checkpoint.newest(trainer.args.output_dir, "key").endswith(left)
    found = [p.detach() for p in model.parameters() if p.requires_grad]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert [entry["loss"] for entry in trainer.state.log_history if "loss" in entry] == losses
    assert not list(stage.dir.glob("checkpoints/apart"))


def test_it_refuses_a_batch_that_was_not_audited_and_says_why_it_ended(small_base, tmp_path, monkeypatch):
    stage, trainer, fields, rows = prepared(small_base, tmp_path)
    monkeypatch.setattr(child, "first", lambda trainer: {"batch": "of other rows", "loss": 1.0})
    said = r"(?s)ended with exit status 1. The last lines of .*training.log:\n.*another first batch of the rows than"
    with pytest.raises(RuntimeError, match=said):
        apart.train(stage, trainer, "transformers", fields, "key", None, rows)
    assert not list(stage.dir.rglob(child.TRAINED))


def test_an_adapter_that_has_another_form_is_refused_before_training(small_base, tmp_path):
    cfg = over_base(small_base)
    lora = LoraConfig(**cfg.lora | {"target_modules": ["q_proj"]})
    get_peft_model(loading.base(cfg), lora).save_pretrained(tmp_path / "begun")
    with pytest.raises(RuntimeError, match="lays the adapter out in another way than PEFT, .*lora_A.* for one"):
        child._model(tmp_path, {"backend": "transformers"}, cfg)


@pytest.mark.slow  # the whole chapter three times; below the same without a notebook
def test_a_chapter_whose_process_is_killed_and_stopped_ends_in_the_metrics_of_the_notebook_s_own(run, tmp_path):
    copy, undisturbed = tmp_path / "outputs", record(run, "03_sft")
    shutil.copytree(folder(run) / "01_dataset", folder(copy) / "01_dataset")
    shutil.copytree(folder(run) / "02_baseline", folder(copy) / "02_baseline")
    stage = folder(copy) / "03_sft"
    for code, left, said in (
        (KILL, [2], "the training process ended with exit status -9"),
        (STOP.format(f"{PARENT}.parent()"), [2, 3], "Stopped: stopped by SIGTERM after saving checkpoint-3"),
    ):
        ended = aimed(tmp_path / str(len(left)), copy, "03_sft", "nothing", first=AIMED.format(code))
        assert ended.returncode == 1 and said in ended.stderr, ended.stdout + ended.stderr
        assert steps(stage) == left and not (stage / "stage.json").exists() and not (stage / "adapter").exists()
    last = aimed(tmp_path, copy, "03_sft", "nothing", first=APART)
    assert last.returncode == 0, last.stderr
    executed = (stage / "03_sft.ipynb").read_text()
    assert "resuming from checkpoint-3" in executed and "where it was trained" in executed
    assert record(copy, "03_sft")["metrics"] == undisturbed["metrics"]  # the adapter's hash is among them
    assert not list(stage.glob("checkpoints/*/apart"))


@pytest.mark.slow  # Triton's interpreter runs its kernels, one number at a time
def test_unsloth_begins_where_transformers_does_and_its_adapter_loads(small_base, tmp_path, monkeypatch):
    """With a GPU as it is; without one in its own test mode, on the code that a GPU would take.

    The first batch, its loss and the audit are compared on the way; gradients are not.
    """
    if importlib.util.find_spec("unsloth") is None:
        pytest.skip("unsloth is not installed, see requirements-gpu.txt: nothing is trained with it")
    if not torch.cuda.is_available():
        code = WITHOUT_GPU.format(str(tmp_path / "compiled")) + CHILD
        monkeypatch.setattr(apart, "COMMAND", [sys.executable, "-c", code])
    stage, trainer, fields, rows = prepared(small_base, tmp_path)
    begun = [p.detach().cpu().clone() for p in trainer.model.parameters() if p.requires_grad]
    told = child.first(trainer)["loss"]
    fields |= {"loss_type": "chunked_nll", "max_steps": 2}  # TRL's default, which a GPU gets
    model = apart.train(stage, trainer, "unsloth", fields, "key", None, rows)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    trained = [p.detach().cpu() for p in model.parameters() if p.requires_grad]
    assert len(losses) == 2 and losses[0] == pytest.approx(told, rel=0.01)
    assert any(not torch.equal(one, other) for one, other in zip(begun, trained, strict=True))


def order(tensor):
    """An adapter of experts whose ranks lie beside each other instead of the experts: (out, experts * rank)."""
    return tensor.view(len(tensor), 4, -1).transpose(1, 2).reshape(tensor.shape).contiguous()


@pytest.mark.parametrize("spoil", [torch.zeros_like, order, lambda tensor: tensor * 0.99],
                         ids=["left out", "in another order", "one per cent smaller"])  # fmt: skip
def test_the_audit_sees_what_an_adapter_of_experts_lost_on_its_way(spoil, tmp_path):
    tokenizer = families.qwen3()
    model = adapted(tmp_path / "base", bases("experts", tokenizer, tmp_path / "base"), torch.float32)
    model.save_pretrained(tmp_path / "adapter")
    rows = list(encoding.tokenize(RECORDS, tokenizer, "think"))
    told = child.mean_loss(model, rows)

    def loaded():
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
        return loading.adapted(base, tmp_path / "adapter")

    assert apart.audit(loaded(), rows, told, "float32")["loss"] == pytest.approx(told, abs=1e-6)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    experts = next(name for name in tensors if "experts" in name and "lora_B" in name)
    save_file(tensors | {experts: spoil(tensors[experts])}, path)
    with pytest.raises(ValueError, match=rf"on 12 held-out rows its loss is {told:.6f} nats .* and \d\.\d+ here"):
        apart.audit(loaded(), rows, told, "float32")
