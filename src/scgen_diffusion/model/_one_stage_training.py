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
from ._training import RunStage, TrainingMixin, gathered, stage_seed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from scgen_diffusion.module import GeneSpaceArchitecture
    from scgen_diffusion.train import Recipe, StageResult

ROWS_AT_A_TIME = 1024
N_AXES = 64
MAX_CELLS_FOR_AXES = 5000


class OneStageTrainingMixin(TrainingMixin):
    """The one stage of a model that diffuses profiles themselves."""

    architecture: GeneSpaceArchitecture
    _stages: ClassVar[tuple[str, ...]] = ("diffusion",)
    _stages_to_generate: ClassVar[frozenset[str]] = frozenset(_stages)
    _recipes: ClassVar[Mapping[str, DiffusionRecipe]]

    def _recipe(self, stage: str) -> Recipe:
        return self._recipes[self._recipe_name]

    def _train_stage(self, stage: str, recipe: Any, run: RunStage, **of_stage: Any) -> StageResult:
        data = self._data_module(recipe.batch_size)
        is_first = not self.is_trained_
        if is_first:
            self._start_from_data(self.train_indices_)
        self._describe_training_cells()
        if of_stage["compile"]:
            self.module.network.backbone.compile()
        result = run(DiffusionPlan(self.module, recipe, seed=stage_seed()), data, recipe, *self._start)
        self._note_trained(stage)
        if self._input_values == "counts":
            self._describe_predicted_totals()
            self.library_head_is_trained_ = True
        if is_first:  # whoever trains on starts where the loss had fallen to
            self._warn_if_nothing_was_learned()
        return result

    @property
    def _start(self) -> list[np.ndarray]:
        """What the training cells' values decided before the first step."""
        decided = (self.module.shift, self.module.scale, self.module.training_zeros)
        return [tensor.cpu().numpy() for tensor in decided]

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
        """Keep what generating needs to know of the cells: library sizes."""
        if self._input_values == "counts":
            totals = gathered((total_counts(x)[:, 0] for x in self._expression(None)), self._cells.n_cells)
            self.module.library_size.fit(totals.log(), self.module.condition_tensor(self._registered_codes).cpu())

    @torch.no_grad()
    def _describe_predicted_totals(self) -> None:
        """Keep the distribution of what the library-size head draws for the training cells."""
        generator = torch.Generator().manual_seed(0)
        predicted = (self.module.library_size.predict(library_features(profile)) for profile in self._profiles(None))
        drawn = (mean.cpu() + std.cpu() * torch.randn(len(mean), generator=generator) for mean, std in predicted)
        self.module.library_size.fit_predicted(
            gathered(drawn, self._cells.n_cells), self.module.condition_tensor(self._registered_codes).cpu()
        )
