"""What a model trains with is what its GGUF file holds, for every family, through the real converter and quantizer."""

import families
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,  # fmt: skip
    Qwen3ForCausalLM,
)

from lib import chat, gguf, grids, models, qat, release, turns

SHAPE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
SHAPE |= {"num_key_value_heads": 2, "head_dim": 64, "initializer_range": 0.06, "max_position_embeddings": 256}
FORMATS, DATE = {"qwen3": "think", "gptoss": "harmony"}, "2026-11-03"
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def llama(vocabulary, **more):
    return LlamaForCausalLM(LlamaConfig(**SHAPE, **vocabulary, **more))


def qwen3(vocabulary):
    return Qwen3ForCausalLM(Qwen3Config(**SHAPE, **vocabulary, tie_word_embeddings=True))


def gpt2(vocabulary):
    shape = {"n_embd": 256, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_ctx": 256, "initializer_range": 0.06}
    return GPT2LMHeadModel(GPT2Config(**shape, **vocabulary))


def gptoss(vocabulary):
    """Rows of 192, as gpt-oss's 2,880 no multiple of 256."""
    shape = SHAPE | {"hidden_size": 192, "intermediate_size": 192, "num_local_experts": 4}
    return GptOssForCausalLM(GptOssConfig(**shape, **vocabulary, num_experts_per_tok=2))


LINEAR = {"target_modules": "all-linear"}
FAMILIES = {  # name: (tokenizer, model, fields of LoraConfig)
    "qwen3": (families.qwen3, qwen3, LINEAR),
    "llama3": (families.llama3, llama, LINEAR),
    "llama3 with head and embedding": (
        families.llama3, llama, {"target_modules": ["q_proj", "down_proj", "lm_head", "embed_tokens"]},
    ),
    "llama2": (families.llama2, llama, LINEAR),
    "gpt2": (families.gpt2, gpt2, LINEAR | {"fan_in_fan_out": True}),
    "gptoss": (families.gptoss, gptoss, LINEAR | {"target_parameters": EXPERTS}),
}  # fmt: skip


def build(name):
    make_tokenizer, make_model, adapter = FAMILIES[name]
    effort = "high" if name == "gptoss" else None
    tokenizer = turns.prepare(make_tokenizer(), FORMATS.get(name, "instruction"), DATE, effort)
    torch.manual_seed(0)
    vocabulary = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    model = make_model(vocabulary | {"pad_token_id": tokenizer.pad_token_id or 0})
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # biases, norms and sinks are not all equal in a real model
                parameter.add_(0.02 * torch.randn_like(parameter))
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, init_lora_weights=False, **adapter)
    return tokenizer, get_peft_model(model, config).eval()


@pytest.fixture(params=FAMILIES, scope="module")
def exported(request, tmp_path_factory):
    """(model with adapter, its tokenizer, folder, bf16 file of its merge); the model is not consumed."""
    folder = tmp_path_factory.mktemp("family")
    tokenizer, model = build(request.param)
    model.save_pretrained(folder / "adapter")
    models.merge(build_again(request.param, folder), tokenizer, folder / "merged")
    return model, tokenizer, folder, gguf.convert(folder / "merged", folder / "merged.gguf")


def build_again(name, folder):
    from peft import PeftModel

    _, model = build(name)
    return PeftModel.from_pretrained(model.unload(), folder / "adapter")


@pytest.mark.parametrize("scheme", ["q4_0", "q4_k_m", "mxfp4_moe"])
def test_no_trained_weight_differs_from_the_file(exported, scheme, tmp_path):
    model, tokenizer, folder, full = exported
    types = qat.type_of(model, gguf.type_map(full, scheme))
    covered = qat.prepare(model, types)
    try:
        ids = torch.arange(5, 45).view(2, 20)
        loss = model(ids, labels=ids).loss
        loss.backward()
        adapters = {n: p.grad for n, p in model.named_parameters() if "lora_" in n}
        assert adapters and all(g is not None and g.abs().sum() > 0 for g in adapters.values())
        trained = qat.fingerprints(model)
        file = gguf.quantize(full, tmp_path / f"{scheme}.gguf", scheme)
        served = dict(gguf.dequantize(file))
        assert set(served) == set(trained)
        assert [n for n, values in served.items() if grids.sha256(values.copy()) != trained[n]] == []
        again = type(model.get_base_model()).from_pretrained(folder / "merged", dtype=torch.float32).eval()
        assert qat.fingerprints(again, types) == trained
        qat.quantize_model(again, types)
        assert again(ids, labels=ids).loss.item() == pytest.approx(loss.item(), rel=1e-5)
        whole = ("norm", "bias", "ln_", "sinks", "router", "wpe")
        assert [name for name in covered["skipped"] if not any(part in name for part in whole)] == []
    finally:
        qat.strip(model)
        model.zero_grad()


CHAT = ["Which test?\n\nA. one\nB. two", "  Fever of 38.5 °C, since 3 days…", "the end </s> <|im_end|> of it"]


def test_the_file_is_served_and_reads_prompts_as_the_trainer_writes_them(exported, tmp_path, request):
    _, tokenizer, _, full = exported
    name = request.node.callspec.params["exported"]
    fmt = FORMATS.get(name, "instruction")
    talks = [chat.messages({"instruction": text}, fmt, answer=False) for text in CHAT]
    for scheme in ("q4_0", "q4_k_m"):
        with gguf.serve(gguf.quantize(full, tmp_path / f"{scheme}.gguf", scheme), ctx=512) as url:
            reply = gguf.request(url, "/completion", {"prompt": "the patient has", "n_predict": 8, "temperature": 0})
            assert reply["tokens_predicted"] == 8 or reply["stop_type"] == "eos"
            to_text = lambda turns: gguf.request(url, "/apply-template", {"messages": turns})["prompt"]  # noqa: E731
            same = release.parity(talks, tokenizer, to_text, lambda text: gguf.tokenize(url, text), DATE)
            assert same == len(CHAT)
