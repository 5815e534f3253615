"""What the device decides about a model, and a base that is kept in four bits."""

import dataclasses
import json
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from types import SimpleNamespace

import families
import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_qwen import NF4, cpu_trainer
from tiny_qwen import over_base as over
from trl import SFTConfig

from lib.chat import encoding
from lib.evaluation import generate
from lib.model import adapter, loading, offload, unsloth
from lib.pipeline import machine
from lib.pipeline.files import ROOT
from lib.qat import rounding

ROW = torch.arange(5, 45).unsqueeze(0)
RECORDS = [{"instruction": "Which test?", "reasoning": "Step one.", "output": "Two."}] * 2


@pytest.mark.parametrize(
    ("gpu", "hardware", "dtype"),
    [(False, False, "float32"), (True, True, "bfloat16"), (True, False, "float16")],
    ids=["cpu", "a100", "t4"],
)
def test_auto_is_the_devices_best_and_the_trainers_flags_follow(gpu, hardware, dtype, small_base, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **how: asked.append(how) or hardware)
    stage = SimpleNamespace(dir=small_base, headless=True)
    found = loading.device_fields(over(small_base), stage)
    assert loading.precision(over(small_base)) == dtype
    assert (found["bf16"], found["fp16"], found["use_cpu"]) == (dtype == "bfloat16", dtype == "float16", not gpu)
    assert all(how == {"including_emulation": False} for how in asked)  # else a T4 says yes
    assert loading.precision(over(small_base, dtype="bfloat16")) == "bfloat16"  # a recipe that names one gets it


