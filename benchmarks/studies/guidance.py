"""What does guidance do to precision and recall? Scales, intervals, rescaling, and compositions of two keys.

    python -m benchmarks.studies.guidance --threads 1
    python -m benchmarks.studies.guidance --datasets pbmc3k --seeds 0 1 2

Every way of generating is stored in ``results/guidance.csv`` as soon as it is measured, and skipped the next time; ``results/guidance.md``
has the means over seeds beside the floor. A prior is trained when something is missing that it has to generate.
"""

from __future__ import annotations

import argparse
import logging
import time
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scvi

from benchmarks.quality.drawing import held_out_conditions
from benchmarks.quality.judge import Judge
from benchmarks.quality.splits import CONDITION_KEYS, Split, load, log_normalise, split_cells, to_dense
from benchmarks.tables import (
    describe_source,
    markdown_table,
    read_table,
    store_rows,
    stored_keys,
    write_text,
)
from scgen_diffusion.diffusion import Guidance
from scgen_diffusion.metrics import precision_recall_density_coverage, squared_mmd, transfer_f1, wasserstein_2
from scgen_diffusion.model import SCLDM

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

logger = logging.getLogger("benchmarks.guidance")

RESULTS = Path(__file__).parent / "results"
KEYS = ("dataset", "seed", "training", "guidance")
FLOOR = "floor"
DATASETS = ("pbmc3k", "kang_ifnb")
PRIOR = {"batch_size": 128}

SCALES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0)
LARGE_SCALES = (2.0, 3.0)
INTERVALS = ((0.0, 0.5), (0.2, 0.8), (0.5, 1.0))
SHARES = (0.5, 1.0)
COMPOSITIONS = ("joint", "mutually_exclusive", "additive")


@dataclass(frozen=True)
class Guided:
    """One way of generating: how the model was trained, what it is told, and a name for it."""

    training: str
    name: str
    how: dict[str, Any] = field(hash=False)


def one_scale() -> list[Guided]:
    """Return scales, intervals and rescaling, of a model that was trained as by default."""
    ways = [Guided("joint", f"scale {scale:g}", {"guidance_scale": scale}) for scale in SCALES]
    for scale in LARGE_SCALES:
        for start, end in INTERVALS:
            how = {"guidance_scale": Guidance(scale, interval=(start, end))}
            ways.append(Guided("joint", f"scale {scale:g} from {start:g} to {end:g}", how))
        for share in SHARES:
            how = {"guidance_scale": Guidance(scale, rescale=share)}
            ways.append(Guided("joint", f"scale {scale:g}, rescaled by {share:g}", how))
    return ways


def scales_of_two(key: str) -> dict[str, float | dict[str, float]]:
    """Return scales of both keys, and of one, by name."""
    everywhere = {f"{scale:g}": scale for scale in (1.0, *LARGE_SCALES)}
    return everywhere | {f"{scale:g} for {key}": {key: scale} for scale in (0.0, *LARGE_SCALES)}


def compositions(key: str) -> list[Guided]:
    """Return every composition that an additive model knows, and the others' own, with scales for all keys and for one."""
    ways = []
    for name, scale in scales_of_two(key).items():
        ways += [
            Guided("additive", f"{composition}, scale {name}", {"guidance_scale": scale, "composition": composition})
            for composition in COMPOSITIONS
        ]
        ways.append(Guided("mutually_exclusive", f"scale {name}", {"guidance_scale": scale}))
    return ways


def ways_of(dataset: str) -> list[Guided]:
    """Return what is measured on a data set."""
    _, *others = CONDITION_KEYS[dataset]
    return one_scale() + (compositions(others[0]) if others else [])


class Figures:
    """The figures of generated cells: all of them in principal components, so that each takes a second or two."""

    def __init__(self, split: Split, seed: int) -> None:
        self.split = split
        self.judge = Judge.of(split, seed)

    def measure(self, counts: NDArray, asked: pd.DataFrame) -> dict[str, float]:
        """Measure cells ``(cells, genes)`` that were asked to have these conditions, one row per cell."""
        real, drawn = self.judge.held_out_pcs, self.judge.pca.transform(log_normalise(counts))
        neighbourhoods = precision_recall_density_coverage(real, drawn)
        return {
            "precision": neighbourhoods.precision,
            "recall": neighbourhoods.recall,
            "w2": wasserstein_2(real, drawn),
            "mmd2": squared_mmd(real, drawn, squared_scale=self.judge.squared_scale),
            "spread": within_label_variance(drawn, asked) / within_label_variance(real, self._conditions),
        } | self._obedience(drawn, asked)

    def floor(self) -> dict[str, float]:
        """Measure training cells that the principal components have not seen."""
        rows = self.judge.floor_half[: self.split.held_out.n_obs]
        asked = self.split.train.obs[list(self.split.condition_keys)].iloc[rows]
        return self.measure(self.judge.train_counts[rows], asked)

    @property
    def _conditions(self) -> pd.DataFrame:
        return self.split.held_out.obs[list(self.split.condition_keys)]

    def _obedience(self, drawn: NDArray, asked: pd.DataFrame) -> dict[str, float]:
        """Tell how well a classifier of real cells finds in the cells what they were asked to be, key by key.

        It learns from the half of the training cells that the floor does not have.
        """
        judge, keys = self.judge, self.split.condition_keys
        rows = np.setdiff1d(np.arange(len(judge.train_pcs)), judge.floor_half)
        train = self.split.train.obs.iloc[rows]
        return {
            f"f1 of {key}": transfer_f1(judge.train_pcs[rows], train[key].astype(str), drawn, asked[key].astype(str))
            for key in keys
        }


