"""Recipes: what loads, what is refused, and what the refusal says."""

import re

import pytest

from lib.pipeline import recipe, schema
from lib.pipeline.files import ROOT

HEALTHBENCH = {"name": "healthbench", "path": "data/samples/healthbench.jsonl"}
FSDP2 = {"sft.fsdp": "full_shard", "sft.fsdp_config": "fsdp2"}  # weights in parts on the ranks
ALONE = {"qat": None, "judge": None}
STAGES = [{"name": "medreason"}, {"name": "medical_r1"}]
WRAPPED = {"activation_checkpointing": True}


def test_numbers_are_yaml_1_2():
    parsed = recipe.parse("a: 2e-4\nb: 2.0e-4\nc: 1E5\nd: -3\ne: .5\nf: '2e-4'\ng: 2e-4x")
    assert parsed == {"a": 2e-4, "b": 2e-4, "c": 1e5, "d": -3, "e": 0.5, "f": "2e-4", "g": "2e-4x"}
    assert type(parsed["d"]) is int


@pytest.mark.parametrize("text", ["a: [2024-01-01]", "a: !!set {x, y}", "a: !!binary aGk=", "a: {2024-01-01: 1}"])
def test_a_value_that_json_does_not_know_is_refused(text):
    with pytest.raises(ValueError, match="put it in quotes if text is meant"):
        recipe.parse(text)


def test_characters_that_yaml_does_not_know_are_one_sentence():
    with pytest.raises(ValueError, match="is no YAML value"):
        recipe.parse_set("sft.run_name=a\x1b[31mb")


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1e999"])
def test_a_number_that_is_not_finite_is_refused(value):
    with pytest.raises(ValueError, match=f"{value} is no finite number, line 2"):
        recipe.parse(f"a: 1\nb: {value}")


def test_times_are_text_and_octals_are_refused():
    """YAML 1.1 reads 12:30 as 750 and 010 as 8."""
    assert recipe.parse("[12:30, 1:30.5, -1:00, 0, 0x10, 10, 1_000]") == ["12:30", "1:30.5", "-1:00", 0, 16, 10, 1000]
    with pytest.raises(ValueError, match="010 is octal to some readers of YAML, line 2: leave out the leading 0"):
        recipe.parse("a: 1\nb: 010")


def test_a_key_that_stands_twice_is_an_error():
    with pytest.raises(ValueError, match="'a' stands twice, line 1"):
        recipe.parse("a: 1\na: 2")


def test_set_items_become_nested_overrides():
    text = 'sft.learning_rate=1e-3 judge.questions=50 data.sources="[{name: medreason}]" qat=null'
    with pytest.raises(ValueError, match="'nonsense' should read section.key=value"):
        recipe.parse_set("nonsense")
    parsed = recipe.parse_set(text + " model.twin.steps=3")
    assert parsed == {
        "qat": None,
        "sft": {"learning_rate": 0.001},
        "judge": {"questions": 50},
        "data": {"sources": [{"name": "medreason"}]},
        "model": {"twin": {"steps": 3}},
    }


@pytest.mark.parametrize("item", ["a.=1", ".a=1", "sft..learning_rate=1", "sft={1: 2}", "data={null: 1}", "1={2: 3}"])
def test_what_names_no_setting_is_refused(item):
    with pytest.raises(ValueError, match="names no setting|unknown"):
        recipe.load("tiny", recipe.parse_set(f"'{item}'"))


def test_a_dot_in_a_value_is_left_where_it_is():
    """PEFT's patterns are names of modules, or regular expressions."""
    overrides = recipe.parse_set("'lora.rank_pattern={model.layers.0.self_attn.q_proj: 4}'")
    assert recipe.load("tiny", overrides).lora["rank_pattern"] == {"model.layers.0.self_attn.q_proj": 4}


def test_dicts_merge_and_lists_replace():
    assert recipe.merge({"a": {"x": 1, "y": [1, 2]}}, {"a": {"y": [3]}}) == {"a": {"x": 1, "y": [3]}}


