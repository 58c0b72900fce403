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


def ask_for_profiles(
    rival: str, train: ad.AnnData, control: ad.AnnData, asked: Sequence[dict[str, object]], seed: int, *, python: str
) -> tuple[NDArray, list[NDArray], dict[str, object]]:
    """Return what a rival decodes of control cells, ``(cells, genes)``: as they are, and for each request; its costs."""
    requests = [{"shift": NO_SHIFT}, *asked]
    requested = pd.concat([pd.DataFrame(request, index=control.obs_names) for request in requests])
    drawn = ask(rival, train, requested, seed, python=python, minutes=60)
    before, *after = np.split(drawn.X, len(requests))
    return before, after, drawn.uns[COSTS]


def as_log_cells(values: NDArray, obs: pd.DataFrame, var: pd.DataFrame) -> ad.AnnData:
    """Return log-normalised values ``(cells, genes)`` as cells. Negative values become zero."""
    return ad.AnnData(sp.csr_matrix(np.maximum(values, 0)), obs=obs, var=var, uns={"log1p": {}})
