"""Our side of the exchange with a rival: cells go to a process of its Python, and what it draws comes back."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from benchmarks.quality.splits import log_normalise
from benchmarks.rivals.worker import COSTS, NO_SHIFT, REQUESTED
from benchmarks.tables import ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def ask(
    rival: str,
    train: ad.AnnData,
    requested: pd.DataFrame,
    seed: int,
    *,
    python: str,
    repository: Path | None = None,
    minutes: float = 15,
    length: float = 1,
) -> ad.AnnData:
    """Return what a process of the rival's Python draws for a request, from these cells alone."""
    with tempfile.TemporaryDirectory() as folder:
        split, drawn = Path(folder, "split.h5ad"), Path(folder, "drawn.h5ad")
        given = train.copy()
        given.uns[REQUESTED] = requested
        given.write_h5ad(split)
        options = {"split": split, "drawn": drawn, "seed": seed, "minutes": minutes, "length": length}
        if repository:
            options["repository"] = repository.resolve()
        command = [python, "-m", f"benchmarks.rivals.{rival.lower()}"]
        command += [str(part) for name, value in options.items() for part in (f"--{name}", value)]
        subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
        return ad.read_h5ad(drawn)


def ask_for_predictions(
    rival: str,
    train: ad.AnnData,
    control: ad.AnnData,
    asked: Sequence[dict[str, object]],
    obs: Sequence[pd.DataFrame],
    seed: int,
    *,
    python: str,
) -> tuple[list[ad.AnnData], list[ad.AnnData]]:
    """Train a rival that predicts perturbations. Return, for each request, changed control cells, and its profiles.

    Profiles are what the rival decodes of the control cells, as it is. Changed cells are the control cells, plus the
    change between their profiles with the request and without: each keeps what its own profile does not explain, and
    means change about as much as those of the profiles. `obs` are the tables of the predicted cells.
    """
    requests = [{"shift": NO_SHIFT}, *asked]
    requested = pd.concat([pd.DataFrame(request, index=control.obs_names) for request in requests])
    drawn = ask(rival, train, requested, seed, python=python, minutes=60)
    before, *after = np.split(drawn.X, len(requests))
    own = log_normalise(control.X)
    changed, decoded = (
        [as_log_cells(values, table, control.var) for values, table in zip(parts, obs, strict=True)]
        for parts in ([own + profiles - before for profiles in after], after)
    )
    for cells in (*changed, *decoded):
        cells.uns[COSTS] = drawn.uns[COSTS]
    return changed, decoded


def as_log_cells(values: NDArray, obs: pd.DataFrame, var: pd.DataFrame) -> ad.AnnData:
    """Return log-normalised values ``(cells, genes)`` as cells. Negative values become zero.

    Profiles, which are means, lack the zeros of cells. They stand for fewer counts in all than a cell has, and the
    judge raises them, because it scales all cells to the same sum.
    """
    return ad.AnnData(sp.csr_matrix(np.maximum(values, 0)), obs=obs, var=var, uns={"log1p": {}})
