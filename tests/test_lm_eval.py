"""Our log-likelihoods are those of EleutherAI's lm-evaluation-harness, item by item, on its own tasks."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import json
from pathlib import Path

import families
import lm_eval.tasks
import pytest
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tiny_qwen import byte_tokenizer, random_model
from tokenizers.processors import TemplateProcessing

from lib.dataset import clinic_rows, ingest
from lib.evaluation import multiple_choice

DEFINITIONS = Path(lm_eval.tasks.__file__).parent
QUICK, FULL = 40, 240  # items of each task
LONGEST = 4096  # tokens; the harness cuts longer questions on the left, see below
LETTERS = "ABCD"


def with_bos(tokenizer):
    """The tokenizer with a beginning-of-sequence token in front of every text, as Llama's have."""
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    return tokenizer


TOKENIZERS = {
    "bytes": byte_tokenizer,
    "qwen3": families.qwen3,
    "llama3": lambda: with_bos(families.llama3()),
    "llama2": lambda: with_bos(families.llama2()),  # SentencePiece's form: blanks are letters
}


def medqa(row):
    endings = {f"ending{place}": row["options"][letter] for place, letter in enumerate(LETTERS)}
    return {"sent1": row["question"], "label": LETTERS.index(row["answer_idx"])} | endings


def pubmedqa(row):
    return {
        "QUESTION": row["question"],
        "CONTEXTS": row["context"]["contexts"],
        "final_decision": row["final_decision"],
    }


HARNESS = {  # task: (its definition, our source, our row -> a row of the data set that the harness reads)
    "medmcqa": ("medmcqa/medmcqa.yaml", "medmcqa", dict),
    "medqa_4options": ("medqa/medqa.yaml", "medqa", medqa),
    "pubmedqa": ("pubmedqa/pubmedqa.yaml", "pubmedqa", pubmedqa),
}


def load(folder, name, rows, definition):
    """A task of the harness over our rows, from a YAML file that includes its own and redirects the data."""
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")}
    here = {"task": name, "dataset_path": "json", "dataset_name": None, "dataset_kwargs": files}
    here |= {"training_split": None, "validation_split": None, "test_split": "test"}
    (folder / f"{name}.yaml").write_text(json.dumps(here | definition))  # JSON is YAML
    return lm_eval.tasks.TaskManager(include_defaults=False).load([str(folder / f"{name}.yaml")])["tasks"][name]


def own_prompt(record):
    """A record as the row of a task that asks as multiple_choice.likelihood does."""
    prompt = multiple_choice.LIKELIHOOD_PROMPT.format(question=record["instruction"])
    return {"prompt": prompt, "options": record["options"], "label": LETTERS.index(record["letter"])}


OWN = {  # the harness's fields for our likelihood probe
    "output_type": "multiple_choice",
    "doc_to_text": "{{prompt}}",
    "doc_to_choice": "{{options}}",
    "doc_to_target": "{{label}}",
    "metric_list": [{"metric": metric} for metric in ("acc", "acc_norm", "acc_bytes")],
}


@pytest.fixture(scope="module")
def records():
    return ingest.convert("medmcqa", clinic_rows.rows("medmcqa", "test"), {})[0]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory, records):
    folder = tmp_path_factory.mktemp("tasks")
    made = {}
    for name, (definition, source, row) in HARNESS.items():
        rows = [row(raw) for raw in clinic_rows.rows(source, "test")]
        made[name] = load(folder, name, rows, {"include": str(DEFINITIONS / definition)})
    return made | {"own": load(folder, "own", map(own_prompt, records), OWN)}


SLOW = [pytest.param((name, FULL), id=f"{name}-{FULL}", marks=pytest.mark.slow) for name in TOKENIZERS]


@pytest.fixture(scope="module", params=[pytest.param((name, QUICK), id=name) for name in TOKENIZERS] + SLOW)
def judged(request, tasks):
    """(model, tokenizer, {task: the harness's samples in the order of the rows})"""
    name, items = request.param
    tokenizer = TOKENIZERS[name]()
    model = random_model(tokenizer, seed=1)
    harness = HFLM(pretrained=model, tokenizer=tokenizer, max_length=LONGEST, batch_size=16)
    found = evaluator.evaluate(lm=harness, task_dict=dict(tasks), limit=items, bootstrap_iters=0)["samples"]
    assert {name: len(samples) for name, samples in found.items()} == dict.fromkeys(tasks, items)
    return model, tokenizer, {task: sorted(found[task], key=lambda sample: sample["doc_id"]) for task in tasks}


