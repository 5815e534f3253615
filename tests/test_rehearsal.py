"""Rehearsals: every recipe's loads with the quirks of its base, and runs through all its stages on a CPU."""

import json

import pytest
from pipeline import STAGES, folder, make, record

from lib.model import twin
from lib.pipeline import architectures, combinations, overrides, recipe, schema
from lib.pipeline.files import ROOT, read_jsonl
from lib.plan import rehearsal

NEITHER = ("prices", "tiny", "my_model")  # the last needs a file of the reader's
NAMES = sorted(path.stem for path in (ROOT / "params").glob("*.yaml") if path.stem not in NEITHER)
QUICKEST = "llama32_1b_reasonmed"  # of the seven, measured
SHORT = "model.twin.steps=20 sft.max_steps=3 sft.logging_steps=1 data.test_questions=4 chat.max_new_tokens=8"
QUIRKS = {  # what a path through the code depends on, by the published configurations
    "gpt_oss_20b": ("gptoss", {"hidden_size": 192, "intermediate_size": 192, "num_key_value_heads": 1, "head_dim": 64,
                               "num_local_experts": 4, "num_experts_per_tok": 2, "tie_word_embeddings": False}),
    "llama2_7b_staged": ("llama2", {"hidden_size": 256, "num_key_value_heads": 4, "tie_word_embeddings": False}),
    "llama2_13b_staged": ("llama2", {"hidden_size": 256, "num_key_value_heads": 4, "tie_word_embeddings": False}),
    "dialogpt_medium": ("gpt2", {"hidden_size": 256, "num_attention_heads": 4}),
    "llama31_8b_t4": ("llama", {"hidden_size": 256, "num_key_value_heads": 1, "tie_word_embeddings": False}),
    "llama32_1b_reasonmed": ("llama", {"hidden_size": 256, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    "gemma3_270m": ("gemma3", {"hidden_size": 192, "num_key_value_heads": 1, "tie_word_embeddings": True,
                               "query_pre_attn_scalar": 64}),
    "qwen3_8b": ("qwen3", {"hidden_size": 256, "num_key_value_heads": 1, "tie_word_embeddings": False}),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_rehearsal_loads_and_keeps_what_is_peculiar_to_its_base(name):
    real, cfg = recipe.load(name), recipe.load(rehearsal.name(name))
    assert cfg.run_name == f"{name}@rehearsal" and cfg.model["base"] == "twin" and cfg.data["origin"] == "clinic"
    family, quirks = QUIRKS[name]
    spec = cfg.model["twin"]
    assert spec["architecture"] == family and {key: spec[key] for key in quirks} == quirks
    assert set(twin.TRAINING_KEYS) <= set(spec)
    for kept in ("data.sources", "data.stages", "chat.format", "chat.date", "model.quantization", "sft.packing",
                 "model.attn_implementation", "sft.optim", "export.quantizations", "judge.candidates"):  # fmt: skip
        section, key = kept.split(".")
        assert getattr(cfg, section).get(key) == getattr(real, section).get(key), kept
    assert cfg.lora == real.lora and (cfg.qat is None) == (real.qat is None)


def test_a_set_lies_over_the_overlay_and_a_section_left_out_stays_out():
    cfg = recipe.load("gpt_oss_20b@rehearsal", {"sft.max_steps": 5, "qat": None, "judge.candidates": ["base", "sft"]})
    assert cfg.sft["max_steps"] == 5 and cfg.qat is None and cfg.run_name.startswith("gpt_oss_20b@rehearsal+")
    assert recipe.load("qwen3_8b@rehearsal").qat is None
    assert recipe.load("qwen3_8b@rehearsal").preference is None
    named = recipe.load("qwen3_8b@rehearsal", {"preference": {"questions": 3}})
    assert named.preference["questions"] == 3 and list(named.preference["arms"]) == ["longer", "dpo", "rloo"]
    with pytest.raises(ValueError, match="no overlay 'rehersal' in params/overlays/: there is leash, rehearsal, ways"):
        recipe.load("qwen3_8b@rehersal")
    own, again = (recipe.load(name).model["twin"] for name in ("tiny", "tiny@rehearsal"))
    assert again["hidden_size"] == own["hidden_size"] and again["steps"] < own["steps"]


@pytest.mark.parametrize("over", sorted(path.stem for path in (ROOT / "params" / "overlays").glob("*.yaml")))
def test_every_overlay_lies_over_the_default_recipe(over):
    cfg = recipe.load(f"tiny@{over}")
    assert cfg.run_name == f"tiny@{over}" and cfg.sections() != recipe.load("tiny").sections()


@pytest.mark.parametrize("name", ["tiny", "qwen3_8b"])
def test_a_rehearsal_of_preferences_is_small(name):
    """Of a recipe that has the section, its commented one included; nowhere else is chapter 7 rehearsed."""
    text = (ROOT / "params" / f"{name}.yaml").read_text(encoding="utf-8")
    over = overrides.parse((ROOT / "params/overlays/rehearsal.yaml").read_text(encoding="utf-8"))
    document, _ = recipe.overlay(
        overrides.parse(text.replace("\n# preference:", "\npreference:").replace("\n#  ", "\n ")), over
    )
    assert set(document["preference"]["arms"]) == {"longer", "dpo", "rloo"}
    assert all(arm["max_steps"] == 2 for arm in document["preference"]["arms"].values())
    assert document["preference"]["data"] == [{"name": "clinic", "pairs": 8}]
    combinations.check({s: schema.section(s, document.get(s)) for s in schema.SECTIONS})
    if name != "tiny":
        assert recipe.load(rehearsal.name(name)).left_out("07_preference")


def test_a_base_without_a_known_shape_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"'someone/Qwen4-8B'.*Qwen3-8B.*set model.base to that folder"):
        architectures.twin("someone/Qwen4-8B")
    (tmp_path / "config.json").write_text(json.dumps(architectures.SHAPES["Qwen3-8B"] | {"hidden_size": 2880}))
    assert architectures.twin(str(tmp_path))["hidden_size"] == 192
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(ValueError, match="model_type 'mamba'; known are llama, qwen3, gpt_oss, gpt2"):
        architectures.twin(str(tmp_path))


def test_every_difference_is_printed_with_what_it_cannot_show(capsys):
    assert rehearsal.main(["--recipe", "gpt_oss_20b", "--set", "sft.max_steps=7"]) == 0
    told = [line.split() for line in capsys.readouterr().out.splitlines()]
    real, cfg = recipe.load("gpt_oss_20b").sections(), recipe.load("gpt_oss_20b@rehearsal").sections()
    changed = {f"{s}.{k}" for s in cfg for k in cfg[s] or () if cfg[s][k] != real[s].get(k)} - {"model.twin"}
    assert changed | {"hidden_size", "num_local_experts", "vocab_size"} <= {line[0] for line in told}
    assert ["hidden_size", "2880", "192"] in told and ["sft.max_steps", "None", "7"] in told
    assert {"accuracy,", "memory,"} <= {line[1] for line in told if line[0] == "-"}
    assert rehearsal.main(["--recipe", "nothing"]) == 1


def rehearsed(name, outputs, stages, settings=""):
    """The folder of a rehearsal's run and the records of its stages, {stage: stage.json}, but those left out."""
    name = rehearsal.name(name)
    stages = [stage for stage in stages if not recipe.load(name).left_out(stage)]
    for stage in stages:
        done = make(outputs, stage, settings, recipe=name)
        assert done.returncode == 0, f"{stage}:\n{done.stdout}\n{done.stderr}"
    return folder(outputs, settings, name), {stage: record(outputs, stage, settings, name) for stage in stages}


def test_a_rehearsal_trains_the_twin_of_its_base(tmp_path):
    run, records = rehearsed(QUICKEST, tmp_path, ("01_dataset", "03_sft"), SHORT)
    shares = records["03_sft"]["metrics"]["audit"]["shares"]
    assert [shares[part] for part in ("prompt", "answer", "end")] == [0, 1, 1]
    made = json.loads((run / "03_sft" / "merged" / "config.json").read_text())
    assert made["model_type"] == "llama" and made["hidden_size"] == QUIRKS[QUICKEST][1]["hidden_size"]
    assert "cannot show" in (run / "03_sft" / "03_sft.ipynb").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama2_7b_staged", "qwen3_8b", "gpt_oss_20b"])
def test_preferences_are_rehearsed_on_twins_of_recipes_that_leave_them_out(name, tmp_path):
    """SET="preference={}" takes the overlay's section. gpt-oss has an adapter on its experts."""
    settings = "preference={}"
    for stage in ("01_dataset", "02_baseline", "03_sft", "07_preference"):
        done = make(tmp_path, stage, settings, recipe=f"{name}@rehearsal")
        assert done.returncode == 0, f"{stage}:\n{done.stdout}\n{done.stderr}"
    run = folder(tmp_path, settings, f"{name}@rehearsal") / "07_preference"
    found = record(tmp_path, "07_preference", settings, f"{name}@rehearsal")["metrics"]
    assert [row["arm"] for row in found["arms"]] == ["sft", "longer", "dpo", "rloo"]
    for arm in ("longer", "dpo", "rloo"):
        assert (run / f"adapter_{arm}" / "adapter_model.safetensors").exists() and found["tokens"][arm]["seen"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_all_stages_of_a_rehearsal(name, tmp_path):
    run, records = rehearsed(name, tmp_path, STAGES)
    sft, export = (records[stage]["metrics"] for stage in ("03_sft", "05_export"))
    assert sft["loss"]["last"] < 0.8 * sft["loss"]["first"]
    assert [sft["audit"]["shares"][part] for part in ("prompt", "answer", "end")] == [0, 1, 1]
    cfg, asked = recipe.load(rehearsal.name(name)), read_jsonl(run / "01_dataset" / "test.jsonl")
    assert len(asked) >= cfg.data["test_questions"]  # a question of several rows is held out whole
    assert export["prompts_equal"] == len(asked) and export["qat_tensors_differing"] == 0
    assert (export["tensors_compared"] > 0) == bool(cfg.qat)
    for kind in cfg.export["quantizations"]:
        served = read_jsonl(run / "05_export" / f"answers_{kind}.jsonl")
        assert len(served) == len(asked)
        said = [answer for answer in served if answer["text"] and answer["finish"] in ("stop", "length")]
        assert len(said) > len(served) / 4, kind  # control tokens alone, which a server shows nobody, are no text
