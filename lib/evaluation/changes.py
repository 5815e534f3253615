"""What changed between two models on the same questions, and what each scores on each benchmark."""

from statistics import fmean

from lib import stats
from lib.dataset import answers as reading
from lib.evaluation import overlap

FLAGS = {"accuracy": "correct", "format compliance": "compliant", "exact match": "exact"}
NUMBERS = {
    "ROUGE-L": "rouge_l",
    "BLEU": "bleu",
    "reasoning length": "reasoning_tokens",
    "answer length": "answer_tokens",
}
UNITS = {"ROUGE-L": "points", "BLEU": "points", "reasoning length": "tokens", "answer length": "tokens"}


def with_overlap(scored, answers, records, fmt):
    """The rows of metrics.score with exact, rouge_l (0 to 100) and bleu (0 to 100) against the record's whole answer.

    All three are None where the record's answer has no words.
    """
    said = [reading.split_reasoning(answer["text"], fmt)[1] for answer in answers]
    kept = [i for i, record in enumerate(records) if reading.normalise(record["output"] or "")]
    found = overlap.texts([said[i] for i in kept], [records[i]["output"] for i in kept])
    measured = {i: {"exact": r["exact"], "rouge_l": 100 * r["rouge_l"], "bleu": r["bleu"]}
                for i, r in zip(kept, found, strict=True)}  # fmt: skip
    nothing = dict.fromkeys(("exact", "rouge_l", "bleu"))
    return [row | measured.get(i, nothing) for i, row in enumerate(scored)]


def before_after(before, after):
    """Paired changes: [{"measure", "unit", "before", "after", "change", "low", "high", "p", "p_holm", "n"}].

    before, after: rows of `with_overlap` on the same questions, in the same order. Proportions and their change are
    shares; p is exact McNemar's for them and a sign-flip permutation's for means, Holm-adjusted over the measures.
    low, high: 95 % interval of the change, questions resampled. A measure that one side lacks does not appear.
    Raises ValueError where the questions differ.
    """
    if [row["id"] for row in before] != [row["id"] for row in after]:
        raise ValueError(f"{len(before)} and {len(after)} rows are not of the same questions: score the same test set")
    table = []
    for name, field in (FLAGS | NUMBERS).items():
        pairs = [(a[field], b[field]) for a, b in zip(before, after, strict=True)
                 if a[field] is not None and b[field] is not None]  # fmt: skip
        if not pairs:
            continue
        one, two = ([float(value) for value in side] for side in zip(*pairs, strict=True))
        low, high = stats.bootstrap([y - x for x, y in zip(one, two, strict=True)])
        p = stats.mcnemar(one, two)["p"] if name in FLAGS else stats.paired_permutation(one, two)
        row = {"measure": name, "unit": UNITS.get(name, "%"), "before": fmean(one), "after": fmean(two)}
        table.append(row | {"change": row["after"] - row["before"], "low": low, "high": high, "p": p, "n": len(pairs)})
    adjusted = stats.holm([row["p"] for row in table])
    return [row | {"p_holm": p} for row, p in zip(table, adjusted, strict=True)]


def by_source(scored, records):
    """One row per benchmark: {"source", "accuracy", "macro_f1", "majority", "majority_share", "unparsed"}.

    accuracy, with Wilson's interval, over questions with a ground truth. macro_f1 and the majority baseline where all
    questions of a source share their options (PubMedQA's yes, no, maybe), else None.
    """
    found = []
    for source in sorted({record["source"] for record in records}):
        mine = [(row, record) for row, record in zip(scored, records, strict=True)
                if record["source"] == source and row["correct"] is not None]  # fmt: skip
        if not mine:
            continue
        options = {tuple(record["options"]) for _, record in mine}
        row = {"source": source, "accuracy": stats.proportion([row["correct"] for row, _ in mine]), "macro_f1": None,
               "majority": None, "majority_share": None}  # fmt: skip
        if len(options) == 1 and (labels := next(iter(options))):
            texts = dict(zip(reading.LETTERS, labels, strict=False))
            truth = [record["letter"] for _, record in mine]
            row["macro_f1"] = overlap.macro_f1([r["picked"] for r, _ in mine], truth, list(texts)[: len(labels)])
            common = overlap.majority(truth)
            row |= {"majority": texts[common.pop("label")], "majority_share": common}
        found.append(row | {"unparsed": sum(r["parsed"] is False for r, _ in mine)})
    return found
