"""The systems to measure: the package as users call it, in several sizes."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import anndata as ad
import lightning.pytorch as pl
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

#: Two conditions, as in the published dentate-gyrus and perturbation sets.
N_CLASSES = {"cell_type": 20, "condition": 10}
CONTROL = {"condition": "0"}
N_DISTINCT = 2_048  # simulated cells; larger sets repeat them


@dataclass(frozen=True)
class Setting:
    """Sizes of the panel, of a cell, of a batch and of the data set; where and how to compute."""

    n_genes: int
    n_expressed: int
    batch_size: int = 128
    device: str = "cpu"
    precision: str = "float32"
    compile: bool = False
    n_cells: int = 4_096
    n_steps: int | None = None  # of the package's samplers

    @property
    def is_cuda(self) -> bool:
        return self.device.startswith("cuda")


@dataclass(frozen=True)
class Measured:
    """Cells per second, and figures that only some stages have, by column."""

    cells_per_second: float
    further: dict[str, object] = field(default_factory=dict)


def clock(device: str) -> float:
    """Read a clock, in seconds: CPU time with one thread, so that other processes do not count; else wall time."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def repeat(step: Callable[[], object], n_cells: float, setting: Setting, seconds: float) -> Measured:
    """Run a step, which handles `n_cells`, for about `seconds` after a warm-up."""

    def spend(n_steps: int) -> float:
        started = clock(setting.device)
        for _ in range(n_steps):
            step()
        return clock(setting.device) - started

    spend(1)  # may compile for a minute
    n_steps = max(round(seconds / max(spend(1), 1e-6)), 1)
    return Measured(n_steps * n_cells / spend(n_steps))


# --- the package ------------------------------------------------------------------------------------------------------

#: Calls that train, and their default batch sizes, by the first word of a stage.
TRAININGS = {
    "autoencoder": ("train_autoencoder", 128),
    "prior": ("train_prior", 256),
    "perturbation_flow": ("train_perturbation_flow", 512),
    "training": ("train", 128),
}
#: Stages of training that others depend on.
NEEDED = {
    "prior": ("autoencoder",),
    "perturbation_flow": ("autoencoder",),
    "latent": ("autoencoder",),
    **dict.fromkeys(("generate", "save", "load"), ("autoencoder", "prior")),
}
GENERATED = {"cpu": 512, "cuda": 8_192}  # cells per request


def simulated_cells(setting: Setting, seed: int = 0) -> ad.AnnData:
    """Simulate cells with two labels that express about `n_expressed` genes each, some genes more often than others."""
    rng = np.random.default_rng(seed)
    n_distinct, share = min(setting.n_cells, N_DISTINCT), setting.n_expressed / setting.n_genes
    often = rng.beta(2 * share, 2 * (1 - share), setting.n_genes).astype(np.float32)
    counts = sp.csr_matrix(rng.random((n_distinct, setting.n_genes), dtype=np.float32) < often, dtype=np.float32)
    counts.data = rng.geometric(0.5, counts.nnz).astype(np.float32)
    columns = {key: pd.Categorical(rng.integers(0, n, setting.n_cells).astype(str)) for key, n in N_CLASSES.items()}
    names = pd.Index([f"cell-{number}" for number in range(setting.n_cells)])
    cells = ad.AnnData(counts[np.arange(setting.n_cells) % n_distinct], obs=pd.DataFrame(columns, index=names))
    cells.layers["counts"] = cells.X
    return cells


class EpochClock(pl.Callback):
    """Record the time at the start of each epoch and at the end of the last one, and count the steps."""

    def __init__(self, device: str) -> None:
        self.device, self.n_steps = device, 0
        self.times: list[float] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        self.times.append(clock(self.device))

    def on_train_batch_end(self, *_: Any) -> None:
        self.n_steps += 1

    def on_train_end(self, *_: Any) -> None:
        self.times.append(clock(self.device))