def test_a_base_kept_in_four_bits_is_the_base_loaded_in_four_bits(small_base, tmp_path):
    cfg = over(small_base, quantization=NF4)
    loaded = loading.base(cfg)
    assert loaded.config.quantization_config.bnb_4bit_compute_dtype == torch.float32  # the device's, not the default
    loading.write_nf4(cfg, loading.tokenizer(cfg), tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.get_tensor("model.layers.0.self_attn.q_proj.weight").dtype == torch.uint8
    with torch.no_grad():
        expected = loaded(ROW).logits
        plain = loading.base(over(small_base))(ROW).logits
        for again in (over(tmp_path), over(tmp_path, quantization=NF4)):
            assert torch.equal(loading.base(again)(ROW).logits, expected)
    assert not torch.equal(plain, expected)
    assert loading.tokenizer(over(tmp_path)).get_vocab() == loading.tokenizer(cfg).get_vocab()


def test_a_base_in_16_bits_is_no_nf4_checkpoint(small_base, tmp_path):
    with pytest.raises(ValueError, match=r"recipe tiny loads its base unquantized \(model.quantization is None\)"):
        loading.write_nf4(over(small_base), families.qwen3(), tmp_path)


def test_what_trl_casts_over_four_bits_trains_in_float32_from_the_numbers_that_it_had(small_base, tmp_path):
    cfg = over(small_base, quantization=NF4)
    model = get_peft_model(loading.base(cfg), LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    tokenizer = loading.tokenizer(cfg)
    trainable = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trainable]

    def made():
        return cpu_trainer(model, tokenizer, encoding.rows(RECORDS, tokenizer, "think"), tmp_path, max_steps=1)

    with adapter.in_float32(model):
        trainer = made()
        assert {p.dtype for p in trainable} == {torch.bfloat16}  # if this fails, TRL has stopped and in_float32 can go
    assert {p.dtype for p in trainable} == {torch.float32} and all(map(torch.equal, before, trainable))
    trainer.train()
    assert {p.dtype for p in trainable} == {torch.float32} and not all(map(torch.equal, before, trainable))


def test_gradients_pass_a_base_in_4_bits_after_an_evaluation_as_before(small_base):
    """On a CPU with AVX512-BF16 an evaluation lays 4-bit weights out anew, for a kernel of bitsandbytes without any."""
    found = []
    for evaluated in (False, True):
        torch.manual_seed(0)
        lora = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
        model = get_peft_model(loading.base(over(small_base, quantization=NF4)), lora)
        with torch.no_grad():
            said = model.eval()(ROW).logits if evaluated else None
        outputs = model.train()(ROW, labels=ROW)
        outputs.loss.backward()
        assert said is None or torch.equal(said, outputs.logits)
        found.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert all(grad.abs().max() > 0 for grad in found[0].values())
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


def test_a_merged_model_larger_than_the_gpu_is_placed_in_parts(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert loading._placement(16, None) == loading._placement(16, 100) == {}
    assert loading._placement(160, 100) == {"device_map": "auto", "max_memory": {0: 80, "cpu": 160}}


def test_weights_that_wait_in_main_memory_are_read_and_rounded_as_others(small_base):
    """accelerate's own offload, with the CPU in the GPU's place: parameters are without numbers between two passes."""
    whole, parts = (loading.base(over(small_base)) for _ in range(2))
    cpu_offload(parts.model.layers[1], execution_device="cpu")
    assert offload.in_parts(parts) and not offload.in_parts(whole)
    assert generate.identity(parts) == generate.identity(whole)
    types = {name: "q4_0" for name in rounding.base_parameters(whole) if "_proj" in name}
    exact = whole(ROW).logits
    expected = rounding.quantize_model(whole, types)(ROW).logits
    with torch.inference_mode():
        assert torch.equal(parts(ROW).logits, exact)
        assert torch.equal(rounding.quantize_model(parts, types)(ROW).logits, expected)
    assert not torch.equal(expected, exact)
    assert rounding.fingerprints(parts, types) == rounding.fingerprints(whole, types)


def test_a_merged_model_in_parts_gives_way_to_the_base_with_its_adapter(small_base, tmp_path):
    """Chapter 3's own cell, up to its answers; what stands for the merged model would answer otherwise."""
    cells = json.loads((ROOT / "notebooks" / "03_sft.ipynb").read_text())["cells"]
    code = next(text for cell in cells if "offload.in_parts(" in (text := "".join(cell["source"])))
    cfg, lora = over(small_base), {"target_modules": ["q_proj", "down_proj"], "init_lora_weights": False}
    tuned, parts, whole = (loading.base(cfg) for _ in range(3))
    tuned = get_peft_model(tuned, LoraConfig(r=4, task_type="CAUSAL_LM", **lora)).eval()
    tuned.save_pretrained(tmp_path / "adapter")
    cpu_offload(parts.model.layers[1], execution_device="cpu")
    taken = []
    for merged in (parts, whole):
        names = {"merged": merged, "stage": SimpleNamespace(dir=tmp_path), "cfg": cfg}
        exec(
            code.partition("answers = ")[0], names | {"offload": offload, "machine": machine, "loading": loading}, names
        )
        taken.append(names["tuned"])
    asked = [{"id": str(n), "messages": [{"role": "user", "content": "Fever? " * n}]} for n in (1, 9)]
    said = [[answer["text"] for answer in generate.transformers(model, loading.tokenizer(cfg), asked, 12)]
            for model in (tuned, *taken)]  # fmt: skip
    assert said[0] == said[1] != said[2] and taken[1] is whole and not offload.in_parts(taken[0])


def test_what_was_given_up_is_free_when_a_merged_model_is_placed(small_base, monkeypatch):
    said = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: said.append("emptied"))
    monkeypatch.setattr(loading, "_placement", lambda size, free: said.append("placed") or {})
    loading.saved(over(small_base), small_base)
    assert said == ["emptied", "placed"]


def test_a_cpu_trains_with_transformers_and_says_why(small_base, tmp_path, monkeypatch):
    cfg = over(small_base, backend="auto")
    assert unsloth.backend(cfg) == ("transformers", "model.backend is auto, and there is no CUDA or ROCm GPU")
    with pytest.raises(ValueError, match="model.backend is unsloth, but there is no CUDA or ROCm GPU: install req"):
        unsloth.backend(over(small_base, backend="unsloth"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "unsloth.py").write_text("raise RuntimeError('no driver')")  # what another process imports
    assert unsloth.backend(cfg)[1] == "model.backend is auto, and `import unsloth` fails: RuntimeError: no driver"
    with pytest.raises(ValueError, match=r"its quantization is .*, not this recipe's \{'load_in_8bit': True\}"):
        unsloth.backend(over(small_base, backend="unsloth", quantization={"load_in_8bit": True}))
    (tmp_path / "unsloth.py").write_text("")
    assert (
        unsloth.backend(cfg)[0] == unsloth.backend(over(small_base, backend="auto", quantization=NF4))[0] == "unsloth"
    )
    assert unsloth.backend(over(small_base, backend="transformers"))[0] == "transformers"
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert unsloth.backend(cfg)[0] == "transformers" and "unsloth" not in sys.modules


def test_what_a_recipe_leaves_unset_is_trl_s_default_where_unsloth_has_another(tmp_path):
    @dataclasses.dataclass
    class Theirs(SFTConfig):  # as Unsloth 2026.10.9 has them
        optim: str = "adamw_8bit"
        weight_decay: float = 0.001
        padding_free: bool | None = True
        loss_type: str = "nll"

    given = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "learning_rate": 1e-3}
    plain, asked = SFTConfig(**given).to_dict(), unsloth.defaults() | given
    assert Theirs(**asked).to_dict() == SFTConfig(**asked).to_dict() == plain != Theirs(**given).to_dict()
    assert json.loads(json.dumps(unsloth.defaults())) == unsloth.defaults()  # as it is told to the process
    machine.quiet()
    assert os.environ["UNSLOTH_DISABLE_STATISTICS"] == "1"


def test_an_adapter_with_a_tensor_in_another_place_is_refused(small_base, tmp_path):
    cfg = over(small_base)
    get_peft_model(loading.base(cfg), LoraConfig(r=4, target_modules=["q_proj", "v_proj"])).save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file({f"other.{name}": tensor for name, tensor in load_file(path).items()}, path)
    with pytest.raises(ValueError, match=r"16 tensors of the adapter in .* are not where PEFT looks for them"):
        loading.adapted(loading.base(cfg), tmp_path)
