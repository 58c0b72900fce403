"""Time what users call: whole epochs of ``train``, ``generate`` to an AnnData, reading cells, saving and loading."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import warnings
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import lightning.pytorch as pl
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from lightning.pytorch.profilers import SimpleProfiler

from benchmarks.speed.meters import Measurement, PeakMemory, clock, measure, synchronise
from benchmarks.speed.systems import N_CLASSES, Setting, System, read_shuffled

if TYPE_CHECKING:
    from torch import nn

    from scgen_diffusion.model import SCLDM
    from scgen_diffusion.train import TrainingCells

N_DISTINCT = 2048  # number of simulated cells; larger sets repeat them
CONTROL = {"condition": "0"}


def simulated_cells(setting: Setting, seed: int = 0) -> ad.AnnData:
    """Simulate ``setting.n_cells`` cells with two labels that express about ``n_expressed`` genes each.

    Some genes are expressed more often than others.
    """
    rng = np.random.default_rng(seed)
    n_distinct = min(setting.n_cells, N_DISTINCT)
    expressed = rng.random((n_distinct, setting.n_genes), dtype=np.float32) < _frequencies(setting, rng)
    counts = sp.csr_matrix(expressed, dtype=np.float32)
    counts.data = rng.geometric(0.5, counts.nnz).astype(np.float32)
    rows = np.arange(setting.n_cells) % n_distinct
    x = counts if setting.n_cells == n_distinct else counts[rows]
    columns = {key: pd.Categorical(rng.integers(0, n, setting.n_cells).astype(str)) for key, n in N_CLASSES.items()}
    names = pd.Index([f"cell-{number}" for number in range(setting.n_cells)])
    cells = ad.AnnData(x, obs=pd.DataFrame(columns, index=names))
    cells.layers["counts"] = cells.X
    return cells


def _frequencies(setting: Setting, rng: np.random.Generator) -> np.ndarray:
    """Return how often each gene is expressed: beta-distributed, with the wanted mean."""
    mean = setting.n_expressed / setting.n_genes
    return rng.beta(2 * mean, 2 * (1 - mean), setting.n_genes).astype(np.float32)


N_WARM_UP_EPOCHS = 1
GENERATED = {"cpu": 512, "cuda": 8192}  # cells per request
#: The names in Lightning's profiler of waiting for a batch, and of all training.
FETCH, EPOCH = ".train_dataloader_next", "run_training_epoch"
QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}


class EpochClock(pl.Callback):
    """Record the time at the start of each epoch, and at the end of the last one."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.times: list[float] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        """Record the start of the epoch."""
        self._note()

    def on_train_end(self, *_: Any) -> None:
        """Record the end of the last epoch."""
        self._note()

    @property
    def seconds(self) -> list[float]:
        """Seconds of each epoch, with validation."""
        return [stop - start for start, stop in zip(self.times[:-1], self.times[1:], strict=True)]

    def _note(self) -> None:
        synchronise(self.device)
        self.times.append(clock(self.device))


class SilentProfiler(SimpleProfiler):
    """Lightning's profiler, without printing its table."""

    def describe(self) -> None:
        """Say nothing."""


