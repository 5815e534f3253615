"""Every recipe loads, and holds the published values of its system or says beside the value why not."""

import re
from types import SimpleNamespace

import pytest
import yaml
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GptOssConfig, LlamaConfig, Qwen3Config
from trl import SFTConfig

from lib.chat import packing
from lib.dataset import curriculum, entries, sources
from lib.model import loading
from lib.pipeline import recipe
from lib.pipeline.files import ROOT

NAMES = sorted(path.stem for path in (ROOT / "params").glob("*.yaml") if path.stem != "prices")
PUBLISHED = yaml.safe_load((ROOT / "tests/published.yaml").read_text())["systems"]
ARCHITECTURES = {"gpt_oss_20b": GptOssConfig, "qwen3_8b": Qwen3Config, "dialogpt_medium": GPT2Config}  # else Llama's
FIXED = ("learning_rate", "num_train_epochs", "train_batch_size", "accumulation_steps", "max_length")  # never differ
ALSO = {  # published files that a longer list must hold
    "gpt_oss_20b": {"q4_k_m", "q5_k_m", "q8_0", "q4_0", "mxfp4_moe"},
    "llama32_1b_reasonmed": {"q4_k_m", "q5_k_m", "q8_0"},
}
UNPINNED = {"reasonmed"}  # nobody wrote down a commit of it: stage.json records the one that was read


def lines(name):
    """{dotted key: line of the file}, from the places that the YAML parser gives."""
    text = (ROOT / "params" / f"{name}.yaml").read_text(encoding="utf-8")
    rows, found = text.splitlines(), {}

    def walk(node, prefix):
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            found[prefix + key.value] = rows[key.start_mark.line]
            walk(value, f"{prefix}{key.value}.")

    walk(yaml.compose(text), "")
    return found


def value(cfg, key):
    """A recipe's value; of lists of named things, the names."""
    section, *rest = key.split(".")
    found = cfg.sections([section])[section]
    for part in rest:
        found = found[part]
    return [entry["name"] for entry in found] if isinstance(found, list) and isinstance(found[0], dict) else found


def differences(published, cfg, beside):
    """The keys whose value is not the published one and whose line does not say "published: <it>" and a reason."""
    wrong = []
    for key, expected in published.items():
        said = re.search(rf"# published: {re.escape(str(expected))}; \S+ \S+", beside.get(key, ""))
        if value(cfg, key) != expected and (not said or key.endswith(FIXED)):
            wrong.append(f"{key}: {value(cfg, key)!r}, published {expected!r}")
    return wrong


def test_every_system_has_its_recipe():
    assert set(PUBLISHED) | {"tiny", "my_model", "gemma3_270m"} == set(NAMES)


@pytest.mark.parametrize("name", PUBLISHED)
def test_values_are_the_published_ones_or_the_line_says_why_not(name):
    assert differences(PUBLISHED[name], recipe.load(name), lines(name)) == []


def test_a_silent_difference_is_found():
    cfg = recipe.load("qwen3_8b", {"lora.r": 16, "sft.learning_rate": 1e-4})
    beside = lines("qwen3_8b") | {"sft.learning_rate": "learning_rate: 1e-4  # published: 0.0002; better so"}
    found = differences(PUBLISHED["qwen3_8b"], cfg, beside)
    assert found == ["lora.r: 16, published 8", "sft.learning_rate: 0.0001, published 0.0002"]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_ready_to_run(name):
    cfg = recipe.load(name)
    data, trained = cfg.data, cfg.sft
    for spec in data["sources"] + data["test_sources"] + data["truth_sources"]:
        entries.check_spec(spec)
        if data["origin"] == "hub" and sources.lookup(spec["name"]).hub_id:
            pinned = spec["name"] in UNPINNED or re.fullmatch(r"[0-9a-f]{40}", spec.get("revision") or "")
            assert pinned, f"pin the commit of {spec['name']}"
        one_of_many = len(sources.lookup(spec["name"]).configs) > 1
        assert spec.get("config") or not one_of_many, f"{spec['name']} needs a config"
    curriculum.stages(data["stages"], {spec["name"] for spec in data["sources"]})
    assert ALSO.get(name, set()) <= set(cfg.export["quantizations"])
    if cfg.model["base"] != "twin":
        assert re.fullmatch(r"[0-9a-f]{40}", cfg.model["revision"]), "pin the base's commit"
        assert trained["assistant_only_loss"] is True
    if trained.get("load_best_model_at_end"):
        assert trained["save_steps"] % trained["eval_steps"] == 0
    if cfg.qat and cfg.lora:
        assert cfg.lora["lora_dropout"] == 0, "QAT rounds W + BA as one matrix, which dropout contradicts"
    if cfg.lora.get("target_parameters"):
        assert cfg.lora["lora_dropout"] == 0, "PEFT refuses dropout on parameters"


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_libraries_take_its_values(name, tmp_path):
    """The adapter finds what it names on a small model of the architecture, and the trainer's arguments construct."""
    cfg = recipe.load(name)
    SFTConfig(**cfg.sft | loading.device_fields(cfg, SimpleNamespace(dir=tmp_path, headless=True)))
    shape = ARCHITECTURES.get(name, LlamaConfig)()
    small = packing.small(shape, packing.first_exact(cfg.model["attn_implementation"], shape))
    model = get_peft_model(small, LoraConfig(**cfg.lora))
    adapted = " ".join(name for name, p in model.named_parameters() if p.requires_grad)
    assert all(f".{module}.lora_A" in adapted for module in cfg.lora["target_modules"])
    if name == "gpt_oss_20b":  # two layers, both expert matrices, A and B
        assert adapted.count(".experts.") == 8


@pytest.mark.parametrize("name", NAMES)
def test_what_its_comments_tell_to_set_loads(name):
    text = (ROOT / "params" / f"{name}.yaml").read_text(encoding="utf-8")
    for told in re.findall(r'SET="([^"]+)"', text):
        recipe.load(name, recipe.parse_set(told))
    assert max(map(len, text.splitlines())) <= 120


def test_variants_differ_from_the_first_only_in_the_base():
    first = recipe.load("llama2_7b_staged").sections()
    for name in ("llama2_13b_staged", "dialogpt_medium"):
        other = recipe.load(name).sections()
        different = {f"{s}.{k}" for s in first for k in (first[s] or {}) | (other[s] or {})
                     if (first[s] or {}).get(k) != (other[s] or {}).get(k)}  # fmt: skip
        assert different <= {"model.base", "model.revision", "lora.target_modules", "lora.fan_in_fan_out"}
