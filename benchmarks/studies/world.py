"""A world of cells with a known truth, of any size: none of our models, fitted to the RNA of a real set.

    python -m benchmarks.studies.world FOLDER --cells 1000000    # parts of 10,000 cells, .h5ad, for `data.CellFiles`

A Gaussian copula with negative-binomial margins. Every type has its share of each gene, its library sizes, and as many
gene programmes as stand out of the noise of its real cells. Programmes move the quantiles of genes, not their means.
Donors are simulated: each changes the genes of every type in its own way. Two types are rare, see `RARE`. For more
types than the real set has, the frequent ones are split into subtypes.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.special import ndtr, ndtri
from scipy.stats import nbinom
from sklearn.utils.extmath import randomized_svd

from benchmarks.quality.methods import write_cells
from benchmarks.quality.splits import load, most_variable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

SOURCE = "pbmc10k_citeseq"
N_GENES = 2_000
N_TYPES = 7  # of the source
#: Shares of rare types in the world. Other types keep the proportions of the real set.
RARE = {"DC": 0.006, "CD16 Mono": 0.001}
N_DONORS = 8
DONOR_SPREAD = 0.2  # standard deviation of a donor's change of a gene, natural logarithm, in all types alike
DONOR_TYPE_SPREAD = 0.1  # and in one type alone
#: Standard deviation of a subtype's change of a gene: two subtypes differ about as much as CD4 and CD8 T cells. A
#: classifier of 50 components finds 95 % of fresh cells of six subtypes.
SUBTYPE_SPREAD = 0.3
SUBTYPE_SHARES = 0.1  # share of a type's rarest subtype, relative to its most frequent one
MOST_PROGRAMMES = 10
MOST_SHARED = 0.9  # largest correlation of a gene's quantile with the programmes
LEAST_EXPECTED = 0.02  # counts per cell of a type; rarer genes take part in no programme
LEAST_CELLS = 100  # real cells of a type; programmes cannot be told from noise in fewer
BLOCK = 1_000  # cells that are drawn at once
#: Draws that share no randomness.
TRAIN, HELD_OUT, REAL_CELLS, SPACE = 0, 1, 2, 3


@dataclass(frozen=True)
class World:
    """Everything that decides how cells are drawn."""

    genes: NDArray[np.str_]
    types: NDArray[np.str_]
    shares: NDArray[np.float64]  # of the types
    profiles: NDArray[np.float64]  # share of each gene in the counts of a cell, (donors, types, genes)
    inverse_dispersion: NDArray[np.float64]  # of each gene's negative binomial
    programmes: list[NDArray[np.float64]]  # of each type: correlations of quantiles, (genes, programmes)
    log_size: NDArray[np.float64]  # mean and standard deviation of the log totals, (types, 2)
    seed: int

    @classmethod
    def fit(cls, source: str = SOURCE, n_genes: int = N_GENES, n_types: int | None = None, seed: int = 0) -> Self:
        """Fit margins, library sizes and programmes to the most variable genes of a real set, and simulate donors.

        With more types than the set has, every frequent type becomes about as many subtypes. They
        have its programmes and library sizes, but each changes its genes in its own way.
        """
        adata = load(source)
        adata = adata[:, most_variable(adata.layers["counts"], n_genes)]
        counts = adata.layers["counts"].toarray().astype(np.float64)
        types, codes, n_of_type = np.unique(adata.obs["cell_type"].astype(str), return_inverse=True, return_counts=True)
        sizes = counts.sum(axis=1, keepdims=True)
        of_types = [codes == code for code in range(len(types))]
        # a mean cell of all types is added to each, so that no gene is impossible in a rare type
        profiles = np.array([counts[rows].sum(axis=0) + counts.mean(axis=0) for rows in of_types])
        profiles /= profiles.sum(axis=1, keepdims=True)
        expected = sizes * profiles[codes]
        excess = ((counts - expected) ** 2 - expected).sum(axis=0)  # E[(x - mean)^2] = mean + mean^2 / theta
        inverse_dispersion = np.clip((expected**2).sum(axis=0) / np.maximum(excess, 1e-8), 0.05, 1e3)
        programmes = [find_programmes(counts[rows], expected[rows], inverse_dispersion) for rows in of_types]
        log_size = np.array([(np.log(sizes[rows]).mean(), np.log(sizes[rows]).std()) for rows in of_types])
        rare = np.array([RARE.get(name, 0.0) for name in types])
        frequent = np.where(rare > 0, 0, n_of_type)
        shares = rare + (1 - rare.sum()) * frequent / frequent.sum()
        n_types = len(types) if n_types is None else n_types
        parents = np.sort([*np.flatnonzero(rare), *np.resize(np.flatnonzero(rare == 0), n_types - (rare > 0).sum())])
        n_subtypes = np.bincount(parents)
        own = np.random.default_rng([seed, 2]).standard_normal((n_types, n_genes))
        profiles = profiles[parents] * np.exp(SUBTYPE_SPREAD * own * (n_subtypes > 1)[parents, None])
        within = [np.geomspace(1, SUBTYPE_SHARES, n) for n in n_subtypes]
        shares = shares[parents] * np.concatenate([share / share.sum() for share in within])
        names = [
            f"{name} {number + 1}" if n > 1 else name
            for name, n in zip(types, n_subtypes, strict=True)
            for number in range(n)
        ]
        rng = np.random.default_rng([seed, 0])
        change = DONOR_SPREAD * rng.standard_normal((N_DONORS, 1, n_genes))
        change = change + DONOR_TYPE_SPREAD * rng.standard_normal((N_DONORS, n_types, n_genes))
        changed = profiles * np.exp(change)
        changed /= changed.sum(axis=2, keepdims=True)
        genes = adata.var_names.to_numpy(dtype=str)
        programmes = [programmes[parent] for parent in parents]
        return cls(genes, np.array(names), shares, changed, inverse_dispersion, programmes, log_size[parents], seed)

    def draw(self, n_cells: int, stream: int, cell_type: str | None = None) -> ad.AnnData:
        """Draw cells, of one type or of all in proportion.

        The cells of a stream (such as :data:`TRAIN`) are the same in every call: fewer are the
        first of more.
        """
        return ad.concat(list(self.blocks(n_cells, stream, cell_type)))

    def draw_like(self, cell_types: Sequence[str], stream: int) -> ad.AnnData:
        """Draw a cell of each of these types, in this order."""
        wanted = pd.Series(cell_types)
        drawn = ad.concat([self.draw(n, stream, name) for name, n in wanted.value_counts().items()])
        order = np.concatenate([np.flatnonzero(wanted == name) for name in wanted.value_counts().index])
        return drawn[np.argsort(order)].copy()

    def blocks(self, n_cells: int, stream: int, cell_type: str | None = None) -> Iterator[ad.AnnData]:
        """Draw the same cells block by block."""
        code = -1 if cell_type is None else list(self.types).index(cell_type)
        for number, start in enumerate(range(0, n_cells, BLOCK)):
            block = self._draw_block(code, np.random.default_rng([self.seed, 1, stream, code + 1, number]))
            block.obs_names = [f"{stream}-{code + 1}-{start + row}" for row in range(BLOCK)]
            yield block[: n_cells - start]

    def _draw_block(self, code: int, rng: np.random.Generator) -> ad.AnnData:
        codes = rng.choice(len(self.types), BLOCK, p=self.shares) if code < 0 else np.full(BLOCK, code)
        donors = rng.integers(N_DONORS, size=BLOCK)
        mean, spread = self.log_size[codes].T
        size = np.exp(mean + spread * rng.standard_normal(BLOCK))[:, None]
        score = rng.standard_normal((BLOCK, len(self.genes)))
        for number, loadings in enumerate(self.programmes):
            rows, own = codes == number, np.sqrt(1 - (loadings**2).sum(axis=1))
            score[rows] = rng.standard_normal((rows.sum(), loadings.shape[1])) @ loadings.T + own * score[rows]
        expected = size * self.profiles[donors, codes]
        success = self.inverse_dispersion / (self.inverse_dispersion + expected)
        quantile = ndtr(score)
        row, gene = np.nonzero(quantile > success**self.inverse_dispersion)  # others are zero
        values = nbinom.ppf(quantile[row, gene], self.inverse_dispersion[gene], success[row, gene])
        counts = sp.csr_matrix((values.astype(np.float32), (row, gene)), quantile.shape)
        obs = {
            "cell_type": pd.Categorical.from_codes(codes, self.types),
            "donor": pd.Categorical.from_codes(donors, [f"donor {number}" for number in range(N_DONORS)]),
        }
        index = [str(number) for number in range(BLOCK)]
        return ad.AnnData(counts, obs=pd.DataFrame(obs, index), var=pd.DataFrame(index=self.genes))

    def write(self, folder: Path, n_cells: int, stream: int = TRAIN, part: int = 10_000) -> list[Path]:
        """Write cells as ``.h5ad`` files of ``part`` cells (a multiple of `BLOCK`); memory holds one file's cells."""
        folder.mkdir(parents=True, exist_ok=True)
        paths, waiting, n_left = [], [], n_cells
        for block in self.blocks(n_cells, stream):
            waiting.append(block)
            n_left -= block.n_obs
            if sum(cells.n_obs for cells in waiting) >= part or not n_left:
                paths.append(folder / f"part-{len(paths):04}.h5ad")
                write_cells(ad.concat(waiting), paths[-1])
                waiting = []
        return paths


