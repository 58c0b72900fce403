"""Training in one stage: a network that diffuses profiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from sklearn.decomposition import PCA
from torch import Tensor

from scgen_diffusion.module import ProfileSummary, library_features, log_profile, total_counts
from scgen_diffusion.train import DiffusionPlan, DiffusionRecipe

from ._gene_order import order_by_correlation
from ._training import TrainingMixin, changed_recipe, checked_epochs, digest_of, gathered, stage_seed

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

    from scgen_diffusion.module import GeneSpaceArchitecture
    from scgen_diffusion.train import TrainingCells

ROWS_AT_A_TIME = 1024
N_AXES = 64
MAX_CELLS_FOR_AXES = 5000


class OneStageTrainingMixin(TrainingMixin):
    """``train`` for a model that diffuses profiles themselves."""

    architecture: GeneSpaceArchitecture
    _recipes: ClassVar[Mapping[str, DiffusionRecipe]]

    def train(
        self,
        max_epochs: int | None = None,
        *,
        datamodule: TrainingCells | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        batch_size: int | None = None,
        train_size: float | None = None,
        early_stopping: bool = False,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        compile: bool = False,
        recipe_kwargs: Mapping[str, Any] | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train the network.

        Ctrl-C stops after the step at hand and keeps the weights; a second one aborts.

        Parameters
        ----------
        max_epochs
            Passes over the training cells. Default: from the number of cells, see the user guide.
        datamodule
            Cells in files, :class:`~scgen_diffusion.data.CellFiles`, in place of those that the model was built with. They are the model's
            cells from then on, also for later calls without this argument, until ``model.adata`` is set. Default: the cells that the model has.
        accelerator, devices
            Where to train; passed to Lightning.
        batch_size
            Cells per step.
        train_size
            Share of cells to train on; the rest are for validation. Default: nine tenths, or all but 2 000 cells.
        early_stopping
            Whether to stop when the validation loss falls no more.
        checkpoint_dir
            Folder for checkpoints. The same call after an interruption, in a new process too, goes on from the last one.
        compile
            Whether to compile the network with ``torch.compile``.
        recipe_kwargs
            Changes of the recipe, such as ``{"learning_rate": 1e-3}``: see
            :class:`~scgen_diffusion.train.DiffusionRecipe`.
        **trainer_kwargs
            Passed to Lightning's trainer: ``precision``, ``strategy``, ``callbacks``, ``enable_progress_bar`` ...
        """
        self._take_cells(datamodule)
        self._require_cells()
        max_epochs = checked_epochs(max_epochs)
        recipe = changed_recipe(self._recipes[self._recipe_name], batch_size, recipe_kwargs)
        data = self._data_module(train_size, recipe.batch_size)
        is_first = not self.is_trained_
        if is_first:
            self._start_from_data(self.train_indices_)
        self._describe_training_cells()
        if compile:
            self.module.network.backbone.compile()
        trainer_kwargs |= {"accelerator": accelerator, "devices": devices, "early_stopping": early_stopping}
        self._run(
            DiffusionPlan(
                self.module, recipe, seed=stage_seed(), fingerprint=digest_of(self._fingerprint, recipe, *self._start)
            ),
            data,
            max_epochs or recipe.max_epochs(len(self.train_indices_)),
            checkpoint_dir,
            trainer_kwargs,
        )
        self.is_trained_ = True
        if self._input_values == "counts":
            self._describe_predicted_totals()
            self.library_head_is_trained_ = True
        if is_first:  # whoever trains on starts where the loss had fallen to
            self._warn_if_nothing_was_learned()

    @property
    def _start(self) -> list[np.ndarray]:
        """What the training cells' values decided before the first step, and which cells these are."""
        decided = (self.module.shift, self.module.scale, self.module.training_zeros)
        return [self.train_indices_, *(tensor.cpu().numpy() for tensor in decided)]

    @torch.no_grad()
    def _start_from_data(self, indices: np.ndarray) -> None:
        """Take the scale of values and the order of genes from the training cells."""
        self.module.start_from(ProfileSummary.of(self._profiles(indices)))
        self.module.set_gene_order(self._resolve_gene_order(indices))
        if self.architecture.n_global_tokens and self.architecture.backbone != "unet":
            self.module.start_reading(torch.from_numpy(self._principal_axes(indices)).to(self.device))

    def _principal_axes(self, indices: np.ndarray) -> np.ndarray:
        """Return the first principal axes of encoded training cells, ``(axes, genes)``; of a sample, where there are many."""
        sample = np.random.default_rng(0).permutation(indices)[:MAX_CELLS_FOR_AXES]
        data = np.concatenate(
            [self.module.encode(profile).cpu().numpy() for profile in self._profiles(np.sort(sample))]
        )
        n_axes = min(N_AXES, *(size - 1 for size in data.shape))
        if n_axes < 1:
            return np.zeros((0, data.shape[1]), dtype=np.float32)
        axes = PCA(n_axes, svd_solver="randomized", random_state=0).fit(data).components_
        torch.set_num_threads(
            torch.get_num_threads()
        )  # scikit-learn leaves OpenMP with all threads, whatever torch was told
        return axes.astype(np.float32)

    def _resolve_gene_order(self, indices: np.ndarray) -> np.ndarray:
        """Return the numbers of the genes in the order in which they are patched."""
        order = self.architecture.gene_order
        if order == "given":
            return np.arange(self.summary_stats.n_vars)
        if order == "correlation":
            return order_by_correlation(profile.cpu().numpy() for profile in self._profiles(indices))
        return self._registered_genes.get_indexer(list(order))

    def _expression(self, indices: np.ndarray | None) -> Iterator[Tensor]:
        """Yield expression ``(cells, genes)`` on the model's device."""
        loader = self._cells.loader(indices, ROWS_AT_A_TIME)
        return (tensors[REGISTRY_KEYS.X_KEY].to(self.device) for tensors in loader)

    def _profiles(self, indices: np.ndarray | None) -> Iterator[Tensor]:
        """Yield profiles ``(cells, genes)`` on the model's device."""
        return (log_profile(x, self._input_values) for x in self._expression(indices))

    def _describe_training_cells(self) -> None:
        """Keep what generating needs to know of the cells: conditions and library sizes."""
        self._count_combinations(self._registered_codes)
        if self._input_values == "counts":
            totals = gathered((total_counts(x)[:, 0] for x in self._expression(None)), self._cells.n_cells)
            self.module.library_size.fit(totals.log(), self._condition_tensor(self._registered_codes).cpu())

    @torch.no_grad()
    def _describe_predicted_totals(self) -> None:
        """Keep the distribution of what the library-size head draws for the training cells."""
        generator = torch.Generator().manual_seed(0)
        predicted = (self.module.library_size.predict(library_features(profile)) for profile in self._profiles(None))
        drawn = (mean.cpu() + std.cpu() * torch.randn(len(mean), generator=generator) for mean, std in predicted)
        self.module.library_size.fit_predicted(
            gathered(drawn, self._cells.n_cells), self._condition_tensor(self._registered_codes).cpu()
        )
