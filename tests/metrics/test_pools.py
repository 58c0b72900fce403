"""The cells that are drawn for a table."""

import numpy as np
import scipy.sparse as sp

from scgen_diffusion.metrics import Expression
from scgen_diffusion.metrics._comparison import Sample
from scgen_diffusion.metrics._pools import shuffle_genes


def test_shuffling_stays_within_groups_and_keeps_every_genes_values():
    values = sp.csr_matrix(np.arange(1, 25, dtype=np.float32).reshape(6, 4))
    labels = np.array(list("aabbbb"))
    sample = Sample(Expression(values, np.ones(6)), np.zeros((6, 1)), labels)
    shuffled = shuffle_genes(sample, lambda expression: np.zeros((6, 1)), np.random.default_rng(0))
    for label in "ab":
        rows = labels == label
        before, after = values.toarray()[rows], shuffled.expression.values.toarray()[rows]
        np.testing.assert_array_equal(np.sort(before, axis=0), np.sort(after, axis=0))
    assert (shuffled.expression.values != values).nnz > 0
