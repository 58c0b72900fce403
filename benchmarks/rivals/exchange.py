"""Our side of the exchange with a rival: cells go to a process of its Python, and what it draws comes back."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad

from benchmarks.rivals.worker import REQUESTED
from benchmarks.tables import ROOT

if TYPE_CHECKING:
    import pandas as pd


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
