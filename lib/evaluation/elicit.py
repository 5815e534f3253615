"""The base asked in the form that suits it best, so that format is not mistaken for knowledge.

A form turns records with options into rows as opponents.py describes them. Which form is the best is decided on the
eval split; the test questions are asked in that form only.
"""

import random
import re

from lib.dataset import answers as reading
from lib.dataset import clinic, textbook
from lib.dataset.split import stem
from lib.evaluation import batching, generate, multiple_choice
from lib.evaluation.kept import Kept
from lib.evaluation.opponents import accuracy, picked
from lib.pipeline.files import sha256_json

SHOTS = 2  # worked examples before a question
WRITTEN = 64  # tokens that a form lets the base write
AT_ONCE = 60  # questions after which the answers are kept
PLAIN = multiple_choice.LIKELIHOOD_PROMPT


def forms(model, tokenizer, train, seed, book=False, keep=None, progress=None):
    """{name: function of records that asks the base and returns rows}, the plainest first.

    train: records, from which SHOTS worked examples are drawn. book: also ask as the clinic's textbook is written.
    keep: folder for the rows as they come, so that a form that was stopped asks for the rest only. progress: called
    with (asked, total, name of the form).
    """
    lettered = [row for row in train if row["options"] and row["letter"]]
    shots = random.Random(seed).sample(lettered, min(SHOTS, len(lettered)))
    shown = "".join(PLAIN.format(question=r["instruction"]) + f" {r['answer']}\n\n" for r in shots)
    worked = "".join(_worked(r) for r in shots)

    def likely(context, relative=False):
        return lambda records: _likely(model, tokenizer, records, context, relative)

    def written(context):
        return lambda records: _written(model, tokenizer, records, context)

    found = {
        "question and options": likely(lambda r: PLAIN.format(question=r["instruction"])),
        "question without options": likely(lambda r: PLAIN.format(question=stem(r))),
        "question without options, against no question": likely(lambda r: PLAIN.format(question=stem(r)), True),
        "few-shot": likely(lambda r: shown + PLAIN.format(question=r["instruction"])),
        "few-shot, reasoning written out": written(lambda r: f"{worked}{r['instruction']}\n"),
    }
    found |= {"the textbook's own phrase, continued": written(_in_the_book)} if book else {}
    settings = [generate.identity(model), shown, worked] if keep else []
    return {name: _kept(ask, name, keep, settings, progress) for name, ask in found.items()}


def _kept(ask, name, keep, settings, progress):
    """The same form, whose rows are written under `keep` after every AT_ONCE questions."""

    def asked(records):
        prompts = [{"id": r["id"], "messages": [r["instruction"], r["options"]]} for r in records]
        file = keep / f"elicit-{sha256_json([name, prompts])[:12]}.jsonl" if keep else None
        kept = Kept(file, prompts, [name, *settings])
        rest = kept.missing(records)
        for start in range(0, len(rest), AT_ONCE):
            for row in ask(rest[start : start + AT_ONCE]):
                kept.add(row)
            if progress:
                progress(len(kept.answers), len(records), name)
        return kept.ordered(records)

    return asked


def best(found, held_out):
    """(name of the form with the most correct answers to the eval split, {form: accuracy there}).

    found: from `forms`; of equals the plainest. held_out: records of the eval split; without one that has options and
    an answer, the plainest form is taken, and no accuracy is known.
    """
    lettered = [row for row in held_out if row["options"] and row["letter"]]
    if not lettered:
        return next(iter(found)), {}
    shares = {name: accuracy(ask(lettered)) for name, ask in found.items()}
    return max(shares, key=lambda name: shares[name]["value"]), shares


def _worked(record):
    return f"{record['instruction']}\n{record['reasoning']}\nAnswer: {record['answer']}\n\n"


def _in_the_book(record):
    """A question as the textbook's case notes open: the patient, then what the note is for."""
    question = stem(record)
    for kind, (_, wordings, *_) in clinic.KINDS.items():
        for words in wordings:
            if question.endswith(words):
                return f"{question.removesuffix(words).strip()} {textbook.TOPICS[kind]}\n"
    return f"{question}\n"


def _likely(model, tokenizer, records, context, relative):
    """The option with the largest mean log-probability of a token; relative: less what it has after no question.

    Source of `relative`: Holtzman et al. (2021), arXiv:2104.08315.
    """
    options = [[f" {option}" for option in record["options"]] for record in records]
    pairs = [(context(record), texts) for record, texts in zip(records, options, strict=True)]
    means = _means(model, tokenizer, pairs)
    if relative:
        each = sorted({text for texts in options for text in texts})
        alone = dict(zip(each, _means(model, tokenizer, [("Answer:", each)])[0], strict=True))
        means = [[m - alone[text] for m, text in zip(row, texts, strict=True)]
                 for row, texts in zip(means, options, strict=True)]  # fmt: skip
    return [picked(r, max(range(len(row)), key=row.__getitem__)) for r, row in zip(records, means, strict=True)]


def _means(model, tokenizer, pairs):
    found = multiple_choice.option_loglikelihoods(model, tokenizer, pairs)
    return [[option["sum"] / option["tokens"] for option in options] for options in found]


def _written(model, tokenizer, records, context):
    """What the base writes after a context, up to an empty line, read as any answer is.

    Where that names no option, the likeliest option takes the place of what follows its last "is" or "fits".
    """
    opened = [context(record) for record in records]
    texts = [re.split(r"\n\s*\n", text)[0] for text in continued(model, tokenizer, opened)]
    letters = [reading.choice(text, record["options"]) for text, record in zip(texts, records, strict=True)]
    unread = [number for number, letter in enumerate(letters) if letter is None]
    heads = {n: re.match(r"(?s)(.*\b(?:is|fits))\b|", texts[n])[0] or texts[n].strip() for n in unread}
    pairs = [(opened[n] + heads[n], [f" {option}" for option in records[n]["options"]]) for n in unread]
    likeliest = dict(zip(unread, _means(model, tokenizer, pairs), strict=True)) if unread else {}
    places = [max(range(len(likeliest[n])), key=likeliest[n].__getitem__) if n in likeliest
              else reading.LETTERS.index(letter) for n, letter in enumerate(letters)]  # fmt: skip
    return [picked(record, place) for record, place in zip(records, places, strict=True)]


def continued(model, tokenizer, texts, batch_size=60):
    """How a model goes on, greedily, after plain texts without a chat template: the added texts, in order."""
    encoded = [tokenizer(text)["input_ids"] for text in texts]
    how = generate.PLAIN | {"do_sample": False, "max_new_tokens": WRITTEN}
    how["eos_token_id"] = sorted(generate.stop_ids(model, tokenizer))
    order, found = sorted(range(len(texts)), key=lambda i: -len(encoded[i])), {}
    with batching.evaluation(model):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            for i, (ids, *_) in zip(rows, generate.continue_ids(model, [encoded[i] for i in rows], how), strict=True):
                found[i] = tokenizer.decode(ids, skip_special_tokens=True)
    return [found[i] for i in range(len(texts))]
