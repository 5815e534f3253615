"""The strongest cheap opponents of a trained model: rules that only read the training rows, and the paired comparison.

A rule's outcome is a row per question, {"id", "picked", "correct"}, as `multiple_choice.likelihood` gives them too.
elicit.py has the opponents that are the base itself, asked in other ways.
"""

from collections import Counter, defaultdict

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.naive_bayes import MultinomialNB

from lib import stats
from lib.dataset.answers import LETTERS, normalise
from lib.dataset.split import stem
from lib.figures.markup import p_value

CEILING = "generator's ceiling"  # of the clinic: no opponent, but the most that its questions allow
ROWS = 20_000  # training rows that naive Bayes reads: on two cores a second for each thousand


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

    Where no option ever was a training answer, nothing is picked.
    """
    known = [row for row in train if row["answer"]]
    if not known:
        return [picked(record, None) for record in choices]
    answered, rows = defaultdict(list), []
    for number, row in enumerate(known):
        answered[normalise(row["answer"])].append(number)
    for record, alike in zip(choices, _alike(known, choices), strict=True):
        scores = [alike[answered[normalise(option)]].max(initial=-1.0) for option in record["options"]]
        best = max(range(len(scores)), key=scores.__getitem__)
        rows.append(picked(record, best if scores[best] >= 0 else None))
    return rows


def copied(train, records):
    """The training row whose question's words are the most alike, for each record: whose answer may be copied whole."""
    return [train[int(alike.argmax())] for alike in _alike(train, records)]


def _alike(train, records):
    """For each record an array over the training rows: cosine of TF-IDF weights of words and pairs, without options."""
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    matrix = vectors.fit_transform(map(stem, train))
    for record in records:
        yield (matrix @ vectors.transform([stem(record)]).T).toarray().ravel()


def bayes(train, held_out, choices, topic=None):
    """Naive Bayes over a question's words: (rows, {"words", "alpha", "held_out"}), the strongest of nine by held_out.

    topic: function of a training row, what its words are taken to tell of; without one, its answer. An option scores as
    the likeliest topic that it ever was the answer for; where none ever was, nothing is picked. At most ROWS rows are
    read. words: the longest sequence that counts; held_out: questions of the eval split right, with interval.
    """
    topic = topic or (lambda row: normalise(row["answer"]))
    known = [(row, topic(row)) for row in train if row["answer"]][:ROWS]
    known = [(row, told) for row, told in known if told]
    if not known:
        return [picked(record, None) for record in choices], {}
    topics, had = sorted({told for _, told in known}), defaultdict(set)
    for row, told in known:
        had[normalise(row["answer"])].add(topics.index(told))
    truth, asked = [topics.index(told) for _, told in known], [r for r in held_out if r["letter"]]
    tried = []
    for words in (1, 2, 4):
        vectors = CountVectorizer(ngram_range=(1, words))
        matrix = vectors.fit_transform([stem(row) for row, _ in known])
        for alpha in (1.0, 0.1, 0.03):
            model = MultinomialNB(alpha=alpha).fit(matrix, truth)
            found = [_likeliest(model, vectors, had, rows) for rows in (asked, choices)]
            tried.append((sum(row["correct"] for row in found[0]), words, alpha, found[1]))
    right, words, alpha, rows = max(tried, key=lambda entry: entry[0])  # of equals the first, the simplest
    share = stats.proportion([True] * right + [False] * (len(asked) - right))
    return rows, {"words": words, "alpha": alpha, "held_out": share}


def _likeliest(model, vectors, had, records):
    rows = []
    for record in records:
        (likely,) = model.predict_log_proba(vectors.transform([stem(record)]))
        places = [had.get(normalise(option), ()) for option in record["options"]]
        scores = [max((likely[place] for place in topics), default=-np.inf) for topics in places]
        best = int(np.argmax(scores))
        rows.append(picked(record, best if scores[best] > -np.inf else None))
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


def in_words(versus, scored, records):
    """What a model gained and what of it the base could do before, in sentences made of the numbers; "" without those.

    versus: from `against`, with the base's rows of chapter 2, "base, generated" among them. scored: the model's rows
    of metrics.score; records: their questions. The base is taken in the form that scored highest here, though the eval
    split chose another: against the model. A difference counts where its adjusted p is below 0.05.
    """
    rows = {row["opponent"]: row for row in versus if row["opponent"] != CEILING}
    forms = {name: row for name, row in rows.items() if name.startswith("base, ") and name != "base, generated"}
    tuned, asked = accuracy(scored), rows.get("base, generated")
    if not (asked and forms and tuned["n"]):
        return ""
    form, base = max(forms.items(), key=lambda entry: entry[1]["accuracy"]["value"])
    known = base["p_holm"] < 0.05
    verdict = f"training {'added' if base['change']['value'] > 0 else 'lost'} knowledge"
    said = [
        f"{100 * tuned['value']:.1f} % of the tuned model's answers are right, {_points(asked)} against the base "
        f"asked in the chat template. The same base reaches {100 * base['accuracy']['value']:.1f} % as {form!r}: so "
        "much it could do before.",
        f"Against that, the tuned model has {_points(base)}: "
        + (verdict if known else "these questions do not show that training added or lost any knowledge")
        + ".",
    ]
    options = {record["id"]: len(record["options"]) for record in records}
    silent = [options[row["id"]] for row in scored if row["correct"] is not None and row["picked"] is None]
    if silent:
        guessed = tuned["value"] + sum(1 / count for count in silent if count) / tuned["n"]
        said.append(
            f"{len(silent)} of {tuned['n']} answers name no option and count as wrong; a guess instead of each would "
            f"make it {100 * guessed:.1f} %. The base's forms always name one."
        )
    name, strongest = max(rows.items(), key=lambda entry: entry[1]["accuracy"]["value"])
    said.append(f"Against the strongest opponent, {name}, it has {_points(strongest)}.")
    return "\n".join(said)


def _points(row):
    change = row["change"]
    ends = f"{100 * change['low']:.1f} to {100 * change['high']:.1f}"
    return f"{100 * change['value']:+.1f} points ({ends}, p {p_value(row['p_holm'])})"
