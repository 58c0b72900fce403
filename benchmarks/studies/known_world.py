"""Do generated cells have the conditions that they were asked to have? Asked of simulated worlds, where this is known.

    python -m benchmarks.studies.known_world
    python -m benchmarks.studies.known_world --worlds known_world --models SCLDM NB-copula --seeds 0 1 2
    python -m benchmarks.studies.known_world --models 'SCLDM, guidance 1.5={"generate": {"guidance_scale": 1.5}}'

Cells have a type and a second label. Their counts are negative binomial; the second label multiplies 20 genes by e. The
classifier knows the world: it finds the labels under which a cell is most likely. The study counts how often these are
the requested ones, for fresh cells of the world (the real value), generated cells, and training cells that were encoded
and decoded (SCLDM's autoencoder alone). There are two worlds: *known_world* has ten combinations of type and condition,
four of them rare; *many_labels* has 20 types and 50 donors, of whose 1,000 combinations 100 have training cells. Models
also draw those that no training cell has; baselines cannot. Each world has a table in ``results``.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
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
from benchmarks.runner import options, run, start
from benchmarks.tables import REAL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from benchmarks.quality.methods import Variant

UNCHANGED = "control"
AUTOENCODER, GENERATED = "encoded and decoded", "generated"
GUIDANCE_SCALE = 1.5
N_SHIFTED = 20
TYPE_SPREAD = 0.5  # standard deviation of a type's log means around the shared ones
INVERSE_DISPERSION = 2.0
COUNTS_PER_GENE, SIZE_SPREAD = 2.0, 0.3  # median, and standard deviation of the logarithm between cells
N_NODES = 15  # of the integral over the sizes of cells
BLOCK = 500  # cells that are classified at once

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
N_TYPES, N_DONORS, TYPES_PER_DONOR = 20, 50, 2
SMALLEST, LARGEST = 5, 250  # training cells of a combination, evenly spread on the scale of the logarithm
#: Combinations of many labels by their number of training cells: the first number of each group.
GROUPS = {"no": 0, "5 to 19": 5, "20 to 49": 20, "50 or more": 50}


@dataclass(frozen=True)
class World:
    """Known mean counts ``(combinations, genes)`` of each combination of two labels, in a cell of the median size.

    The first label is the type, the second changes some genes in all types.
    """

    labels: tuple[str, str]
    combinations: Sequence[tuple[str, str]]
    means: NDArray[np.float64]

    @classmethod
    def draw(cls, n_genes: int, seed: int, labels: tuple[str, str], combinations: Iterable[tuple[str, str]]) -> World:
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


def draw_sizes(seed: int) -> dict[tuple[str, str], int]:
    """Draw the number of training cells of each combination; each type has as many donors as any other."""
    rng = np.random.default_rng([seed, 2])
    sizes = {(f"type {kind}", f"donor {donor}"): 0 for kind, donor in product(range(N_TYPES), range(N_DONORS))}
    n_rounds = N_DONORS * TYPES_PER_DONOR // N_TYPES
    types = np.concatenate([rng.permutation(N_TYPES) for _ in range(n_rounds)]).reshape(N_DONORS, TYPES_PER_DONOR)
    for donor, kinds in enumerate(types):
        for kind in kinds:
            sizes[f"type {kind}", f"donor {donor}"] = round(np.exp(rng.uniform(np.log(SMALLEST), np.log(LARGEST))))
    return sizes


@dataclass(frozen=True)
class Question:
    """What a world has: labels, training cells of each combination by seed, genes, and cells to judge.

    Of each combination with training cells, the first number of `judged` is judged, of others the second. With
    `is_grouped`, combinations are summed up by their number of training cells, and models draw with guidance, too.
    """

    labels: tuple[str, str]
    sizes: Callable[[int], dict[tuple[str, str], int]]
    n_genes: int
    judged: tuple[int, int]
    is_grouped: bool = False
    key: dict[str, int] = field(default_factory=dict)  # more of it in the table


WORLDS = {
    "known_world": Question(("type", "condition"), lambda _: N_TRAIN, 100, (500, 500), key={"n_genes": 100}),
    "many_labels": Question(("type", "donor"), draw_sizes, 300, (40, 5), is_grouped=True),
}


def study(question: Question, model: str, seed: int, variant: Variant | None) -> pd.DataFrame:
    """Train a model or a baseline (no `variant`) on a world's cells, and judge the cells of every combination."""
    sizes, labels = question.sizes(seed), question.labels
    n_train = np.array(list(sizes.values()))
    world, rng = World.draw(question.n_genes, seed, labels, sizes), np.random.default_rng([seed, 1])
    train, (with_cells, without) = world.cells(n_train, rng), question.judged
    n_each, n_seen = np.where(n_train > 0, with_cells, without), np.where(n_train > 0, with_cells, 0)
    every = Split(train, world.cells(n_each, rng), labels)
    seen = every if (n_each == n_seen).all() else Split(train, world.cells(n_seen, rng), labels)

    started = time.process_time()
    found = {REAL: (every.held_out.X, n_each)}
    if variant is None:
        drawn = BASELINES[model](train, seen.train_labels, seen.held_out_labels, seed)
        found[GENERATED] = drawn, n_seen
    else:
        trained = train_model(every, variant, seed)
        found[GENERATED] = draw_counts(trained, every, variant, seed), n_each
        if question.is_grouped:
            guided = {**variant, "generate": {"guidance_scale": GUIDANCE_SCALE}}
            found[f"guidance {GUIDANCE_SCALE}"] = draw_counts(trained, every, guided, seed), n_each
        if hasattr(trained, "get_reconstruction") and "generate" not in variant:  # whose options do not change it
            found[AUTOENCODER] = draw_counts(trained, seen, {**variant, "draw": IDEAL_PRIOR}, seed), n_seen
    minutes = (time.process_time() - started) / 60

    tables = []
    for cells, (counts, n_judged) in found.items():
        judged = world.judge(counts, n_judged)
        judged["n_train"] = n_train[judged.index]
        if question.is_grouped:
            group = pd.cut(judged["n_train"], [*GROUPS.values(), np.inf], right=False, labels=list(GROUPS))
            scores = ["confirmed", *(f"right_{label}" for label in labels)]
            judged = judged.groupby(group, observed=True)[scores].mean().rename_axis("n_train").reset_index()
        tables.append(judged.assign(cells=cells))
    return pd.concat(tables).assign(cpu_minutes=minutes, settings=json.dumps(variant) if variant else "")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=list(WORLDS))
    parser.add_argument("--models", nargs="+", default=["SCLDM", "SCMDM"], help=KNOWN)
    chosen = start(parser)
    variants = choose_methods(chosen.models)
    for name in chosen.worlds:
        question = WORLDS[name]
        cases = [{"model": model, "seed": seed, **question.key} for seed, model in product(chosen.seeds, variants)]

        def measure(model: str, seed: int, question: Question = question, **_: int) -> pd.DataFrame:
            return study(question, model, seed, variants[model])

        path = chosen.results / f"{name}.csv"
        run(path, cases, measure)


if __name__ == "__main__":
    main()
