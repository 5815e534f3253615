"""What a sampled answer is worth: by the answer key, by its form alone, or by a reward model.

A reward is called as TRL calls it, with keyword arguments of one entry for each answer: `id` of the question and
`completion_ids`; it returns one float for each answer. An answer without a known truth is worth None: it teaches nothing.
"""

import torch

from lib.evaluation import batching, generate, metrics


class Reward:
    """One number for each answer.

    score: (list of ids, list of answers as `generate` makes them, list of token ids) -> list of floats or None.
    TRL logs a reward under its name.
    """

    def __init__(self, name, score, tokenizer, stops):
        self.__name__, self._score, self._tokenizer, self._stops = name, score, tokenizer, stops

    def __call__(self, *, id, completion_ids, **_):
        answers = [
            generate.answer(name, "", ids, self._stops, self._tokenizer)
            for name, ids in zip(id, completion_ids, strict=True)
        ]
        return self._score(id, answers, completion_ids)


def scored(records, fmt):
    """{"key": score, "format": score} for `Reward`: 1.0 for the right answer, and for the taught form whatever it says.

    records: those that questions are drawn from; fmt: the recipe's chat.format.
    """
    known = {record["id"]: record for record in records}

    def read(field):
        def score(ids, answers, _):
            rows = metrics.score(answers, [known[name] for name in ids], fmt)
            return [None if row[field] is None else float(row[field]) for row in rows]

        return score

    return {"key": read("correct"), "format": read("compliant")}


def modelled(model, prompts, batch_size=32):
    """A score for `Reward` from a reward model. prompts: {question id: prompt token ids}."""

    def score(ids, _, completion_ids):
        return values(
            model,
            [prompts[name] + list(answer) for name, answer in zip(ids, completion_ids, strict=True)],
            batch_size,
        )

    return score


def values(model, sequences, batch_size=32):
    """The reward of whole conversations, a list of floats, as the model has them after the last token of each.

    model: with a sequence-classification head of one label. sequences: lists of token ids, in any order.
    """
    order, found = sorted(range(len(sequences)), key=lambda i: -len(sequences[i])), [0.0] * len(sequences)
    with batching.evaluation(model):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            ids, _, mask = batching.right_pad([(sequences[i], sequences[i]) for i in rows], model.device)
            ids = ids.masked_fill(mask == 0, model.config.get_text_config().pad_token_id)
            for i, value in zip(rows, model(input_ids=ids, attention_mask=mask).logits[:, 0].tolist(), strict=True):
                found[i] = value
    return found


def bradley_terry(chosen, rejected):
    """Loss of a reward model on pairs, -log sigmoid(r+ - r-), in nats a pair, the mean (Bradley and Terry 1952)."""
    return -torch.nn.functional.logsigmoid(torch.as_tensor(chosen) - torch.as_tensor(rejected)).mean()