class Calls(System):
    """A model with its defaults, and users' calls as stages. Calls that a stage depends on run first."""

    model_class: str
    trainings: dict[str, str]

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        torch.manual_seed(0)
        self.folder = tempfile.TemporaryDirectory()
        self.adata = simulated_cells(setting)
        self.how: dict[str, str] = {}
        self._done: set[str] = set()

    @cached_property
    def model(self) -> SCLDM:
        """The model of the cells."""
        self.setup()
        return self._class(self.adata, **self.setting.architecture)

    def setup(self) -> None:
        """Register the cells."""
        self._class.setup_anndata(self.adata, layer="counts", condition_keys=list(N_CLASSES), **self._setup_options)

    def importing(self) -> None:
        """Import the package, and the dependencies of its models, in a fresh process."""
        subprocess.run([sys.executable, "-c", "import scgen_diffusion.model"], check=True)

    def loading(self) -> None:
        """Read all cells once, shuffled, in batches of 128, from memory."""
        read_shuffled(self.model._cells, np.arange(self.setting.n_cells))

    def loading_backed(self) -> None:
        """Read them from a file, through a backed AnnData."""
        read_shuffled(self._backed_model._cells, np.arange(self.setting.n_cells))

    def loading_files(self) -> None:
        """Read them from the same file, through CellFiles."""
        read_shuffled(self._cell_files, np.arange(self.setting.n_cells))

    def generate_anndata(self) -> None:
        """Generate cells with random conditions, as an AnnData with sparse counts."""
        with warnings.catch_warnings(action="ignore"):  # an untrained network's cells are far from real ones
            self.model.generate(
                self.n_cells("generate_anndata"), n_steps=self.setting.n_steps, seed=0, show_progress=False
            )

    def save(self) -> None:
        """Save the model without its cells."""
        self.model.save(f"{self.folder.name}/model", overwrite=True)

    def load(self) -> None:
        """Load it for generation."""
        self._class.load(f"{self.folder.name}/model", adata=False)

    def n_cells(self, stage: str) -> int:
        """Return how many cells one call of a stage handles."""
        if stage == "generate_anndata":
            return GENERATED[torch.device(self.setting.device).type]
        return self.setting.n_cells

    def precision(self, stage: str) -> str:
        """Return the precision of a stage."""
        return self.setting.precision if stage in self.trainings else "float32"

    def describe(self, stage: str) -> str:
        """Say how the stage was computed."""
        return self.how.get(stage, "call, defaults")

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """All networks of the model."""
        return (self.model.module,)

    def measure(self, stage: str, seconds: float) -> Measurement:
        """Measure a stage: for training the epochs after the first, for imports the whole process."""
        self.prepare(stage)
        if stage in self.trainings:
            return self._measure_training(stage, seconds)
        if stage == "importing":
            return self._measure_import()
        return measure(getattr(self, stage), self.n_cells(stage), device=self.setting.device, seconds=seconds)

    def prepare(self, stage: str) -> None:
        """Train the dependencies of a stage for one epoch, and write the files that it reads."""
        for training in self._needed(stage):
            if training not in self._done:
                self._train(training, 1)
        if stage == "load":
            self.save()
        if stage == "loading_backed":
            self._backed_model  # noqa: B018  built before the measurement
        if stage == "loading_files":
            self._cell_files  # noqa: B018  as above

    def _needed(self, stage: str) -> tuple[str, ...]:
        """List the training stages that a stage depends on."""
        return tuple(self.trainings) if stage in ("generate_anndata", "save", "load") else ()

    def _train(self, stage: str, n_epochs: int, **options: Any) -> None:
        accelerator = "gpu" if self.setting.device.startswith("cuda") else "cpu"
        train = getattr(self.model, self.trainings[stage])
        with warnings.catch_warnings(action="ignore"):
            train(
                n_epochs,
                accelerator=accelerator,
                devices=1,
                precision=self.setting.trainer_precision,
                **QUIET,
                **self._how(stage),
                **options,
            )
        self._done.add(stage)

    def _how(self, stage: str) -> dict[str, Any]:
        return {"compile": True} if self.setting.compile else {}

    def _measure_training(self, stage: str, seconds: float) -> Measurement:
        """Measure the epochs inside ``train``, and the rest of the call."""
        started = clock(self.setting.device)
        self._train(stage, N_WARM_UP_EPOCHS)
        once = clock(self.setting.device) - started
        n_epochs = min(max(round(seconds / once), 2), 50)
        epochs, profiler = EpochClock(self.setting.device), SilentProfiler()
        started = clock(self.setting.device)
        with PeakMemory(self.setting.device) as memory:
            self._train(stage, N_WARM_UP_EPOCHS + n_epochs, callbacks=[epochs], profiler=profiler)
        whole = clock(self.setting.device) - started
        counted = epochs.seconds[N_WARM_UP_EPOCHS:]
        n_cells = self._cells_per_epoch(stage)
        self.how[stage] = f"{n_epochs} epochs of {n_cells} cells"
        further = {"fixed_seconds": whole - sum(epochs.seconds), "loading_share": _loading_share(profiler)}
        return Measurement(n_cells * len(counted) / sum(counted), memory.peak_bytes, further)

    def _cells_per_epoch(self, stage: str) -> int:
        return len(self.model.train_indices_)

    def _measure_import(self) -> Measurement:
        started = clock("cuda")  # wall time, because another process does the work
        self.importing()
        spent = clock("cuda") - started
        self.how["importing"] = "a fresh process"
        return Measurement(float("nan"), 0, {"seconds": spent})

    @cached_property
    def _file(self) -> Path:
        path = Path(self.folder.name) / "cells.h5ad"
        ad.AnnData(self.adata.layers["counts"], obs=self.adata.obs).write_h5ad(path)
        return path

    @cached_property
    def _cell_files(self) -> TrainingCells:
        from scgen_diffusion.data import CellFiles

        return CellFiles(self._file, condition_keys=list(N_CLASSES))

    @cached_property
    def _backed_model(self) -> Any:
        cells = ad.read_h5ad(self._file, backed="r")
        self._class.setup_anndata(cells, condition_keys=list(N_CLASSES))
        return self._class(cells)

    @property
    def _class(self) -> Any:
        from scgen_diffusion import model

        return getattr(model, self.model_class)

    @property
    def _setup_options(self) -> dict[str, Any]:
        return {}


