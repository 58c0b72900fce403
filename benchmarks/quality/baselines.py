"""Simple generators that a model has to beat. Each learns from training cells and draws a cell per requested label.

Every baseline is called as ``fit_sample(train_adata, labels, requested_labels, seed)`` and returns CSR counts
``(requested, genes)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from scipy.stats import nbinom, norm, rankdata

from benchmarks.quality.splits import to_dense

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray

    Baseline = Callable[[AnnData, ArrayLike, ArrayLike, int], sp.csr_matrix]

#: Share of the identity in the copula's correlation. Ledoit and Wolf's estimate (0.3 to 0.9 on `pbmc3k`, 2 000
#: genes) gives a weaker baseline: its cells are less correlated and easier to tell from real ones by their genes.
COPULA_SHRINKAGE = 0.3


def scvi_prior(train_adata: AnnData, labels: ArrayLike, requested_labels: ArrayLike, seed: int) -> sp.csr_matrix:
    """Decode draws from scVI's prior, with the label as batch, and draw negative-binomial counts.

    Library sizes are drawn from the training cells of the label.

    References
    ----------
    Lopez et al. 2018, Deep generative modeling for single-cell transcriptomics.
    """
    import scvi
    import torch

    scvi.settings.seed = seed
    adata = train_adata.copy()
    labels, requested = np.asarray(labels).astype(str), np.asarray(requested_labels).astype(str)
    adata.obs["_label"] = labels
    scvi.model.SCVI.setup_anndata(adata, layer="counts", batch_key="_label")
    model = scvi.model.SCVI(adata, gene_likelihood="nb")
    model.train(accelerator="cpu", enable_progress_bar=False)

    rng = np.random.default_rng(seed)
    known, totals = to_dense(adata.layers["counts"]).sum(axis=1), np.empty(len(requested))
    for label in np.unique(requested):
        rows = requested == label
        totals[rows] = rng.choice(known[labels == label], rows.sum())
    categories = model.adata_manager.get_state_registry("batch")["categorical_mapping"]
    codes = np.searchsorted(categories.astype(str), requested)  # scvi-tools sorts its categories
    z = rng.standard_normal((len(requested), model.module.n_latent)).astype(np.float32)
    with torch.inference_mode():
        px = model.module.generative(
            z=torch.from_numpy(z),
            library=torch.from_numpy(np.log(totals).astype(np.float32))[:, None],
            batch_index=torch.from_numpy(codes)[:, None],
        )["px"]
    return sp.csr_matrix(draw_negative_binomial(px.mu.numpy(), px.theta.numpy(), rng))


def negative_binomial_copula(
    train_adata: AnnData, labels: ArrayLike, requested_labels: ArrayLike, seed: int
) -> sp.csr_matrix:
    """Draw every label's genes from negative binomials fitted by moments, correlated by a Gaussian copula.

    The correlation of normal scores is shrunk towards the identity, because there are more genes than cells. This is
    the idea of scDesign2 and scDesign3. A gene that varies less than a Poisson variable gets a Poisson margin. The
    library size is not modelled separately: the copula represents it as correlation.

    References
    ----------
    Song et al. 2024, scDesign3 generates realistic in silico data for multimodal single-cell and spatial omics.
    """
    return _per_label(_copula_of_label, train_adata, labels, requested_labels, seed)


def independent_negative_binomial(
    train_adata: AnnData, labels: ArrayLike, requested_labels: ArrayLike, seed: int
) -> sp.csr_matrix:
    """Draw every gene independently from a negative binomial fitted by moments, scaled by an empirical library size."""
    return _per_label(_independent_of_label, train_adata, labels, requested_labels, seed)


BASELINES: dict[str, Baseline] = {
    "scVI": scvi_prior,
    "NB-copula": negative_binomial_copula,
    "independent-NB": independent_negative_binomial,
}


def _per_label(
    draw: Callable[[NDArray, int, np.random.Generator], NDArray],
    train_adata: AnnData,
    labels: ArrayLike,
    requested_labels: ArrayLike,
    seed: int,
) -> sp.csr_matrix:
    """Call ``draw(counts of the label, number of cells, rng)`` for every requested label."""
    counts, rng = to_dense(train_adata.layers["counts"]), np.random.default_rng(seed)
    labels, requested = np.asarray(labels).astype(str), np.asarray(requested_labels).astype(str)
    drawn = np.zeros((len(requested), counts.shape[1]), dtype=np.float32)
    for label in np.unique(requested):
        rows = requested == label
        drawn[rows] = draw(counts[labels == label], int(rows.sum()), rng)
    return sp.csr_matrix(drawn)


def _copula_of_label(counts: NDArray, n_cells: int, rng: np.random.Generator) -> NDArray:
    mean, variance = counts.mean(axis=0, dtype=np.float64), counts.var(axis=0, dtype=np.float64)
    inverse_dispersion = np.clip(mean**2 / np.maximum(variance - mean, 1e-8), 1e-3, 1e6)
    quantiles = _copula_quantiles(counts, n_cells, rng)
    drawn, expressed = np.zeros_like(quantiles), mean > 0
    theta = inverse_dispersion[expressed]
    drawn[:, expressed] = nbinom.ppf(quantiles[:, expressed], theta, theta / (theta + mean[expressed]))
    return drawn


def _copula_quantiles(counts: NDArray, n_cells: int, rng: np.random.Generator) -> NDArray:
    """Draw correlated quantiles ``(n_cells, genes)`` from the copula of the counts' normal scores."""
    n_train = len(counts)
    scores = norm.ppf((rankdata(counts, axis=0) - 0.5) / n_train)
    scores -= scores.mean(axis=0)
    spread = scores.std(axis=0)
    scores /= np.where(spread > 0, spread, 1)
    # (1 - s) S + s I has the square root [sqrt(1 - s) X' / sqrt(n), sqrt(s) I]: the matrix itself is never needed
    shared = rng.standard_normal((n_cells, n_train)) @ scores / np.sqrt(n_train)
    own = rng.standard_normal(shared.shape)
    return norm.cdf(np.sqrt(1 - COPULA_SHRINKAGE) * shared + np.sqrt(COPULA_SHRINKAGE) * own)


def _independent_of_label(counts: NDArray, n_cells: int, rng: np.random.Generator) -> NDArray:
    totals = counts.sum(axis=1, keepdims=True)
    share = counts.sum(axis=0) / totals.sum()
    library, expected = rng.choice(totals[:, 0], n_cells)[:, None], totals * share
    excess = ((counts - expected) ** 2 - expected).sum(axis=0)  # E[(x - mean)^2] = mean + mean^2 / theta
    theta = np.clip((expected**2).sum(axis=0) / np.maximum(excess, 1e-8), 1e-3, 1e6)
    return draw_negative_binomial(library * share, theta, rng)


def draw_negative_binomial(mean: NDArray, theta: NDArray, rng: np.random.Generator) -> NDArray:
    """Draw counts with these means and inverse dispersions."""
    theta = np.broadcast_to(theta, mean.shape).astype(np.float64)
    return rng.poisson(rng.gamma(theta, mean / theta)).astype(np.float32)
