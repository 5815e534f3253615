"""A learned score of how urgent a question is: weights of words, of their parts and of neighbours (cues.json).

The rules know phrases; this knows what the words of a few thousand messages have in common. `python -m benchmarks.cues`
fits the weights.
"""

import json
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

CUES = Path(__file__).with_name("cues.json")
WINDOW, STEP = 60, 15  # words that are scored together: a red flag in a long message counts as in a short one


def parts(word):
    """What a word is weighed by: itself, and its runs of two to five letters, with a blank at both ends."""
    whole = f" {word} "
    return {whole} | {whole[at : at + size] for size in range(2, 6) for at in range(len(whole) - size + 1)}


def features(text):
    """All that is weighed in a text from `guard.words`: the parts of each word, and each pair of neighbours."""
    found = text.split()
    return [part for word in found for part in parts(word)] + [f"{a} {b}" for a, b in pairwise(found)]


class Cues:
    """The weights of a file, from benchmarks.cues. path: {"threshold", "ruled", "bias", "weights": {feature: weight}}.

    A question is urgent above the threshold, or above `ruled`, which is lower, where a rule fires as well.
    """

    def __init__(self, path=CUES):
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        self.weights, self.bias = document["weights"], document["bias"]
        self.threshold, self.ruled = document["threshold"], document["ruled"]
        self.word = lru_cache(2**12)(lambda word: self._sum(parts(word)))

    def _sum(self, found):
        known = [self.weights[feature] for feature in found if feature in self.weights]
        return sum(known), len(known)

    def score(self, text):
        """Log-odds of an emergency in the most urgent window of a text from `guard.words`.

        The sum of the weights that are known, divided by the root of how many: a longer text is not more urgent.
        """
        found, known = text.split(), self.weights.get
        sums, counts, last = [0.0], [0], None
        for word in found:
            weight, count = self.word(word)
            pair = last and known(f"{last} {word}")
            sums.append(sums[-1] + weight + (pair or 0.0))
            counts.append(counts[-1] + count + (pair is not None))
            last = word
        starts = range(0, max(1, len(found) - WINDOW + STEP), STEP)
        windows = ((start, min(start + WINDOW, len(found))) for start in starts)
        return self.bias + max((sums[b] - sums[a]) / max(1, counts[b] - counts[a]) ** 0.5 for a, b in windows)
