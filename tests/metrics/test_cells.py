"""Points and expression come from arrays."""

import numpy as np
import pytest
import scipy.sparse as sp

from scgen_diffusion.metrics import wasserstein_2
from scgen_diffusion.metrics._cells import as_points


def test_arrays_are_points_as_they_are():
    values = np.random.default_rng(0).standard_normal((5, 2)).astype(np.float32)
    assert as_points(real=values)[0] is values
    assert (as_points(real=sp.csr_matrix(values))[0] == values).all()


@pytest.mark.parametrize("values", [np.ones(3), np.ones((0, 3)), [[1.0, np.nan]], np.ones((4, 3))])
def test_arrays_that_are_not_points_of_the_same_features_are_refused(values):
    with pytest.raises(ValueError, match="`synthetic`"):
        wasserstein_2(np.ones((4, 2)), values)
