"""Fits the weights of app/cues.py on the development part of the red flags, and writes app/cues.npz.

    python -m benchmarks.cues            # prints what five folds say of messages that were not fitted

A linear support vector machine on runs of letters and words, each weighed by its inverse document frequency to the
power of RARE: what few messages hold tells most. Deterministic: the same messages give the same file.
"""

import argparse
import hashlib
import random
from functools import cache

import numpy as np
import yaml
from scipy import sparse
from sklearn.model_selection import GroupKFold
from sklearn.svm import LinearSVC

from app.cues import BITS, CUES, STEP, WINDOW, buckets, urgency
from app.guard import RULED, Guard, plain, words
from benchmarks import guard
from lib import stats
from lib.pipeline.files import read_jsonl

RARE, STRENGTH = 3, 1.0  # the power of the inverse document frequency; LinearSVC's C
SEEN, WRONG = 20, 0.02  # of a rule that no score silences: red flags on which it fires, its share of benign messages
BESIDE = guard.FLAGS.with_name("redflags_beside.yaml")  # sentences that say nothing of the danger


@cache
def development():
    """[{"pair", "flag", "text", "new", "plain", "Spanish"}]: each message of the development part four times.

    As it is, with typing errors, and with a sentence of BESIDE behind and before it; a long benign one in windows, too.
    new: no rule was written from it.
    """
    learnt, beside = {row["id"] for row in read_jsonl(guard.LEARNT)}, yaml.safe_load(BESIDE.read_text(encoding="utf-8"))
    asked = [q for q in guard.questions() if q["part"] == "development" and q["variant"] in ("plain", "Spanish")]
    found = []
    for q in asked:
        chance, text = random.Random(f"{q['pair']}{q['flag']}"), q["text"]
        behind, before = chance.sample(beside["es" if q["variant"] == "Spanish" else "en"], 2)
        texts = [text, guard.typing_errors(text, chance.random()), f"{text} {behind}", f"{before} {text}"]
        texts += [] if q["flag"] else windows(text)
        about = {"pair": q["pair"], "flag": q["flag"], "new": q["pair"] in learnt, "Spanish": q["variant"] == "Spanish"}
        found += [about | {"text": words(plain(said)), "plain": not at} for at, said in enumerate(texts)]
    return found


def windows(text):
    """The windows that `urgency` reads of a text that is longer than one: of a benign text each of them is benign."""
    found = text.split()
    starts = range(0, len(found) - WINDOW + STEP, STEP) if len(found) > WINDOW else ()
    return [" ".join(found[start : start + WINDOW]) for start in starts]


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


def rounded(model):
    """(weights of a byte [2, buckets], unit, bias): a thousandth of the weights, the largest, is cut to 127 units."""
    weights, bias = model
    unit = float(np.quantile(np.abs(weights[weights != 0]), 0.999)) / 127
    return np.clip(np.round(weights / unit), -127, 127).astype(np.int8), unit, bias


def scored(texts, model):
    """The score of each text as it is served: of its most urgent window, by weights from `rounded`."""
    weights, unit, bias = model
    return np.array([bias + unit * urgency(text, *weights) for text in texts])


def held_out(texts, counts, flags, pairs, power=RARE):
    """The score of each message from a fit without its pair, in five folds."""
    scores = np.zeros(len(flags))
    for learnt, left in GroupKFold(5).split(flags, groups=pairs):
        model = rounded(fitted([part[learnt] for part in counts], flags[learnt], power))
        scores[left] = scored([texts[at] for at in left], model)
    return scores


def thresholds(scores, fires, certain, flags):
    """(threshold of the score alone, where a rule fires too) at which the larger of the two errors is smallest."""
    best = (2.0, 2.0, 0.0, 0.0)
    for with_rule in np.quantile(scores, np.linspace(0, 0.8, 81)):
        for alone in np.quantile(scores, np.linspace(0.2, 0.8, 121)):
            fired = certain | (scores > alone) | (fires & (scores > with_rule))
            missed, alarms = float(1 - fired[flags].mean()), float(fired[~flags].mean())
            if alone >= with_rule:
                best = min(best, (max(missed, alarms), missed + alarms, float(alone), float(with_rule)))
    return best[2:]


def certain_rules(found, flags):
    """Names of rules that the score may not silence: of the messages on which they fire, few are benign.

    found: ids of the rules that fire on each message.
    """
    sides = {name: [0, 0] for name in sorted({name for names in found for name in names})}
    for names, flag in zip(found, flags, strict=True):
        for name in names:
            sides[name][int(flag)] += 1
    return [name for name, (calm, red) in sides.items() if red >= SEEN and calm <= WRONG * (calm + red)]


def write(model, threshold, ruled, certain, path=CUES):
    """Weights from `rounded`, bias, thresholds and names of rules as app.cues reads them."""
    (letters, runs), unit, bias = model
    partial, numbers = path.with_name(f".{path.name}"), np.array([unit, bias, threshold, ruled])
    np.savez_compressed(partial, letters=letters, words=runs, numbers=numbers, certain=np.array(certain, "U32"))
    partial.replace(path)


def main(args=None):
    """Fit, print, write. Another power than RARE prints what it would give, and writes nothing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--power", type=float, default=RARE, help="of the inverse document frequency")
    power, asked, rules = parser.parse_args(args).power, development(), Guard()
    flags, new, whole, spanish = (np.array([q[key] for q in asked]) for key in ("flag", "new", "plain", "Spanish"))
    texts, pairs = [q["text"] for q in asked], [q["pair"] for q in asked]
    found = [rules.emergencies(text[-RULED:]) for text in texts]
    chosen = certain_rules([names for names, use in zip(found, new & whole, strict=True) if use], flags[new & whole])
    fires, certain = (np.array([bool(set(names) & kept) for names in found])
                      for kept in (set().union(*found), set(chosen)))  # fmt: skip
    counts = counted(texts)
    scores = held_out(texts, counts, flags, pairs, power)
    alone, with_rule = thresholds(scores[new], fires[new], certain[new], flags[new])
    fired = certain | (scores > alone) | (fires & (scores > with_rule))
    print(f"{len(set(pairs)):,} pairs, {len(texts):,} texts; {len(chosen)} rules are never silenced")
    for language, these in (("English", ~spanish), ("Spanish", spanish)):
        for name, part in (("red flags", flags), ("benign", ~flags)):
            share = stats.proportion(list(fired[new & whole & these & part]))
            print(language, name, "with a notice: {value:.1%} ({low:.1%} to {high:.1%}, n = {n})".format(**share))
    if power == RARE:
        write(rounded(fitted(counts, flags)), alone, with_rule, chosen)
        print(f"{CUES.stat().st_size / 2**10:,.0f} KiB, sha256 {hashlib.sha256(CUES.read_bytes()).hexdigest()[:12]}")


if __name__ == "__main__":
    main()
