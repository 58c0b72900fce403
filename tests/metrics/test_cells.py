"""Points come from arrays, and principal components from the genes that vary most."""

import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData

from scgen_diffusion.metrics import ComparisonSpace, Expression, wasserstein_2
from scgen_diffusion.metrics._cells import as_points


def test_arrays_are_points_as_they_are():
    values = np.random.default_rng(0).standard_normal((5, 2)).astype(np.float32)
    assert as_points(real=values)[0] is values
    assert (as_points(real=sp.csr_matrix(values))[0] == values).all()
    with pytest.raises(ValueError, match="synthetic"):
        wasserstein_2(np.ones((4, 2)), [[1.0, np.nan]])


def test_a_space_is_of_the_genes_that_vary_most():
    x = np.random.default_rng(0).random((50, 6)) * [1, 5, 2, 9, 3, 0.1]
    assert ComparisonSpace.fit(Expression(sp.csr_matrix(x), None), n_genes=3).genes.tolist() == [1, 3, 4]


def test_cells_of_other_genes_are_refused():
    train = AnnData(np.random.default_rng(0).poisson(2.0, (50, 8)).astype(np.float32))
    space = ComparisonSpace.fit(train, n_components=3)
    assert space.project(train).shape == (50, 3)
    with pytest.raises(ValueError, match="5 genes.* 8"):
        space.project(train[:, :5].copy())
    with pytest.raises(ValueError, match="order"):
        space.project(train[:, ::-1].copy())
