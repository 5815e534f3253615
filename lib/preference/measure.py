"""What preference tuning did to a model: samples, how often one of them is right, and how far it went."""

from math import comb

import numpy as np

from lib import stats
from lib.chat import encoding
from lib.evaluation import generate, metrics, paired


def samples(stage, name, model, tokenizer, records, count, temperature=1.0):
    """`count` drawn answers of each question: {id: [answer]}. Kept under the name as they come."""
    chat, fmt = stage.recipe.chat, stage.recipe.chat["format"]
    asked = [
        {"id": f"{record['id']}#{n}", "messages": encoding.messages(record, fmt, answer=False)}
        for record in records
        for n in range(count)
    ]
    drawn = generate.transformers(
        model, tokenizer, asked, chat["max_new_tokens"], chat["batch_size"], temperature,
        seed=stage.recipe.run["seed"], date=chat["date"], effort=chat["reasoning_effort"],
        keep=stage.dir / "cache" / f"samples_{name}.jsonl",
        progress=lambda *at: stage.progress(*at, f"samples of {name}"),
    )  # fmt: skip
    found = {record["id"]: [] for record in records}
    for answer in drawn:
        question = answer["id"].rpartition("#")[0]
        found[question].append(answer | {"id": question})
    return found


def right(drawn, records, fmt):
    """{question id: [whether each sampled answer is right]}, of the records with a known truth."""
    found = {}
    for record in records:
        answers = drawn[record["id"]]
        flags = [row["correct"] for row in metrics.score(answers, [record] * len(answers), fmt)]
        if None not in flags:
            found[record["id"]] = flags
    return found


def pass_at(flags, k):
    """pass@k, the chance that one of k drawn answers is right: {"value", "low", "high", "n"}, over questions.

    flags: from `right`. The unbiased estimate of n samples with c right is 1 - C(n - c, k) / C(n, k)
    (Chen et al. 2021, arXiv:2107.03374). Raises ValueError with fewer than k samples.
    """
    if few := [name for name, row in flags.items() if len(row) < k]:
        raise ValueError(f"pass@{k} takes {k} samples of each question, {few[0]!r} has {len(flags[few[0]])}")
    return stats.mean([1 - comb(len(row) - sum(row), k) / comb(len(row), k) for row in flags.values()])


def conversations(drawn, records, tokenizer, cfg):
    """(input_ids, labels) of the sampled answers, labels on what was generated: what `drift` is measured on."""
    found = []
    for record in records:
        asked = encoding.messages(record, cfg.chat["format"], answer=False)
        text = encoding.render(asked, tokenizer, True, cfg.chat["date"], cfg.chat["reasoning_effort"])
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        for answer in drawn[record["id"]]:
            said = tokenizer(answer["text"], add_special_tokens=False)["input_ids"]
            found += [(prompt + said, [encoding.IGNORE_INDEX] * len(prompt) + said)] if said else []
    return found


def drift(model, reference, rows):
    """Kullback-Leibler divergence KL(model || reference) in nats a token: {"value", "low", "high", "n"}.

    rows: from `conversations`, of the model's own samples. Every token's whole distribution counts, so that what
    sampling leaves open is only which tokens are visited; the interval is over conversations.
    """
    rows = paired.cut(rows, model.config.vocab_size)
    _, ours = paired.measure(model, rows)
    found, _ = paired.measure(reference, rows, ours)
    return paired.mean(np.array([found]), "divergence")
