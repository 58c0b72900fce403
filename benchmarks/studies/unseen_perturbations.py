"""Can the effect of a gene that was never perturbed be predicted from the data alone? One gene left out at a time.

    python -m benchmarks.studies.unseen_perturbations                    # everything that is missing
    python -m benchmarks.studies.unseen_perturbations --genes STAT1      # a part of it

A gene that was never perturbed needs an embedding. Here the embeddings come from the data: from the correlations of
genes in control cells, or from the loadings of a trained decoder. They exist only for perturbed genes that were also
measured. These are 9 of 25 in THP-1 cells after knock-out (Papalexi et al. 2021, a subset of 299 genes that comes with
`sceptredata`), and 1 of 18 in K562 cells after activation (`norman_mcfaline_devel`), where only the baselines without
embeddings can be measured. No setting was chosen on these figures: the number of components is 10, and tables show 5
and 20 beside it.

Half of the control cells is for learning. The other half is moved, and tells the measured change. The perturbed gene
itself is left out of all figures but the energy distance, since its own fall needs no prediction. Figures go to
``results/unseen_perturbations.csv`` and ``.md``. About three minutes of CPU time per gene.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler

from benchmarks.quality.splits import log_normalise
from benchmarks.studies.held_out import random_halves, read_options, study_parser
from benchmarks.tables import describe_source, markdown_table, read_table, store_rows, stored_keys, write_text
from scgen_diffusion import datasets, metrics
from scgen_diffusion.datasets._originals import Original, fetch, read_r

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

logger = logging.getLogger("benchmarks.unseen_perturbations")

KEYS = ("dataset", "gene", "seed", "method")
THP1, K562 = "THP-1, knock-out", "K562, activation"
PERTURBATION, CONTROL = "perturbation", "control"
PAPALEXI = Original(
    "Katsevich-Lab/sceptredata/ec722d5df90dfd34ace6cc9a5745ab6a5c2a6731/data/lowmoi_example_data.rda",
    "e3f8ad09bb4b1d0deeeec2850a2d96f8f5062fef31a9ab1cc080e60560421b6a",
)
ONE_GUIDE = 0.8  # share of a cell's guide molecules that one guide must have
LEAST_COUNTS = 50  # of a cell
LEAST_CELLS = 75  # of a perturbation
MOST_CELLS = 300  # of a perturbation that SCLDM learns from
N_COMPONENTS = (10, 5, 20)  # of the correlations; the first for SCLDM
N_FLOORS = 5
CLEAR = 5.0  # squared effect, without noise, of perturbations that do more than to their own gene
FLOOR, NO_CHANGE, MEAN = "floor", "no change", "mean of all others"
SCLDM_METHOD = "SCLDM, co-expression"


# --- data -------------------------------------------------------------------------------------------------------------


def read_papalexi() -> ad.AnnData:
    """Return THP-1 cells with one guide: counts, and the gene that was knocked out."""
    content = read_r(fetch(PAPALEXI))

    def matrix(name: str) -> tuple[sp.csr_matrix, NDArray]:
        triplets = content[name]
        counts = sp.coo_matrix((triplets.x, (triplets.j, triplets.i)), shape=tuple(triplets.Dim)[::-1], dtype="float32")
        return counts.tocsr(), np.array(triplets.Dimnames[0], dtype=str)

    (counts, genes), (guide_counts, guides) = matrix("response_matrix"), matrix("grna_matrix")
    targets = content["grna_target_data_frame"].set_index("grna_id")["grna_target"].astype(str)
    most = guide_counts.max(axis=1).toarray().ravel()
    keep = (most >= ONE_GUIDE * guide_counts.sum(axis=1).A1) & (counts.sum(axis=1).A1 >= LEAST_COUNTS)
    names = targets.loc[guides[guide_counts.argmax(axis=1).A1]].replace("non-targeting", CONTROL).to_numpy()
    obs = pd.DataFrame({PERTURBATION: names}, index=[f"cell {number}" for number in range(len(names))])
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=genes))[keep].copy()


def read_norman() -> ad.AnnData:
    """Return K562 cells: counts, and the gene or pair of genes that was activated."""
    adata = datasets.norman_mcfaline_devel()
    adata = adata[adata.obs["cell_type"] == "k562"]
    counts = sp.csr_matrix(adata.layers["counts"] if "counts" in adata.layers else adata.X, dtype="float32")
    obs = pd.DataFrame({PERTURBATION: adata.obs["condition"].astype(str)})
    return ad.AnnData(counts, obs=obs, var=adata.var[[]].copy())


@dataclass(frozen=True)
class Data:
    """Cells, their log-normalised expression, and which control cells are for learning or for judging.

    Attributes
    ----------
    cells
        Counts.
    values
        Log-normalised expression, ``(cells, genes)``.
    learn, judge
        Positions of both halves of the control cells.
    """

    cells: ad.AnnData
    values: NDArray
    learn: NDArray[np.intp]
    judge: NDArray[np.intp]

    @classmethod
    def of(cls, cells: ad.AnnData, seed: int) -> Data:
        """Normalise the cells, and divide the control cells at random."""
        n_cells = cells.obs[PERTURBATION].value_counts()
        cells = cells[cells.obs[PERTURBATION].isin(n_cells.index[n_cells >= LEAST_CELLS])].copy()
        controls = np.flatnonzero(cells.obs[PERTURBATION] == CONTROL)
        [(first, second)] = random_halves(len(controls), 1, seed)
        return cls(cells, log_normalise(cells.X), controls[first], controls[second])

    @property
    def perturbations(self) -> list[str]:
        """All perturbations, in alphabetical order."""
        return sorted(set(self.cells.obs[PERTURBATION]) - {CONTROL})

    @property
    def measured(self) -> list[str]:
        """Single genes whose expression was measured too, so that they have an embedding."""
        return [name for name in self.perturbations if name in self.cells.var_names]

    def rows(self, name: str) -> NDArray[np.intp]:
        """Return the cells of a perturbation, by position."""
        return np.flatnonzero(self.cells.obs[PERTURBATION] == name)

    def change(self, name: str) -> NDArray:
        """Return the mean change of a perturbation against the control cells for learning, ``(genes,)``."""
        return self.values[self.rows(name)].mean(axis=0) - self.values[self.learn].mean(axis=0)


# --- embeddings and predictions ---------------------------------------------------------------------------------------


def coexpression(data: Data, n: int) -> pd.DataFrame:
    """Return the first principal components of the correlations of genes in control cells, ``(genes, n)``."""
    values = StandardScaler().fit_transform(data.values[data.learn])
    pca = PCA(n, random_state=0).fit(values)
    return pd.DataFrame(pca.components_.T * np.sqrt(pca.explained_variance_), index=data.cells.var_names)


def nearest(data: Data, gene: str, embedding: pd.DataFrame) -> NDArray:
    """Return the change of the perturbation whose embedding correlates most with that of the gene."""
    others = [name for name in data.measured if name != gene]
    return data.change(embedding.loc[others].T.corrwith(embedding.loc[gene]).idxmax())


def ridge(data: Data, gene: str, embedding: pd.DataFrame) -> NDArray:
    """Return the change that a linear model of the embedding predicts; its penalty is chosen by leaving out genes."""
    others = [name for name in data.measured if name != gene]
    scaler = StandardScaler().fit(embedding.loc[others])
    model = RidgeCV(np.logspace(-1, 4, 11))
    model.fit(scaler.transform(embedding.loc[others]), np.stack([data.change(name) for name in others]))
    return model.predict(scaler.transform(embedding.loc[[gene]]))[0]


def mean_of_others(data: Data, gene: str) -> NDArray:
    """Return the mean change of all perturbations without the gene."""
    others = [name for name in data.perturbations if gene not in name.split("+")]
    return np.mean([data.change(name) for name in others], axis=0)


@dataclass(frozen=True)
class Prediction:
    """Predicted cells, log-normalised, ``(cells, genes)``; a verdict if a model gives one."""

    values: NDArray
    verdict: str = ""
    reason: str = ""


def has_embeddings(data: Data) -> bool:
    """Return whether there are enough perturbed genes with an embedding to leave one out."""
    return len(data.measured) > 2


def scldm(data: Data, gene: str, seed: int) -> dict[str, Prediction]:
    """Train SCLDM with co-expression as known embeddings, and predict; its decoder's loadings are embeddings too."""
    import scvi

    from scgen_diffusion.model import SCLDM

    scvi.settings.seed = seed
    known = [name for name in data.measured if name != gene]
    train = data.cells[np.concatenate([data.learn, *(data.rows(name)[:MOST_CELLS] for name in known)])].copy()
    table = coexpression(data, N_COMPONENTS[0]).loc[data.measured]
    SCLDM.setup_anndata(
        train,
        set_condition_keys=[PERTURBATION],
        control_values={PERTURBATION: CONTROL},
        condition_embeddings={PERTURBATION: table},
    )
    model, options = SCLDM(train), {"accelerator": "cpu", "enable_progress_bar": False}
    model.train_autoencoder(**options)
    model.train_transport(**options)
    with warnings.catch_warnings(action="ignore"):  # the verdict, which is recorded
        predicted = model.predict_perturbation(data.cells[data.judge].copy(), {PERTURBATION: gene}, seed=seed)
    verdict = predicted.uns["scgen_diffusion"]["verdict"].loc[0, ["verdict", "reason"]]
    weights = model.module.decoder.factors.loadings.weight.detach().numpy()
    loadings = pd.DataFrame(weights.reshape(train.n_vars, -1), index=train.var_names)
    return {
        SCLDM_METHOD: Prediction(log_normalise(predicted.X), *verdict),
        "nearest, decoder loadings": moved(data, nearest(data, gene, loadings)),
        "linear, decoder loadings": moved(data, ridge(data, gene, loadings)),
    }


