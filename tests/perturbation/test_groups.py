"""Sums of profiles over groups of cells."""

import torch

from scgen_diffusion.perturbation import variance_of_sums


def test_a_gene_counts_as_if_one_more_cell_expressed_it():
    """Otherwise genes without molecules among few cells would have no sampling noise."""
    n, n_expressing, value = torch.full((3,), 10.0), torch.tensor([0.0, 1.0, 5.0]), 2.0

    found = variance_of_sums(n, n_expressing * value, n_expressing * value**2)

    share = (n_expressing + 1) / 11
    torch.testing.assert_close(found, value**2 * share * (1 - share) * 10 / 9)
    assert variance_of_sums(torch.ones(3), n_expressing, n_expressing).isnan().all()
