"""What do cells become? Fates by following cells of `worm_embryo` through time, beside optimal transport.

    python -m benchmarks.studies.fates                              # four minutes of CPU time per seed
    python -m benchmarks.studies.fates --models /tmp/models         # keeps the trained models

Cells of early minutes are followed to a later time, and get a probability for each neuron that they may be by then. The
lineage is known: a neuroblast ASG/AWA has one daughter of each kind, ADL's parent becomes ADL, and a neuron stays what
it is. No way sees the labels of the cells that it follows. The ancestors of AWB and AWC are not in the data. All
settings were chosen on the first three requests, none on the last two. Adds to ``results/fates.csv`` and writes
``results/fates.md``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import ot
import pandas as pd
from sklearn.decomposition import PCA

from benchmarks.quality.splits import load, log_normalise, most_variable
from benchmarks.studies.held_out import read_options, store_figures, study_parser, table_of_means
from benchmarks.studies.time_course import DATASET, N_AXES, N_GENES, TIME, TYPE, train_scldm
from benchmarks.tables import read_table, stored_keys, write_text
from scgen_diffusion.model import SCLDM
from scgen_diffusion.model._autoencoder import DEFAULT_N_STEPS
from scgen_diffusion.model._following import FEWEST_CELLS, window_of
from scgen_diffusion.model._following import follow as follow_in  # to follow cells in other spaces than SCLDM's

if TYPE_CHECKING:
    from collections.abc import Callable

    import anndata as ad
    from numpy.typing import NDArray

KEYS = ("method", "request", "seed")
NEURONS = ("ADL", "ASG", "AWA", "AWB", "AWC")
DAUGHTERS = {
    "Neuroblast_ASG_AWA": ("ASG", "AWA"),
    "ASG_AWA": ("ASG", "AWA"),
    "ADL_parent": ("ADL",),
    "AWC_ON": ("AWC",),
}
FATE = "fate"
N_NEIGHBORS = 5  # default of `follow_cells`
FEWEST_STARTING = 5  # cells of a type, to be judged
SMALLEST = 0.01  # share of the log score's probabilities that is spread evenly
EPSILON = 0.02  # entropy, in units of the median cost; 0.05 was worse for most ways
SLACK = 0.1  # cost of leaving the shares of the later cells; 0.02 and 1 gave similar fates


@dataclass(frozen=True)
class Request:
    """Cells of some minutes, from and below, and the minute that they are followed to."""

    low: float
    high: float
    until: float
    chosen_on: bool = True

    def __str__(self) -> str:
        return f"{f'{self.low:g} to ' if self.low else 'up to '}{self.high - 1:g}, until {self.until:g}"


REQUESTS = (
    Request(0, 330, 520),
    Request(0, 330, 625),
    Request(330, 390, 625),
    Request(0, 300, 450, chosen_on=False),
    Request(390, 450, 600, chosen_on=False),
)


@dataclass(frozen=True)
class Task:
    """A request and all cells, as every way sees them."""

    request: Request
    model: SCLDM
    seed: int
    axes: NDArray = field(repr=False)  # principal components of all cells

    @cached_property
    def times(self) -> NDArray:
        """Minutes of all cells."""
        return self.model.adata.obs[TIME].to_numpy(float)

    @cached_property
    def rows(self) -> NDArray[np.intp]:
        """Rows of the cells that are followed."""
        return np.flatnonzero((self.times >= self.request.low) & (self.times < self.request.high))

    @cached_property
    def step(self) -> float:
        """Length of a step, as by default."""
        return (self.request.until - self.times[self.rows].min()) / DEFAULT_N_STEPS

    @cached_property
    def windows(self) -> list[NDArray[np.intp]]:
        """Rows of the cells of each step, from the last one back to the first, with the same steps for all ways."""
        number = window_of(self.times, self.request.until, self.step)
        sizes = pd.Series(number[number >= 0]).value_counts().sort_index()
        oldest = number[self.rows].max()
        kept = [k for k, size in sizes.items() if k == 0 or (k < oldest and size >= FEWEST_CELLS)]
        return [np.flatnonzero(number == k) for k in kept]

    @cached_property
    def labels(self) -> NDArray:
        """Which neuron each cell is or becomes, ``(cells, neurons)``; to be read in the last window only."""
        return (self.model.adata.obs[FATE].to_numpy(str)[:, None] == np.array(NEURONS)).astype(float)

    @cached_property
    def latents(self) -> NDArray:
        """SCLDM's latents of all cells."""
        return self.model.get_latent_representation()

    def without_course(self, values: NDArray) -> NDArray:
        """Subtract the mean of each time, smoothed over half a step."""
        weights = np.exp(-np.square(self.times[:, None] - self.times) / (2 * (self.step / 2) ** 2))
        return values - weights @ values / weights.sum(1, keepdims=True)

    def in_steps(self, values: NDArray, move: Callable[[NDArray, NDArray], NDArray]) -> NDArray:
        """Return fates by moves from window to window, each a matrix ``(earlier cells, later cells)``."""
        fates, todo = self.labels.copy(), np.setdiff1d(self.rows, np.concatenate(self.windows[1:]))
        for later, earlier in zip(self.windows, [*self.windows[1:], todo], strict=True):
            fates[earlier] = move(values[earlier], values[later]) @ fates[later]
        return fates[self.rows]

    def at_once(self, values: NDArray, move: Callable[[NDArray, NDArray], NDArray]) -> NDArray:
        """Return fates by one move to the last window."""
        return move(values[self.rows], values[self.windows[0]]) @ self.labels[self.windows[0]]


