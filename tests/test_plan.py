"""The plan: parameters against published totals, memory against PyTorch's own tracker, time and dollars by hand."""

import contextlib
import json
import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.checkpoint import checkpoint
from trl.trainer import sft_trainer as trl

from lib.dataset import curriculum
from lib.evaluation import cases, screens
from lib.model import shapes
from lib.pipeline import compilers, hub, recipe
from lib.pipeline.files import ROOT
from lib.plan import budget, fit, memory, trace

ASSUMED = budget.load()
FOUR = {"q_proj", "k_proj", "v_proj", "o_proj"}


def lora(r=8, targets=FOUR, dropout=0.05):
    return {"r": r, "lora_alpha": 2 * r, "lora_dropout": dropout, "target_modules": sorted(targets),
            "task_type": "CAUSAL_LM"}  # fmt: skip


def sections(base="meta-llama/Llama-3.1-8B", **over):
    found = recipe.load("tiny", {"data.origin": "hub"}).sections()
    found["model"] = found["model"] | {"base": base, "twin": None, "dtype": "bfloat16", "quantization": None}
    found["lora"], found["qat"], found["judge"] = lora(16), None, None
    return fit.changed(found, **over)


# published totals of the models' cards and checkpoints
@pytest.mark.parametrize(
    ("base", "total"),
    [
        ("meta-llama/Llama-2-7b-hf", 6_738_415_616),
        ("meta-llama/Llama-2-13b-hf", 13_015_864_320),
        ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248),
        ("meta-llama/Llama-3.2-1B-Instruct", 1_235_814_400),
        ("Qwen/Qwen3-8B", 8_190_735_360),
        ("unsloth/gpt-oss-20b-BF16", 20_914_757_184),
        ("microsoft/DialoGPT-medium", 354_823_168),
    ],
)
def test_parameters_equal_published_totals(base, total):
    model = shapes.model(shapes.config(base))
    assert sum(shapes.parts(model).values()) == model.num_parameters() == total


def test_gpt_oss_reads_four_of_32_experts():
    shape = shapes.config("openai/gpt-oss-20b")
    assert round(shapes.active(shape, shapes.parts(shapes.model(shape))) / 1e9, 1) == 3.6  # as its card says
    found = memory.counted(recipe.load("gpt_oss_20b").sections(), shape)
    rows = 5760 + 2880 + 2 * 2880  # outputs and inputs of an expert's two matrices, each with rank 32
    assert found["adapted experts"] == 24 * 32 * 32 * rows < found["adapter"]
    assert shapes.idle(shape, found["adapted experts"]) == 24 * 28 * 32 * rows


def test_unknown_names_have_a_remedy():
    with pytest.raises(ValueError, match="nearest valid name is 'Qwen3-8B'"):
        shapes.config("Qwen/Qwen3-8C")
    with pytest.raises(ValueError, match="nearest valid name is 'a100-80gb'"):
        memory.gpu("A100-80G", ASSUMED)


def test_a_gpu_is_known_by_its_name_in_any_case():
    assert memory.gpu("L4", ASSUMED) is ASSUMED["gpus"]["l4"]
    assert [memory.gpu_name(name, ASSUMED) for name in ("H100", "A100-80GB", "h200")] == ["h100", "a100-80gb", "h200"]
    assert memory.gpu_name("rtx4090", {"gpus": {"RTX4090": {}}}) == "RTX4090"


class Tracker(MemTracker):
    """PyTorch's tracker without its per-module statistics, which cannot hook frozen parameters and take minutes."""

    def _track_module_params_and_buffers(self, module, install_grad_hooks=True):
        return super()._track_module_params_and_buffers(module, False)

    def _pre_fw_hook(self, *args): ...
    def _post_fw_hook(self, *args): ...
    def _pre_bw_hook(self, *args): ...
    def _post_bw_hook(self, *args): ...


def loss_of(model, ids, mask, kind):
    """TRL's losses over every token, all chunks, the model at full depth, torch's own attention."""
    if kind == "nll":
        return model(input_ids=ids, attention_mask=mask, labels=ids, use_cache=False).loss
    inner = model.get_base_model()
    hidden = inner.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state.flatten(0, 1)
    parts = zip(hidden.split(256), ids.flatten().split(256), strict=True)
    weight = inner.lm_head.weight
    return sum(checkpoint(trl._chunk, h, weight, None, i, 1.0, None, use_reentrant=False)[0] for h, i in parts)