def test_each_set_has_its_own_run_folder():
    dotted, nested = recipe.load("tiny", {"run.seed": 7}), recipe.load("tiny", {"run": {"seed": 7}})
    assert dotted.run["seed"] == 7
    assert dotted.run_name == nested.run_name != recipe.load("tiny", {"run.seed": 8}).run_name
    assert dotted.run_name.startswith("tiny+")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"sft.lerning_rate": 1e-3}, "unknown key 'lerning_rate' in sft; the nearest valid name is 'learning_rate'"),
        ({"run.seed": -1}, "run.seed should be between 0 and 4294967295, found -1"),
        ({"run.seed": 2**32}, "run.seed should be between 0"),
        ({"qat.seeds": [1, -2]}, r"qat.seeds.1: Input should be greater than or equal to 0, found -2"),
        ({"qat.seeds": ["x"]}, r"qat.seeds.0: Input should be a valid integer, found x"),
        ({"judge.candidates": ["sft"]}, "judge.candidates is .'sft'.: a comparison needs two or more"),
        ({"judge.candidates": ["sft", "sft"]}, "a comparison needs two or more"),
        ({"judge.candidates": ["sft", 1]}, "should be lists of names"),
        ({"judge.judges": [5]}, "should be lists of names"),
        ({"judge.judges": ["m@http://h:99999/v1"]}, "an address such as http://127.0.0.1:8080/v1"),
        ({"judge.judges": ["m@ftp://x"]}, "an address such as"),
        ({"judge.judges": ["m@notaurl"]}, "an address such as"),
        ({"judge.benchmarks": [{"name": "healthbench", "path": "docs"}]}, "no file 'docs'"),
        ({"sft.logging_strategy": "no"}, "sft.logging_strategy is 'no'"),
        ({"qat.logging_strategy": "no"}, "qat.logging_strategy is 'no'"),
        ({"qat.max_length": 0}, "qat.max_length is 0 or null"),
        *(
            (
                {"preference.arms": {name: {"method": "sft", "max_steps": 20, "logging_steps": 1}}},
                "preference.arms: .* names files and a candidate",
            )
            for name in ("q4_k_m", "base", "a b", "../../evil", "1", "x/y")
        ),
        ({"sft.Learning_Rates": 1e-3}, "unknown key 'Learning_Rates'.*nearest valid name is 'learning_rate'"),
        ({"modle.base": "x"}, "unknown section 'modle'.*nearest valid name is 'model'"),
        ({"sft.learning_rate": "2e-4"}, "sft.learning_rate: found '2e-4' \\(str\\), expected float"),
        ({"lora.use_dora": True}, "lora.use_dora: chapters 4 and 5 .* no other adapter"),
        ({"lora.modules_to_save": ["lm_head"]}, "lora.modules_to_save: chapters"),
        ({"lora.trainable_token_indices": [1]}, "lora.trainable_token_indices: chapters"),
        ({"lora.lora_bias": True}, "lora.lora_bias: chapters"),
        ({"lora.bias": "all"}, "lora.bias: chapters"),
        ({"lora.init_lora_weights": "pissa"}, "lora.init_lora_weights=pissa, which changes the base: chapters"),
        ({"lora.target_modules": ["q_proj", "lm_head"]}, "lora.target_modules=lm_head: chapters"),
        ({"lora.target_modules": r".*\.(embed_tokens|q_proj)"}, "lora.target_modules=embed_tokens: chapters"),
        ({"lora.target_modules": ["q_proj", "model.embed_tokens"]}, "lora.target_modules=embed_tokens: chapters"),
        ({"lora.target_modules": "(q_proj"}, "'\\(q_proj', which is no regular expression: missing"),
        ({"lora.exclude_modules": "("}, "'\\(', which is no regular expression: missing"),
        ({"lora.target_parameters": ["lm_head.weight"]}, "lora.target_parameters=lm_head: chapters"),
        ({"sft.max_steps": 9}, "sft trains 9 steps and logs every 10 .* set sft.logging_steps to 9 or less"),
        ({"qat.max_steps": 8, "qat.logging_steps": 9}, "qat trains 8 steps and logs every 9 "),
        ({"qat.max_steps": 8}, "qat trains 8 steps and logs every 10 .*set qat.logging_steps"),
        ({"preference.reward.max_steps": 2}, "preference.reward trains 2 steps and logs every 10"),
        ({"preference.arms.dpo.max_steps": 2}, "preference.arms.dpo trains 2 steps and logs every 20"),
        ({"sft.max_length": None}, "sft.max_length is missing: set the tokens that a row may have"),
        ({"data.eval_fraction": 0}, "data.eval_fraction should be between"),
        ({"sft.packing": "yes"}, "sft.packing: found 'yes' \\(str\\), expected bool"),
        ({"sft.num_train_epochs": "two"}, "expected float"),
        ({"lora.r": "16"}, "lora.r: found '16' \\(str\\), expected int"),
        ({"lora.r": True}, "lora.r: found True"),
        ({"sft.optim": "adamw_torchh"}, "nearest valid name is 'adamw_torch'"),
        ({"sft.output_dir": "here"}, "sft.output_dir is not a recipe's to set"),
        ({"sft.bf16": True}, "follows from the device"),
        ({"model.quantization": {"bnb_4bit_quanttype": "nf4"}}, "nearest valid name is 'bnb_4bit_quant_type'"),
        ({"model.quantization": {"bnb_4bit_quant_type": "nf5"}}, "nearest valid name is 'nf4'"),
        ({"qat": None}, "unknown 'qat' in judge.candidates"),
        ({"data": None}, "section 'data' is missing"),
        ({"chat": 5}, "section 'chat' should hold keys and values"),
        ({"export.quantizations": ["q4_k"]}, "nearest valid name is 'q4_k_m'"),
        ({"export.quantizations": []}, "export.quantizations is empty: name at least one of q2_k"),
        ({"export.servers": 0}, "export.servers should be between 1"),
        ({"judge.timeout_s": 0.0}, "judge.timeout_s should be between 1"),
        ({"judge.max_usd": -1.0}, "judge.max_usd should be between 0"),
        ({"data.eval_fraction": 0.9}, "between 0.001 and 0.5, found 0.9"),
        ({"data.sources": []}, "data.sources is empty"),
        ({"model.base": "someone/model"}, "model.twin"),
        ({"qat.scheme": "q4"}, "qat.scheme: found 'q4'.*nearest valid name is 'q4_0'"),
        ({"data.max_cut": float("nan")}, "data.max_cut should be between 0 and 1, found nan"),
        ({"chat.max_new_tokens": 0}, "chat.max_new_tokens should be between 1"),
        ({"judge.benchmarks": ["healthbench"]}, "judge.benchmarks: 0: .* found 'healthbench'"),
        ({"judge.benchmarks": [HEALTHBENCH | {"limit": 5}]}, "0.limit: Extra inputs are not permitted, found '5'"),
        ({"judge.benchmarks": [HEALTHBENCH | {"name": "healthbnch"}]}, "'healthbench' or .*, found 'healthbnch'"),
        ({"judge.benchmarks": [HEALTHBENCH | {"path": "data/hb.jsonl"}]}, "no file 'data/hb.jsonl', from the repo"),
        ({"judge.benchmarks": [HEALTHBENCH | {"questions": 0}]}, "0.questions: .* equal to 1, found .0."),
        ({"judge.benchmarks": [HEALTHBENCH, HEALTHBENCH]}, "judge.benchmarks names healthbench twice"),
        (FSDP2, "qat needs whole weight .* set qat: null"),
        (
            FSDP2 | ALONE | {"sft.optim": "paged_adamw_8bit"},
            "Set model.quantization=null .* sft.optim=adamw_t",
        ),
        (FSDP2 | ALONE | {"model.quantization": {"load_in_4bit": True}}, "accelerate leaves 4-bit weights whole"),
        (ALONE | {"sft.deepspeed": "zero3", "data.stages": STAGES}, "set data.stages: "),
        (ALONE | {"sft.fsdp": "full_shard", "sft.fsdp_config": WRAPPED}, "an adapter without tensors: set it to false"),
    ],
)
def test_what_cannot_work_is_refused_at_load(overrides, said):
    with pytest.raises(ValueError, match=said):
        recipe.load("tiny", overrides)


