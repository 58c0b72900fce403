"""Is time a good condition? Cells of hours of development that a model has not seen, beside simple ways.

    python -m benchmarks.studies.time_course                 # three minutes of CPU time per seed

Two windows of the embryo time of `worm_embryo` are held out: one inside, and the last one, which asks for
extrapolation. Every way learns from the remaining cells and draws one cell for each held-out one, at its time. Half of
the drawn cells are compared with the real cells of the other half. The floor compares real cells of both halves. Adds
to ``results/time_course.csv``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import ot
import pandas as pd
import scipy.sparse as sp
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from benchmarks.quality.baselines import draw_as_dispersed
from benchmarks.quality.splits import load, log_normalise, most_variable, to_dense
from benchmarks.studies.held_out import (
    REAL,
    random_halves,
    read_options,
    store_figures,
    study_parser,
)
from benchmarks.tables import stored_keys
from scgen_diffusion.metrics import classifier_auc, energy_distance
from scgen_diffusion.model import SCLDM

if TYPE_CHECKING:
    from collections.abc import Callable

    import anndata as ad
    from numpy.typing import NDArray

DATASET, TIME, TYPE = "worm_embryo", "embryo_time", "cell_type"
KEYS = ("method", "window", "seed")

WINDOWS = {"inside": (480, 560), "last": (690, np.inf)}  # minutes; from, and below
N_GENES = 2_000
N_NEAREST = 50  # cells of the nearest times
N_AXES = 20
N_HALVES = 3
N_MARKERS = 50


@dataclass(frozen=True)
class Window:
    """Training cells, and the held-out cells of a window; counts in `X`."""

    train: ad.AnnData
    held_out: ad.AnnData

    @property
    def times(self) -> tuple[NDArray, NDArray]:
        """Minutes of the training cells and of the held-out ones."""
        return self.train.obs[TIME].to_numpy(float), self.held_out.obs[TIME].to_numpy(float)

    def sides(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return the nearest training cells before the window, and those after it (none after the last window)."""
        known, wanted = self.times
        before, after = np.flatnonzero(known < wanted.min()), np.flatnonzero(known > wanted.max())
        return before[np.argsort(-known[before])][:N_NEAREST], after[np.argsort(known[after])][:N_NEAREST]


def hold_out(cells: ad.AnnData) -> dict[str, Window]:
    """Hold out both windows, and keep the genes that vary most in the other cells."""
    times = cells.obs[TIME].to_numpy(float)
    inside = {name: (times >= low) & (times < high) for name, (low, high) in WINDOWS.items()}
    train = cells[~np.any(list(inside.values()), axis=0)]
    genes = most_variable(train.X, N_GENES)
    return {name: Window(train[:, genes].copy(), cells[rows][:, genes].copy()) for name, rows in inside.items()}


# --- ways to get cells of a time --------------------------------------------------------------------------------------


def nearest_time(window: Window, rng: np.random.Generator) -> NDArray:
    """Copy cells of the nearest times."""
    known, wanted = window.times
    nearest = np.argsort(np.abs(wanted[:, None] - known), axis=1, kind="stable")[:, :N_NEAREST]
    return to_dense(window.train.X)[rng.permuted(nearest, axis=1)[:, 0]]


def mixture(window: Window, rng: np.random.Generator) -> NDArray:
    """Copy cells from before and after the window, the more of a side the nearer it is in time."""
    before, after, share = _between(window)
    chosen = np.where(rng.random(len(share)) < share, rng.choice(after, len(share)), rng.choice(before, len(share)))
    return to_dense(window.train.X)[chosen]


def displacement(window: Window, rng: np.random.Generator) -> NDArray:
    """Pair cells before and after the window by optimal transport; draw each molecule from one of the two."""
    before, after, share = _between(window)
    axes = PCA(N_AXES, random_state=0).fit(log_normalise(window.train.X))
    x, y = (axes.transform(log_normalise(window.train.X[rows])) for rows in (before, after))
    first, second = _pair(x, y, len(share), rng)
    counts = to_dense(window.train.X).astype(int)
    return rng.binomial(counts[before[first]], 1 - share[:, None]) + rng.binomial(counts[after[second]], share[:, None])


def scvi_interpolation(window: Window, rng: np.random.Generator) -> NDArray:
    """Pair the cells before and after the window in scVI's latent space, go between them on a line, and draw counts."""
    import scvi

    scvi.settings.seed = int(rng.integers(2**31))
    train = window.train.copy()
    train.X = sp.csr_matrix(train.X, dtype=np.float32)
    scvi.model.SCVI.setup_anndata(train)
    model = scvi.model.SCVI(train, gene_likelihood="nb")
    model.train(accelerator="cpu", enable_progress_bar=False)
    before, after, share = _between(window)
    latents = model.get_latent_representation()
    first, second = _pair(latents[before], latents[after], len(share), rng)
    moved = (1 - share[:, None]) * latents[before[first]] + share[:, None] * latents[after[second]]
    totals = np.asarray(window.train.X.sum(1)).ravel()
    log_library = (1 - share) * np.log(totals[before[first]]) + share * np.log(totals[after[second]])
    with torch.inference_mode():
        px = model.module.generative(
            z=torch.tensor(moved, dtype=torch.float32),
            library=torch.tensor(log_library[:, None], dtype=torch.float32),
            batch_index=torch.zeros(len(moved), 1, dtype=torch.long),
        )["px"]
    mean, theta = px.mu.double().numpy(), px.theta.double().numpy()
    return rng.poisson(rng.gamma(np.broadcast_to(theta, mean.shape), mean / theta))


