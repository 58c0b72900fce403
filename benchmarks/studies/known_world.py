"""Do generated cells have the conditions that they were asked to have? Asked of a simulated world, where this is known.

    python -m benchmarks.studies.known_world
    python -m benchmarks.studies.known_world --models SCLDM NB-copula --seeds 0 1 2
    python -m benchmarks.studies.known_world --models 'SCLDM, guidance 1.5={"generate": {"guidance_scale": 1.5}}'

Cells have a type and a condition. Their counts are negative binomial; a condition multiplies 20 genes by e, and goes
along with some types. The classifier knows the world: it finds the type and condition under which a cell is most
likely. The study counts how often these are the requested ones, for fresh cells of the world (the floor), generated
cells, and training cells that were encoded and decoded (SCLDM's autoencoder alone). Adds to
``results/known_world.csv`` and writes ``results/known_world.md``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.special import logsumexp

from benchmarks.quality.baselines import BASELINES
from benchmarks.quality.methods import IDEAL_PRIOR, KNOWN, choose_methods, draw_counts, train_model
from benchmarks.quality.splits import Split, to_dense
from benchmarks.runner import options, run, start, write_summary
from benchmarks.tables import REAL, markdown_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from benchmarks.quality.methods import Variant

LABELS = ("type", "condition")
UNCHANGED = "control"
AUTOENCODER, GENERATED = "encoded and decoded", "generated"

#: Training cells of each type and condition: types of many cells with both, and rare types.
N_TRAIN = {
    ("A", "control"): 500,
    ("A", "treated"): 73,
    ("B", "control"): 60,
    ("B", "treated"): 350,
    ("C", "control"): 250,
    ("C", "treated"): 117,
    ("rare, 5 cells", "control"): 5,
    ("rare, 10 cells", "treated"): 10,
    ("rare, 20 cells", "control"): 20,
    ("rare, 30 cells", "treated"): 30,
}
#: Cells of each type and condition that are generated, and drawn from the world for the floor.
N_JUDGED = 500
#: Combinations with as many training cells should come out right this often, relative to real cells.
ENOUGH_CELLS, GOAL = 50, 0.95

N_SHIFTED = 20
TYPE_SPREAD = 0.5  # standard deviation of a type's log means around the shared ones
INVERSE_DISPERSION = 2.0
COUNTS_PER_GENE, SIZE_SPREAD = 2.0, 0.3  # median, and standard deviation of the logarithm between cells
N_NODES = 15  # of the integral over the sizes of cells
BLOCK = 500  # cells that are classified at once


@dataclass(frozen=True)
class World:
    """Known means of each combination of two labels.

    Parameters
    ----------
    labels
        Names of the labels: that of the type, and that of what changes some genes in all types.
    combinations
        Their values.
    means
        Mean counts of each combination, ``(combinations, genes)``, in a cell of the median size.
    """

    labels: tuple[str, str]
    combinations: Sequence[tuple[str, str]]
    means: NDArray[np.float64]

    @classmethod
    def draw(
        cls,
        n_genes: int,
        seed: int,
        *,
        labels: tuple[str, str] = LABELS,
        combinations: Iterable[tuple[str, str]] = N_TRAIN,
    ) -> World:
        """Draw the means: each value of the second label but `UNCHANGED` multiplies `N_SHIFTED` genes by e."""
        rng, combinations = np.random.default_rng([seed, 0]), list(combinations)
        types, states = (list(dict.fromkeys(values)) for values in zip(*combinations, strict=True))
        shared = rng.standard_normal(n_genes)
        factors = {state: np.ones(n_genes) for state in states}
        for state in states:
            if state != UNCHANGED:
                factors[state][rng.choice(n_genes, N_SHIFTED, replace=False)] = np.e
        logs = dict(zip(types, shared + TYPE_SPREAD * rng.standard_normal((len(types), n_genes)), strict=True))
        shares = {name: np.exp(values) / np.exp(values).sum() for name, values in logs.items()}
        size = COUNTS_PER_GENE * n_genes
        return cls(
            labels, combinations, np.array([size * shares[name] * factors[state] for name, state in combinations])
        )

    def cells(self, n_cells: NDArray[np.int_], rng: np.random.Generator) -> ad.AnnData:
        """Draw this many cells of each combination."""
        codes = np.repeat(np.arange(len(self.means)), n_cells)
        mean = self.means[codes] * rng.lognormal(0, SIZE_SPREAD, (len(codes), 1))
        counts = sp.csr_matrix(rng.poisson(rng.gamma(INVERSE_DISPERSION, mean / INVERSE_DISPERSION)).astype(np.float32))
        obs = pd.DataFrame([self.combinations[code] for code in codes], columns=list(self.labels)).astype("category")
        obs.index = [f"cell {row}" for row in range(len(codes))]
        var = pd.DataFrame(index=[f"gene {gene}" for gene in range(self.means.shape[1])])
        return ad.AnnData(counts, obs=obs, var=var, layers={"counts": counts.copy()})

    def classify(self, counts: NDArray | sp.spmatrix) -> NDArray[np.intp]:
        """Return the combination under which each cell is most likely, whatever the cell's size."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(N_NODES)
        means = self.means[:, None] * np.exp(SIZE_SPREAD * nodes)[:, None]  # (combinations, nodes, genes)
        ratio = means / INVERSE_DISPERSION
        slopes, offsets = np.log(ratio / (1 + ratio)), INVERSE_DISPERSION * np.log1p(ratio).sum(axis=2)

        def most_likely(some: NDArray | sp.spmatrix) -> NDArray[np.intp]:
            # the log likelihood, without the terms that only depend on the counts
            logs = np.tensordot(to_dense(some), slopes, axes=(1, 2)) - offsets
            return logsumexp(logs, b=weights, axis=2).argmax(axis=1)

        return np.concatenate([most_likely(counts[row : row + BLOCK]) for row in range(0, counts.shape[0], BLOCK)])

    def judge(self, counts: NDArray | sp.spmatrix, n_judged: NDArray[np.int_]) -> pd.DataFrame:
        """Return how often the cells that were drawn for each combination have it, and each of its labels alone."""
        combinations = np.array(self.combinations)
        requested = np.repeat(np.arange(len(combinations)), n_judged)
        right = combinations[self.classify(counts)] == combinations[requested]
        table = pd.DataFrame(right, columns=[f"right_{label}" for label in self.labels])
        table.insert(0, "confirmed", right.all(axis=1))
        shares = table.groupby(requested).mean()
        return shares.assign(**dict(zip(self.labels, combinations[shares.index].T, strict=True)))


