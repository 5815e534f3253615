"""What a model trains with is what its GGUF file holds, for every family, through the real converter and quantizer."""

import copy
from dataclasses import replace

import modelfiles
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from lib.chat import encoding, turns
from lib.export import gguf, modelfile, release, serve
from lib.model import families, loading, saving, twin
from lib.qat import grids, rounding

TEXTS = [f"A patient aged {n} with fever, chest pain and {n % 7} days of cough isn't well." for n in range(200)]
FORMATS, DATE = {"qwen3": "think", "gptoss": "harmony"}, "2026-11-03"
SHAPE = {"block_size": 128, "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
SHAPE |= {"initializer_range": 0.06}
LLAMA = SHAPE | {"intermediate_size": 512, "num_key_value_heads": 2, "head_dim": 64}
OSS = LLAMA | {"hidden_size": 192, "intermediate_size": 192, "num_local_experts": 4, "num_experts_per_tok": 2}
LINEAR = {"target_modules": "all-linear"}
EXPERTS = {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}
HEAD = {"target_modules": ["q_proj", "down_proj", "lm_head", "embed_tokens"]}
FAMILIES = {  # name: (family, fields of its config, fields of LoraConfig)
    "qwen3": ("qwen3", LLAMA, LINEAR),
    "llama": ("llama", LLAMA | {"tie_word_embeddings": False}, LINEAR),
    "llama with head": ("llama", LLAMA | {"tie_word_embeddings": False}, HEAD),
    "llama2": ("llama2", LLAMA | {"num_key_value_heads": 4, "tie_word_embeddings": False}, LINEAR),
    "gpt2": ("gpt2", SHAPE, LINEAR | {"fan_in_fan_out": True}),
    "gptoss": ("gptoss", OSS, LINEAR | EXPERTS),  # rows of 192: as gpt-oss's 2,880 no multiple of 256
    # the scale of attention is the head's, as in every published size but one; five layers of six have a window
    "gemma3": ("gemma3", LLAMA | {"hidden_size": 192, "query_pre_attn_scalar": 64}, LINEAR),
}
MOE = LLAMA | {"moe_intermediate_size": 256, "num_experts": 4, "num_experts_per_tok": 2}
EXPERTS_ALONE = {"target_modules": ["q_proj", "o_proj"]} | EXPERTS
SCALED = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 1024}  # fmt: skip
OTHERS = {  # found by asking the converter alone; name: (the family whose tokenizer it has, its classes, ...)
    "llama 3.1": ("llama", None, LLAMA | {"rope_parameters": SCALED}, LINEAR),
    "mistral": ("llama2", (MistralConfig, MistralForCausalLM), LLAMA | {"tie_word_embeddings": False}, LINEAR),
    "phi3": ("llama2", (Phi3Config, Phi3ForCausalLM), {k: v for k, v in LLAMA.items() if k != "head_dim"}, LINEAR),
    "qwen2": ("qwen3", (Qwen2Config, Qwen2ForCausalLM), {k: v for k, v in LLAMA.items() if k != "head_dim"}, LINEAR),
    "qwen3 moe": ("qwen3", (Qwen3MoeConfig, Qwen3MoeForCausalLM), MOE, EXPERTS_ALONE),
    "smollm3": ("llama", (SmolLM3Config, SmolLM3ForCausalLM), LLAMA | {"no_rope_layers": [1, 0]}, LINEAR),
}  # fmt: skip
TURNED = ["full_attention", "sliding_attention"]  # llama.cpp has a window in five layers of six, whatever stands here
TOKENS = torch.arange(270, 302).view(2, 16)
CHAT = ["Which test?\n\nA. one\nB. two", "  Fever of 38.5 °C, since 3 days…", "the end </s> <|im_end|> of it"]


@pytest.fixture(params=FAMILIES, scope="module")
def exported(request, tmp_path_factory):
    """(LoRA model as after training, its tokenizer, folder of its merge, the merge as bf16 file)."""
    return made(tmp_path_factory.mktemp("family"), *FAMILIES[request.param])


def made(folder, name, shape, adapter):
    family, effort = families.FAMILIES[name], "high" if name == "gptoss" else None
    twin.train_tokenizer(family, TEXTS, 600, folder / "base")
    loaded = loading.read_tokenizer(folder / "base")
    tokenizer = turns.prepare(loaded, FORMATS.get(name, "instruction"), DATE, effort)
    torch.manual_seed(0)
    model = family.model(families.config(shape | {"architecture": name}, tokenizer)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # biases, norms and sinks: ones and zeros would hide a mix-up
                parameter.add_(0.1 * torch.randn_like(parameter))
    base = copy.deepcopy(model)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False, **adapter)).eval()
    model.save_pretrained(folder / "adapter")
    saving.merge(PeftModel.from_pretrained(base, folder / "adapter"), tokenizer, folder / "merged")
    return model, tokenizer, folder, gguf.convert(folder / "merged", folder / "merged.gguf")


def plain(folder):
    return AutoModelForCausalLM.from_pretrained(folder / "merged", dtype=torch.float32).eval()


def without_gradient(model):
    return [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]


@pytest.mark.parametrize("scheme", ["q4_0", "q4_k_m", "mxfp4_moe"])
def test_no_trained_weight_differs_from_the_file(exported, scheme, tmp_path):
    compare(exported, scheme, tmp_path)


