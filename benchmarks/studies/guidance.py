"""What does guidance do to precision and recall? Scales, intervals, rescaling, and two keys.

    python -m benchmarks.studies.guidance --threads 1
    python -m benchmarks.studies.guidance --datasets pbmc3k --seeds 0 1 2

Each guidance setting is stored in ``results/guidance.csv`` as soon as it is measured, and skipped the next time.
A model is trained for each ``condition_strategy`` with missing results.
"""

from __future__ import annotations

import argparse
import logging
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA

from benchmarks.quality.drawing import generate, train_model
from benchmarks.quality.splits import CONDITION_KEYS, Split, judge, load, log_normalise, split_cells
from benchmarks.tables import describe_source, store_rows, stored_keys
from scgen_diffusion.diffusion import Guidance
from scgen_diffusion.metrics import transfer_f1

if TYPE_CHECKING:
    import anndata as ad
    from numpy.typing import NDArray

logger = logging.getLogger("benchmarks.guidance")

RESULTS = Path(__file__).parent / "results"
KEYS = ("dataset", "seed", "training", "guidance")
FLOOR = "floor"
DATASETS = ("pbmc3k", "kang_ifnb")
METRICS = ("precision", "recall", "w2", "mmd2")
TRAIN = {"plan_kwargs": {"prior": {"batch_size": 128}}, "enable_progress_bar": False}

SCALES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0)
LARGE_SCALES = (2.0, 3.0)
INTERVALS = ((0.0, 0.5), (0.2, 0.8), (0.5, 1.0))
SHARES = (0.5, 1.0)


def ways_of(dataset: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the settings of a data set: arguments of ``generate``, by training strategy and name."""
    ways: dict[tuple[str, str], dict[str, Any]] = {
        ("joint", f"scale {scale:g}"): {"guidance_scale": scale} for scale in SCALES
    }
    for scale in LARGE_SCALES:
        for start, end in INTERVALS:
            how = {"guidance_scale": Guidance(scale, interval=(start, end))}
            ways["joint", f"scale {scale:g} from {start:g} to {end:g}"] = how
        for share in SHARES:
            how = {"guidance_scale": Guidance(scale, rescale=share)}
            ways["joint", f"scale {scale:g}, rescaled by {share:g}"] = how
    for key in CONDITION_KEYS[dataset][1:2]:
        scales: dict[str, Any] = {f"{scale:g}": scale for scale in (1.0, *LARGE_SCALES)}
        scales |= {f"{scale:g} for {key}": {key: scale} for scale in (0.0, *LARGE_SCALES)}
        for name, scale in scales.items():
            ways["additive", f"additive, scale {name}"] = {"guidance_scale": scale}
            ways["mutually_exclusive", f"scale {name}"] = {"guidance_scale": scale}
    return ways


class Figures:
    """Figures of generated cells: those of `evaluate`, their spread, and whether they match the requested conditions.

    The training cells are split in two. Principal components and label classifiers are fitted to one half; the other
    half plays the generated cells and gives the floor.
    """

    def __init__(self, split: Split, seed: int) -> None:
        self.split, self.seed = split, seed
        self.known, self.floor_half = np.array_split(np.random.default_rng(seed).permutation(split.train.n_obs), 2)
        values = log_normalise(split.train.layers["counts"])
        self.pca = PCA(30, svd_solver="randomized", random_state=seed).fit(values[self.known])
        self.train_pcs = self.pca.transform(values)
        self.held_out_pcs = self.pca.transform(log_normalise(split.held_out.layers["counts"]))

    def measure(self, cells: ad.AnnData) -> tuple[dict[str, float], dict[str, float]]:
        """Return the figures of cells generated with the held-out cells' conditions, and those of the floor."""
        table = judge(self.split, cells.X, self.seed, metrics=METRICS).set_index("metric")
        rows = self.floor_half[: self.split.held_out.n_obs]
        found = table["value"].to_dict() | self._own(self.pca.transform(log_normalise(cells.X)), self.split.held_out)
        floor = table["floor"].to_dict() | self._own(self.train_pcs[rows], self.split.train[rows])
        return found, floor

    def _own(self, drawn: NDArray, requested: ad.AnnData) -> dict[str, float]:
        keys, train = self.split.condition_keys, self.split.train[self.known].obs
        real = within_label_variance(self.held_out_pcs, self.split.held_out.obs[list(keys)])
        found = {"spread": within_label_variance(drawn, requested.obs[list(keys)]) / real}
        for key in keys:
            labels = train[key].astype(str), requested.obs[key].astype(str)
            found[f"f1 of {key}"] = transfer_f1(self.train_pcs[self.known], labels[0], drawn, labels[1])
        return found


def within_label_variance(values: NDArray, conditions: pd.DataFrame) -> float:
    """Return the variance of values ``(cells, components)`` around their label means, summed over components."""
    table = pd.DataFrame(values)
    means = table.groupby([conditions[key].astype(str).to_numpy() for key in conditions]).transform("mean")
    return float((table - means).pow(2).sum(axis=1).mean())


def run(path: Path, dataset: str, seed: int) -> None:
    """Measure what is not stored, and store each setting as soon as it is measured."""
    done = stored_keys(path, KEYS)
    missing = {way: how for way, how in ways_of(dataset).items() if (dataset, seed, *way) not in done}
    if not missing:
        return
    split = split_cells(load(dataset), CONDITION_KEYS[dataset], seed=seed)
    figures, model, trained = Figures(split, seed), None, None
    for (training, guidance), how in sorted(missing.items(), key=lambda item: item[0][0]):
        if training != trained:
            variant = {"class": "SCLDM", "model": {"condition_strategy": training}, "train": TRAIN}
            model, trained = train_model(split, variant, seed), training
        found, floor = figures.measure(generate(model, split, seed, **how))
        logger.info("%s, seed %d, %s, %s: %s", dataset, seed, training, guidance, found)
        for way, values, settings in (((FLOOR, FLOOR), floor, ""), ((training, guidance), found, repr(TRAIN | how))):
            keys = dict(zip(KEYS, (dataset, seed, *way), strict=True))
            table = pd.DataFrame({"metric": list(values), "value": list(values.values())}).assign(**keys)
            source = describe_source("torch", "scvi-tools", "scgen-diffusion")
            if way[0] != FLOOR or (dataset, seed, *way) not in stored_keys(path, KEYS):
                store_rows(path, table.assign(settings=settings, **source), KEYS)


def main() -> None:
    """Run from the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", nargs="+", choices=CONDITION_KEYS, default=list(DATASETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of guidance.csv")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for dataset, seed in product(arguments.datasets, arguments.seeds):
        run(arguments.results / "guidance.csv", dataset, seed)


if __name__ == "__main__":
    main()