def _pair(x: NDArray, y: NDArray, n_pairs: int, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
    """Draw pairs of rows from the plan of optimal transport."""
    plan = ot.emd(ot.unif(len(x)), ot.unif(len(y)), ot.dist(x, y)).ravel()
    first, second = np.unravel_index(rng.choice(len(plan), n_pairs, p=plan / plan.sum()), (len(x), len(y)))
    return first, second


def _between(window: Window) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray]:
    """Return cells before and after the window, and how far each wanted time is between them (0 to 1)."""
    before, after = window.sides()
    known, wanted = window.times
    low, high = known[before].mean(), known[after].mean()
    return before, after, (wanted - low) / (high - low)


def kernel_regression(window: Window, rng: np.random.Generator) -> NDArray:
    """Draw negative-binomial counts around means that vary smoothly with time; totals of cells of the nearest times."""
    known, wanted = window.times
    counts = to_dense(window.train.X).astype(float)
    totals = counts.sum(1, keepdims=True)
    errors, shares = {}, {}
    for width in (10, 20, 40, 80):
        shares[width] = _smooth(known, known, width, counts, totals, leave_out=True)
        errors[width] = np.square(np.sqrt(counts / totals) - np.sqrt(shares[width])).mean()
    width = min(errors, key=errors.get)
    expected = totals * shares[width]
    library = nearest_time(window, rng).sum(1, keepdims=True)
    mean = library * _smooth(wanted, known, width, counts, totals)
    return draw_as_dispersed(mean, counts, expected, rng)


def _smooth(
    times: NDArray, known: NDArray, width: float, counts: NDArray, totals: NDArray, *, leave_out: bool = False
) -> NDArray:
    squares = np.square(times[:, None] - known)
    weights = np.exp(-(squares - squares.min(1, keepdims=True)) / (2 * width**2))
    if leave_out:
        np.fill_diagonal(weights, 0)
    return np.maximum(weights @ counts / (weights @ totals), 1e-8)


WAYS: dict[str, Callable[[Window, np.random.Generator], NDArray]] = {
    "optimal transport": displacement,
    "scVI, line in the latent space": scvi_interpolation,
    "mixture of both sides": mixture,
    "kernel regression, NB": kernel_regression,
    "nearest times": nearest_time,
}
ONLY_INSIDE = ("optimal transport", "scVI, line in the latent space", "mixture of both sides")
OURS = "SCLDM"


def train_scldm(train: ad.AnnData, seed: int) -> SCLDM:
    """Train SCLDM on time, with default settings."""
    import scvi

    scvi.settings.seed = seed
    train = train.copy()
    SCLDM.setup_anndata(train, continuous_condition_keys=[TIME])
    model = SCLDM(train)
    model.train(accelerator="cpu")
    return model


# --- judge ------------------------------------------------------------------------------------------------------------


class Judge:
    """Compares cells of a window with the real ones."""

    def __init__(self, window: Window, seed: int) -> None:
        train, self.real = log_normalise(window.train.X), log_normalise(window.held_out.X)
        self.axes = PCA(N_AXES, random_state=0).fit(train)
        self.find_type = LogisticRegression(max_iter=2000).fit(self.axes.transform(train), window.train.obs[TYPE])
        known, _ = window.times
        trend = np.abs(np.corrcoef(known, train.T)[0, 1:])
        self.markers = np.argsort(-np.nan_to_num(trend))[:N_MARKERS]
        self.halves = random_halves(len(self.real), N_HALVES, seed)

    def figures(self, counts: NDArray) -> dict[str, float]:
        """Return all figures of one cell per held-out one, means over random halves."""
        drawn = log_normalise(counts)
        x, y = self.axes.transform(drawn), self.axes.transform(self.real)
        types, real_types = (self.find_type.predict(values)[:, None] == self.find_type.classes_ for values in (x, y))
        rows = [
            {
                "energy_distance": energy_distance(y[b], x[a]),
                "auc": classifier_auc(y[b], x[a]),
                "marker_error": _root_mean_square((drawn[a].mean(0) - self.real[b].mean(0))[self.markers]),
                "type_error": np.abs(types[a].mean(0) - real_types[b].mean(0)).sum() / 2,
            }
            for a, b in self.halves
        ]
        return pd.DataFrame(rows).mean().to_dict()


def _root_mean_square(values: NDArray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


# --- study ------------------------------------------------------------------------------------------------------------


def main() -> None:
    """Run from the command line."""
    arguments = read_options(study_parser(__doc__, "time_course"))
    path, windows = arguments.results / "time_course.csv", hold_out(load(DATASET))
    for seed in arguments.seeds:
        done = stored_keys(path, KEYS)
        model = None if (OURS, "last", seed) in done else train_scldm(windows["inside"].train, seed)
        for name, window in windows.items():
            found = {}
            if model:
                found[REAL] = window.held_out.X
                found[OURS] = model.generate(condition={TIME: window.held_out.obs[TIME].to_numpy()}, seed=seed).X
            for way, draw in WAYS.items():
                if (way, name, seed) not in done and (name == "inside" or way not in ONLY_INSIDE):
                    found[way] = draw(window, np.random.default_rng([seed, 1]))
            if found:
                judge = Judge(window, seed)
                for way, counts in found.items():
                    store_figures(path, {"method": way, "window": name, "seed": seed}, judge.figures(counts), "POT")


if __name__ == "__main__":
    main()