def within_label_variance(values: NDArray, conditions: pd.DataFrame) -> float:
    """Return the variance of values ``(cells, components)`` about the means of their labels, summed over components."""
    table = pd.DataFrame(values)
    centred = table - table.groupby([column.astype(str).to_numpy() for _, column in conditions.items()]).transform(
        "mean"
    )
    return float(centred.pow(2).sum(axis=1).mean())


class Models:
    """One autoencoder, and a prior on it for each way of training, from the same start; one at a time."""

    def __init__(self, split: Split, seed: int) -> None:
        self.split, self.seed = split, seed
        self._training: str | None = None

    def trained_by(self, training: str) -> SCLDM:
        """Return the model with the prior that was trained so, which replaces the one before."""
        if training != self._training:
            model, started = self._with_autoencoder, time.perf_counter()
            scvi.settings.seed = self.seed  # the order of batches is drawn from the global generator
            model.module.load_state_dict(self._start)
            model.module.architecture = replace(model.architecture, condition_strategy=training)
            model.train_prior(plan_kwargs=PRIOR, enable_progress_bar=False)
            logger.info("trained the prior for %s in %.0f s", training, time.perf_counter() - started)
            self._training = training
        return self._with_autoencoder

    @cached_property
    def _with_autoencoder(self) -> SCLDM:
        scvi.settings.seed = self.seed
        adata = self.split.train.copy()
        SCLDM.setup_anndata(adata, layer="counts", condition_keys=list(self.split.condition_keys))
        model = SCLDM(adata)
        model.train_autoencoder(enable_progress_bar=False)
        return model

    @cached_property
    def _start(self) -> dict[str, Tensor]:
        return deepcopy(self._with_autoencoder.module.state_dict())


def run(path: Path, datasets: Sequence[str], seeds: Sequence[int], n_genes: int) -> None:
    """Measure what is not stored, and store each way of generating as soon as it is measured."""
    for dataset, seed in product(datasets, seeds):
        done = stored_keys(path, KEYS)
        ways = [guided for guided in ways_of(dataset) if (dataset, seed, guided.training, guided.name) not in done]
        if not ways:
            continue
        split = split_cells(load(dataset), CONDITION_KEYS[dataset], seed=seed, n_genes=n_genes)
        figures, models = Figures(split, seed), Models(split, seed)

        def store(training: str, guidance: str, found: dict[str, float], settings: str) -> None:
            table = pd.DataFrame({"metric": list(found), "value": list(found.values())})
            keys = dict(zip(KEYS, (dataset, seed, training, guidance), strict=True))  # noqa: B023  called within the loop
            table = table.assign(**keys, settings=settings, **describe_source("torch", "scvi-tools", "scgen-diffusion"))
            store_rows(path, table[[*KEYS, *(name for name in table if name not in KEYS)]], KEYS)

        if (dataset, seed, FLOOR, FLOOR) not in done:
            store(FLOOR, FLOOR, figures.floor(), "")
        for guided in sorted(ways, key=attrgetter("training")):
            model, asked = models.trained_by(guided.training), held_out_conditions(split)
            started = time.perf_counter()
            cells = model.generate(condition=asked, seed=seed, **guided.how)
            seconds = {"seconds": time.perf_counter() - started}
            found = figures.measure(to_dense(cells.X), asked) | seconds
            store(guided.training, guided.name, found, repr({"prior": PRIOR} | dict(sorted(guided.how.items()))))
            logger.info("%s, seed %d, %s, %s: %s", dataset, seed, guided.training, guided.name, found)


def summarise(table: pd.DataFrame) -> str:
    """Write one table per data set: means over seeds, the floor first."""
    parts = [f"Means over seeds; columns as told above. Machine: {', '.join(table['machine'].unique())}.", ""]
    for dataset, rows in table.groupby("dataset", sort=False):
        figures = rows[
            rows["metric"] != "seconds"
        ]  # those follow from the evaluations, and from what else the machine did
        means = figures.pivot_table(index=["training", "guidance"], columns="metric", values="value", sort=False)
        lines = [[training, guidance, *map(_number, row)] for (training, guidance), row in means.iterrows()]
        parts += [f"**{dataset}**, {_seeds(rows)}", ""]
        parts += [markdown_table(["training", "guidance", *means.columns], lines), ""]
    return "\n".join(parts)


def _seeds(rows: pd.DataFrame) -> str:
    seeds = sorted(rows["seed"].unique())
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.3g}" if abs(value) >= 1 else f"{value:.3f}"


def main() -> None:
    """Run from the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", nargs="+", choices=CONDITION_KEYS, default=list(DATASETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--n-genes", type=int, default=2_000, help="most variable genes kept")
    parser.add_argument("--threads", type=int, help="CPU threads of torch; default: its own choice")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of guidance.csv and guidance.md")
    arguments = parser.parse_args()
    if arguments.threads:
        import torch

        torch.set_num_threads(arguments.threads)
    path = arguments.results / "guidance.csv"
    run(path, arguments.datasets, arguments.seeds, arguments.n_genes)
    write_text(arguments.results / "guidance.md", summarise(read_table(path)))


if __name__ == "__main__":
    main()
