"""Fits the weights of app/cues.py on the development part of the red flags, and writes app/cues.json.

    python -m benchmarks.cues            # prints what five folds say of messages that were not fitted

Deterministic: the same messages give the same file, to the last digit that is written.
"""

import hashlib
import json

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from app.cues import CUES, features
from app.guard import plain, words
from benchmarks import guard
from lib import stats
from lib.pipeline.files import write_text

STRENGTH, FALSE_ALARMS = 30.0, 0.03  # of LogisticRegression; what the threshold lets pass
LEAST = 0.1  # a weight below has no say
SELDOM = 2 * len(guard.VARIANTS)  # texts that hold a feature: two messages, each in all its variants


def material():
    """(texts, whether each is a red flag, the pair that each belongs to) of the development part, in every variant."""
    asked = [q for q in guard.questions() if q["part"] == "development"]
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


def write(counter, model, threshold, path=CUES):
    """The weights as app.cues reads them, one a line; those that hardly weigh are left out."""
    weights = {name: round(float(model.coef_[0, at]), 2) for name, at in sorted(counter.vocabulary_.items())}
    document = {
        "threshold": round(threshold, 2), "bias": round(float(model.intercept_[0]), 2),
        "weights": {name: weight for name, weight in weights.items() if abs(weight) >= LEAST},
    }  # fmt: skip
    write_text(path, json.dumps(document, ensure_ascii=False, indent=0, separators=(",", ":")) + "\n")


def main():
    """Fit, print, write."""
    texts, flags, pairs = material()
    scores, side = held_out(texts, flags, pairs), np.array(flags)
    threshold = float(np.quantile(scores[~side], 1 - FALSE_ALARMS))
    for name, part in (("red flags", side), ("benign", ~side)):
        share = stats.proportion(list(scores[part] > threshold))
        print("{}: {value:.1%} above the threshold ({low:.1%} to {high:.1%}, n = {n})".format(name, **share))
    write(*fitted(texts, flags), threshold)
    print(f"{CUES.stat().st_size / 2**10:,.0f} KiB, sha256 {hashlib.sha256(CUES.read_bytes()).hexdigest()[:12]}")


if __name__ == "__main__":
    main()
