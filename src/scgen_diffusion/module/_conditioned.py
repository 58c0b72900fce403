"""What modules of conditional models have in common: the columns of conditions, and how training drops them."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scvi.module.base import BaseModuleClass

from scgen_diffusion.diffusion import ConditionColumns, condition_strategy
from scgen_diffusion.nn import keys_of_columns, null_condition

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn
    from torch.optim.swa_utils import AveragedModel

    from scgen_diffusion.diffusion import ConditionStrategy, Denoiser, Generators, Inversion, ResolvedGuidance, Sampler
    from scgen_diffusion.nn import ConditionSpec

    from ._expression import InputValues
    from ._library_size import LibrarySizeKind

CONDITIONS = "conditions"
"""Name of the cells' conditions in the registry and in batches."""


class ConditionedModule(BaseModuleClass):
    """A module that generates under conditions, tensors ``(cells, columns)``."""

    architecture: Any
    null_condition: Tensor
    key_of_column: Tensor
    n_keys: int

    def _register_conditions(self, conditions: Sequence[ConditionSpec], key_groups: Sequence[Sequence[int]]) -> None:
        self.n_keys = len(conditions)
        self.key_groups = tuple(tuple(group) for group in key_groups)
        self.register_buffer("null_condition", null_condition(conditions))
        self.register_buffer("key_of_column", keys_of_columns(conditions), persistent=False)

    @property
    @abstractmethod
    def network_and_average(self) -> tuple[nn.Module, AveragedModel]:
        """The network that learns how conditions and cells go together, and the average of its weights."""

    @property
    def condition_columns(self) -> ConditionColumns:
        """What the columns of a condition mean."""
        return ConditionColumns(self.null_condition, self.key_of_column, self.n_keys)

    @property
    def strategy(self) -> ConditionStrategy:
        """How conditions are dropped in training and composed in guidance."""
        return condition_strategy(self.architecture.condition_strategy, self.key_groups)

    def condition_of(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the conditions of a batch, ``(cells, columns)``."""
        null = self.null_condition
        if CONDITIONS not in tensors:
            n_cells = len(next(iter(tensors.values())))
            return null.new_zeros(n_cells, 0)
        return tensors[CONDITIONS].to(null.dtype)

    def condition_tensor(self, codes: np.ndarray) -> Tensor:
        """Turn condition codes ``(n, columns)``, none of them open, into what the module takes."""
        return torch.from_numpy(codes).to(self.null_condition.device, self.null_condition.dtype)

    # --- generation ------------------------------------------------------------------------------------------------

    @abstractmethod
    def draw_noise(self, generators: Generators) -> Tensor:
        """Draw what generation starts from, ``(cells, ...)``."""

    @abstractmethod
    def denoiser(self, condition: Tensor, guidance: ResolvedGuidance) -> Denoiser:
        """Return what samplers follow under ``condition (cells, columns)`` and guidance."""

    @abstractmethod
    def sample_cells(
        self,
        condition: Tensor,
        generators: Generators,
        *,
        guidance: ResolvedGuidance,
        sampler: Sampler,
        n_steps: int | None = None,
        library_size: LibrarySizeKind | np.ndarray = "empirical",
        output: InputValues,
        n_wanted: int,
    ) -> Tensor:
        """Make cells.

        Parameters
        ----------
        condition
            ``(block, columns)``.
        generators
            Random numbers of the cells.
        guidance, sampler, n_steps
            How they are sampled.
        library_size
            Name of the distribution of total counts, or the totals ``(block, ...)``.
        output
            ``"counts"`` or ``"log1p"``, where the module has a choice.
        n_wanted
            How many of them, the first, are asked for.

        Returns
        -------
        Tensor
            ``(n_wanted, genes)``.
        """

    @abstractmethod
    def inversion_by(self, sampler: Sampler) -> Inversion:
        """Return the way to noise and back that belongs to a sampler.

        Raises
        ------
        ValueError
            For a sampler that cannot be led by given cells.
        """

    @abstractmethod
    def predict_cells(
        self,
        x: Tensor,
        move: Callable[[Tensor], Tensor],
        draw_totals: Callable[[Tensor], Tensor],
        generators: Generators,
        *,
        output: InputValues,
        sample: bool = True,
        residuals: str = "new",
        n_wanted: int,
    ) -> Tensor:
        """Carry given cells over.

        Parameters
        ----------
        x
            Registered expression, ``(block, genes)``.
        move
            Carries states, as the denoiser knows them, from the cells' own conditions to new ones.
        draw_totals
            Total counts ``(block,)`` of cells with such latents or profiles.
        generators
            Random numbers of the cells.
        output, sample, residuals
            What comes out, where the module has a choice: counts or profiles, drawn or expected, and whether drawn cells keep
            what the latent does not explain of them (``"own"``).
        n_wanted
            How many cells, the first, are asked for.

        Returns
        -------
        Tensor
            ``(n_wanted, genes)``.
        """

    @abstractmethod
    def profiles_of(self, states: Tensor) -> Tensor:
        """Read states on the way from noise to cells, ``(cells, ...)``, as log-normalised profiles ``(cells, genes)``."""

    def draw_totals(
        self, library_size: LibrarySizeKind | np.ndarray, condition: Tensor, features: Tensor, generators: Generators
    ) -> Tensor:
        """Draw total counts ``(cells, ...)`` given conditions ``(cells, columns)`` and what tells totals; given ones stay."""
        uniform = generators.uniform(*self.library_size.shape)
        if isinstance(library_size, np.ndarray):
            return torch.tensor(library_size, device=features.device)
        return self.library_size.draw(library_size, condition, features, uniform)

    def has_zeros(self, output: InputValues) -> bool:
        """Tell whether cells hold so many zeros that they are kept sparse."""
        return output == "counts"
