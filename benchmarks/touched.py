"""How much of the code does a call touch? Counts functions and files, with `sys.setprofile`, and prints a table.

    python -m benchmarks.touched

200 cells, two keys, one of them with a control value, so that a perturbation flow is trained too; one epoch per stage.
For comparison, `train` of scvi-tools' SCVI on the same cells.
"""

from __future__ import annotations

import inspect
import logging
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import scvi

import scgen_diffusion as scgd
from benchmarks.tables import markdown_table

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType

N_CELLS, N_GENES = 200, 100
KEYS = {"cell_type": ("B", "T"), "condition": ("control", "treated")}
#: Functions whose first call is "the loss" of the table.
LOSSES = ("compute_losses", "compute_loss", "loss")
QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


def simulated_cells() -> ad.AnnData:
    """Draw Poisson counts with random conditions."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(1, 2, N_GENES), (N_CELLS, N_GENES)).astype("float32")
    obs = {key: pd.Categorical(rng.choice(values, N_CELLS)) for key, values in KEYS.items()}
    cells = ad.AnnData(counts, obs=pd.DataFrame(obs, index=[f"cell-{i}" for i in range(N_CELLS)]))
    cells.layers["counts"] = cells.X.copy()
    return cells


def touched(call: Callable[[], object], package: Path) -> tuple[list[str], list[str]]:
    """Return functions and files of a package that a call enters, and both until the loss, as "n in m"."""
    functions: dict[CodeType, None] = {}
    until_loss: list[CodeType] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        is_function = code.co_flags & inspect.CO_OPTIMIZED and not code.co_name.startswith("<")
        if event == "call" and is_function and Path(code.co_filename).is_relative_to(package):
            functions[code] = None
            if code.co_name in LOSSES and not until_loss:
                until_loss.extend(functions)

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return [describe(until_loss), describe(functions)]


def describe(functions: list[CodeType] | dict[CodeType, None]) -> str:
    """Count functions and their files."""
    return f"{len(functions)} in {len({code.co_filename for code in functions})}" if functions else ""


def main() -> None:
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "scvi", "scgen_diffusion"):
        logging.getLogger(name).setLevel(logging.ERROR)
    cells, others = simulated_cells(), simulated_cells()
    scgd.model.SCLDM.setup_anndata(
        cells, layer="counts", condition_keys=list(KEYS), control_values={"condition": "control"}
    )
    model = scgd.model.SCLDM(cells)
    control = cells[cells.obs["condition"] == "control"].copy()
    scvi.model.SCVI.setup_anndata(others, layer="counts", batch_key="cell_type")
    published = scvi.model.SCVI(others)
    ours, theirs = Path(scgd.__file__).parent, Path(scvi.__file__).parent

    def generate() -> None:
        model.generate(20, {"condition": "treated"}, seed=0, show_progress=False)

    calls = {
        "train": (lambda: model.train(1, **QUIET), ours),
        "generate, first": (generate, ours),
        "generate, later": (generate, ours),
        "predict_perturbation": (lambda: model.predict_perturbation(control, {"condition": "treated"}, seed=0), ours),
        "scvi-tools' SCVI: train": (lambda: published.train(1, **QUIET), theirs),
    }
    rows = [[name, *touched(call, package)] for name, (call, package) in calls.items()]
    print(markdown_table(["functions in files", "until the loss", "in all"], rows))


if __name__ == "__main__":
    main()
