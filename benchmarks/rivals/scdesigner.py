"""scDesigner (github.com/krisrs1128/scDesigner), the Python package of an author of scDesign3.

A Gaussian copula with negative binomial margins: means, dispersions and correlations depend on the label, as in
scDesign3's tutorials. Number of epochs, batch size and optimiser are the package's defaults. Its default covariance
refuses labels with fewer cells than genes, so it is the package's shrunken one (Ledoit and Wolf). Its margins know no
library size. It has no seed of its own; numpy and torch are seeded.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.rivals.worker import Drawn, work

if TYPE_CHECKING:
    from benchmarks.rivals.worker import Task

MARGINS, COPULA = "~ label", "~ -1 + label"  # without the intercept, margins would lack a label
ESTIMATOR = "ledoit_wolf"


def draw(task: Task) -> Drawn:
    """Fit margins and copula, and draw the requested cells."""
    from scdesigner.simulators import NegBinCopula

    np.random.seed(task.seed)  # noqa: NPY002 - the package draws from the global generator
    torch.manual_seed(task.seed)
    task.train.obs["label"] = task.train.obs["label"].astype("category")
    simulator = NegBinCopula(MARGINS, MARGINS, COPULA, estimator=ESTIMATOR)
    simulator.fit(task.train, verbose=False)
    trained = time.process_time()
    requested = task.requested[["label"]].astype(task.train.obs["label"].dtype)
    return Drawn(
        np.asarray(simulator.sample(requested).X),
        trained,
        "counts",
        {"margins": MARGINS, "copula": COPULA, "estimator": ESTIMATOR},
    )


if __name__ == "__main__":
    work(draw, "scdesigner")
