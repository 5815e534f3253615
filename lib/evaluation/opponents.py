"""The strongest cheap opponents of a trained model: rules that only read the training rows, and the paired comparison.

A rule's outcome is a row per question, {"id", "picked", "correct"}, as `multiple_choice.likelihood` gives them too.
elicit.py has the opponents that are the base itself, asked in other ways.
"""

from collections import Counter, defaultdict

from sklearn.feature_extraction.text import TfidfVectorizer

from lib import stats
from lib.dataset.answers import LETTERS, normalise


def stem(record):
    """A question without the options that are listed below it."""
    return record["instruction"].rsplit("\n\nA. ", 1)[0]


def picked(record, place):
    """The row of a question at which the option at `place` was picked; None picks nothing."""
    letter = None if place is None else LETTERS[place]
    return {"id": record["id"], "picked": letter, "correct": letter == record["letter"] if record["letter"] else None}


def commonest(train, choices):
    """The option that is most often the answer to a training question; of equals, at the commonest letter."""
    texts = Counter(normalise(row["answer"]) for row in train if row["answer"])
    letters = Counter(row["letter"] for row in train if row["letter"])

    def often(options, place):
        return texts[normalise(options[place])], letters[LETTERS[place]]

    return [picked(r, max(range(len(r["options"])), key=lambda i, r=r: often(r["options"], i))) for r in choices]


def nearest(train, choices):
    """The answer of the training question whose words are the most alike, among those that are an option here.

    Alike: cosine of TF-IDF weights over words and pairs of words, options left out. Where no option ever was a
    training answer, nothing is picked.
    """
    known = [row for row in train if row["answer"]]
    if not known:
        return [picked(record, None) for record in choices]
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    matrix, answered = vectors.fit_transform(map(stem, known)), defaultdict(list)
    for number, row in enumerate(known):
        answered[normalise(row["answer"])].append(number)
    rows = []
    for record in choices:
        alike = (matrix @ vectors.transform([stem(record)]).T).toarray().ravel()
        scores = [alike[answered[normalise(option)]].max(initial=-1.0) for option in record["options"]]
        best = max(range(len(scores)), key=scores.__getitem__)
        rows.append(picked(record, best if scores[best] >= 0 else None))
    return rows


def accuracy(rows):
    """The share of correct rows, with Wilson's interval."""
    return stats.proportion([row["correct"] for row in rows if row["correct"] is not None])


def against(scored, opponents):
    """A model beside each opponent, on the same questions, in the order of `opponents`.

    scored: rows of metrics.score. opponents: {name: rows}. Returns [{"opponent", "accuracy", "change", "p", "p_holm"}]:
    change is the model's accuracy minus the opponent's, with the 95 % interval over resampled questions; p is exact
    McNemar's, p_holm adjusted over the opponents. Raises ValueError for a question that was not scored.
    """
    mine, table = {row["id"]: row["correct"] for row in scored}, []
    for name, rows in opponents.items():
        if missing := [row["id"] for row in rows if row["id"] not in mine]:
            raise ValueError(f"{len(missing)} questions of {name!r} were not scored, the first is {missing[0]}: run 02")
        kept = [row for row in rows if row["correct"] is not None and mine[row["id"]] is not None]
        if not kept:
            continue
        ours, theirs = [bool(mine[row["id"]]) for row in kept], [bool(row["correct"]) for row in kept]
        found = {"opponent": name, "accuracy": stats.proportion(theirs)}
        found["change"] = stats.mean([float(a) - float(b) for a, b in zip(ours, theirs, strict=True)])
        table.append(found | {"p": stats.mcnemar(ours, theirs)["p"]})
    adjusted = stats.holm([row["p"] for row in table])
    return [row | {"p_holm": p} for row, p in zip(table, adjusted, strict=True)]