def test_the_traced_loss_is_trls_own():
    """Reads private names of TRL, which the plan itself does without: where they change, mend trace.chunk_loss."""
    hidden, weight, labels = torch.randn(7, 16), torch.randn(40, 16), torch.tensor([3, -100, 9, 0, 39, -100, 1])
    theirs = trl._chunk(hidden, weight, None, labels, 1.0, None)
    assert all(map(torch.equal, trace.chunk_loss(hidden, weight, labels), theirs))
    assert trace.CHUNK == trl._CHUNKED_LM_HEAD_CHUNK_SIZE


def tracked(shape, dtype, adapter, rows, length, packed, checkpointing, kind):
    """Peak bytes that MemTracker sees over two steps: forward, backward, AdamW."""
    model = get_peft_model(shapes.model(shape, dtype, attn_implementation="sdpa"), LoraConfig(**adapter)).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    with FakeTensorMode(allow_non_fake_inputs=True):
        trace.on_fake(model)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4, foreach=False)
        ids = torch.zeros((1, rows * length) if packed else (rows, length), dtype=torch.long)
        mask = torch.ones(ids.shape[0], 1, ids.shape[1], ids.shape[1], dtype=torch.bool)
        tracker = Tracker()
        tracker.track_external(model, optimizer, ids, mask)
        with tracker:
            for _ in range(2):
                autocast = torch.autocast("cpu", dtype) if dtype != torch.float32 else contextlib.nullcontext()
                with autocast:
                    loss = loss_of(model, ids, mask, kind)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        return tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]


CASES = [  # base, layers, dtype, rows, length, packed, checkpointing, loss
    ("Llama-3.2-1B", None, "bfloat16", 4, 512, False, False, "chunked_nll"),
    pytest.param(("Llama-3.2-1B", 5, "bfloat16", 4, 512, False, True, "nll"), marks=pytest.mark.slow),
    pytest.param(("Llama-3.2-1B", 5, "float32", 4, 512, False, True, "chunked_nll"), marks=pytest.mark.slow),
    ("Llama-3.1-8B", 4, "bfloat16", 2, 2048, False, True, "chunked_nll"),
    ("Llama-3.1-8B", 4, "bfloat16", 1, 2048, True, False, "nll"),
    ("Qwen3-8B", 4, "bfloat16", 2, 1024, True, True, "chunked_nll"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c)))
def test_prediction_against_mem_tracker(case):
    base, layers, dtype, rows, length, packed, checkpointing, kind = case
    shape = shapes.config(base)
    shape.num_hidden_layers = layers or shape.num_hidden_layers
    if getattr(shape, "layer_types", None):
        shape.layer_types = shape.layer_types[: shape.num_hidden_layers]
    fields = {"per_device_train_batch_size": rows, "max_length": length, "packing": packed, "loss_type": kind,
              "gradient_checkpointing": checkpointing, "eval_strategy": "no"}  # fmt: skip
    chosen = sections(base, model={"dtype": dtype}, sft=fields)
    predicted = memory.memory(chosen, shape, memory.gpu("h100", ASSUMED), ASSUMED, phases=("training",))
    predicted = predicted["training"]
    predicted = sum(predicted.values()) - predicted["kernels"]  # which a CPU does not have
    seen = tracked(shape, getattr(torch, dtype), chosen["lora"], rows, length, packed, checkpointing, kind)
    print(f"tracked {seen / 2**20:.0f} MiB, predicted {predicted / 2**20:.0f} MiB: {predicted / seen:.3f}")
    assert 0.95 <= predicted / seen <= 1.25