class CallsScldm(Calls):
    """SCLDM."""

    model_class = "SCLDM"
    trainings = {
        "autoencoder_epochs": "train_autoencoder",
        "prior_epochs": "train_prior",
        "transport_epochs": "train_transport",
    }
    stages = (
        "importing",
        "setup",
        "autoencoder_epochs",
        "prior_epochs",
        "transport_epochs",
        "generate_anndata",
        "latent_representation",
        "loading",
        "loading_backed",
        "loading_files",
        "save",
        "load",
    )

    def latent_representation(self) -> None:
        """Encode all cells."""
        self.model.get_latent_representation()

    def _needed(self, stage: str) -> tuple[str, ...]:
        if stage in ("prior_epochs", "transport_epochs", "latent_representation"):
            return ("autoencoder_epochs",)
        return ("autoencoder_epochs", "prior_epochs") if stage in ("generate_anndata", "save", "load") else ()

    def _how(self, stage: str) -> dict[str, Any]:
        if stage == "transport_epochs":
            return {"control_values": CONTROL}
        return super()._how(stage)

    def _cells_per_epoch(self, stage: str) -> int:
        from scgen_diffusion.train import RECIPES, TransportRecipe

        n_cells = super()._cells_per_epoch(stage)
        if stage == "autoencoder_epochs":
            return n_cells
        recipe = RECIPES["default"].prior if stage == "prior_epochs" else TransportRecipe()
        n_drawn = recipe.steps_per_epoch(n_cells) * recipe.batch_size
        return max(n_cells, recipe.smallest_epoch * recipe.batch_size) if stage == "prior_epochs" else n_drawn


class CallsScrdit(Calls):
    """SCRDIT."""

    model_class = "SCRDIT"
    trainings = {"training_epochs": "train"}
    stages = ("setup", "training_epochs", "generate_anndata", "save", "load")


class CallsWbdit(CallsScrdit):
    """WBDIT."""

    model_class = "WBDIT"


def _loading_share(profiler: SimpleProfiler) -> float:
    """Return the share of the epochs' time that training spent waiting for batches."""
    seconds = {name: sum(durations) for name, durations in profiler.recorded_durations.items()}
    fetching = sum(value for name, value in seconds.items() if name.endswith(FETCH))
    training = sum(value for name, value in seconds.items() if name.endswith(EPOCH))
    return fetching / training if training else float("nan")
