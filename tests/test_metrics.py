import math

import families
import pytest
import torch
from tiny_qwen import byte_tokenizer, random_model

from lib.chat import encoding, lossmask
from lib.evaluation import metrics, multiple_choice, probability


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return random_model(tokenizer, seed=1)


def record(number, letter="B", options=("Aspirin", "Warfarin", "Vitamin K", "Oxygen"), answer="Warfarin"):
    return {
        "id": f"q{number}",
        "instruction": f"Question {number}?" + "".join(f"\n{x}. {o}" for x, o in zip("ABCD", options, strict=False)),
        "options": list(options),
        "letter": letter,
        "answer": answer,
    }


def answer(number, text, finish="stop"):
    return {"id": f"q{number}", "text": text, "tokens": 9, "finish": finish, "seconds": 0.5}


def test_score_by_hand(tokenizer):
    records = [record(0), record(1), record(2), record(3), record(4, None, (), "warfarin"), record(5, None, (), None)]
    given = [
        answer(0, "<think>\nclot\n</think>\n\nAnswer: B"),
        answer(1, "Answer: A"),
        answer(2, "<think>\nand so on", "length"),
        answer(3, "", "error"),
        answer(4, "<think>x</think>Give warfarin."),
        answer(5, "<think>x</think>Whatever."),
    ]
    rows = metrics.score(given, records, "think", tokenizer)
    assert [r["correct"] for r in rows] == [True, False, False, False, True, None]
    assert [r["picked"] for r in rows] == ["B", "A", None, None, None, None]
    assert [r["parsed"] for r in rows] == [True, True, False, False, None, None]
    assert [r["compliant"] for r in rows] == [True, False, False, False, True, True]
    assert [r["truncated"] for r in rows] == [False, False, True, False, False, False]
    assert (rows[0]["reasoning_tokens"], rows[0]["answer_tokens"]) == (4, 9)  # one token per byte
    found = metrics.summary(rows)
    assert (found["accuracy"]["value"], found["accuracy"]["n"]) == (2 / 5, 5)
    assert (found["parsed"]["value"], found["truncated"]["value"]) == (0.5, 1 / 6)
    assert found["errors"]["value"] == 1 / 6
    # Wilson for 2 of 5: centre (0.4 + 1.9208/5) / (1 + 3.8415/5) = 0.4434, half 0.3260
    assert (found["accuracy"]["low"], found["accuracy"]["high"]) == pytest.approx((0.1176, 0.7693), abs=2e-4)
    assert "seconds" not in str(found)


def test_options_without_a_known_letter_are_no_ground_truth():
    """ReasonMed may list options and state none of them as the answer."""
    given = [answer(0, "<think>x</think>Answer: B"), answer(1, "<think>x</think>No idea.")]
    rows = metrics.score(given, [record(n, letter=None, answer=None) for n in range(2)], "think")
    assert [(r["correct"], r["picked"], r["parsed"]) for r in rows] == [(None, "B", True), (None, None, False)]
    assert "accuracy" not in metrics.summary(rows)


def test_an_answer_after_unfinished_reasoning_does_not_count():
    rows = metrics.score([answer(0, "<think>\nAnswer: B")], [record(0)], "think")
    assert rows[0]["correct"] is False and rows[0]["reasoning_tokens"] is None


@pytest.mark.parametrize(("reasoning", "compliant"), [("", True), ("why", False)])
@pytest.mark.parametrize(
    ("fmt", "text"),
    [
        ("think", "<think>\n\n</think>\n\nAnswer: B"),
        ("harmony", "<|channel|>final<|message|>Answer: B"),
        ("thinking_response", "## Thinking\n\n\n\n## Final Response\n\nAnswer: B"),
    ],
)
def test_an_answer_may_go_without_reasoning_where_its_record_does(fmt, text, reasoning, compliant):
    """A file of questions and answers trains just these texts: a model that writes them keeps the form."""
    (row,) = metrics.score([answer(0, text)], [record(0) | {"reasoning": reasoning}], fmt)
    assert row["correct"] and row["compliant"] is compliant


def test_answers_must_belong_to_the_records():
    with pytest.raises(ValueError, match="1 answers do not match 1 records"):
        metrics.score([answer(1, "x")], [record(0)], "think")


def test_chance_is_taken_over_the_questions_with_a_letter():
    records = [record(0), record(1, "A", ("Yes", "No")), record(2, None), record(3, None, (), "warfarin")]
    assert metrics.chance(records) == (1 / 4 + 1 / 2) / 2
    assert metrics.chance(records[2:]) is None