class Package:
    """A model of the package with its defaults, on simulated cells in memory.

    Stages of training are the epochs of a call to ``train`` after the first, with loader, logging and validation:
    ``..._epochs`` with the default batch size, ``..._step`` with that of the setting.
    """

    def __init__(self, setting: Setting, model_class: str, **options: str) -> None:
        self.setting, self.size = setting, options.get("size", "default")
        torch.manual_seed(0)
        self.folder = tempfile.TemporaryDirectory()
        self.cells, self.trained = simulated_cells(setting), set[str]()
        from scgen_diffusion import model

        self.model_class = getattr(model, model_class)
        self.setup()
        self.model = self.model_class(self.cells, **options)

    def setup(self) -> None:
        control = {"control_values": CONTROL} if self.model_class.__name__ == "SCLDM" else {}
        self.model_class.setup_anndata(self.cells, layer="counts", condition_keys=list(N_CLASSES), **control)

    def importing(self) -> None:
        """Import the package, and the dependencies of its models, in a fresh process."""
        subprocess.run([sys.executable, "-c", "import scgen_diffusion.model"], check=True)

    def generate(self, n_cells: int | None = None) -> None:
        """Generate cells with random conditions, as an AnnData."""
        self.model.generate(n_cells or self.n_cells("generate"), n_steps=self.setting.n_steps, seed=0)

    def generate_anndata(self) -> None:
        self.generate(self.n_cells("generate_anndata"))

    def latent_representation(self) -> None:
        self.model.get_latent_representation()

    def save(self) -> None:
        self.model.save(f"{self.folder.name}/model", overwrite=True)

    def load(self) -> None:
        self.model_class.load(f"{self.folder.name}/model", adata=False)

    def n_cells(self, stage: str) -> int:
        """Return how many cells one call or step of a stage handles."""
        if stage == "generate_anndata":
            return GENERATED["cuda" if self.setting.is_cuda else "cpu"]
        if stage == "generate" and self.model_class.__name__ != "SCLDM":
            return 128 if not self.setting.is_cuda else GENERATED["cuda"]
        return self.setting.batch_size if stage in ("generate",) or stage.endswith("_step") else self.setting.n_cells

    def describe(self, stage: str) -> str:
        is_training = stage.partition("_")[0] in TRAININGS
        how = [f"{self.size} size", "compiled" if self.setting.compile else "", self.precision(stage)]
        return ", ".join(filter(None, [*how, "epochs of train" if is_training else "call"]))

    def precision(self, stage: str) -> str:
        return self.setting.precision if stage.partition("_")[0] in TRAININGS else "float32"

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        return (self.model.module,)

    def measure(self, stage: str, seconds: float) -> Measured:
        """Measure a stage, after the trainings that it needs."""
        kind = stage.partition("_")[0]
        needed = NEEDED.get(kind, ())
        if not hasattr(self.model, "train_autoencoder"):
            needed = ("training",) if kind in ("generate", "save", "load") else ()
        for training in needed:
            if training not in self.trained:
                self.train(training, 1, TRAININGS[training][1])
        if stage == "load":
            self.save()
        with warnings.catch_warnings(action="ignore"):  # an untrained network's cells are far from real ones
            if kind in TRAININGS:
                return self.measure_training(stage, seconds)
            if stage == "importing":
                started = time.perf_counter()
                self.importing()
                return Measured(float("nan"), {"seconds": time.perf_counter() - started})
            return repeat(getattr(self, stage), self.n_cells(stage), self.setting, seconds)

    def measure_training(self, stage: str, seconds: float) -> Measured:
        """Measure the epochs after the first, and the rest of the call."""
        kind = stage.partition("_")[0]
        batch_size = self.setting.batch_size if stage.endswith("_step") else TRAININGS[kind][1]
        device, started = self.setting.device, clock(self.setting.device)
        self.train(kind, 1, batch_size)
        n_epochs = min(max(round(seconds / (clock(device) - started)), 2), 50)
        epochs, started = EpochClock(device), clock(device)
        self.train(kind, 1 + n_epochs, batch_size, callbacks=[epochs])
        whole, lasted = clock(device) - started, np.diff(epochs.times)
        n_cells = epochs.n_steps / len(lasted) * batch_size
        fixed = {"fixed_seconds": whole - lasted.sum()}
        return Measured(n_cells * len(lasted[1:]) / lasted[1:].sum(), fixed)

    def train(self, kind: str, n_epochs: int, batch_size: int, **options: Any) -> None:
        if self.setting.compile:
            options["compile"] = True
        torch.backends.cuda.matmul.allow_tf32 = self.setting.precision == "tf32"
        getattr(self.model, TRAININGS[kind][0])(
            n_epochs,
            accelerator="gpu" if self.setting.is_cuda else "cpu",
            devices=1,
            batch_size=batch_size,
            precision="bf16-mixed" if self.setting.precision == "bf16" else "32-true",
            enable_progress_bar=False,
            logger=False,
            **options,
        )
        self.trained.add(kind)


STEPS = ("autoencoder_step", "prior_step", "perturbation_flow_step", "generate")
CALLS = ("importing", "setup", "autoencoder_epochs", "prior_epochs", "perturbation_flow_epochs", "generate_anndata")
GENE_SPACE_CALLS = ("setup", "training_epochs", "generate_anndata", "save", "load")
#: How each system is built, and its stages.
SYSTEMS: dict[str, tuple[Callable[[Setting], Any], tuple[str, ...]]] = {
    "package": (partial(Package, model_class="SCLDM"), STEPS),
    "package-published-sizes": (
        partial(Package, model_class="SCLDM", size="published"),
        ("autoencoder_step", "prior_step", "generate"),
    ),
    "calls-SCLDM": (partial(Package, model_class="SCLDM"), (*CALLS, "latent_representation", "save", "load")),
}
for _name in ("SCMDM", "SCRDIT", "WBDIT"):
    SYSTEMS[_name] = (partial(Package, model_class=_name), ("training_step", "generate"))
    if _name != "SCMDM":
        SYSTEMS[f"{_name}-published-size"] = (partial(Package, model_class=_name, size="published"), ("training_step",))
    SYSTEMS[f"calls-{_name}"] = (partial(Package, model_class=_name), GENE_SPACE_CALLS)
STAGES = tuple(dict.fromkeys(stage for _, stages in SYSTEMS.values() for stage in stages))
