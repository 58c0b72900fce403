"""Points come from arrays."""

import numpy as np
import pytest
import scipy.sparse as sp

from scgen_diffusion.metrics import wasserstein_2
from scgen_diffusion.metrics._cells import as_points


def test_arrays_are_points_as_they_are():
    values = np.random.default_rng(0).standard_normal((5, 2)).astype(np.float32)
    assert as_points(real=values)[0] is values
    assert (as_points(real=sp.csr_matrix(values))[0] == values).all()
    with pytest.raises(ValueError, match="synthetic"):
        wasserstein_2(np.ones((4, 2)), [[1.0, np.nan]])
