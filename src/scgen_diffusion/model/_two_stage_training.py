"""Training in two stages: the autoencoder on cells, then the prior on their latents."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from scvi import REGISTRY_KEYS
from torch import Tensor

from scgen_diffusion.data import known_names
from scgen_diffusion.train import RECIPES, AutoencoderPlan, LatentCache, LatentDataModule, PriorPlan, cache_latents

from ._training import TrainingMixin, changed_recipe, checked_epochs, gathered, stage_seed

if TYPE_CHECKING:
    import os

    import numpy as np

    from scgen_diffusion.module import SCLDMArchitecture
    from scgen_diffusion.train import TrainingCells

ROWS_AT_A_TIME = 1 << 14
MEMORY_LIMIT = 2 << 30  # bytes of latents in memory
MEMORY_LIMIT_WITH_FILES = 64 << 20  # whoever leaves cells in files wants little in memory
Stage = Literal["autoencoder", "prior", "transport"]


class TwoStageTrainingMixin(TrainingMixin):
    """``train`` for a model with an autoencoder and a prior over its latents."""

    architecture: SCLDMArchitecture
    autoencoder_is_trained_: bool
    prior_is_trained_: bool
    transport_is_trained_: bool

    def train(
        self,
        max_epochs: int | Mapping[Stage, int] | None = None,
        *,
        datamodule: TrainingCells | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        batch_size: int | None = None,
        train_size: float | None = None,
        early_stopping: bool = False,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        compile: bool = False,
        autoencoder_kwargs: Mapping[str, Any] | None = None,
        prior_kwargs: Mapping[str, Any] | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train the stages in turn: autoencoder, prior, and, if ``setup_anndata`` was told what is unperturbed, the transport.

        Ctrl-C stops after the step at hand and keeps the weights; a second one aborts.

        Parameters
        ----------
        max_epochs
            Epochs of each stage, or of the stages by name (``"autoencoder"``, ``"prior"``, ``"transport"``). Default: from the
            number of cells, see the user guide.
        datamodule
            Cells in files, :class:`~scgen_diffusion.data.CellFiles`, in place of those that the model was built with. They are the model's
            cells from then on, also for later calls without this argument, until ``model.adata`` is set. Default: the cells that the model has.
        accelerator, devices
            Where to train; passed to Lightning.
        batch_size
            Cells per step of the first two stages; default: 128 for the autoencoder, 512 for the prior.
        train_size
            Share of cells to train on; the rest are for validation. Default: nine tenths, or all but 2 000 cells.
        early_stopping
            Whether to stop a stage when its validation loss falls no more.
        checkpoint_dir
            Folder for checkpoints of the stages. The same call after an interruption, in a new process too, goes on from
            the last one.
        compile
            Whether to compile the networks with ``torch.compile``.
        autoencoder_kwargs, prior_kwargs
            Changes of a stage's recipe, such as ``{"learning_rate": 1e-3}``: see
            :class:`~scgen_diffusion.train.AutoencoderRecipe` and :class:`~scgen_diffusion.train.PriorRecipe`.
        **trainer_kwargs
            Passed to Lightning's trainer: ``precision``, ``strategy``, ``callbacks``, ``enable_progress_bar`` ...
        """
        self._take_cells(datamodule)
        common = {
            "accelerator": accelerator,
            "devices": devices,
            "batch_size": batch_size,
            "early_stopping": early_stopping,
            "checkpoint_dir": checkpoint_dir,
            "compile": compile,
            **trainer_kwargs,
        }
        epochs = _epochs_per_stage(max_epochs)
        recipes = RECIPES[self._recipe_name]
        changed_recipe(recipes.prior, batch_size, prior_kwargs)  # find mistakes before the long work
        checked_epochs(epochs.get("prior"))
        is_asked = autoencoder_kwargs or (isinstance(max_epochs, Mapping) and "autoencoder" in max_epochs)
        if self._keeps_autoencoder and not is_asked:
            self._require_cells()
            self._split(train_size)
            was_interrupted = False
        else:
            was_interrupted = self.train_autoencoder(
                epochs.get("autoencoder"), train_size=train_size, recipe_kwargs=autoencoder_kwargs, **common
            )
        if not was_interrupted:
            was_interrupted = self.train_prior(epochs.get("prior"), recipe_kwargs=prior_kwargs, **common)
        if not was_interrupted:
            where = {"accelerator": accelerator, "devices": devices, "checkpoint_dir": checkpoint_dir}
            self._train_further(epochs, {**where, **trainer_kwargs})

    def _train_further(self, epochs: Mapping[Stage, int | None], options: Mapping[str, Any]) -> None:
        """Train what a subclass has beyond both stages."""

    def train_autoencoder(
        self,
        max_epochs: int | None = None,
        *,
        datamodule: TrainingCells | None = None,
        batch_size: int | None = None,
        train_size: float | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        compile: bool = False,
        recipe_kwargs: Mapping[str, Any] | None = None,
        **trainer_kwargs: Any,
    ) -> bool:
        """Train the autoencoder alone. Parameters as in :meth:`train`; returns whether it was interrupted."""
        self._take_cells(datamodule)
        self._require_cells()
        if self._keeps_autoencoder:
            msg = "The autoencoder stays that of the reference; load_query_data(..., trainable='all') trains it too."
            raise ValueError(msg)
        max_epochs = checked_epochs(max_epochs)
        recipe = changed_recipe(RECIPES[self._recipe_name].autoencoder, batch_size, recipe_kwargs)
        data = self._data_module(train_size, recipe.batch_size)
        if not self.autoencoder_is_trained_:
            self._start_from_data(self.train_indices_)
        if compile:
            self.module.encoder.compile()
            self.module.decoder.compile()
        self.prior_is_trained_ = self.transport_is_trained_ = False  # the latents that they knew are gone
        result = self._run(
            AutoencoderPlan(self.module, recipe, seed=stage_seed(), fingerprint=self._split_fingerprint),
            data,
            max_epochs or recipe.max_epochs(len(self.train_indices_)),
            checkpoint_dir,
            trainer_kwargs,
        )
        self.autoencoder_is_trained_ = True
        return result.was_interrupted

    def train_prior(
        self,
        max_epochs: int | None = None,
        *,
        datamodule: TrainingCells | None = None,
        batch_size: int | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        compile: bool = False,
        recipe_kwargs: Mapping[str, Any] | None = None,
        **trainer_kwargs: Any,
    ) -> bool:
        """Train the prior alone, on latents computed once. Parameters as in :meth:`train`."""
        self._take_cells(datamodule)
        self._require_cells()
        self._check_can_read_cells()
        max_epochs = checked_epochs(max_epochs)
        recipe = changed_recipe(RECIPES[self._recipe_name].prior, batch_size, recipe_kwargs)
        if not self._split_fits:
            self._split(train_size=None)
        cache = self._cache_latents()
        self._describe_training_cells(cache)
        if compile:
            self.module.prior.compile()
        data = LatentDataModule(
            cache, self.train_indices_, self.validation_indices_, recipe.batch_size, recipe.smallest_epoch
        )
        result = self._run(
            PriorPlan(
                self.module,
                recipe,
                seed=stage_seed() + 1,
                fingerprint=self._split_fingerprint + self._autoencoder_digest,
            ),
            data,
            max_epochs or recipe.max_epochs(len(self.train_indices_)),
            checkpoint_dir,
            trainer_kwargs,
        )
        self._describe_predicted_totals(cache)
        self.prior_is_trained_ = self.is_trained_ = self.library_head_is_trained_ = True
        return result.was_interrupted

    def _start_from_data(self, indices: np.ndarray) -> None:
        """Start at the training cells' mean expression."""
        target = torch.zeros(self.summary_stats.n_vars, dtype=torch.float64)
        pooled, n_cells = torch.zeros_like(target), 0
        for tensors in self._cells.loader(indices, 1024):
            x = tensors[REGISTRY_KEYS.X_KEY]
            target += self.module.target(x).sum(0)
            pooled += self.module.pooled_profile(x).sum(0)
            n_cells = n_cells + self.module.n_cells_with(x)
        means = [(total / n_cells).float().to(self.device) for total in (target, pooled)]
        self.module.start_from_means(*means)

    @torch.inference_mode()
    def _cache_latents(self) -> LatentCache:
        """Encode all cells once; in a distributed run each process a part of them."""
        shape = self.module.latent_shape
        shapes = {
            "mean": shape,
            "std": shape,
            "condition": self.module.null_condition.shape,
            "log_total": self.module.library_size.shape,
        }
        dtypes = {"condition": self.module.null_condition.dtype}
        memory_limit = MEMORY_LIMIT if self._file_cells is None else MEMORY_LIMIT_WITH_FILES
        return cache_latents(self._cells.n_cells, shapes, dtypes, self._encode, memory_limit=memory_limit)

    def _encode(self, indices: np.ndarray | None, batch_size: int) -> Iterator[dict[str, Tensor]]:
        self.module.eval()
        for tensors in self._cells.loader(indices, batch_size):
            x = tensors[REGISTRY_KEYS.X_KEY].to(self.device)
            posterior = self.module.inference(x)["posterior"]
            yield {
                "mean": posterior.mean,
                "std": posterior.std,
                "condition": self.module.condition_of(tensors),
                "log_total": self.module.log_totals(x),
            }

    def _describe_training_cells(self, cache: LatentCache) -> None:
        """Keep what generating needs to know of the cells: conditions, library sizes and the latents' scale."""
        self._count_combinations(self._registered_codes)
        self.module.library_size.fit(cache.arrays["log_total"], cache.arrays["condition"])
        if not self._keeps_scale:
            self.module.standardise_latents(*_mean_and_spread(cache))

    @torch.no_grad()
    def _describe_predicted_totals(self, cache: LatentCache) -> None:
        """Keep the distribution of what the library-size head draws for the training cells."""
        totals = gathered(self._drawn_log_totals(cache), len(cache))
        self.module.library_size.fit_predicted(totals, cache.arrays["condition"].cpu())

    def _drawn_log_totals(self, cache: LatentCache) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(0)
        for rows in cache.parts(ROWS_AT_A_TIME):
            shape = rows["mean"].shape
            noise = torch.randn(shape, generator=generator).to(rows["mean"].device)
            z, log_totals = (rows["mean"] + rows["std"] * noise).to(self.device), rows["log_total"].to(self.device)
            mean, std = (values.cpu() for values in self.module.predict_log_totals(z, log_totals))
            totals = mean + std * torch.randn(mean.shape, generator=generator)
            yield totals.masked_fill(log_totals.cpu().isnan(), torch.nan)  # none where a cell has none

    @property
    def _keeps_autoencoder(self) -> bool:
        """Whether the autoencoder is that of a reference, and not trained."""
        return False

    @property
    def _autoencoder_digest(self) -> str:
        """Tell the autoencoder's weights, by which the latents were computed, from others."""
        parts = (self.module.encoder, self.module.decoder, self.module.likelihood)
        digest = hashlib.sha256()
        for tensor in (t for part in parts for t in part.state_dict().values()):
            digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()


def _mean_and_spread(cache: LatentCache) -> tuple[Tensor, Tensor]:
    """Return the mean of latents, and the standard deviation of draws from their posteriors, read twice."""
    n_cells = len(cache)
    mean = sum(rows["mean"].double().sum(0) for rows in cache.parts(ROWS_AT_A_TIME)) / n_cells
    squares = ((rows["mean"] - mean).square() + rows["std"].double().square() for rows in cache.parts(ROWS_AT_A_TIME))
    variance = sum(part.sum(0) for part in squares) / n_cells
    return mean.float(), variance.sqrt().float()


def _epochs_per_stage(max_epochs: int | Mapping[Stage, int] | None) -> Mapping[Stage, int | None]:
    if not isinstance(max_epochs, Mapping):
        return dict.fromkeys(get_args(Stage), max_epochs)
    for name in max_epochs:
        if name not in get_args(Stage):
            msg = f"`max_epochs` names the unknown stage {name!r}. {known_names(name, get_args(Stage))}"
            raise ValueError(msg)
    return max_epochs