def moved(data: Data, change: NDArray) -> Prediction:
    """Return the control cells for judging, moved by a change."""
    return Prediction(data.values[data.judge] + change)


def from_means(data: Data, gene: str, seed: int) -> dict[str, Prediction]:
    """Return the predictions that need no model of cells."""
    found = {NO_CHANGE: moved(data, 0), MEAN: moved(data, mean_of_others(data, gene))}
    if not has_embeddings(data):
        return found
    embeddings = {n: coexpression(data, n) for n in N_COMPONENTS}
    ways: dict[str, Callable[[Data, str, pd.DataFrame], NDArray]] = {"nearest": nearest, "linear": ridge}
    for name, way in ways.items():
        for n, embedding in embeddings.items():
            label = f"{name}, co-expression" + ("" if n == N_COMPONENTS[0] else f" ({n} components)")
            found[label] = moved(data, way(data, gene, embedding))
    return found


# --- figures ----------------------------------------------------------------------------------------------------------


def figures(data: Data, gene: str, predictions: Mapping[str, Prediction], seed: int) -> pd.DataFrame:
    """Return one row per method: error and correlation of mean changes, discrimination, energy distance."""
    start, real = data.values[data.judge], data.values[data.rows(gene)]
    is_own = data.cells.var_names == gene
    is_perturbed = data.cells.var_names.isin(data.perturbations)
    noise_of_start = start.var(axis=0, ddof=1) / len(start)
    measured = {name: data.values[data.rows(name)].mean(axis=0) - start.mean(axis=0) for name in judged(data)}
    pca = PCA(20, random_state=0).fit(data.values[np.concatenate([data.learn, *map(data.rows, data.measured)])])

    def compare(predicted: NDArray, cells: NDArray, noise: NDArray) -> dict[str, float]:
        """Compare predicted cells with real ones, whose mean has some noise beside that of these cells."""
        change, wanted = (values.mean(axis=0) - start.mean(axis=0) for values in (predicted, cells))
        noise = noise + cells.var(axis=0, ddof=1) / len(cells)
        everything = np.stack([wanted if name == gene else measured[name] for name in measured])[:, ~is_perturbed]
        guesses = np.zeros_like(everything)
        row = list(measured).index(gene)
        guesses[row] = change[~is_perturbed]
        varies = np.ptp(change[~is_own]) > 0
        return {
            "error": ((change - wanted)[~is_own] ** 2 - noise[~is_own]).sum(),
            "correlation": np.corrcoef(change[~is_own], wanted[~is_own])[0, 1] if varies else 0.0,
            "discrimination": metrics.perturbation_discrimination(everything, guesses)[row] if varies else 0.5,
            "energy_distance": metrics.energy_distance(pca.transform(cells), pca.transform(predicted)),
        }

    floors = [
        compare(real[half], real[other], real[half].var(axis=0, ddof=1) / len(half))
        for half, other in random_halves(len(real), N_FLOORS, seed)
    ]
    table = {FLOOR: pd.DataFrame(floors).mean().to_dict()}
    for method, found in predictions.items():
        row: dict[str, object] = dict(compare(found.values, real, noise_of_start))
        table[method] = row | {"verdict": found.verdict, "reason": found.reason}
    effect = compare(start, real, noise_of_start)["error"]
    rows = pd.DataFrame(table).T.rename_axis("method").reset_index()
    return rows.assign(gene=gene, seed=seed, effect=effect, n_cells=len(real))