def test_what_is_logged_and_the_layers_that_may_be_adapted_are_let_in():
    for fields in ({"logging_steps": 9}, {"logging_steps": 0.5}, {"logging_first_step": True},
                   {"logging_strategy": "epoch"}):  # fmt: skip
        recipe.load("tiny", {"sft": {"max_steps": 9} | fields, "qat.max_steps": 60, "qat.logging_steps": 10})
    for targets in (r".*\.(q|o)_proj", "all-linear", ["q_proj", "output_proj", "self_attention.dense"]):
        recipe.load("tiny", {"lora.target_modules": targets})
    recipe.load("tiny", {"lora.target_modules": ".*", "lora.exclude_modules": ["lm_head", "embed_tokens", "embed_out",
                                                                               "wte", "output"]})  # fmt: skip


@pytest.mark.parametrize("spread", [FSDP2, {"sft.deepspeed": "zero3", "data.stages": []}])
def test_weights_in_parts_train_where_no_rank_needs_them_whole(spread):
    assert recipe.load("tiny", spread | ALONE).sft


def test_reading_a_section_is_recorded():
    cfg = recipe.load("tiny")
    assert cfg.used == set()
    assert cfg.sft["packing"] is True and cfg.used == {"sft"}
    with pytest.raises(AttributeError, match="no section 'sftt'"):
        cfg.sftt  # noqa: B018


def test_the_cached_fields_are_those_of_the_library():
    from peft import LoraConfig

    assert set(schema.fields("lora")) == {f for f in LoraConfig.__dataclass_fields__ if f != "self"}
    assert schema.fields("lora")["r"] == {"types": ["int"], "choices": []}


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "params").glob("*.yaml") if p.stem != "prices"))
def test_what_comes_from_the_hub_is_pinned_to_a_commit(name):
    made = recipe.load(name)
    entries = [e for key in ("sources", "test_sources", "truth_sources") for e in made.data.get(key) or ()]
    asked = [e.get("revision") for e in entries if made.data["origin"] == "hub" and "path" not in e]
    asked += [made.model["revision"]] * (made.model["base"] != "twin")
    assert all(re.fullmatch("[0-9a-f]{40}", commit or "") for commit in asked), asked