def test_latency_by_hand():
    given = [{"first_s": s / 4, "seconds": s, "tokens": 4, "finish": "stop"} for s in (4, 1, 3, 2)]
    missing = {"first_s": 99, "seconds": 99, "tokens": 0, "finish": "error"}
    assert metrics.latency([*given, missing]) == {
        "first_s": {"median": 0.625, "p95": 1.0},
        "seconds": {"median": 2.5, "p95": 4},
        "tokens_per_s": {"median": pytest.approx((4 / 3 + 2) / 2), "p95": 1.0},  # 3 tokens in 3, 0.75, 2.25, 1.5 s
        "tokens": 16,
    }
    with pytest.raises(ValueError, match="none of the 1 answers came"):
        metrics.latency([missing])


def log_probabilities(model, ids):
    """Of each token but the first, given those before it, one sequence at a time."""
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0, :-1]
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def test_likelihood_wants_options(model, tokenizer):
    with pytest.raises(ValueError, match="1 records have no options.*q7"):
        multiple_choice.likelihood(model, tokenizer, [record(7, None, ())])


def test_perplexity_equals_the_sum_over_single_rows(model, tokenizer):
    rows = []
    for text, prompt in (("a fever of unknown origin", 8), ("cough", 2), ("x" * 60, 30)):
        ids = tokenizer(text)["input_ids"]
        rows.append((ids, [-100] * prompt + ids[prompt:]))
    logs = torch.cat(
        [log_probabilities(model, ids)[sum(x == -100 for x in labels) - 1 :] for ids, labels in rows]
    ).tolist()
    got = probability.perplexity(model, rows, batch_size=2)
    loss = -sum(logs) / len(logs)
    assert (got["tokens"], got["rows"]) == (len(logs), 3)
    assert (got["loss"], got["perplexity"]) == (pytest.approx(loss, abs=1e-5), pytest.approx(math.exp(loss), rel=1e-5))


def test_perplexity_without_labels_is_refused(model):
    with pytest.raises(ValueError, match="none of the 1 rows"):
        probability.perplexity(model, [([1, 2, 3], [-100, -100, -100])])


PARTS = {  # format: (tokenizer, the reasoning with its marks)
    "think": (families.qwen3, "<think>\n{}\n</think>\n\n"),
    "thinking_response": (byte_tokenizer, "## Thinking\n\n{}\n\n## Final Response\n\n"),
}
CONVERSATIONS = [("Which test?", "Cough.\n\nFever.", "X-ray.\n\nAnswer: B"), ("Why?", "A clot.", "Answer: C")]


@pytest.mark.parametrize("fmt", PARTS)
def test_perplexity_by_part_splits_at_the_marks_of_the_format(fmt):
    make, marked = PARTS[fmt]
    tokenizer = make()
    model = random_model(tokenizer, seed=2)
    rows, logs = [], {"reasoning": [], "answer": [], "end": []}
    for question, reasoning, answer in CONVERSATIONS:
        record = {"instruction": question, "reasoning": reasoning, "output": answer}
        rows.append(encoding.encode(encoding.messages(record, fmt), tokenizer))
        texts = marked.format(reasoning), answer, "<|im_end|>\n"
        counts = [len(tokenizer(text)["input_ids"]) for text in texts]
        learnt = log_probabilities(model, rows[-1][0])[-sum(counts) :]
        for name, part in zip(logs, learnt.split(counts), strict=True):
            logs[name] += part.tolist()
    got = probability.perplexity_by_part(model, rows, lossmask.Regions(tokenizer, fmt), batch_size=2)
    assert list(got) == ["reasoning", "answer", "end"]
    for name, part in got.items():
        assert (part["tokens"], part["rows"]) == (len(logs[name]), 2)
        assert part["loss"] == pytest.approx(-sum(logs[name]) / len(logs[name]), abs=1e-5)
        assert part["perplexity"] == pytest.approx(math.exp(part["loss"]))
    whole = probability.perplexity(model, rows, batch_size=2)
    assert sum(part["tokens"] for part in got.values()) == whole["tokens"]
    assert sum(p["tokens"] * p["loss"] for p in got.values()) == pytest.approx(whole["tokens"] * whole["loss"])


def test_perplexity_by_part_names_only_what_is_labelled():
    tokenizer = families.qwen3()
    model, regions = random_model(tokenizer, seed=2), lossmask.Regions(tokenizer, "think")
    turns = encoding.messages({"instruction": "Why?", "reasoning": "A clot.", "output": "Answer: C"}, "think")
    ids, labels = encoding.encode(turns, tokenizer)
    final = lossmask.final_only(ids, labels, tokenizer, "think")
    assert set(probability.perplexity_by_part(model, [(ids, final)], regions)) == {"answer", "end"}
    everything = probability.perplexity_by_part(model, [(ids, ids)], regions)
    assert everything["prompt"]["tokens"] == sum(label == -100 for label in labels) - 1  # none before the first


@pytest.mark.parametrize("pair", [("", [" A"]), ("Answer:", [""]), ("Answer:", [])])
def test_option_loglikelihoods_wants_text(model, tokenizer, pair):
    with pytest.raises(ValueError, match="no token in the context"):
        multiple_choice.option_loglikelihoods(model, tokenizer, [pair])
