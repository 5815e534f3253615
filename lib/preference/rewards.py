"""What a sampled answer is worth: by the answer key, by its form alone, or by a reward model.

A reward is called as TRL calls it, with keyword arguments of one entry for each answer: `id` of the question and
`completion_ids`; it returns one float for each answer. An answer without a known truth is worth
None and teaches nothing.
"""

import math
from concurrent.futures import Future
from threading import Thread

from lib import stats
from lib.dataset import answers as reading
from lib.dataset.answers import LETTERS
from lib.evaluation import batching, generate, metrics
from lib.preference import pairs

LIMIT_S = 600  # a reward that has not answered by then hangs


class Reward:
    """One number for each answer.

    score: (list of ids, list of answers as `generate` makes them, list of token ids) -> list of floats or None.
    TRL logs a reward under its name. generated: tokens of the answers so far. Raises ValueError for a value that is not
    finite, which TRL would take for 0 or for an answer without a truth, and TimeoutError where score takes longer than
    LIMIT_S.
    """

    def __init__(self, name, score, tokenizer, stops):
        self.__name__, self._score, self._tokenizer, self._stops = name, score, tokenizer, stops
        self.generated = 0

    def __call__(self, *, id, completion_ids, **_):
        answers = [
            generate.answer(name, "", ids, self._stops, self._tokenizer)
            for name, ids in zip(id, completion_ids, strict=True)
        ]
        self.generated += sum(map(len, completion_ids))
        values = self._in_time(id, answers, completion_ids)
        for name, value in zip(id, values, strict=False):  # TRL counts them
            if value is not None and not math.isfinite(value):
                raise ValueError(f"reward {self.__name__} is {value} for question {name}: mend the reward")
        return values

    def _in_time(self, *given):
        done = Future()

        def work():
            try:
                done.set_result(self._score(*given))
            except BaseException as error:
                done.set_exception(error)

        thread = Thread(target=work, daemon=True)
        thread.start()
        thread.join(LIMIT_S)
        if thread.is_alive():
            raise TimeoutError(f"reward {self.__name__} has not answered in {LIMIT_S} s: mend the reward")
        return done.result()


def scored(records, fmt, limit):
    """{"key", "format", "length": score} for `Reward`, each from 0 to 1.

    key: the answer is right. format: it has the taught form, whatever it says. length: the share of `limit` tokens that
    it has, a reward that is wrong on purpose.

    records: those that questions are drawn from; fmt: the recipe's chat.format.
    """
    known = {record["id"]: record for record in records}

    def read(field):
        def score(ids, answers, _):
            rows = metrics.score(answers, [known[name] for name in ids], fmt)
            return [None if row[field] is None else float(row[field]) for row in rows]

        return score

    def length(_, answers, completion_ids):
        return [len(ids) / limit for ids in completion_ids]

    return {"key": read("correct"), "format": read("compliant"), "length": length}


def modelled(model, asked, tokenizer, batch_size=32):
    """A score for `Reward` from a reward model. asked: {question id: rendered prompt}."""
    prompts = dict(zip(asked, tokenizer(list(asked.values()), add_special_tokens=False)["input_ids"], strict=True))

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

    def marks(rows):
        ids, _, mask = batching.right_pad([(sequences[i], sequences[i]) for i in rows], model.device)
        ids = ids.masked_fill(mask == 0, model.config.get_text_config().pad_token_id)
        return model(input_ids=ids, attention_mask=mask).logits[:, 0].tolist()

    with batching.evaluation(model):
        for rows, given in batching.halving(order, batch_size, marks):
            for i, value in zip(rows, given, strict=True):
                found[i] = value
    return found


SPOILT = {  # what is done to a chosen answer: the worse one, of the pair and of an answer to another question
    "said twice": lambda pair, _: (
        pair["chosen"] | {"output": pair["chosen"]["output"] + "\n\n" + pair["chosen"]["output"]}
    ),
    "form without content": lambda pair, _: {"reasoning": "This is to be thought about.", "output": "Answer: this"},
    "empty": lambda pair, _: {"reasoning": "", "output": "."},
    "the question again": lambda pair, _: pair["chosen"] | {"output": pair["question"]},
    "an answer to another question": lambda pair, other: pair["chosen"] | {"output": other},
}


def probes(model, held_out, records, tokenizer, cfg):
    """How often a spoilt answer gets the higher reward than the chosen one: {what was done: proportion}.

    held_out: pairs. An answer is made long with its own sentences said again, kept in form and emptied of content,
    left empty, replaced by the question, or by an assured answer to another question of `records`.
    """
    other, found, good = f"Certainly, without any doubt. {records[0]['output']}", {}, None
    for name, spoil in SPOILT.items():
        both = [pair | {"rejected": spoil(pair, other)} for pair in held_out]
        rows = [pairs.tokens(pair, tokenizer, cfg, 4 * cfg.sft["max_length"]) for pair in both]
        chosen, bad = ([row["prompt_ids"] + row[f"{s}_ids"] for row in rows] for s in pairs.SIDES)
        good = good or values(model, chosen)
        found[name] = stats.proportion([b > a for a, b in zip(good, values(model, bad), strict=True)])
    return found


WORDINGS = {
    "as trained": lambda r, n: f"Answer: {LETTERS[n]}",
    "letter and text": lambda r, n: f"Answer: {LETTERS[n]}. {r['options'][n]}",
    "a sentence": lambda r, n: f"The correct option is {LETTERS[n]}.",
    "in brackets": lambda r, n: f"The answer is ({LETTERS[n]}).",
    "the option alone": lambda r, n: r["options"][n],
    "told after others": lambda r, n: (
        f"It is not {LETTERS[(n or len(r['options'])) - 1]}, as the findings speak against it. It is {LETTERS[n]}."
    ),
}


def key_errors(records):
    """How the answer key errs, by way of saying an answer: rows {"said", "right called wrong", "wrong called right"}.

    records: with options and a letter. The same words are tried with the right option and with the next one.
    """
    table = []
    for name, words in WORDINGS.items():
        row = {"said": name}
        for column, shift, expected in (("right called wrong", 0, True), ("wrong called right", 1, False)):
            flags = []
            for record in records:
                n = (LETTERS.index(record["letter"]) + shift) % len(record["options"])
                flags.append((reading.choice(words(record, n), record["options"]) == record["letter"]) is not expected)
            row[column] = stats.proportion(flags)
        table.append(row)
    return table