def test_four_bit_weights_by_hand():
    quantization = {"load_in_4bit": True, "bnb_4bit_use_double_quant": True}
    found = memory.weights(sections(model={"quantization": quantization}), shapes.config("Llama-3.1-8B"))
    matrices = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    assert found["4-bit weights"] == int(matrices * (0.5 + 1 / 64 + 4 / (64 * 256)))
    assert found["weights"] == 2 * (2 * 128256 * 4096 + 65 * 4096)  # embedding, head, norms
    qlora = fit.on(recipe.load("qwen3_8b").sections(), h100 := ASSUMED["gpus"]["h100"])
    held = memory.memory(qlora, shapes.config("Qwen3-8B"), h100, ASSUMED, phases=["merge"])["merge"]
    assert held["adapter"] == 4 * 8 * 36 * (4096 + 4096 + 4096 + 1024)  # chapter 3 trains it in float32


def test_keys_and_values_and_the_rows_of_a_sliced_source_by_hand():
    whole = recipe.load("llama31_8b_t4", {"data.eval_fraction": 0.1}).sections()
    assert budget.rows(whole, ASSUMED) == 450  # train[:500], a tenth of it held out
    assert memory.cached(shapes.config("Qwen3-8B"), torch.bfloat16, 3) == 3 * 2 * 36 * 8 * 128 * 2
    assert memory.cached(shapes.config("DialoGPT-medium"), torch.float32, 1) == 2 * 24 * 1024 * 4
    gpt_oss = 2 * 8 * 64 * 2 * (12 * 128 + 12 * 2348)  # every second layer keeps its window of 128 tokens
    assert memory.cached(shapes.config("gpt-oss-20b"), torch.bfloat16, 2348) == gpt_oss


def test_qlora_of_8b_fits_where_16_bits_do_not():
    shape, a10g = shapes.config("Llama-3.1-8B"), memory.gpu("a10g", ASSUMED)
    fields = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_length": 2048, "packing": False,
              "gradient_checkpointing": False, "eval_strategy": "no"}  # fmt: skip
    large = sections(sft=fields)
    assert not fit.fits(large, shape, a10g, ASSUMED)
    said = fit.remedy(large, shape, a10g, ASSUMED)
    assert said[0] == "sft.gradient_checkpointing=true"
    smaller = next(found for words, found in fit.changes(large) if words == said)
    assert fit.fits(smaller, shape, a10g, ASSUMED)
    rows = smaller["sft"]["per_device_train_batch_size"] * smaller["sft"]["gradient_accumulation_steps"]
    assert rows == 8 and large["sft"]["gradient_checkpointing"] is False
    assert fit.remedy(smaller, shape, a10g, ASSUMED) == []


def test_time_and_dollars_by_hand():
    shape = shapes.config("Llama-3.1-8B")
    chosen = sections(sft={"max_steps": 100, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4,
                           "max_length": 1024, "packing": True, "gradient_checkpointing": False})  # fmt: skip
    adapter = memory.counted(chosen, shape)["adapter"]
    assert adapter == 32 * 16 * (2 * (4096 + 4096) + 2 * (4096 + 1024))
    attention = 3 * 4 * 32 * 32 * 128 * 350  # scores and values, forward and twice backward, half a row of 700 before
    flops = 6 * adapter + 4 * (8_030_261_248 - 128256 * 4096) + attention  # the embedding is looked up, not multiplied
    gpu = memory.gpu("h100", ASSUMED)
    found = budget.training_hours(chosen, shape, gpu, ASSUMED)
    assert found["tokens"] == 100 * 8 * 1024
    assert found["hours"] == pytest.approx(found["tokens"] * flops / (989e12 * 0.30) / 3600)
    stage = next(s for s in budget.time(chosen, shape, gpu, ASSUMED) if "steps" in s["what"])
    assert stage["usd"] == pytest.approx(found["hours"] * gpu["usd_per_hour"])


def test_planned_rate_stays_below_the_measured_one():
    """NeMo AutoModel: 12,473 tokens/s and 402 TFLOP/s on an H100; FLOPs of our formula, rows of 4,096 tokens."""
    per_token = budget.flops_per_token(0, 7_504_924_672, shapes.config("Llama-3.1-8B"), 2048)
    assert 12_473 * per_token == pytest.approx(402e12, rel=0.05)
    assert ASSUMED["utilization"]["lora"] <= 402 / 989


