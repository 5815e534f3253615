"""Questions told again in other words: which content words two questions share, the rare ones counting more.

A copy retold keeps its findings and loses its word order, so that neither runs of words nor shingles see it. A question
is the set of its words' first letters, in unspaced scripts of pairs of characters, without those that say nothing.
"""

import numpy as np
from scipy import sparse

from lib.dataset import grams, wording

STEM = 5  # letters of a word that count, so that bruising and bruises are one
LEAST = 4  # words in common: fewer say nothing
COUNT = 2.0**20  # what a word in common adds beside its weight, so that one product gives number and weight of all
SHARE = 0.65  # of the weights of both questions' words, from which on one is the other told again


def features(texts):
    """(hashes, rows): the different content words of each text, and the texts' positions."""
    hashes, offsets, chained = grams.cut(texts, STEM)
    rows = np.repeat(np.arange(len(texts)), np.diff(offsets))
    says = ~np.isin(hashes, grams.cut([wording.EMPTY, wording.NUMBERS], STEM)[0])
    pairs = np.flatnonzero(chained)
    says[pairs] |= says[pairs + 1]
    hashes[pairs] = grams.mixed(hashes[pairs] * grams.BASE + hashes[pairs + 1])
    hashes, rows = hashes[says], rows[says]
    _, first = np.unique(hashes + rows.astype(np.uint64) * grams.BASE, return_index=True)
    return hashes[first], rows[first]


class Index:
    """Questions by their content words."""

    def __init__(self, texts):
        """texts: a list of questions; a word that few of them have weighs more, one that none has weighs 1."""
        hashes, rows = features(texts)
        self.words, columns, counts = np.unique(hashes, return_inverse=True, return_counts=True)
        self.weights = np.log((1 + len(texts)) / (1 + counts)) + 1
        shape = len(texts), len(self.words)
        self.has = sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape)
        self.totals, self.scale = self.has @ self.weights, sparse.diags_array(self.weights + COUNT)

    def closest(self, texts):
        """(n,) the question that each text tells again, -1 for none.

        The share is Dice's, 2 x weight in common / weight of both, of at least LEAST words in common.
        """
        none = np.full(len(texts), -1)
        if not len(self.words):
            return none
        hashes, rows = features(texts)
        places = np.minimum(np.searchsorted(self.words, hashes), len(self.words) - 1)
        known = self.words[places] == hashes
        ours = sparse.csr_array((np.ones(known.sum()), (rows[known], places[known])), (len(texts), len(self.words)))
        totals = ours @ self.weights + np.bincount(rows[~known], minlength=len(texts))
        both = sparse.csr_array(ours @ self.scale @ self.has.T)  # of every pair that shares a word
        row, counts = np.repeat(np.arange(len(texts)), np.diff(both.indptr)), both.data // COUNT
        pick = counts >= LEAST
        row, column, common = row[pick], both.indices[pick], (both.data - counts * COUNT)[pick]
        share = 2 * common / (totals[row] + self.totals[column])
        order = np.argsort(share)
        none[row[order]] = np.where(share[order] >= SHARE, column[order], -1)
        return none
