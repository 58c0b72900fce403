"""Simple generators that a model has to beat. Each learns from training cells and draws a cell per requested label.

Every baseline is called as ``fit_sample(train_adata, labels, requested_labels, seed)`` and returns CSR counts
``(requested, genes)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from scipy.stats import nbinom, norm, rankdata
from sklearn.mixture import GaussianMixture

from benchmarks.quality.splits import to_dense

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray

    Baseline = Callable[[AnnData, ArrayLike, ArrayLike, int], sp.csr_matrix]

#: Share of the identity in the copula's correlation. Ledoit and Wolf's estimate (0.3 to 0.9 on `pbmc3k`, 2,000
#: genes) gives a weaker baseline: its cells are less correlated and easier to tell from real ones by their genes.
COPULA_SHRINKAGE = 0.3
MOST_COMPONENTS = 10  # of the mixture of a label's latents


def scvi_mixture(train_adata: AnnData, labels: ArrayLike, requested_labels: ArrayLike, seed: int) -> sp.csr_matrix:
    """Decode draws from a Gaussian mixture per label, fitted to the latents and log totals of scVI's training cells.

    The label is scVI's batch.

    References
    ----------
    Lopez et al. 2018, Deep generative modeling for single-cell transcriptomics.
    """
    return _scvi(train_adata, labels, requested_labels, seed, of_label=draw_mixture)


def scvi_prior(train_adata: AnnData, labels: ArrayLike, requested_labels: ArrayLike, seed: int) -> sp.csr_matrix:
    """Do the same with latents from scVI's prior, and the totals of training cells of the label."""
    return _scvi(train_adata, labels, requested_labels, seed, of_label=_draw_prior)


def _scvi(
    train_adata: AnnData,
    labels: ArrayLike,
    requested_labels: ArrayLike,
    seed: int,
    of_label: Callable[[NDArray, int, np.random.Generator], NDArray],
) -> sp.csr_matrix:
    """Train scVI, draw latents and log totals by ``of_label``, and decode them to negative-binomial counts."""
    import scvi
    import torch

    scvi.settings.seed = seed
    adata = train_adata.copy()
    adata.obs["_label"] = np.asarray(labels).astype(str)
    scvi.model.SCVI.setup_anndata(adata, layer="counts", batch_key="_label")
    model = scvi.model.SCVI(adata, gene_likelihood="nb")
    model.train(accelerator="cpu", enable_progress_bar=False)

    rng = np.random.default_rng(seed)
    latents = model.get_latent_representation(give_mean=False)
    known = np.column_stack([latents, np.log(to_dense(adata.layers["counts"]).sum(axis=1))])
    requested = np.asarray(requested_labels).astype(str)
    drawn = torch.from_numpy(draw_per_label(of_label, known, labels, requested, rng))
    categories = model.adata_manager.get_state_registry("batch")["categorical_mapping"]
    codes = np.searchsorted(categories.astype(str), requested)  # scvi-tools sorts its categories
    with torch.inference_mode():
        px = model.module.generative(
            z=drawn[:, :-1], library=drawn[:, -1:], batch_index=torch.from_numpy(codes)[:, None]
        )["px"]
    return sp.csr_matrix(draw_negative_binomial(px.mu.numpy(), px.theta.numpy(), rng))


def _draw_prior(known: NDArray, n_cells: int, rng: np.random.Generator) -> NDArray:
    totals = rng.choice(known[:, -1:], n_cells)
    return np.column_stack([rng.standard_normal((n_cells, known.shape[1] - 1)), totals])


def draw_mixture(known: NDArray, n_cells: int, rng: np.random.Generator) -> NDArray:
    """Draw rows from a Gaussian mixture that is fitted to the known rows; BIC chooses the number of components."""
    known = known.astype(np.float64)
    n_known, n_columns = known.shape
    if n_known < 2:
        return np.repeat(known, n_cells, axis=0)
    fits = [
        GaussianMixture(n, reg_covar=1e-3, random_state=0).fit(known)
        for n in range(1, 1 + min(MOST_COMPONENTS, max(1, n_known // (2 * n_columns))))
    ]
    best = min(fits, key=lambda fit: fit.bic(known))
    best.random_state = int(rng.integers(2**31))
    return rng.permutation(best.sample(n_cells)[0])


def copula(train_adata: AnnData, labels: ArrayLike, requested_labels: ArrayLike, seed: int) -> sp.csr_matrix:
    """Draw every label's genes from their empirical distributions, correlated by a Gaussian copula.

    The correlation of normal scores is shrunk towards the identity, because there are more genes than cells. This is
    the idea of scDesign2 and scDesign3. The library size is not modelled separately: the copula represents it as
    correlation.

    References
    ----------
    Sun et al. 2021, scDesign2: a transparent simulator that generates high-fidelity single-cell gene expression count
    data.
    """
    return _of_counts(_copula_of_label, train_adata, labels, requested_labels, seed)


def negative_binomial_copula(
    train_adata: AnnData, labels: ArrayLike, requested_labels: ArrayLike, seed: int
) -> sp.csr_matrix:
    """Draw every label's genes from negative binomials fitted by moments, correlated by the same Gaussian copula.

    A gene that varies less than a Poisson variable gets a Poisson margin.

    References
    ----------
    Song et al. 2024, scDesign3 generates realistic in silico data for multimodal single-cell and spatial omics.
    """
    return _of_counts(_negative_binomial_copula_of_label, train_adata, labels, requested_labels, seed)


def independent_negative_binomial(
    train_adata: AnnData, labels: ArrayLike, requested_labels: ArrayLike, seed: int
) -> sp.csr_matrix:
    """Draw every gene independently from a negative binomial fitted by moments, scaled by an empirical library size."""
    return _of_counts(_independent_of_label, train_adata, labels, requested_labels, seed)


BASELINES: dict[str, Baseline] = {
    "scVI": scvi_mixture,
    "scVI-prior": scvi_prior,
    "copula": copula,
    "NB-copula": negative_binomial_copula,
    "independent-NB": independent_negative_binomial,
}


def _of_counts(
    draw: Callable[[NDArray, int, np.random.Generator], NDArray],
    train_adata: AnnData,
    labels: ArrayLike,
    requested_labels: ArrayLike,
    seed: int,
) -> sp.csr_matrix:
    counts, rng = to_dense(train_adata.layers["counts"]), np.random.default_rng(seed)
    return sp.csr_matrix(draw_per_label(draw, counts, labels, requested_labels, rng))


def draw_per_label(
    draw: Callable[[NDArray, int, np.random.Generator], NDArray],
    known: NDArray,
    labels: ArrayLike,
    requested_labels: ArrayLike,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Call ``draw(known rows of the label, number of cells, rng)`` for every requested label."""
    labels, requested = np.asarray(labels).astype(str), np.asarray(requested_labels).astype(str)
    drawn = np.zeros((len(requested), known.shape[1]), dtype=np.float32)
    for label in np.unique(requested):
        rows = requested == label
        drawn[rows] = draw(known[labels == label], int(rows.sum()), rng)
    return drawn


def _copula_of_label(counts: NDArray, n_cells: int, rng: np.random.Generator) -> NDArray:
    order = np.minimum((_copula_quantiles(counts, n_cells, rng) * len(counts)).astype(int), len(counts) - 1)
    return np.take_along_axis(np.sort(counts, axis=0), order, axis=0)


def _negative_binomial_copula_of_label(counts: NDArray, n_cells: int, rng: np.random.Generator) -> NDArray:
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