def study(model: str, seed: int, n_genes: int, variant: Variant | None) -> pd.DataFrame:
    """Train a model or a baseline (no `variant`) on a world's cells, and judge the cells of every combination."""
    world, rng = World.draw(n_genes, seed), np.random.default_rng([seed, 1])
    n_train, n_judged = np.array(list(N_TRAIN.values())), np.full(len(N_TRAIN), N_JUDGED)
    split = Split(world.cells(n_train, rng), world.cells(n_judged, rng), LABELS)
    found = {REAL: split.held_out.X}
    if variant is None:
        found[GENERATED] = BASELINES[model](split.train, split.train_labels, split.held_out_labels, seed)
    else:
        trained = train_model(split, variant, seed)
        found[GENERATED] = draw_counts(trained, split, variant, seed)
        if hasattr(trained, "get_reconstruction") and "generate" not in variant:  # whose options do not change it
            found[AUTOENCODER] = draw_counts(trained, split, {**variant, "draw": IDEAL_PRIOR}, seed)
    tables = [world.judge(counts, n_judged).assign(n_train=n_train, cells=name) for name, counts in found.items()]
    return pd.concat(tables).assign(settings=json.dumps(variant) if variant else "")


def summarise(table: pd.DataFrame) -> str:
    """Write one table per number of genes: how often each combination is confirmed, means over seeds."""
    parts = [
        "How often a classifier that knows the world finds the requested type and condition, means over seeds. "
        f"**Bold**: at least {GOAL} of what real cells score. Written by `python -m benchmarks.studies.known_world`.",
        "",
    ]
    for n_genes, rows in table.groupby("n_genes", sort=False):
        rows = rows.assign(column=np.where(rows["cells"] == REAL, REAL, rows["model"] + ", " + rows["cells"]))
        index = [*LABELS, "n_train"]
        means = rows.pivot_table(index=index, columns="column", values="confirmed", sort=False)
        columns = [REAL, *means.columns.drop(REAL)]
        lines = [[" ".join(name), str(n_train), *_numbers(row[columns])] for (*name, n_train), row in means.iterrows()]
        frequent = means[means.index.get_level_values("n_train") >= ENOUGH_CELLS]
        for name, some in ((f"mean, {ENOUGH_CELLS} or more", frequent), ("mean, fewer", means.drop(frequent.index))):
            lines.append([name, "", *_numbers(some.mean()[columns])])
        seeds = ", ".join(map(str, sorted(rows["seed"].unique())))
        parts += [f"**{n_genes} genes**, seeds {seeds}", ""]
        parts += [markdown_table(["", "training cells", *columns], lines), ""]
    return "\n".join(parts)


def _numbers(row: pd.Series) -> list[str]:
    real, *others = row
    marked = [f"**{value:.3f}**" if value >= GOAL * real else f"{value:.3f}" for value in others]
    return [f"{real:.3f}", *("" if np.isnan(value) else text for value, text in zip(others, marked, strict=True))]


def main() -> None:
    """Run from the command line."""
    parser = options(__doc__)
    parser.add_argument("--models", nargs="+", default=["SCLDM", "SCRDIT"], help=KNOWN)
    parser.add_argument("--genes", type=int, default=100, help="number of genes")
    chosen = start(parser)
    variants = choose_methods(chosen.models)
    cases = [{"model": model, "seed": seed, "n_genes": chosen.genes} for seed, model in product(chosen.seeds, variants)]
    path = chosen.results / "known_world.csv"
    run(path, cases, lambda model, **case: study(model, **case, variant=variants[model]))
    write_summary(path, summarise)


if __name__ == "__main__":
    main()