# --- moves ------------------------------------------------------------------------------------------------------------


def to_nearest(x: NDArray, y: NDArray) -> NDArray:
    """Go to one of the nearest cells."""
    nearest = np.argsort(ot.dist(x, y), axis=1)[:, :N_NEIGHBORS]
    move = np.zeros((len(x), len(y)))
    np.put_along_axis(move, nearest, 1 / N_NEIGHBORS, axis=1)
    return move


def by_transport(x: NDArray, y: NDArray) -> NDArray:
    """Go where entropic optimal transport goes."""
    cost = ot.dist(x, y)
    plan = ot.sinkhorn(ot.unif(len(x)), ot.unif(len(y)), cost / np.median(cost), EPSILON, method="sinkhorn_log")
    return plan / plan.sum(1, keepdims=True)


def by_unbalanced_transport(x: NDArray, y: NDArray) -> NDArray:
    """Go where optimal transport goes that need not reach all later cells alike."""
    cost = ot.dist(x, y)
    plan = ot.unbalanced.sinkhorn_unbalanced(
        ot.unif(len(x)),
        ot.unif(len(y)),
        cost / np.median(cost),
        EPSILON,
        (np.inf, SLACK),
        method="sinkhorn_stabilized",
    )
    return plan / plan.sum(1, keepdims=True)


# --- ways to tell fates -----------------------------------------------------------------------------------------------


def follow(task: Task) -> NDArray:
    """Follow cells with SCLDM, by default settings."""
    until = {TIME: task.request.until}
    fates, _ = task.model.follow_cells(None, until, FATE, indices=task.rows, seed=task.seed)
    return fates.reindex(columns=list(NEURONS), fill_value=0.0).to_numpy()


def follow_in_axes(task: Task) -> NDArray:
    """Follow cells in the same way, but in principal components."""
    rows, options = task.rows, {"until": task.request.until, "step": task.step, "n_neighbors": N_NEIGHBORS}
    return follow_in(task.axes, task.times, task.axes[rows], task.times[rows], **options).fates(task.labels)


def invert(task: Task) -> NDArray:
    """Change the time of the cells by inversion, and ask their nearest neighbours what they are."""
    cells = task.model.adata[task.rows].copy()
    moved = task.model.predict_perturbation(cells, {TIME: task.request.until}, method="inversion", seed=task.seed)
    last = task.windows[0]
    return to_nearest(task.model.get_latent_representation(moved), task.latents[last]) @ task.labels[last]


def shares(task: Task) -> NDArray:
    """Give every cell the shares of the neurons at the end."""
    return np.tile(task.labels[task.windows[0]].mean(0), (len(task.rows), 1))


