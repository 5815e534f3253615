"""Fits the weights of app/cues.py on the development part of the red flags, and writes app/cues.npz.

    python -m benchmarks.cues            # prints what five folds say of messages that were not fitted

A linear support vector machine on runs of letters and words, each weighed by its inverse document frequency to the
power of RARE: what few messages hold tells most. Deterministic: the same messages give the same file.
"""

import hashlib
import random
from functools import cache

import numpy as np
import yaml
from scipy import sparse
from sklearn.model_selection import GroupKFold
from sklearn.svm import LinearSVC

from app.cues import BITS, CUES, buckets
from app.guard import RULED, Guard, plain, words
from benchmarks import guard
from lib import stats
from lib.pipeline.files import read_jsonl

RARE, STRENGTH = 3, 1.0  # the power of the inverse document frequency; LinearSVC's C
BESIDE = guard.FLAGS.with_name("redflags_beside.yaml")  # sentences that say nothing of the danger


@cache
def development():
    """[{"pair", "flag", "text", "new", "plain"}]: each message of the development part four times.

    As it is, with typing errors, and with a sentence of BESIDE behind and before it. new: no rule was written from it.
    """
    learnt, beside = {row["id"] for row in read_jsonl(guard.LEARNT)}, yaml.safe_load(BESIDE.read_text(encoding="utf-8"))
    asked = [q for q in guard.questions() if q["part"] == "development" and q["variant"] in ("plain", "Spanish")]
    found = []
    for q in asked:
        chance, text = random.Random(f"{q['pair']}{q['flag']}"), q["text"]
        behind, before = chance.sample(beside["es" if q["variant"] == "Spanish" else "en"], 2)
        texts = text, guard.typing_errors(text, chance.random()), f"{text} {behind}", f"{before} {text}"
        about = {"pair": q["pair"], "flag": q["flag"], "new": q["pair"] in learnt, "Spanish": q["variant"] == "Spanish"}
        found += [about | {"text": words(plain(said)), "plain": not at} for at, said in enumerate(texts)]
    return found


def counted(texts):
    """(letters, words), each sparse [texts, buckets]: how often a text has a bucket, by the root of how many it has."""
    places = [buckets(text) for text in texts]
    return [_sparse([found[kind].ravel() for found in places]) for kind in (0, 1)]


def _sparse(found):
    """A row for each array of buckets."""
    values = np.concatenate([np.full(len(row), len(row) ** -0.5) for row in found])
    begins = np.concatenate([[0], np.cumsum([len(row) for row in found])]).astype(np.int32)
    made = sparse.csr_array((values, np.concatenate(found).astype(np.int32), begins), shape=(len(found), 2**BITS))
    made.sum_duplicates()
    return made


def fitted(counts, flags, power=RARE):
    """(weights [2, buckets], bias) of messages from `counted`. power: of the inverse document frequency."""
    scales = []
    for part in counts:
        seen = np.bincount(part.indices, minlength=part.shape[1])
        rare = np.where(seen, (np.log((1 + len(flags)) / (1 + seen)) + 1) ** power, 0)
        scales.append(rare / np.sqrt(part.multiply(part).dot(rare**2).mean()))
    scaled = sparse.hstack([part * scale for part, scale in zip(counts, scales, strict=True)]).tocsr()
    model = LinearSVC(C=STRENGTH, random_state=0, max_iter=20_000).fit(scaled, flags)
    return model.coef_[0].reshape(2, -1) * scales, float(model.intercept_[0])


def scored(counts, model):
    """The score of each message, as `Cues.score` gives it for one that fits its window."""
    weights, bias = model
    return sum(part @ weight for part, weight in zip(counts, weights, strict=True)) + bias


def held_out(counts, flags, pairs, power=RARE):
    """The score of each message from a fit without its pair, in five folds."""
    scores = np.zeros(len(flags))
    for learnt, left in GroupKFold(5).split(flags, groups=pairs):
        model = fitted([part[learnt] for part in counts], flags[learnt], power)
        scores[left] = scored([part[left] for part in counts], model)
    return scores


def thresholds(scores, fires, flags):
    """(threshold of the score alone, where a rule fires too) at which the larger of the two errors is smallest."""
    best = (2.0, 2.0, 0.0, 0.0)
    for with_rule in np.quantile(scores, np.linspace(0, 0.8, 81)):
        for alone in np.quantile(scores, np.linspace(0.2, 0.8, 121)):
            fired = (scores > alone) | (fires & (scores > with_rule))
            missed, alarms = float(1 - fired[flags].mean()), float(fired[~flags].mean())
            if alone >= with_rule:
                best = min(best, (max(missed, alarms), missed + alarms, float(alone), float(with_rule)))
    return best[2:]


def write(model, threshold, ruled, path=CUES):
    """Weights as whole numbers of 8 bits and a unit, bias and thresholds, as app.cues reads them."""
    weights, bias = model
    unit = float(np.quantile(np.abs(weights[weights != 0]), 0.999)) / 127
    letters, runs = np.clip(np.round(weights / unit), -127, 127).astype(np.int8)
    partial = path.with_name(f".{path.name}")
    np.savez_compressed(partial, letters=letters, words=runs, numbers=np.array([unit, bias, threshold, ruled]))
    partial.replace(path)


def main():
    """Fit, print, write. Beside the score stands one that weighs rare runs as it weighs common ones."""
    asked, rules = development(), Guard()
    flags, new, whole, spanish = (np.array([q[key] for q in asked]) for key in ("flag", "new", "plain", "Spanish"))
    counts, pairs = counted([q["text"] for q in asked]), [q["pair"] for q in asked]
    fires = np.array([bool(rules.emergencies(q["text"][-RULED:])) for q in asked])
    found = {}
    for power in (0, RARE):
        scores = held_out(counts, flags, pairs, power)
        found[power] = thresholds(scores[new], fires[new], flags[new])
        fired = (scores > found[power][0]) | (fires & (scores > found[power][1]))
        print(f"power {power}, {len(asked):,} texts:")
        for language, these in (("English", ~spanish), ("Spanish", spanish)):
            for name, part in (("red flags", flags), ("benign", ~flags)):
                share = stats.proportion(list(fired[new & whole & these & part]))
                print(language, name, "with a notice: {value:.1%} ({low:.1%} to {high:.1%}, n = {n})".format(**share))
    write(fitted(counts, flags), *found[RARE])
    print(f"{CUES.stat().st_size / 2**10:,.0f} KiB, sha256 {hashlib.sha256(CUES.read_bytes()).hexdigest()[:12]}")


if __name__ == "__main__":
    main()
