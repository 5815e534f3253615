"""How far answers and labels agree with a reference: exact match, ROUGE-L, BLEU, macro-F1 and the majority baseline."""

from collections import Counter

import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer
from sacrebleu.metrics import BLEU
from sklearn.metrics import f1_score

from lib import stats
from lib.dataset.forms import normalise
from lib.dataset.wording import ALONE, spaced


class Words(DefaultTokenizer):
    """The library's words; of a text in a script without blanks, whose letters it drops, every character."""

    def tokenize(self, text):
        return normalise(text).split() if ALONE.search(text) else super().tokenize(text)


ROUGE = RougeScorer(["rougeL"], tokenizer=Words(use_stemmer=False))
SENTENCE = BLEU(effective_order=True)  # only the n-gram orders that a short text has
UNPARSED = -1  # code of a prediction that is none of the labels


def of(answer, reference):
    """How far an answer, without its reasoning, has the words of a reference: {"exact", "rouge_l", "bleu"}.

    exact: the same text after normalise; rouge_l: F1 of the longest common subsequence of words, and bleu, of the
    sentence: both 0 to 100. All are None where the reference has no word. In scripts without blanks, such as Chinese,
    every character is a word.
    Sources: Lin 2004, as in rouge-score; Papineni et al. 2002, as in sacrebleu (tokenizer 13a, exponential smoothing).
    """
    if not normalise(reference):
        return dict.fromkeys(("exact", "rouge_l", "bleu"))
    return {
        "exact": normalise(answer) == normalise(reference),
        "rouge_l": 100 * ROUGE.score(reference, answer)["rougeL"].fmeasure,
        "bleu": SENTENCE.sentence_score(spaced(answer), [spaced(reference)]).score,
    }


def macro_f1(picked, truth, labels):
    """Mean over labels of the F1 of each, with a question bootstrap: {"value", "low", "high", "n"}.

    picked: predictions in the order of truth; anything that is no label, such as None for an unparsed answer, is wrong.
    A label that is never true and never picked counts 0, as in scikit-learn; so give only labels that occur.
    Raises ValueError when a true label is not among labels.
    """
    if unknown := sorted(set(truth) - set(labels), key=str):
        raise ValueError(f"true labels {unknown} are not among {list(labels)}")
    codes = {label: code for code, label in enumerate(labels)}
    predicted = np.array([codes.get(label, UNPARSED) for label in picked])
    true = np.array([codes[label] for label in truth])
    value = f1_score(true, predicted, labels=list(codes.values()), average="macro", zero_division=0)
    each = np.arange(len(codes))
    is_true, is_picked = true[:, None] == each, predicted[:, None] == each
    counts = np.stack([is_true & is_picked, is_true, is_picked], axis=1)  # (questions, 3, labels)
    low, high = stats.bootstrap(counts, _macro_f1)
    return {"value": float(value), "low": low, "high": high, "n": len(truth)}


def _macro_f1(counts):
    """The same from (questions, 3, labels), in a hundredth of scikit-learn's time: the bootstrap asks 10,000 times."""
    hits, true, picked = counts.sum(axis=0)
    return float((2 * hits / np.maximum(true + picked, 1)).mean())


def majority(truth):
    """What always giving the commonest label scores: {"label", "value", "low", "high", "n"}, Wilson 95 %.

    Among equally common labels the first in sorted order. Raises ValueError when there is no label.
    """
    if not truth:
        raise ValueError("no labels to take the majority of")
    label, _ = min(Counter(truth).items(), key=lambda item: (-item[1], item[0]))
    return {"label": label, **stats.proportion([given == label for given in truth])}
