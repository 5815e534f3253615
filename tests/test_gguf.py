"""lib/export/gguf.py on the real llama.cpp, with a random Qwen3-shaped model of 1.5 million parameters."""

import copy
import json
import os
import resource
import signal
import subprocess
import sys
import time
import urllib.error
from types import SimpleNamespace

import families
import gguf as package
import numpy as np
import psutil
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_qwen import TEMPLATE, tiny_config
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM, XGLMConfig

from lib.evaluation import generate
from lib.export import gguf, serve
from lib.model import adapter, gguf_convert, layout, loading
from lib.pipeline import notebook, programs, recipe
from lib.qat import rounding

CORPUS = [f"A patient aged {n} with fever, chest pain and {n % 7} days of cough isn't well." for n in range(200)]


def build_tokenizer(expression):
    """A byte-level BPE with the given pre-tokenizer expression; None for GPT-2's, which ByteLevel has built in."""
    core, ends = Tokenizer(models.BPE()), ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=expression is None)
    if expression:
        split = pre_tokenizers.Split(Regex(expression), "isolated")
        core.pre_tokenizer = pre_tokenizers.Sequence([split, core.pre_tokenizer])
    core.decoder, alphabet = decoders.ByteLevel(), pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(families.TEXT, trainer)
    core.add_special_tokens(ends)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=ends[2], pad_token=ends[0])
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def save_twin(folder, expression):
    tokenizer = build_tokenizer(expression)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = tiny_config(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=512,
        head_dim=64,
        max_position_embeddings=512,
        initializer_range=0.06,  # large enough that the greedy choice is never a near tie
        eos_token_id=tokenizer.eos_token_id,
    )
    model = Qwen3ForCausalLM(config).to(torch.bfloat16).float().eval()
    model.save_pretrained(folder)
    return folder, model, tokenizer


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    torch.set_num_threads(1)
    return save_twin(tmp_path_factory.mktemp("twin"), gguf_convert.PRE_TOKENIZERS["qwen2"])


@pytest.fixture(scope="module")
def bf16(twin, tmp_path_factory):
    header = {"general.name": "a twin", "general.license.name": "mit", "general.description": "Base: none."}
    return gguf.convert(twin[0], tmp_path_factory.mktemp("gguf") / "model-bf16.gguf", "bf16", header)


