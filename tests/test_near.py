"""Near-duplicates are found, unrelated texts are not, and hashes agree with counting by hand."""

import random
import re

import numpy as np

from lib.dataset import grams, near


def text(rng, words=200):
    return " ".join(f"word{rng.randrange(20000)}" for _ in range(words))


def edited(source, changes, rng):
    words = source.split()
    for place in rng.sample(range(len(words)), changes):
        words[place] = f"other{rng.randrange(20000)}"
    return " ".join(words)


def jaccard(a, b):
    one, two = ({tuple(t.split()[i : i + 5]) for i in range(len(t.split()) - 4)} for t in (a, b))
    return len(one & two) / len(one | two)


def test_words_and_runs_by_hand():
    texts = ["Fever, and COUGH!", "", "fever and cough; fever and rash", "\u00c9tat f\u00e9brile", "..."]
    hashes, offsets = grams.words(texts)
    assert np.diff(offsets).tolist() == [len(re.findall(r"\w+", t)) for t in texts]
    assert (hashes[:3] == hashes[3:6]).all() and len(set(hashes.tolist())) == 6
    pairs, at = grams.runs(hashes, offsets, 2)
    assert np.diff(at).tolist() == [2, 0, 5, 1, 0]
    assert pairs[0] == pairs[2] == pairs[5] and pairs[1] == pairs[3] and len(set(pairs.tolist())) == 5
    whole, at = grams.runs(hashes, offsets, 4)
    assert np.diff(at).tolist() == [1, 0, 3, 1, 0]  # a text of fewer words is one gram


def test_runs_do_not_cross_texts_and_batches_change_nothing():
    rng = random.Random(1)
    texts = [text(rng, rng.randrange(0, 40)) for _ in range(50)]
    together = grams.runs(*grams.words(texts), 3)[0].tolist()
    alone = [gram for one in texts for gram in grams.runs(*grams.words([one]), 3)[0].tolist()]
    assert together == alone
    assert [len(batch) for batch in grams.batches(iter(texts), 20)] == [20, 20, 10]


def test_near_duplicates_are_found_and_others_are_not():
    rng = random.Random(2)
    originals = [text(rng) for _ in range(300)]
    copies = [edited(source, changes, rng) for source in originals for changes in (0, 1, 2, 40)]
    texts = originals + copies
    found = near.duplicates(near.signatures(iter(texts)))
    assert (found[:300] == -1).all()
    for number in range(300):
        for place, source in enumerate(copies[4 * number : 4 * number + 3], 300 + 4 * number):
            assert jaccard(source, originals[number]) > 0.85
            assert found[place] >= 0, "a near-duplicate was missed"
    far = found[300:].reshape(300, 4)[:, 3]
    assert (far == -1).all(), "a text with a fifth of its words changed was called a duplicate"


def test_against_another_set_gives_positions_in_it():
    rng = random.Random(3)
    others = [text(rng) for _ in range(40)]
    texts = [edited(others[7], 1, rng), text(rng), others[31]]
    assert near.duplicates(near.signatures(texts), near.signatures(others)).tolist() == [7, -1, 31]
    assert near.duplicates(near.signatures([]), near.signatures(others)).tolist() == []
    assert near.duplicates(near.signatures(texts), near.signatures([])).tolist() == [-1, -1, -1]
