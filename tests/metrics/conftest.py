"""Builders that the tests of metrics share."""

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest

N_GENES, N_PROTEINS = 30, 5


def _make_paired_cells(seed, n_cells=300, *, linked=True, strength=0.5, label_shift=0.0):
    """Build cells whose protein P0, P1, .. follows the transcript of the same number, in the same cell or another."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n_cells)
    programme = strength * rng.normal(size=(n_cells, N_PROTEINS)) + label_shift * labels[:, None]
    of_genes = np.exp(np.pad(programme, ((0, 0), (0, N_GENES - N_PROTEINS)))) * 20
    order = np.arange(n_cells) if linked else np.concatenate([np.flatnonzero(labels == k) for k in (0, 1)])
    of_proteins = np.exp(programme) * 50
    if not linked:
        of_proteins[order] = of_proteins[np.concatenate([rng.permutation(np.flatnonzero(labels == k)) for k in (0, 1)])]
    names = [f"{seed}_{i}" for i in range(n_cells)]
    parts = {
        "rna": (rng.poisson(of_genes), [f"P{g}" if g < 2 else f"g{g}" for g in range(N_GENES)]),
        "prot": (rng.poisson(of_proteins), [f"p{g}" for g in range(N_PROTEINS)]),
    }
    mdata = md.MuData(
        {
            name: ad.AnnData(x.astype(np.float32), obs=pd.DataFrame(index=names), var=pd.DataFrame(index=var))
            for name, (x, var) in parts.items()
        }
    )
    mdata.obs["kind"] = pd.Categorical(np.array(["a", "b"])[labels])
    return mdata


@pytest.fixture(scope="session")
def make_paired_cells():
    """Build cells with two modalities."""
    return _make_paired_cells