def judged(data: Data) -> list[str]:
    """Return the genes to leave out in turn: those with an embedding, or all single genes if hardly any has one."""
    return data.measured if has_embeddings(data) else [name for name in data.perturbations if "+" not in name]


# --- report -----------------------------------------------------------------------------------------------------------

FIGURES = {
    "error": "error",
    "correlation": "correlation",
    "discrimination": "discrimination",
    "energy_distance": "energy distance",
}


def groups_of(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Divide the rows by data set, and by whether the left-out gene has a clear effect on other genes."""
    is_clear = table.groupby(["dataset", "gene"])["effect"].transform("mean") > CLEAR
    found = {}
    for dataset, what, rows in (
        (THP1, "clear effect on other genes", table[is_clear]),
        (THP1, "hardly any effect on other genes", table[~is_clear]),
        (K562, "all single genes", table),
    ):
        own = rows[rows["dataset"] == dataset]
        if len(own):
            found[f"{dataset}, {what}: {', '.join(sorted(own['gene'].unique()))}"] = own
    return found


def summarise(table: pd.DataFrame) -> str:
    """Write the means of each group of genes, the error of each gene, and the verdicts."""
    number = "{:.2f}".format
    parts = [
        "One perturbed gene left out at a time. Error: squared error of the mean changes, summed over genes, without "
        "sampling noise; that of no change is the squared effect. The perturbed gene itself does not count. "
        "Discrimination: 1 if the prediction is most like the measured change of its own gene, 0.5 by chance. Floor: "
        f"one half of the real cells predicts the other. {table['seed'].nunique()} seed(s). Written by "
        "`python -m benchmarks.studies.unseen_perturbations`.",
        "",
    ]
    for title, rows in groups_of(table).items():
        n_genes = rows.groupby("method", sort=False)["gene"].nunique()
        complete = rows[rows["method"].isin(n_genes.index[n_genes == n_genes.max()])]  # others are not comparable
        means = complete.groupby("method", sort=False)[list(FIGURES)].mean()
        lines = [[str(method), *map(number, row)] for method, row in means.iterrows()]
        parts += [f"**{title}**", "", markdown_table(["method", *FIGURES.values()], lines), ""]
    own = table[table["dataset"] == THP1]
    errors = own.pivot_table(index="gene", columns="method", values="error", sort=False)
    lines = [[str(gene), *map(number, row)] for gene, row in errors.iterrows()]
    lines = [["" if cell == "nan" else cell for cell in line] for line in lines]
    parts += ["**Error of each gene**", "", markdown_table(["gene", *map(str, errors.columns)], lines), ""]
    said = own[own["method"] == SCLDM_METHOD]
    lines = [[row["gene"], str(row["seed"]), row["verdict"], row["reason"]] for _, row in said.iterrows()]
    parts += ["**Verdicts**", "", markdown_table(["gene", "seed", "verdict", "reason"], lines), ""]
    parts += [f"Measured with {'; '.join(table['versions'].unique())}, on {'; '.join(table['machine'].unique())}.", ""]
    return "\n".join(parts)


def run(arguments: argparse.Namespace) -> None:
    """Measure what is not stored, then write the summary."""
    path = arguments.results / "unseen_perturbations.csv"
    done = stored_keys(path, KEYS)
    source = describe_source("torch", "scvi-tools", "scgen-diffusion")
    stages = ((THP1, read_papalexi, from_means), (K562, read_norman, from_means), (THP1, read_papalexi, scldm))
    for (dataset, read, predict), seed in product(stages, arguments.seeds):
        data, marker = Data.of(read(), seed), SCLDM_METHOD if predict is scldm else NO_CHANGE
        for gene in judged(data):
            if (dataset, gene, seed, marker) in done or gene not in (arguments.genes or judged(data)):
                continue
            logger.info("%s, %s, seed %d, %s", dataset, gene, seed, predict.__name__)
            rows = figures(data, gene, predict(data, gene, seed), seed)
            store_rows(path, rows.assign(dataset=dataset, **source), KEYS)
    write_text(arguments.results / "unseen_perturbations.md", summarise(read_table(path)))


def main() -> None:
    """Run from the command line."""
    for name in ("lightning.pytorch", "lightning", "scvi"):
        logging.getLogger(name).setLevel(logging.ERROR)
    parser = study_parser(__doc__, "unseen_perturbations")
    parser.add_argument("--genes", nargs="+", help="genes to leave out; default: all that can be judged")
    run(read_options(parser))


if __name__ == "__main__":
    main()
