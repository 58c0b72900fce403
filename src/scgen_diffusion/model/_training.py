"""Training in two stages: the autoencoder on cells, then the prior on their latents."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import numpy as np
import torch
from scvi import REGISTRY_KEYS, settings
from scvi.model._utils import parse_device_args
from scvi.model.base import BaseModelClass
from torch import Tensor

from scgen_diffusion.data import Conditions, is_whole_number, known_names
from scgen_diffusion.train import (
    RECIPES,
    AutoencoderPlan,
    CellSplitter,
    LatentCache,
    LatentDataModule,
    PriorPlan,
    Recipe,
    StagePlan,
    StageResult,
    run_stage,
)

if TYPE_CHECKING:
    import os

    import lightning.pytorch as pl
    import pandas as pd

    from scgen_diffusion.module import SCLDMArchitecture

logger = logging.getLogger(__name__)

MAX_VALIDATION_CELLS = 2000
ROWS_AT_A_TIME = 1 << 16
Stage = Literal["autoencoder", "prior"]
RecipeT = TypeVar("RecipeT", bound=Recipe)


class TwoStageTrainingMixin(BaseModelClass):
    """``train`` for a model with an autoencoder and a prior over its latents."""

    architecture: SCLDMArchitecture
    autoencoder_is_trained_: bool
    prior_is_trained_: bool
    history_: dict[str, pd.DataFrame] | None
    combinations_: np.ndarray
    combination_sizes_: np.ndarray

    def train(
        self,
        max_epochs: int | Mapping[Stage, int] | None = None,
        *,
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
        """Train both stages in turn.

        Ctrl-C stops after the step at hand and keeps the weights; a second one aborts.

        Parameters
        ----------
        max_epochs
            Epochs of each stage, or of the stages by name (``"autoencoder"``, ``"prior"``). Default: from the number of
            cells, see the user guide.
        accelerator, devices
            Where to train; passed to Lightning.
        batch_size
            Cells per step; default: 128 for the autoencoder, 512 for the prior.
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
        _changed(recipes.prior, batch_size, prior_kwargs)  # find mistakes before the long work
        _checked_epochs(epochs.get("prior"))
        was_interrupted = self.train_autoencoder(
            epochs.get("autoencoder"), train_size=train_size, recipe_kwargs=autoencoder_kwargs, **common
        )
        if not was_interrupted:
            self.train_prior(epochs.get("prior"), recipe_kwargs=prior_kwargs, **common)

    def train_autoencoder(
        self,
        max_epochs: int | None = None,
        *,
        batch_size: int | None = None,
        train_size: float | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        compile: bool = False,
        recipe_kwargs: Mapping[str, Any] | None = None,
        **trainer_kwargs: Any,
    ) -> bool:
        """Train the autoencoder alone. Parameters as in :meth:`train`; returns whether it was interrupted."""
        self._require_cells()
        max_epochs = _checked_epochs(max_epochs)
        recipe = _changed(RECIPES[self._recipe_name].autoencoder, batch_size, recipe_kwargs)
        splitter = self._splitter(train_size, recipe.batch_size)
        if not self.autoencoder_is_trained_:
            self._start_from_data(splitter.train_idx)
        if compile:
            self.module.encoder.compile()
            self.module.decoder.compile()
        self.prior_is_trained_ = False  # the latents that it knew are gone
        result = self._run(
            AutoencoderPlan(self.module, recipe, seed=_stage_seed(), fingerprint=self._fingerprint),
            splitter,
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
        batch_size: int | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        compile: bool = False,
        recipe_kwargs: Mapping[str, Any] | None = None,
        **trainer_kwargs: Any,
    ) -> bool:
        """Train the prior alone, on latents computed once. Parameters as in :meth:`train`."""
        self._require_cells()
        self._check_autoencoder()
        max_epochs = _checked_epochs(max_epochs)
        recipe = _changed(RECIPES[self._recipe_name].prior, batch_size, recipe_kwargs)
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
                self.module, recipe, seed=_stage_seed() + 1, fingerprint=self._fingerprint + self._autoencoder_digest
            ),
            data,
            max_epochs or recipe.max_epochs(len(self.train_indices_)),
            checkpoint_dir,
            trainer_kwargs,
        )
        self._describe_predicted_totals(cache)
        self.prior_is_trained_ = self.is_trained_ = self.library_head_is_trained_ = True
        return result.was_interrupted

    @property
    def _recipe_name(self) -> str:
        return "published" if self.init_params_["non_kwargs"]["size"] == "published" else "default"

    def _run(
        self,
        plan: StagePlan,
        data: pl.LightningDataModule,
        max_epochs: int,
        checkpoint_dir: str | os.PathLike[str] | None,
        trainer_kwargs: dict[str, Any],
    ) -> StageResult:
        logger.info("Training the %s for %d epochs.", plan.name, max_epochs)
        folder = None if checkpoint_dir is None else Path(checkpoint_dir)
        chosen = {name: trainer_kwargs.pop(name, "auto") for name in ("accelerator", "devices")}
        accelerator, devices, device = parse_device_args(**chosen, return_device="torch")
        where = {"accelerator": accelerator, "devices": devices}
        result = run_stage(plan, data, max_epochs=max_epochs, checkpoint_dir=folder, **where, **trainer_kwargs)
        self.to_device(device)  # as scvi-tools' models stay where they were trained
        self.history_ = {**(self.history_ or {}), **result.history}
        return result

    def _splitter(self, train_size: float | None, batch_size: int) -> CellSplitter:
        self._split(train_size)
        split = [self.train_indices_, self.validation_indices_, self.test_indices_]
        splitter = CellSplitter(self.adata_manager, external_indexing=split, batch_size=batch_size)
        splitter.setup()
        return splitter

    @property
    def _split_fits(self) -> bool:
        """Whether there is a split, and of as many cells as the model has."""
        if self.train_indices_ is None or self.validation_indices_ is None:
            return False
        return len(self.train_indices_) + len(self.validation_indices_) == self.adata.n_obs

    def _split(self, train_size: float | None) -> None:
        """Split the cells, always in the same way for the same seed; both stages use the split."""
        n_cells = self.adata.n_obs
        train_size = max(0.9, 1 - MAX_VALIDATION_CELLS / n_cells) if train_size is None else train_size
        if not 0 < train_size <= 1:
            msg = f"`train_size` must be above 0 and at most 1, but found {train_size}."
            raise ValueError(msg)
        order = np.random.default_rng(settings.seed or 0).permutation(n_cells)
        n_train = max(round(train_size * n_cells), 1)
        self.train_indices_, self.validation_indices_ = np.sort(order[:n_train]), np.sort(order[n_train:])
        self.test_indices_ = order[:0]

    def _start_from_data(self, indices: np.ndarray) -> None:
        """Start at the training cells' mean expression."""
        target = torch.zeros(self.summary_stats.n_vars, dtype=torch.float64)
        pooled = torch.zeros_like(target)
        for tensors in self._make_data_loader(adata=self.adata, indices=indices, batch_size=1024):
            x = tensors[REGISTRY_KEYS.X_KEY]
            target += self.module.target(x).sum(0)
            pooled += self.module.pooled_profile(x).sum(0)
        means = [(total / len(indices)).float().to(self.device) for total in (target, pooled)]
        self.module.start_from_means(*means)

    @torch.inference_mode()
    def _cache_latents(self) -> LatentCache:
        """Encode all cells once."""
        shape = self.module.latent_shape
        cache = LatentCache(
            self.adata.n_obs,
            {"mean": shape, "std": shape, "condition": (len(self._categories),), "log_total": ()},
            {"condition": torch.long},
        )
        return cache.fill(self._encode_all())

    def _encode_all(self) -> Iterator[dict[str, Tensor]]:
        self.module.eval()
        for tensors in self._make_data_loader(adata=self.adata, batch_size=512):
            x = tensors[REGISTRY_KEYS.X_KEY].to(self.device)
            posterior = self.module.inference(x)["posterior"]
            condition = tensors.get(REGISTRY_KEYS.CAT_COVS_KEY, torch.zeros(len(x), 0))
            yield {
                "mean": posterior.mean,
                "std": posterior.std,
                "condition": condition.long(),
                "log_total": self.module.totals(x)[:, 0].log(),
            }

    def _describe_training_cells(self, cache: LatentCache) -> None:
        """Keep what generating needs to know of the cells: conditions, library sizes and the latents' scale."""
        condition, mean = cache.arrays["condition"], cache.arrays["mean"]
        self._count_combinations(condition.numpy())
        self.module.library_size.fit(cache.arrays["log_total"], condition)
        spread = (mean.var(0, correction=0) + cache.arrays["std"].square().mean(0)).sqrt()
        self.module.standardise_latents(mean.mean(0), spread)

    def _count_combinations(self, codes: np.ndarray) -> None:
        conditions = Conditions.from_codes(self._categories, codes)
        self.combinations_, self.combination_sizes_ = conditions.combinations, conditions.n_cells

    @torch.no_grad()
    def _describe_predicted_totals(self, cache: LatentCache) -> None:
        """Keep the distribution of what the library-size head draws for the training cells."""
        generator = torch.Generator().manual_seed(0)
        drawn = []
        for start in range(0, len(cache), ROWS_AT_A_TIME):
            rows = cache[slice(start, start + ROWS_AT_A_TIME)]
            shape = rows["mean"].shape
            noise = torch.randn(shape, generator=generator).to(rows["mean"].device)
            mean, std = self.module.library_size.predict((rows["mean"] + rows["std"] * noise).to(self.device))
            drawn.append(mean.cpu() + std.cpu() * torch.randn(len(mean), generator=generator))
        self.module.library_size.fit_predicted(torch.cat(drawn), cache.arrays["condition"].cpu())

    @property
    def _fingerprint(self) -> str:
        """Tell this model and its cells from others."""
        parts = (self.architecture, self._categories, list(self.var_.index), list(self.adata.obs_names))
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    @property
    def _autoencoder_digest(self) -> str:
        """Tell the autoencoder's weights, by which the latents were computed, from others."""
        parts = (self.module.encoder, self.module.decoder, self.module.likelihood)
        digest = hashlib.sha256()
        for tensor in (t for part in parts for t in part.state_dict().values()):
            digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()

    def _require_cells(self) -> None:
        if self.adata is None:
            msg = "The model has no cells to train on; set model.adata, or construct it with an AnnData."
            raise ValueError(msg)