def test_every_prompt_that_is_answered_and_every_file_of_chapter_4_is_counted():
    tiny = recipe.load("tiny").sections()
    assert budget.prompts(tiny) == budget.prompts(tiny, "03_sft") == 240 + 2 * 64 + 25
    assert budget.prompts(tiny, "05_export") == 250
    own = recipe.load("my_model").sections()
    assert budget.asked(own) == {"test questions": 200, "safety prompts": 258, "cases": 25}
    few = tiny | {"export": tiny["export"] | {"questions": 30}}
    assert budget.prompts(few, "05_export") == 40
    few = tiny | {"data": tiny["data"] | {"screens": 1, "cases": 1}}
    shape, gpu = shapes.config("Llama-3.1-8B"), memory.gpu("h100", ASSUMED)
    hours = [budget.answering_hours(chosen, shape, gpu, ASSUMED, 10**9) for chosen in (tiny, few)]
    assert hours[0] / hours[1] == 7 / 5  # batches of 60: 393 prompts, and 243
    assert budget.on_the_grid(tiny, ASSUMED, {"bf16": 1600}) == 4 * [450]  # 4.5 bits of 16
    usual = tiny | {"qat": tiny["qat"] | {"scheme": "int4_weight_only"}}
    assert budget.on_the_grid(usual, ASSUMED, {"bf16": 1600}) == 3 * [450]
    assert budget.on_the_grid(tiny | {"qat": None}, ASSUMED, {"bf16": 1600}) == []


NAMES = sorted(path.stem for path in (ROOT / "params").glob("*.yaml") if path.stem != "prices")


@pytest.mark.parametrize("name", NAMES)
def test_prompts_are_those_that_the_notebooks_load_and_ask(name):
    data, read = recipe.load(name).data, {}
    for chapter in ("02_baseline", "03_sft"):
        cells = json.loads((ROOT / "notebooks" / f"{chapter}.ipynb").read_text())["cells"]
        text = "".join("".join(cell["source"]) for cell in cells)
        read[chapter] = len(re.findall(r"generate\.ask\(", text)), "after_" in text
    assert read == {"02_baseline": (2, False), "03_sft": (3, True)}  # screens and cases are asked in one loop
    loaded = data["test_questions"] + len(screens.load(count=data["screens"]))
    loaded += len(cases.load_cases(ROOT / "data" / "cases.yaml")[: data["cases"]])
    stages = curriculum.stages(data["stages"], {"pubmedqa", "medmcqa", "medqa"} if data["stages"] else {"clinic"})
    after = len(stages) * data["test_questions"] if len(stages) > 1 else 0
    planned = [budget.prompts(recipe.load(name).sections(), chapter) for chapter in read]
    assert planned == [loaded, loaded + after]