def test_a_file_says_what_it_is(bf16):
    fields = gguf.GGUFReader(bf16).fields
    said = [fields[f"general.{key}"].contents() for key in ("name", "license.name", "description")]
    assert said == ["a twin", "mit", "Base: none."]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(CORPUS[:60]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def server(bf16):
    with serve.running(bf16, ctx=256) as base_url:
        yield base_url


def test_the_gpu_is_given_back_before_a_server_starts(monkeypatch):
    done = []

    def start(*args, **options):
        done.append("started")
        raise OSError("no program")

    monkeypatch.setattr(serve.machine, "release", lambda: done.append("released"))
    monkeypatch.setattr(serve, "toolchain", lambda: SimpleNamespace(server="llama-server"))
    monkeypatch.setattr(serve.subprocess, "Popen", start)
    with pytest.raises(OSError, match="no program"), serve.running("a.gguf"):
        pass
    assert done == ["released", "started"]


def test_the_file_holds_the_models_numbers_under_the_mapped_names(twin, bf16):
    model = twin[1]
    names = {name: place.tensors[0] for name, place in layout.of(model).items()}
    stored = dict(gguf.dequantize(bf16))
    assert set(names) == {name for name, _ in model.named_parameters()}
    assert set(names.values()) == set(stored)
    for name, parameter in model.named_parameters():
        assert np.array_equal(stored[names[name]], parameter.detach().numpy()), name


def test_names_of_a_peft_model_are_those_of_its_merge(twin):
    model = get_peft_model(Qwen3ForCausalLM(twin[1].config), LoraConfig(r=2, target_modules=["q_proj"]))
    assert {n: p.tensors for n, p in layout.of(model).items()} == {n: p.tensors for n, p in layout.of(twin[1]).items()}


def test_an_architecture_without_a_gguf_form_is_refused():
    config = XGLMConfig(d_model=64, attention_heads=4, num_layers=1, ffn_dim=64, vocab_size=100)
    with pytest.raises(ValueError, match="no GGUF form for model_type 'xglm'.*XGLMForCausalLM"):
        layout.check(config, trained=False)


@pytest.mark.parametrize("kind", ["q4_0", "q8_0"])
def test_quantized_numbers_are_those_of_the_reference_in_python(bf16, tmp_path, kind):
    name = "blk.1.ffn_up.weight"
    weights = dict(gguf.dequantize(bf16))[name]
    number = package.GGMLQuantizationType[kind.upper()]
    expected = package.quants.dequantize(package.quants.quantize(weights, number), number)
    file = gguf.quantize(bf16, tmp_path / "out.gguf", kind)
    assert gguf.tensor_types(file)[name] == kind
    assert np.array_equal(dict(gguf.dequantize(file))[name], expected)


def test_type_map_is_what_the_quantized_file_gets(bf16, tmp_path):
    planned = gguf.type_map(bf16, "q4_k_m")
    assert planned == gguf.tensor_types(gguf.quantize(bf16, tmp_path / "out.gguf", "q4_k_m"))
    # llama.cpp's mix by hand, for 2 layers: attn_v and ffn_down get more bits in the last eighth, the tied head always
    assert planned["token_embd.weight"] == "q6_k"
    assert (planned["blk.0.attn_v.weight"], planned["blk.1.attn_v.weight"]) == ("q4_k", "q6_k")
    assert planned["blk.0.attn_q.weight"] == "q4_k"
    assert planned["blk.0.attn_norm.weight"] == "f32"


def test_a_type_map_pins_single_tensors_and_nothing_else(bf16, tmp_path):
    pinned = {**gguf.type_map(bf16, "q4_0"), "blk.0.attn_q.weight": "q8_0"}
    file = gguf.quantize(bf16, tmp_path / "out.gguf", "q4_0", type_map=pinned)
    assert gguf.tensor_types(file) == pinned


def test_unknown_type_is_refused_and_leaves_no_file(bf16, tmp_path):
    with pytest.raises(ValueError, match="invalid ftype 'Q4_X'"):
        gguf.quantize(bf16, tmp_path / "out.gguf", "q4_x")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_quantization_leaves_no_file_of_its_name_and_then_the_same_file(bf16, tmp_path):
    half, out = tmp_path / "half-way", tmp_path / "made" / "out.gguf"
    half.write_text('#!/bin/sh\nhead -c 1000 "$1" > "$2"; while kill -0 $PPID; do sleep 0.1; done\n')
    half.chmod(0o755)
    out.parent.mkdir()
    code = (
        "import sys, types\nfrom lib.export import gguf\n"
        "gguf.toolchain = lambda: types.SimpleNamespace(quantize=sys.argv[1])\ngguf.quantize(*sys.argv[2:], 'q4_0')"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(half), str(bf16), str(out)])
    while not any(path.stat().st_size for path in out.parent.iterdir()):
        assert process.poll() is None, "it ended before it wrote"
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not out.exists() and gguf.quantize(bf16, out, "q4_0").exists()
    assert out.read_bytes() == gguf.quantize(bf16, tmp_path / "undisturbed.gguf", "q4_0").read_bytes()