def requests(sample):
    """(context, [continuations]) and the harness's log-probabilities of them."""
    (context,) = {context for context, _ in sample["arguments"]}
    return (context, [text for _, text in sample["arguments"]]), [response[0][0] for response in sample["resps"]]


def best(scores):
    return max(range(len(scores)), key=scores.__getitem__)


@pytest.mark.parametrize("task", [*HARNESS, "own"])
def test_sums_and_picks_agree_item_by_item(judged, tasks, task):
    model, tokenizer, samples = judged
    pairs, theirs = zip(*map(requests, samples[task]), strict=True)
    ours = multiple_choice.option_loglikelihoods(model, tokenizer, pairs)
    for sample, options, expected in zip(samples[task], ours, theirs, strict=True):
        sums = [option["sum"] for option in options]
        assert sums == pytest.approx(expected, abs=1e-3)
        choices = tasks[task].doc_to_choice(sample["doc"])
        gold = tasks[task].doc_to_target(sample["doc"])
        gold = choices.index(gold) if isinstance(gold, str) else gold
        assert best(sums) == best(expected)
        by_character = [total / len(text) for total, text in zip(sums, choices, strict=True)]
        by_byte = [option["sum"] / option["bytes"] for option in options]
        mine = {"acc": sums, "acc_norm": by_character, "acc_bytes": by_byte}
        assert {name: float(best(mine[name]) == gold) for name in sample["metrics"]} == {
            name: sample[name] for name in sample["metrics"]
        }


def test_likelihood_is_the_sum_per_token_of_the_harness(judged, records):
    model, tokenizer, samples = judged
    records = records[: len(samples["own"])]
    rows = multiple_choice.likelihood(model, tokenizer, records)
    assert len({row["picked"] for row in rows}) == 4  # a model with one answer to everything would agree too
    for row, record, sample in zip(rows, records, samples["own"], strict=True):
        (context, texts), sums = requests(sample)
        start = len(tokenizer(context)["input_ids"])
        means = [
            total / (len(tokenizer(context + text)["input_ids"]) - start)
            for total, text in zip(sums, texts, strict=True)
        ]
        assert row["scores"] == pytest.approx(means, abs=1e-3)
        assert (row["id"], row["picked"]) == (record["id"], LETTERS[best(means)])


BORDERS = [  # where tokens of context and continuation could differ from those of either alone
    ("Answer: ", "B"),
    ("Answer:\n\n", "B"),
    ("Answer", ": B"),
    ("the ans", "wer is B"),
    ("Antwort:", " Übelkeit µg"),
    ("1", "00 mg"),
]


def ask(model, tokenizer, pairs, longest=LONGEST):
    """The harness's log-probability of each (context, continuation).

    Without its cache: two requests of one text that is cut in two places ("Answer: " + "B", "Answer" + ": B") share an
    entry there, and the shorter continuation is read from the place of the longer one. Its own tasks hold no such pair.
    """
    harness = HFLM(pretrained=model, tokenizer=tokenizer, max_length=longest, batch_size=4, logits_cache=False)
    asked = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    return [total for total, _ in harness.loglikelihood(asked, disable_tqdm=True)]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_borders_between_context_and_continuation_agree(name):
    tokenizer = TOKENIZERS[name]()
    model = random_model(tokenizer, seed=1)
    ours = multiple_choice.option_loglikelihoods(model, tokenizer, [(context, [text]) for context, text in BORDERS])
    assert [option["sum"] for (option,) in ours] == pytest.approx(ask(model, tokenizer, BORDERS), abs=1e-3)


def test_the_harness_cuts_a_long_context_on_the_left_and_we_do_not():
    """The one difference that was found: the harness reads at most the model's length, we all of the question."""
    tokenizer, longest = byte_tokenizer(), 64
    model = random_model(tokenizer, seed=1)
    context, text = "A patient with fever. " * 9 + "Answer:", " B"
    kept = context[-(longest + 1 - len(text)) :]  # the last token is only predicted, so one more than the length
    found = multiple_choice.option_loglikelihoods(model, tokenizer, [(context, [text]), (kept, [text])])
    whole, cut = (options[0]["sum"] for options in found)
    assert ask(model, tokenizer, [(context, text)], longest) == pytest.approx([cut], abs=1e-3)
    assert abs(whole - cut) > 0.1
