"""The strongest cheap opponents of a trained model: rules that only read the training rows, and the paired comparison.

A rule's outcome is a row per question, {"id", "picked", "correct"}, as `multiple_choice.likelihood` gives them too.
elicit.py has the opponents that are the base itself, asked in other ways.
"""

from collections import Counter, defaultdict

from sklearn.feature_extraction.text import TfidfVectorizer

from lib import stats
from lib.dataset.answers import LETTERS, normalise
from lib.dataset.split import stem
from lib.figures.markup import p_value

CEILING = "generator's ceiling"  # of the clinic: no opponent, but the most that its questions allow


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
    return stats.holm(table)


def by_skill(found, records):
    """One row per skill that the records' source names: {"skill", "questions", name: accuracy}; [] where none does.

    found: {name: rows}, in the order of the columns.
    """
    skills = {record["id"]: record.get("skill") for record in records}
    table = []
    for skill in dict.fromkeys(filter(None, skills.values())):
        shares = {name: accuracy([r for r in rows if skills[r["id"]] == skill]) for name, rows in found.items()}
        known = max(share["n"] for share in shares.values())
        table.append({"skill": skill, "questions": known} | {n: {"value": s["value"]} for n, s in shares.items()})
    return table


def in_words(versus, tuned):
    """What of a model's gain is format and what is knowledge, in sentences made of the numbers; "" without opponents.

    versus: from `against`, with the base's rows that chapter 2 names "base, generated" and "base, best form".
    tuned: the model's accuracy, with interval.
    """
    rows = {row["opponent"]: row for row in versus}
    asked, best = rows.get("base, generated"), rows.get("base, best form")
    if not (asked and best and tuned):
        return ""
    gain, learnt = (100 * row["change"]["value"] for row in (asked, best))
    change = best["change"]
    verdict = "these questions do not show that training added any"
    if change["low"] > 0 or change["high"] < 0:
        verdict = f"training {'added' if change['low'] > 0 else 'lost'} knowledge"
    others = [row for name, row in rows.items() if name != CEILING]
    strongest = max(others, key=lambda row: row["accuracy"]["value"], default=None)
    said = [
        f"{100 * tuned['value']:.1f} % of the tuned model's answers are right. That is {gain:+.1f} points against the "
        f"base asked in the chat template, of which {gain - learnt:.1f} are format, because the base in its best form "
        f"reaches {100 * best['accuracy']['value']:.1f} %.",
        f"What is left for knowledge is {learnt:+.1f} points ({100 * change['low']:.1f} to {100 * change['high']:.1f}, "
        f"p {p_value(best['p_holm'])}): {verdict}.",
    ]
    if strongest:
        ahead = strongest["change"]
        said.append(
            f"Against the strongest opponent, {strongest['opponent']}, it is {100 * ahead['value']:+.1f} points "
            f"({100 * ahead['low']:.1f} to {100 * ahead['high']:.1f}, p {p_value(strongest['p_holm'])})."
        )
    return "\n".join(said)