def _epochs_per_stage(max_epochs: int | Mapping[Stage, int] | None) -> Mapping[Stage, int | None]:
    if not isinstance(max_epochs, Mapping):
        return {"autoencoder": max_epochs, "prior": max_epochs}
    for name in max_epochs:
        if name not in get_args(Stage):
            msg = f"`max_epochs` names the unknown stage {name!r}. {known_names(name, get_args(Stage))}"
            raise ValueError(msg)
    return max_epochs


def _checked_epochs(max_epochs: int | None) -> int | None:
    if max_epochs is not None and not (is_whole_number(max_epochs) and max_epochs >= 1):
        msg = f"`max_epochs` must be a whole number of at least 1, but found {max_epochs!r}."
        raise ValueError(msg)
    return max_epochs


def _changed(recipe: RecipeT, batch_size: int | None, changes: Mapping[str, Any] | None) -> RecipeT:
    """Apply a user's changes to a recipe."""
    changes = dict(changes or {}) | ({} if batch_size is None else {"batch_size": batch_size})
    known = [field.name for field in fields(recipe)]
    for name in changes:
        if name not in known:
            msg = f"The recipe has no option {name!r}. {known_names(name, known)}"
            raise TypeError(msg)
    return replace(recipe, **changes)


def _stage_seed() -> int:
    return settings.seed if settings.seed is not None else int(torch.randint(2**31, (1,)))
