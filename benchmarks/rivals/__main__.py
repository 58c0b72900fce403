"""Train published rivals on our splits, by their own code in their own environments, and draw cells to be judged.

    python -m benchmarks.rivals CFGen --repository CFGen --python venv/bin/python --datasets kang_ifnb --seeds 0
    python -m benchmarks.quality --steps judge --datasets kang_ifnb --seeds 0 --methods CFGen

For every split, a file goes to a process of the rival's Python: the training cells with their labels, and the labels of
the cells to draw. What comes back is kept in ``--folder``, as the cells of all methods are. Nothing of a rival is
part of this repository: ``--repository`` is a clone of its own.
"""

from __future__ import annotations

import logging
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from benchmarks.quality.methods import COSTS_KEY, draw_matching, held_out_conditions, write_cells
from benchmarks.quality.splits import LABEL, load_split, to_dense
from benchmarks.rivals import RIVALS
from benchmarks.rivals.exchange import ask
from benchmarks.rivals.worker import COSTS, VALUES
from benchmarks.runner import options, start

if TYPE_CHECKING:
    import argparse

    from benchmarks.quality.splits import Split

logger = logging.getLogger("benchmarks.rivals")


def request(split: Split, seed: int) -> pd.DataFrame:
    """Return one row per held-out cell: its label, and the total counts of a training cell with this label."""
    rows = draw_matching(split.train_labels, split.held_out_labels, np.random.default_rng(seed))
    totals = to_dense(split.train.layers["counts"]).sum(axis=1)
    return pd.DataFrame({"label": split.held_out_labels, "total": totals[rows]})


def as_cells(split: Split, requested: pd.DataFrame, drawn: ad.AnnData) -> ad.AnnData:
    """Return a rival's cells in the form that the judge reads. Log-normalised values become counts with the totals.

    Raises
    ------
    ValueError
        If they are not one cell per held-out cell, or not counts.
    """
    from scgen_diffusion.module import to_counts

    values = drawn.X
    if drawn.uns[VALUES] == "log-normalised":
        values = to_counts(torch.from_numpy(values), torch.tensor(requested["total"].to_numpy())).numpy()
    expected = (split.held_out.n_obs, split.train.n_vars)
    if values.shape != expected or not np.isfinite(values).all() or (values < 0).any() or (values % 1 != 0).any():
        msg = f"A rival must return non-negative integers of shape {expected}, but found {values} of {values.shape}."
        raise ValueError(msg)
    obs = held_out_conditions(split).assign(**{LABEL: split.held_out_labels})
    return ad.AnnData(sp.csr_matrix(values), obs=obs, var=split.train.var[[]].copy(), uns={COSTS_KEY: drawn.uns[COSTS]})


def draw(split: Split, seed: int, arguments: argparse.Namespace) -> ad.AnnData:
    """Return the cells of a rival, which sees the training cells with their labels, and the request."""
    requested = request(split, seed)
    obs = pd.DataFrame({"label": split.train_labels}, index=split.train.obs_names)
    train = ad.AnnData(split.train.layers["counts"], obs=obs, var=split.train.var[[]])
    options = {name: getattr(arguments, name) for name in ("python", "repository", "minutes", "length")}
    return as_cells(split, requested, ask(arguments.rival, train, requested, seed, **options))


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("rival", choices=RIVALS)
    parser.add_argument("--repository", type=Path, required=True, help="a clone of the rival's repository")
    parser.add_argument("--python", required=True, help="Python of an environment that has the rival's requirements")
    parser.add_argument("--datasets", nargs="+", default=["pbmc3k", "kang_ifnb", "worm_embryo"])
    parser.add_argument("--minutes", type=float, default=15, help="training on one core lasts at most as long (15)")
    parser.add_argument("--length", type=float, default=1, help="longest training, in units of the published one (1)")
    parser.add_argument("--suffix", help="added to the rival's name in the tables, for other minutes or lengths: long")
    chosen = start(parser)
    method = "-".join(filter(None, [chosen.rival, chosen.suffix]))
    for dataset, seed in product(chosen.datasets, chosen.seeds):
        path = chosen.folder / f"{dataset}-{seed}-{method}.h5ad"
        if not path.exists():
            logger.info("%s, seed %d: drawing with %s", dataset, seed, method)
            write_cells(draw(load_split(dataset, seed), seed, chosen), path)


if __name__ == "__main__":
    main()
