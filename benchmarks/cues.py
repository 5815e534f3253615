"""Fits the weights of app/cues.py on the development part of the red flags, and writes app/cues.json.

    python -m benchmarks.cues            # prints what five folds say of messages that were not fitted

Deterministic: the same messages give the same file, to the last digit that is written.
"""

import hashlib
import json

import numpy as np
import yaml
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from app.cues import CUES, features
from app.guard import RULED, Guard, plain, words
from benchmarks import guard
from lib import stats
from lib.pipeline.files import write_text

STRENGTH, FOUND = 10.0, 0.95  # of LogisticRegression; the share of red flags that the thresholds have to find
LEAST = 0.1  # a weight below has no say
SELDOM = 2 * len(guard.VARIANTS)  # texts that hold a feature: two messages, each in all its variants


def development():
    """The development part, in every variant; Spanish, which has no variants, as often as English."""
    asked = [q for q in guard.questions() if q["part"] == "development"]
    return [q for q in asked for _ in range(len(guard.VARIANTS) if q["variant"] == "Spanish" else 1)]


def material():
    """(texts, whether each is a red flag, the pair that each belongs to) of the development part."""
    asked = development()
    return [words(plain(q["text"])) for q in asked], [q["flag"] for q in asked], [q["pair"] for q in asked]


def scaled(counts):
    """Counts of features divided by the root of their sum, as Cues.score does it."""
    return sparse.diags(np.asarray(counts.sum(1)).ravel().clip(1) ** -0.5) @ counts


def fitted(texts, flags):
    """(vectorizer, regression) of some messages."""
    counter = CountVectorizer(analyzer=features, min_df=SELDOM)
    model = LogisticRegression(C=STRENGTH, max_iter=2000)
    return counter, model.fit(scaled(counter.fit_transform(texts)), flags)


def held_out(texts, flags, pairs):
    """The score of each message from a fit without its pair, in five folds."""
    scores, flags = np.zeros(len(texts)), np.array(flags)
    for learnt, left in GroupKFold(5).split(texts, flags, pairs):
        counter, model = fitted([texts[at] for at in learnt], flags[learnt])
        scores[left] = model.decision_function(scaled(counter.transform([texts[at] for at in left])))
    return scores


def thresholds(scores, ruled, flags):
    """(threshold of the score alone, where a rule fires too): the pair with fewest false alarms that finds FOUND."""
    best = (2.0, 0.0, 0.0)
    for with_rule in np.quantile(scores, np.linspace(0, 0.9, 91)):
        for alone in np.quantile(scores, np.linspace(0.2, 1, 121)):
            fired = (scores > alone) | (ruled & (scores > with_rule))
            if alone >= with_rule and fired[flags].mean() >= FOUND:
                best = min(best, (float(fired[~flags].mean()), float(alone), float(with_rule)))
    return best[1:]


def unread():
    """Of each text of the development part: whether no rule was written from it, and whether a rule fires on it."""
    learnt = yaml.safe_load(guard.LEARNT.read_text(encoding="utf-8"))
    names, rules, asked = set(learnt["pairs"]), Guard(), development()
    fires = {text: bool(rules.emergencies(words(plain(text)[-RULED:]))) for text in {q["text"] for q in asked}}
    return np.array([q["pair"] in names for q in asked]), np.array([fires[q["text"]] for q in asked])


def write(counter, model, threshold, ruled, path=CUES):
    """Weights and thresholds as app.cues reads them, a weight a line; those that hardly weigh are left out."""
    weights = {name: round(float(model.coef_[0, at]), 2) for name, at in sorted(counter.vocabulary_.items())}
    document = {
        "threshold": round(threshold, 2), "ruled": round(ruled, 2), "bias": round(float(model.intercept_[0]), 2),
        "weights": {name: weight for name, weight in weights.items() if abs(weight) >= LEAST},
    }  # fmt: skip
    write_text(path, json.dumps(document, ensure_ascii=False, indent=0, separators=(",", ":")) + "\n")


def main():
    """Fit, print, write."""
    texts, flags, pairs = material()
    scores, side, (new, fires) = held_out(texts, flags, pairs), np.array(flags), unread()
    alone, with_rule = thresholds(scores[new], fires[new], side[new])
    fired = (scores > alone) | (fires & (scores > with_rule))
    new &= np.array([q["variant"] == "plain" for q in development()])
    for name, part in (("red flags", new & side), ("benign", new & ~side)):
        share = stats.proportion(list(fired[part]))
        print("{}: {value:.1%} found by score or rule ({low:.1%} to {high:.1%}, n = {n})".format(name, **share))
    write(*fitted(texts, flags), alone, with_rule)
    print(f"{CUES.stat().st_size / 2**10:,.0f} KiB, sha256 {hashlib.sha256(CUES.read_bytes()).hexdigest()[:12]}")


if __name__ == "__main__":
    main()
