"""A merge tensor by tensor writes the very files of a merge of the whole model, in a bounded share of its memory."""

import copy
import math

import families
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_qwen import NF4
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lib.model import merging, saving
from lib.pipeline import files

LINEAR = {"target_modules": "all-linear"}
QWEN3 = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.1,
}  # fmt: skip
OSS = QWEN3 | {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 64, "sliding_window": 16}
EXPERTS = {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}
CASES = {  # name: (config, model, is the head the embedding, LoRA fields)
    "linear": (Qwen3Config, QWEN3, False, LINEAR | {"use_rslora": True}),
    "dora": (Qwen3Config, QWEN3, False, {"target_modules": ["q_proj", "down_proj"], "use_dora": True}),
    "embedding and head": (Qwen3Config, QWEN3, False, {"target_modules": ["embed_tokens", "lm_head", "v_proj"]}),
    "tied embedding": (Qwen3Config, QWEN3, True, {"target_modules": ["embed_tokens", "v_proj"]}),
    "tied head": (Qwen3Config, QWEN3, True, {"target_modules": ["lm_head", "v_proj"]}),
    "tied both": (Qwen3Config, QWEN3, True, {"target_modules": ["embed_tokens", "lm_head"]}),
    "head trained whole": (Qwen3Config, QWEN3, False, {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"]}),
    "conv1d": (GPT2Config, {"n_embd": 64, "n_layer": 2, "n_head": 4}, True,
               {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "conv1d's bias": (GPT2Config, {"n_embd": 64, "n_layer": 2, "n_head": 4}, True,
                      {"target_modules": ["c_attn"], "fan_in_fan_out": True, "lora_bias": True}),
    "experts": (GptOssConfig, OSS, False, EXPERTS),
}  # fmt: skip
CLASSES = {Qwen3Config: Qwen3ForCausalLM, GPT2Config: GPT2LMHeadModel, GptOssConfig: GptOssForCausalLM}


@pytest.fixture(scope="module")
def tokenizer():
    return families.qwen3()


def bases(case, tokenizer, folder):
    """A tiny base as a checkpoint in bfloat16; its LoRA fields."""
    config, fields, tied, adapter = CASES[case]
    torch.manual_seed(0)
    CLASSES[config](config(vocab_size=len(tokenizer), tie_word_embeddings=tied, **fields)).bfloat16().save_pretrained(
        folder
    )
    return LoraConfig(r=4, init_lora_weights=False, task_type="CAUSAL_LM", **adapter)


def adapted(folder, lora, dtype=torch.bfloat16, quantization=None):
    torch.manual_seed(1)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=quantization)
    model = get_peft_model(loaded, lora)
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name:
            parameter.data.add_(torch.randn_like(parameter))
    return model.eval()


def whole(model, tokenizer, folder):
    """The reference: PEFT's merge of the whole model in float32, and transformers' own save."""
    if getattr(model.get_base_model(), "is_quantized", False):
        model.save_pretrained(folder / "adapter")
        plain = model.unload()
        plain.dequantize()
        plain.is_loaded_in_4bit, plain.is_quantized, plain._weight_conversions = False, False, None
        model = PeftModel.from_pretrained(plain, folder / "adapter")
    return saving.save(model.float().merge_and_unload().to(torch.bfloat16), tokenizer, folder / "whole")


def same_files(one, other):
    names = {path.name for path in one.iterdir()}
    assert names == {path.name for path in other.iterdir()} and "model.safetensors" in names
    return [name for name in sorted(names) if (one / name).read_bytes() != (other / name).read_bytes()]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore")
def test_the_files_are_those_of_a_merge_in_one_piece(case, tokenizer, tmp_path):
    lora = bases(case, tokenizer, tmp_path / "base")
    expected = whole(adapted(tmp_path / "base", copy.deepcopy(lora)), tokenizer, tmp_path)
    model = adapted(tmp_path / "base", lora)
    saving.merge(model, tokenizer, tmp_path / "merged")
    assert same_files(expected, tmp_path / "merged") == []
    assert sum(p.nbytes for p in model.get_base_model().parameters()) == 0  # nothing of the base is left in memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("case", ["linear", "tied embedding"])
def test_a_base_in_four_bits_merges_into_its_dequantized_weights(case, dtype, tokenizer, tmp_path):
    lora = bases(case, tokenizer, tmp_path / "base")
    nf4 = BitsAndBytesConfig(**NF4, bnb_4bit_compute_dtype=dtype)
    expected = whole(adapted(tmp_path / "base", copy.deepcopy(lora), dtype, nf4), tokenizer, tmp_path)
    saving.merge(adapted(tmp_path / "base", lora, dtype, nf4), tokenizer, tmp_path / "merged")
    assert same_files(expected, tmp_path / "merged") == []


class Peak(TorchDispatchMode):
    """Bytes of the tensors made under it that live at once, at most."""

    live, peak = None, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.live = {k: (r, size) for k, (r, size) in (self.live or {}).items() if not r.expired()}
        found = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(found):
            if isinstance(tensor, torch.Tensor) and not any(
                a.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
                for a in torch.utils._pytree.tree_leaves(args)
                if isinstance(a, torch.Tensor)
            ):
                storage = tensor.untyped_storage()
                self.live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return found


@pytest.mark.parametrize("quantized", [False, True], ids=["16 bits", "nf4"])
def test_memory_is_a_few_matrices_and_a_file_s_share(quantized, tokenizer, tmp_path, monkeypatch):
    deep = QWEN3 | {"num_hidden_layers": 24}
    monkeypatch.setitem(CASES, "deep", (Qwen3Config, deep, False, LINEAR))
    lora = bases("deep", tokenizer, tmp_path / "base")
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4") if quantized else None
    model = adapted(tmp_path / "base", lora, quantization=nf4)
    shapes = [math.prod(p.shape) for p in AutoModelForCausalLM.from_pretrained(tmp_path / "base").parameters()]
    total, largest = 2 * sum(shapes), 4 * max(shapes)  # bytes in bfloat16; of the largest matrix in float32
    monkeypatch.setattr(merging, "SHARD_BYTES", total // 16)
    with Peak() as memory:
        saving.merge(model, tokenizer, tmp_path / "merged")
    assert 0.5 * largest < memory.peak < merging.SHARD_BYTES + 4 * largest < total / 2
    index = files.read_json(tmp_path / "merged" / "model.safetensors.index.json")
    names = {path.name for path in (tmp_path / "merged").glob("*.safetensors")}
    assert len(names) > 8 and names == set(index["weight_map"].values()) and index["metadata"]["total_size"] == total
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.bfloat16)
    if not quantized:
        expected = adapted(tmp_path / "base", lora).float().merge_and_unload().to(torch.bfloat16).state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in merged.state_dict().items())


def test_a_second_merge_leaves_no_file_of_the_first(tokenizer, tmp_path, monkeypatch):
    lora = bases("linear", tokenizer, tmp_path / "base")
    monkeypatch.setattr(merging, "SHARD_BYTES", 1)
    saving.merge(adapted(tmp_path / "base", copy.deepcopy(lora)), tokenizer, tmp_path / "merged")
    monkeypatch.undo()
    saving.merge(adapted(tmp_path / "base", lora), tokenizer, tmp_path / "merged")
    assert [path.name for path in (tmp_path / "merged").glob("model*")] == ["model.safetensors"]