def find_programmes(
    counts: NDArray[np.float64], expected: NDArray[np.float64], inverse_dispersion: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the programmes of a type's cells: correlations of quantiles, ``(genes, programmes)``.

    Principal components of Pearson residuals, as many as exceed what independent genes would give (the edge of
    Marchenko and Pastur). Counts show less of a correlation than the quantiles have. To first order, a count ``x`` of
    standard deviation ``s`` shows ``a = E[q x] / s`` of the normal score ``q`` of its quantile, which is the sum of the
    normal densities at the scores where the count steps up, over ``s``.
    """
    loadings = np.zeros((counts.shape[1], MOST_PROGRAMMES))
    if len(counts) < LEAST_CELLS:
        return loadings[:, :0]
    used = expected.mean(axis=0) > LEAST_EXPECTED
    mean, theta = expected[:, used], inverse_dispersion[used]
    residuals = (counts[:, used] - mean) / np.sqrt(mean + mean**2 / theta)
    residuals -= residuals.mean(axis=0)
    residuals /= np.maximum(residuals.std(axis=0), 1e-8)
    n_cells, n_genes = residuals.shape
    _, singular, directions = randomized_svd(residuals / np.sqrt(n_cells), MOST_PROGRAMMES, random_state=0)
    edge = (1 + np.sqrt(n_genes / n_cells)) ** 2
    signal = np.sqrt(np.where(singular**2 > edge, singular**2 - 1, 0))
    typical = mean.mean(axis=0)
    steps = nbinom.cdf(np.arange(200)[:, None], theta, theta / (theta + typical))
    density = np.exp(-(ndtri(np.clip(steps, 1e-12, 1 - 1e-12)) ** 2) / 2) / np.sqrt(2 * np.pi)
    shown = (density * (steps < 1 - 1e-12)).sum(axis=0) / np.sqrt(typical + typical**2 / theta)
    found = directions.T * signal / shown[:, None]
    norm = np.linalg.norm(found, axis=1, keepdims=True)
    loadings[used] = found * np.minimum(1, MOST_SHARED / np.maximum(norm, 1e-8))
    return loadings[:, loadings.any(axis=0)]


def main() -> None:
    """Write cells from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--genes", type=int, default=N_GENES)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    World.fit(n_genes=arguments.genes, seed=arguments.seed).write(arguments.folder, arguments.cells)


if __name__ == "__main__":
    main()
