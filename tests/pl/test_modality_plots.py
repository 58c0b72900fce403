"""The plots of one modality, on each of several."""

from __future__ import annotations

import anndata as ad
import matplotlib as mpl
import mudata as md
import numpy as np
import pandas as pd
import pytest

mpl.use("Agg")
import matplotlib.pyplot as plt

import scgen_diffusion as sgd

GENES, PROTEINS = ["CD4", "CD8A", "NCAM1", "ACTB"], ["CD4", "CD8a", "CD56"]


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def cells(seed, n_cells=120):
    """Build cells whose proteins follow the first three transcripts."""
    rng = np.random.default_rng(seed)
    rate = rng.gamma(3.0, 5.0, (n_cells, len(GENES)))
    obs = pd.DataFrame({"kind": np.repeat(["a", "b"], n_cells // 2)}, index=[f"{seed}_{i}" for i in range(n_cells)])
    parts = {"rna": (rng.poisson(rate), GENES), "prot": (rng.poisson(9 * rate[:, :3]), PROTEINS)}
    return md.MuData(
        {
            name: ad.AnnData(x.astype(np.float32), obs=obs.copy(), var=pd.DataFrame(index=var))
            for name, (x, var) in parts.items()
        }
    )


@pytest.mark.usefixtures("without_umap")
@pytest.mark.parametrize("modality", ["rna", "prot"])
def test_the_plots_of_real_and_synthetic_cells_take_one_modality(modality):
    real, synthetic = cells(0)[modality], cells(1)[modality]
    assert len(sgd.pl.umap(real, synthetic, color="kind", show=False)) == 3
    assert len(sgd.pl.umap(real, synthetic, color="CD4", show=False)) == 3
    assert len(sgd.pl.gene_correlation(real, synthetic, show=False)) == 2
    assert len(sgd.pl.zero_fraction(real, synthetic, show=False)) == 2
    assert sgd.pl.mean_variance(real, synthetic, show=False).get_title()
    assert sgd.pl.library_size(real, synthetic, show=False)


def test_the_table_of_one_modality_is_drawn():
    table = sgd.metrics.evaluate(cells(0, 180), cells(1), metrics=["w2", "gene_mean_error"], n_floor=1, n_bootstrap=0)
    ax = sgd.pl.scores(table[table["modality"] == "prot"], show=False)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["w2 ↓*", "gene_mean_error ↓*"]