COUNTED = {  # GiB that the cells of chapters 1 to 5 write; 4 and 39 of them after the base's weights are deleted
    "qwen3_8b": 108 - 4, "llama31_8b_t4": 97 - 4, "gpt_oss_20b": 577 - 39, "my_model": 90.2, "tiny": 8.1,
    "dialogpt_medium": 7.65, "gemma3_270m": 14.7, "llama32_1b_reasonmed": 16, "llama2_7b_staged": 81.4,
    "llama2_13b_staged": 157,
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_disk_is_what_the_notebooks_were_counted_to_write(name):
    cfg = recipe.load(name).sections()
    cfg = fit.on(cfg, memory.gpu("h100", ASSUMED))
    shape = shapes.config(cfg["model"]["base"], cfg["model"]["twin"])
    assert sum(budget.disk(cfg, shape, ASSUMED).values()) / 2**30 == pytest.approx(COUNTED[name], rel=0.05)


def test_the_fewest_chapters_that_make_a_session_suffice_by_hand():
    hours = {"02_baseline": 2, "03_sft": 7, "04_qat": 3, "05_export": 4, "07_preference": 1}

    def time(cut):
        gone = {"04_qat": cut["qat"], "07_preference": cut["preference"]}
        return [{"stage": stage, "hours": h} for stage, h in hours.items() if gone.get(stage, True)]

    def disk(cut):
        gib = {"base": 30, "GGUF files of chapter 5": 25, "GGUF files of chapter 4": 15 if cut["qat"] else 0}
        return {what: size * memory.GIB for what, size in gib.items()}

    def said(**limits):
        return list(budget.session({"qat": 1, "preference": 1}, limits, time, disk))

    assert said() == said(session_h=17, disk_gib=70) == []
    assert said(session_h=16) == ["longer than a 16 h session: leave out 07_preference"]
    assert said(session_h=12, disk_gib=50) == [
        "longer than a 12 h session: leave out 07_preference and 05_export",
        "more than 50 GiB of Colab's disk: leave out 05_export",
    ]
    assert said(session_h=7, disk_gib=29) == [
        "longer than a 7 h session: leave out 07_preference and 04_qat and 05_export and 02_baseline",
        "more than 29 GiB of Colab's disk, whatever chapter is left out",
    ]


def test_a_t4_answers_from_four_bits_and_the_adapter_as_chapter_3_does():
    gpu = memory.gpu("t4", ASSUMED)
    cfg = fit.on(recipe.load("llama31_8b_t4").sections(), gpu)
    shape = shapes.config(cfg["model"]["base"], None)
    found = memory.memory(cfg, shape, gpu, ASSUMED, phases=("generation",))["generation"]
    assert "4-bit weights" in found and "merged weights" not in found
    assert memory.needed(found, ASSUMED) < gpu["memory_gib"] * memory.GIB
    wide = memory.memory(cfg, shape, memory.gpu("h100", ASSUMED), ASSUMED, phases=("generation",))["generation"]
    assert "merged weights" in wide


def test_judging_by_hand():
    judge = {"questions": 50, "candidates": ["base", "sft", "q8_0"], "judges": ["lexical", "gpt-4.1-2025-04-14", "own"]}
    found = budget.judging(sections() | {"judge": judge}, ASSUMED)
    assert [f["calls"] for f in found] == [300, 300] and found[1]["usd"] is None
    assert found[0]["usd"] == pytest.approx(300 * ((300 + 3 * 900) * 2.0 + 300 * 8.0) / 1e6)


def test_published_file_sizes():
    """gpt-oss-20b as MiB of its published files: most rows there fall back to 32-weight blocks."""
    export = {"quantizations": ["q4_k_m", "q5_k_m", "q8_0"]}
    chosen = sections("unsloth/gpt-oss-20b-BF16", export=export)
    found = budget.files(chosen, shapes.config("gpt-oss-20b"), ASSUMED)
    assert [found[n] / 2**20 for n in found] == pytest.approx([39_909, 15_061, 16_098, 21_218], rel=0.02)


def test_access_does_not_need_a_network():
    def offline(*_):
        raise hub.Unreachable("no route")

    assert "not reachable" in fit.access({"base": "meta-llama/Llama-3.1-8B", "revision": None}, offline)
    assert fit.access({"base": "twin", "revision": None}, offline) == ""


def test_the_plan_of_the_tiny_recipe_prints_every_table_and_the_hours_without_nvcc(capsys, monkeypatch):
    monkeypatch.setattr(compilers, "missing", lambda: "nvcc")
    assert fit.main(["--recipe", "tiny", "--gpu", "l4"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("keys and values", "Needed on each GPU", "Time on one l4", "Disk", "Assumed"))
    assert all(word in out for word in ("Memory, GiB, chapter 7", "arm dpo: 240 steps", "GGUF files of chapter 7"))
    assert re.search(r"WARNING: no nvcc .*: llama\.cpp runs on the CPU, and chapter 5 answers for [\d.]+ h", out)
    assert fit.main(["--gpu", "l5"]) == 2
    assert fit.main(["--recipe", "gpt_oss_20b@rehearsal"]) == 2  # in float32, for a CPU
    assert "add SET=model.dtype=bfloat16" in capsys.readouterr().err


def test_dtype_auto_follows_the_gpu():
    sections = recipe.load("llama31_8b_t4").sections()
    found = [fit.on(sections, {"bf16": bf16})["model"] for bf16 in (True, False)]
    assert [model["dtype"] for model in found] == ["bfloat16", "float16"]
    assert [model["quantization"]["bnb_4bit_compute_dtype"] for model in found] == ["bfloat16", "float16"]
    assert sections["model"]["dtype"] == "auto"