@pytest.mark.parametrize("name", OTHERS)
def test_nor_does_one_of_a_family_that_nothing_here_was_written_for(name, tmp_path, monkeypatch):
    like, classes, shape, adapter = OTHERS[name]
    if classes:
        family = replace(families.FAMILIES[like], config=classes[0], model=classes[1])
        monkeypatch.setitem(families.FAMILIES, name, family)
    compare(made(tmp_path, name if classes else like, shape, adapter), "q4_k_m", tmp_path)


def compare(exported, scheme, tmp_path):
    model, _, folder, full = exported
    types = rounding.type_of(model, gguf.type_map(full, scheme))
    file = gguf.quantize(full, tmp_path / f"{scheme}.gguf", scheme)
    served = {tensor: grids.sha256(values.copy()) for tensor, values in gguf.dequantize(file)}
    losses = []
    for trained in (model, plain(folder)):  # an adapter over a frozen base, and all parameters
        covered = rounding.prepare(trained, types)
        losses.append(trained(TOKENS, labels=TOKENS).loss)
        losses[-1].backward()
        assert without_gradient(trained) == []
        assert rounding.fingerprints(trained) == served
        whole = ("norm", "bias", "ln_", "sinks", "router", "mlp.gate.", "wpe")
        assert [name for name in covered["skipped"] if not any(part in name for part in whole)] == []
        rounding.strip(trained)
        trained.zero_grad()
    assert rounding.fingerprints(plain(folder), types) == served
    with torch.no_grad():
        again = rounding.quantize_model(plain(folder), types)(TOKENS, labels=TOKENS).loss.item()
    assert [loss.item() for loss in losses] == pytest.approx([again, again], rel=1e-5)


ROWS = [([*range(270 + n, 318 + n)], [-100] * 20 + [5] * 28) for n in range(9)]  # conversations of 48 tokens


def test_the_file_is_computed_as_the_model_is(exported):
    *_, folder, full = exported
    with serve.running(full, ctx=256) as url:
        told = release.next_tokens(url, [*ROWS, ([5] * 300, [5] * 300)], 256)
    found = release.divergences(plain(folder), told)
    assert len(found) >= 5 and max(map(abs, found)) < 0.02
    assert release.same_model(found).endswith(f"(median of {len(found)} conversations).")
    assert release.same_model([]).startswith("No conversation")


@pytest.mark.parametrize("odd", [{"query_pre_attn_scalar": 1}, {"sliding_window": 6, "layer_types": TURNED}])
def test_a_configuration_that_llama_cpp_computes_otherwise_is_told(odd, tmp_path):
    """Its weights and prompts are equal, and the converter says nothing: a scale of attention, an order of windows."""
    *_, folder, full = made(tmp_path, "gemma3", FAMILIES["gemma3"][1] | odd, LINEAR)
    with serve.running(full, ctx=256) as url:
        told = release.next_tokens(url, ROWS, 256)
    with pytest.raises(ValueError, match="of 8 conversations the next token's"):
        release.same_model(release.divergences(plain(folder), told))


@pytest.mark.parametrize("scheme", ["q4_0", "q4_k_m"])
def test_the_file_is_read_and_computed_as_in_training(exported, scheme, tmp_path, request):
    """llama-server's tokens of a prompt are the trainer's, and its probabilities those of the rounded model.

    The prompt comes from the file's own template, and from the Modelfile's as Ollama reads it: first that template,
    then the beginning that the file says to add.
    """
    model, tokenizer, folder, full = exported
    rounded = rounding.quantize_model(plain(folder), rounding.type_of(model, gguf.type_map(full, scheme)))
    with torch.no_grad():
        expected = rounded(TOKENS).logits[:, -1].log_softmax(-1)
    fmt = FORMATS.get(request.node.callspec.params["exported"], "instruction")
    talks = [encoding.messages({"instruction": text}, fmt, answer=False) for text in CHAT]
    # the bias chooses a printable token, or there is no reply; the probabilities are those before it
    body = {"n_predict": 1, "temperature": 0, "n_probs": 10, "logit_bias": [[int(TOKENS[0, 0]), 100.0]]}
    file = gguf.quantize(full, tmp_path / f"{scheme}.gguf", scheme)
    with serve.running(file, ctx=512) as url:
        text = modelfile.write(file.name, tokenizer, modelfile.adds_bos(url), 512, DATE)
        for messages in modelfiles.talks(text):
            rendered = encoding.render(messages, tokenizer, True, DATE)
            trained = tokenizer(rendered, add_special_tokens=False)["input_ids"]
            assert serve.tokenize(url, modelfiles.ollama(text, messages)) == trained, messages
        to_text = lambda turns: serve.request(url, "/apply-template", {"messages": turns})["prompt"]  # noqa: E731
        assert release.parity(talks, tokenizer, to_text, lambda text: serve.tokenize(url, text), DATE) == len(CHAT)
        for ids, row in zip(TOKENS.tolist(), expected, strict=True):
            reply = serve.request(url, "/completion", body | {"prompt": ids})
            found = {p["id"]: p["logprob"] for p in reply["completion_probabilities"][0]["top_logprobs"]}
            error = max(abs(row[token].item() - value) for token, value in found.items())
            assert error < 0.2  # llama.cpp rounds activations to 8 bits; a wrong layout is off by several nats
