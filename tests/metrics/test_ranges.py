"""Arguments out of range are refused by name, before anything is computed from them."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from scgen_diffusion import metrics

POINTS = np.random.default_rng(0).normal(size=(40, 3))
COUNTS = AnnData(
    np.random.default_rng(0).poisson(3.0, (40, 6)).astype(np.float32),
    obs=pd.DataFrame({"label": ["a", "b"] * 20}, index=[f"cell{i}" for i in range(40)]),
)


@pytest.mark.parametrize(
    ("function", "sets", "name", "values"),
    [
        (metrics.squared_mmd, 2 * [POINTS], "squared_scale", (-1, 0, np.nan, np.inf, "1")),
        (metrics.ilisi, 2 * [POINTS], "perplexity", (0.2, -1, np.nan, np.inf)),
        (metrics.wasserstein_2, 2 * [POINTS], "max_cells", (0, 2.5)),
        (metrics.precision_recall_density_coverage, 2 * [POINTS], "k", (0, 2.5)),
        (metrics.nearest_distances, 2 * [POINTS], "k", (0, 2.5, 41)),
        (metrics.membership_inference, 3 * [POINTS], "k", (0, 2.5)),
        (metrics.marker_genes, [COUNTS, "label"], "n_genes", (-1, 0, 2.5)),
        (lambda *cells, **how: metrics.marker_agreement(*cells, groupby="label", **how), 2 * [COUNTS], "n_genes", (0,)),
        (metrics.ComparisonSpace.fit, [COUNTS], "n_components", (0, -1, 2.5)),
        (metrics.ComparisonSpace.fit, [COUNTS], "n_genes", (0, -1)),
        (metrics.de_overlap, metrics.effects(COUNTS, COUNTS, COUNTS), "n_top", (0, 2.5)),
    ],
)
def test_numbers_out_of_range_are_refused(function, sets, name, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"`{name}` must be .*but found {value!r}"):
            function(*sets, **{name: value})


@pytest.mark.parametrize("function", [metrics.gene_correlation_similarity, metrics.gene_correlation_slope])
@pytest.mark.parametrize("values", [POINTS[:, :1], sp.csr_matrix(POINTS), POINTS[:, 0], AnnData(POINTS)])
def test_correlations_need_dense_values_of_two_genes(function, values):
    with pytest.raises(ValueError, match="`synthetic_values` must be a dense array .* but is a .* of shape"):
        function(POINTS, values)
    with pytest.raises(ValueError, match="`values` must be a dense array .* but is a .* of shape"):
        metrics.gene_correlations(values)


def test_counts_are_asked_for_in_place_of_cells():
    with pytest.raises(TypeError, match=r"`values` must be the counts, .* but is AnnData"):
        metrics.log_normalise(AnnData(POINTS))