def test_perplexity_agrees_with_the_same_sum_in_torch(twin, bf16, text):
    _, model, tokenizer = twin
    ctx = 128
    ids = torch.tensor(tokenizer(text.read_text(), add_special_tokens=False)["input_ids"])
    chunks = ids[: len(ids) // ctx * ctx].view(-1, ctx)
    with torch.no_grad():
        logits = model(chunks).logits[:, ctx // 2 : -1]  # llama.cpp scores the second half of each chunk
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), chunks[:, ctx // 2 + 1 :].flatten())
    measured = gguf.perplexity(bf16, text, ctx=ctx)
    assert measured["chunks"] == len(chunks)
    assert measured["ppl"] == pytest.approx(loss.exp().item(), rel=2e-3)
    assert measured == {**gguf.perplexity(bf16, text, ctx=ctx), "seconds": measured["seconds"]}


def test_divergence_is_zero_from_itself_and_agrees_with_torch(twin, bf16, text, tmp_path):
    saved = tmp_path / "probabilities.bin"
    own = gguf.perplexity(bf16, text, ctx=128, save=saved)
    again = gguf.perplexity(bf16, text, ctx=128, against=saved)
    assert again["ppl"] == pytest.approx(own["ppl"], rel=1e-4) and again["chunks"] == own["chunks"]
    assert again["kld"] == pytest.approx(0, abs=1e-5) and again["same_top"] == 1
    types = {name: "q4_0" if p.ndim == 2 else "f32" for name, p in twin[1].named_parameters()}
    file = gguf.quantize(bf16, tmp_path / "q4_0.gguf", "q4_0", dict.fromkeys(gguf.tensor_types(bf16), "q4_0"))
    found = gguf.perplexity(file, text, ctx=128, against=saved)
    rounded = rounding.quantize_model(copy.deepcopy(twin[1]), types)
    ids = torch.tensor(twin[2](text.read_text(encoding="utf-8"))["input_ids"])
    ids = ids[: len(ids) // 128 * 128].view(-1, 128)
    with torch.no_grad():
        ours, theirs = (m(ids).logits[:, 64:-1].log_softmax(-1) for m in (twin[1], rounded))
    expected = (ours.exp() * (ours - theirs)).sum(-1).mean().item()
    assert found["kld"] == pytest.approx(expected, rel=0.1) and found["kld_stderr"] < found["kld"]
    top = (ours.argmax(-1) == theirs.argmax(-1)).float().mean().item()
    assert found["same_top"] == pytest.approx(top, abs=0.03)


def test_saved_probabilities_are_bounded(twin, bf16, text, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "LOGITS_BYTES", limit := 3 * 64 * 2 * (len(twin[2]) + 8))
    found = gguf.perplexity(bf16, text, ctx=128, save=tmp_path / "probabilities.bin")
    assert found["chunks"] == 3
    assert limit / 2 < (tmp_path / "probabilities.bin").stat().st_size <= limit


def test_a_quantized_file_is_written_out_in_full_and_tells_of_an_importance_matrix(bf16, tmp_path):
    file = gguf.quantize(bf16, tmp_path / "q4_0.gguf", "q4_0")
    whole = gguf.quantize(file, tmp_path / "f32.gguf", "f32")
    stored = dict(gguf.dequantize(file))
    assert set(gguf.tensor_types(whole).values()) == {"f32"}
    assert all(np.array_equal(values, stored[name]) for name, values in gguf.dequantize(whole))
    assert not gguf.imatrix(file)
    marked = package.GGUFWriter(tmp_path / "marked.gguf", "qwen3")
    marked.add_string("quantize.imatrix.file", "calibration.dat")
    marked.add_tensor("token_embd.weight", np.zeros((2, 32), dtype=np.float32))
    for write in (marked.write_header_to_file, marked.write_kv_data_to_file, marked.write_tensors_to_file):
        write()
    marked.close()
    assert gguf.imatrix(tmp_path / "marked.gguf")


def test_an_importance_matrix_changes_the_rounding_and_the_file_says_so(bf16, text, tmp_path):
    matrix = gguf.importance(bf16, [text.read_text()], tmp_path / "importance.gguf", ctx=64)
    plain, helped = (
        gguf.quantize(bf16, tmp_path / f"{name}.gguf", "q4_0", importance=given)
        for name, given in (("plain", None), ("helped", matrix))
    )
    assert gguf.imatrix(helped) and not gguf.imatrix(plain)
    ours, theirs = dict(gguf.dequantize(plain, kept=False)), dict(gguf.dequantize(helped, kept=False))
    assert set(ours) == set(theirs) < set(gguf.tensor_types(plain))
    assert any(not np.array_equal(ours[name], theirs[name]) for name in ours)
    (elsewhere := tmp_path / "elsewhere").mkdir()
    again = gguf.importance(bf16, [text.read_text()], elsewhere / "importance.gguf", ctx=64, threads=2)
    assert again.read_bytes() == matrix.read_bytes(), "no name of a temporary folder is in it"
    same = gguf.quantize(bf16, elsewhere / "helped.gguf", "q4_0", importance=again)
    assert same.read_bytes() == helped.read_bytes() and str(tmp_path).encode() not in same.read_bytes()
    with pytest.raises(ValueError, match="importance matrix of"):
        gguf.importance(bf16, ["short"], tmp_path / "none.gguf", ctx=64)


PATTERNS = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 20, "layers.0.self_attn.q_proj": 3}}


@pytest.mark.parametrize("scaled", [{}, {"use_rslora": True}, PATTERNS, PATTERNS | {"use_rslora": True}])
def test_an_adapter_is_served_beside_its_base_and_switched(twin, bf16, tmp_path, scaled):
    folder, plain, tokenizer = twin
    torch.manual_seed(3)
    fields = {"target_modules": ["q_proj", "down_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM"} | scaled
    base = copy.deepcopy(plain)
    base.name_or_path = str(folder)
    model = get_peft_model(base, LoraConfig(r=4, **fields))
    model.save_pretrained(tmp_path / "adapter")
    assert str(folder) in (tmp_path / "adapter" / "README.md").read_text()
    adapter = gguf.convert_lora(tmp_path / "adapter", folder, tmp_path / "adapter.gguf")
    assert str(folder).lower().encode() not in adapter.read_bytes().lower(), "a path of this machine"
    ids = list(range(260, 280))
    body = {"prompt": ids, "n_predict": 1, "temperature": 0, "n_probs": 5, "logit_bias": [[265, 100.0]]}
    with torch.no_grad():
        off, on = (m(torch.tensor([ids])).logits[0, -1].log_softmax(-1) for m in (plain, model))
    assert (off - on).abs().max() > 0.5
    with serve.running(bf16, ctx=256, adapters=[adapter]) as url:
        for scale, expected in ((None, off), (1.0, on), (0.0, off)):
            if scale is not None:
                serve.use_adapters(url, [scale])
            reply = serve.request(url, "/completion", body)
            for entry in reply["completion_probabilities"][0]["top_logprobs"]:
                assert expected[entry["id"]].item() == pytest.approx(entry["logprob"], abs=0.05)


@pytest.mark.parametrize("program", ["quantizer", "converter"])
def test_a_file_that_finds_no_room_is_said_to(twin, bf16, tmp_path, program):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(ValueError) as error:
            if program == "quantizer":
                gguf.quantize(bf16, tmp_path / "x.gguf", "q8_0")
            else:
                gguf.convert(twin[0], tmp_path / "x.gguf")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert any(said in str(error.value) for said in notebook.FULL_SAYS), error.value
    assert os.listdir(tmp_path) == []


def test_an_adapter_of_another_architecture_is_refused(tmp_path, twin):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="converting adapter adapter failed"):
        gguf.convert_lora(tmp_path / "adapter", twin[0], tmp_path / "adapter.gguf")
    assert not (tmp_path / "adapter.gguf").exists()


def test_a_text_too_short_for_perplexity_is_named(bf16, text):
    with pytest.raises(ValueError, match="it needs 20000 tokens or more"):
        gguf.perplexity(bf16, text, ctx=10000)


def test_server_sees_the_tokens_that_training_saw(twin, server):
    tokenizer = twin[2]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": CORPUS[3]}], tokenize=False)
    for sample in [chat, *CORPUS[:3], "  it's  2026\n\n\nIT'S 37.5 °C — naïve 体温 🩺\t\r\n end "]:
        assert serve.tokenize(server, sample) == tokenizer(sample, add_special_tokens=False)["input_ids"]


def test_greedy_answer_is_that_of_transformers(twin, server):
    _, model, tokenizer = twin
    messages = [{"role": "user", "content": "fever and cough"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = model.generate(**prompt, max_new_tokens=12, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    expected = tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    body = {"messages": messages, "max_tokens": 12, "temperature": 0}
    replies = [serve.request(server, "/v1/chat/completions", body)["choices"][0]["message"] for _ in range(2)]
    assert [reply["content"] for reply in replies] == [expected, expected]


def test_server_ends_with_its_block_even_on_an_error(bf16):
    with pytest.raises(ZeroDivisionError), serve.running(bf16, slots=2, ctx=64) as base_url:
        assert serve.request(base_url, "/props")["total_slots"] == 2
        raise ZeroDivisionError
    with pytest.raises(urllib.error.URLError):
        serve.request(base_url, "/health", timeout_s=2)


def test_a_server_answers_only_who_has_its_key_which_no_command_line_shows(bf16):
    with serve.running(bf16, ctx=64) as url:
        for other in (str(url), serve.Address(url, "guessed")):
            with pytest.raises(urllib.error.HTTPError) as error:
                serve.request(other, "/completion", {"prompt": "a", "n_predict": 1})
            assert error.value.code == 401
        assert serve.request(url, "/completion", {"prompt": "a", "n_predict": 1})["tokens_predicted"] == 1
        asked = [{"id": "q", "messages": [{"role": "user", "content": "fever"}]}]
        assert generate.server(url, asked, 4)[0]["finish"] in ("stop", "length")
        family = [psutil.Process(), *psutil.Process().children(recursive=True)]
        told = [" ".join(one.cmdline()) for one in family]
        assert any("llama-server" in line for line in told) and not any(url.key in line for line in told)


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_server_dies_with_a_killed_process(bf16):
    code = (
        "import sys, time\nfrom lib.export import serve\n"
        "with serve.running(sys.argv[1], ctx=64) as url:\n    print(url, flush=True)\n    time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(bf16)], stdout=subprocess.PIPE, text=True)
    base_url = process.stdout.readline().strip()
    serve.request(base_url, "/health")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    with pytest.raises(OSError):  # refused, or closed on the way
        for _ in range(600):  # the signal takes a moment
            serve.request(base_url, "/health", timeout_s=2)
            time.sleep(0.1)


def test_server_that_cannot_start_says_why(tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"not a model")
    with pytest.raises(RuntimeError, match=r"llama-server ended .* on broken.gguf(.|\n)*failed to load model"):
        with serve.running(broken):
            pass


def test_converter_refuses_a_pre_tokenizer_that_nobody_published(tmp_path):
    folder, *_ = save_twin(tmp_path / "odd", r"\p{N}{1,2}|" + gguf_convert.PRE_TOKENIZERS["qwen2"])
    with pytest.raises(ValueError, match="is none of llama-bpe, qwen2, gpt-4o"):
        gguf.convert(folder, tmp_path / "odd.gguf")
    assert not (tmp_path / "odd.gguf").exists()


def test_a_tokenizer_that_no_file_can_hold_is_refused_before_its_base_is_loaded(tmp_path, monkeypatch):
    folder, *_ = save_twin(tmp_path / "odd", r"\p{N}{1,2}|" + gguf_convert.PRE_TOKENIZERS["qwen2"])
    cfg = recipe.load("tiny", {"model.base": str(folder), "model.twin": None})
    monkeypatch.setattr(loading, "base", lambda cfg: pytest.fail("loaded"))
    with pytest.raises(
        ValueError, match="can be trained but not exported: ValueError: pre-tokenizer of tokenizer.json"
    ):
        adapter.trainable(cfg, LoraConfig(**cfg.lora))


def test_what_the_converter_takes_is_asked_once(twin, tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "cache_dir", lambda: tmp_path / "cache")
    layout.check_tokenizer(twin[2], twin[1].config)
    monkeypatch.setattr(layout, "_refused", lambda *_: "ValueError: refused")
    layout.check_tokenizer(twin[2], twin[1].config)
    other = build_tokenizer(gguf_convert.PRE_TOKENIZERS["llama-bpe"])
    with pytest.raises(ValueError, match="can be trained but not exported: ValueError: refused"):
        layout.check_tokenizer(other, twin[1].config)


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_a_converter_dies_with_a_killed_process(tmp_path):
    script, told = tmp_path / "sleeps.py", tmp_path / "pid"
    script.write_text("import os, sys, time\nprint(os.getpid(), file=open(sys.argv[1], 'w'))\ntime.sleep(60)\n")
    code = "import sys\nfrom lib.model import layout\nlayout._refused(*sys.argv[1:])"
    with subprocess.Popen([sys.executable, "-c", code, str(script), str(told)]) as process:
        while not (told.exists() and told.read_text()):
            assert process.poll() is None, "it ended before its converter began"
            time.sleep(0.05)
        process.kill()
    converter, end = int(told.read_text()), time.monotonic() + 2
    while psutil.pid_exists(converter) and psutil.Process(converter).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end, "it goes on"
        time.sleep(0.05)


@pytest.mark.parametrize("name", gguf_convert.PRE_TOKENIZERS)
def test_pre_tokenizer_is_named_from_its_expression(tmp_path, name):
    file = tmp_path / "tokenizer.json"
    build_tokenizer(gguf_convert.PRE_TOKENIZERS[name]).backend_tokenizer.save(str(file))
    assert gguf_convert.pre_tokenizer_name(file) == name
    content = json.loads(file.read_text())
    content["pre_tokenizer"]["pretokenizers"][1]["use_regex"] = True
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="pre-tokenizer of"):
        gguf_convert.pre_tokenizer_name(file)


def test_missing_toolchain_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="make setup"):
        programs.toolchain()