WAYS: dict[str, Callable[[Task], NDArray]] = {
    "SCLDM, `follow_cells`": follow,
    "`follow_cells` in PCs": follow_in_axes,
    "`follow_cells`, shared change kept": lambda task: task.in_steps(task.latents, to_nearest),
    "unbalanced transport, latent less means of times": lambda task: task.in_steps(
        task.without_course(task.latents), by_unbalanced_transport
    ),
    "unbalanced transport, PCs less means of times": lambda task: task.in_steps(
        task.without_course(task.axes), by_unbalanced_transport
    ),
    "unbalanced transport in steps, PCs": lambda task: task.in_steps(task.axes, by_unbalanced_transport),
    "transport in steps, PCs": lambda task: task.in_steps(task.axes, by_transport),
    "transport at once, PCs": lambda task: task.at_once(task.axes, by_transport),
    "nearest cells at once, PCs": lambda task: task.at_once(task.axes, to_nearest),
    "SCLDM, inversion": invert,
    "shares at the end": shares,
}


# --- judge ------------------------------------------------------------------------------------------------------------


def figures(task: Task, fates: NDArray) -> dict[str, float]:
    """Compare fates ``(cells, neurons)`` with the lineage: means over the types of the followed cells."""
    types = task.model.adata.obs[TYPE].astype(str).iloc[task.rows]
    truth = np.array([np.isin(NEURONS, DAUGHTERS.get(kind, (kind,))) for kind in types], dtype=float)
    truth /= truth.sum(1, keepdims=True)
    smoothed = (1 - SMALLEST) * fates + SMALLEST / len(NEURONS)
    table = pd.DataFrame(
        {
            "allowed": (fates * (truth > 0)).sum(1),
            "log_score": (truth * np.log(smoothed)).sum(1),
            "distance": np.abs(fates - truth).sum(1) / 2,
        }
    )
    by_type = table.groupby(types.to_numpy()).agg(["mean", "size"])
    return {
        name: float(by_type[name, "mean"][by_type[name, "size"] >= FEWEST_STARTING].mean()) for name in table.columns
    }


# --- study ------------------------------------------------------------------------------------------------------------

COLUMNS = {"allowed": "allowed fates", "log_score": "log score", "distance": "distance from the truth"}


def summarise(table: pd.DataFrame) -> str:
    """Write one table per request: means over seeds."""
    parts = [
        f"Fates of early cells of `{DATASET}`, means over {table['seed'].nunique()} seeds. *Allowed fates* is the "
        "probability of those that the lineage allows. *Distance* is the share of the probability that is on wrong "
        "fates (total variation). Written by `python -m benchmarks.studies.fates`.",
        "",
    ]
    for request in REQUESTS:
        note = "" if request.chosen_on else " (nothing was chosen on it)"
        parts += [f"**{request} minutes**{note}", ""]
        parts += [table_of_means(table[table["request"] == str(request)], WAYS, COLUMNS), ""]
    return "\n".join(parts)


def trained(cells: ad.AnnData, seed: int, folder: Path | None) -> SCLDM:
    """Train SCLDM on time alone, or load it from the folder."""
    path = folder / f"model{seed}" if folder else None
    if path is not None and path.exists():
        return SCLDM.load(str(path), adata=cells.copy())
    model = train_scldm(cells, seed)
    if path is not None:
        model.save(str(path))
    return model


def main() -> None:
    """Run from the command line."""
    parser = study_parser(__doc__, "fates")
    parser.set_defaults(seeds=[0, 1, 2])
    parser.add_argument("--models", type=Path, help="folder in which trained models are kept")
    arguments = read_options(parser)
    path, cells = arguments.results / "fates.csv", load(DATASET)
    cells = cells[:, most_variable(cells.X, N_GENES)].copy()
    cells.obs[FATE] = cells.obs[TYPE].astype(str).replace("AWC_ON", "AWC")
    axes = PCA(N_AXES, random_state=0).fit_transform(log_normalise(cells.X))
    for seed in arguments.seeds:
        done = stored_keys(path, KEYS)
        todo = [(way, request) for request in REQUESTS for way in WAYS if (way, str(request), seed) not in done]
        model = trained(cells, seed, arguments.models) if todo else None
        tasks = {request: Task(request, model, seed, axes) for request in REQUESTS}
        for way, request in todo:
            case = {"method": way, "request": str(request), "seed": seed}
            store_figures(path, case, figures(tasks[request], WAYS[way](tasks[request])), "POT")
    write_text(path.with_suffix(".md"), summarise(read_table(path)))


if __name__ == "__main__":
    main()
