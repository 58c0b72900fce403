"""Training in two stages: the autoencoder on cells, then the prior on their latents."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from scvi import REGISTRY_KEYS

from scgen_diffusion.train import RECIPES, AutoencoderPlan, LatentDataModule, PriorPlan, cache_latents

from ._training import RunStage, TrainingMixin, gathered, stage_seed

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

    import numpy as np
    from torch import Tensor

    from scgen_diffusion.module import SCLDMArchitecture
    from scgen_diffusion.train import (
        AutoencoderRecipe,
        LatentCache,
        PriorRecipe,
        Recipe,
        StageResult,
        TrainingCells,
    )

ROWS_AT_A_TIME = 1 << 14
MEMORY_LIMIT = 2 << 30  # bytes of latents in memory
MEMORY_LIMIT_WITH_FILES = 64 << 20  # whoever leaves cells in files wants little in memory
AUTOENCODER_STAYS = "The autoencoder stays that of the reference; load_query_data(..., trainable='all') trains it too."


class TwoStageTrainingMixin(TrainingMixin):
    """Stages of a model with an autoencoder and a prior over its latents."""

    architecture: SCLDMArchitecture
    _stages: ClassVar[tuple[str, ...]] = ("autoencoder", "prior")
    _stages_to_generate: ClassVar[frozenset[str]] = frozenset(_stages)

    def train_autoencoder(
        self,
        max_epochs: int | None = None,
        *,
        train_size: float | None = None,
        validation_size: float | None = None,
        batch_size: int | None = None,
        plan_kwargs: Mapping[str, Any] | None = None,
        datamodule: TrainingCells | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        compile: bool = False,
        **trainer_kwargs: Any,
    ) -> None:
        """Train the autoencoder alone; the other stages, which knew other latents, are void then. Parameters as in :meth:`train`."""
        if self._keeps_autoencoder:
            raise ValueError(AUTOENCODER_STAYS)
        self._train(
            "train_autoencoder",
            ["autoencoder"],
            trainer_kwargs,
            max_epochs=max_epochs,
            train_size=train_size,
            validation_size=validation_size,
            batch_size=batch_size,
            plan_kwargs=plan_kwargs,
            datamodule=datamodule,
            checkpoint_dir=checkpoint_dir,
            compile=compile,
        )

    def train_prior(
        self,
        max_epochs: int | None = None,
        *,
        batch_size: int | None = None,
        plan_kwargs: Mapping[str, Any] | None = None,
        datamodule: TrainingCells | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        compile: bool = False,
        **trainer_kwargs: Any,
    ) -> None:
        """Train the prior alone, on latents computed once, with the split of the autoencoder. Parameters as in :meth:`train`."""
        self._check_can_read_cells()
        self._train(
            "train_prior",
            ["prior"],
            trainer_kwargs,
            keep_split=True,
            max_epochs=max_epochs,
            batch_size=batch_size,
            plan_kwargs=plan_kwargs,
            datamodule=datamodule,
            checkpoint_dir=checkpoint_dir,
            compile=compile,
        )

    @property
    def _due_stages(self) -> list[str]:
        return ["prior"] if self._keeps_autoencoder else ["autoencoder", "prior"]

    def _why_left_out(self, stage: str) -> str:
        return AUTOENCODER_STAYS if stage == "autoencoder" and self._keeps_autoencoder else super()._why_left_out(stage)

    def _recipe(self, stage: str) -> Recipe:
        recipes = RECIPES[self._recipe_name]
        return recipes.autoencoder if stage == "autoencoder" else recipes.prior

    def _train_stage(self, stage: str, recipe: Any, run: RunStage, **of_stage: Any) -> StageResult:
        train = self._train_autoencoder if stage == "autoencoder" else self._train_prior
        return train(recipe, run, **of_stage)

    def _train_autoencoder(self, recipe: AutoencoderRecipe, run: RunStage, *, compile: bool) -> StageResult:
        data = self._data_module(recipe.batch_size)
        if "autoencoder" not in self.trained_stages_:
            self._start_from_data(self.train_indices_)
        if compile:
            self.module.encoder.compile()
            self.module.decoder.compile()
        self._note_trained(*{"autoencoder"} & {*self.trained_stages_})  # the latents that the others knew are gone
        result = run(AutoencoderPlan(self.module, recipe, seed=stage_seed()), data)
        self._note_trained("autoencoder")
        return result

    def _train_prior(self, recipe: PriorRecipe, run: RunStage, *, compile: bool) -> StageResult:
        with self._cache_latents() as cache:
            self._describe_training_cells(cache)
            if compile:
                self.module.prior.compile()
            data = LatentDataModule(
                cache, self.train_indices_, self.validation_indices_, recipe.batch_size, recipe.smallest_epoch
            )
            result = run(PriorPlan(self.module, recipe, seed=stage_seed() + 1), data, self._autoencoder_digest)
            self._describe_predicted_totals(cache)
        self._note_trained(*self.trained_stages_, "prior")
        self.library_head_is_trained_ = True
        return result

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
        """Keep what generating needs to know of the cells: library sizes and the latents' scale."""
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
