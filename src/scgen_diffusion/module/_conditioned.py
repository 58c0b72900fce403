"""Base class of conditional modules: the columns of conditions, and how training drops them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from scvi import REGISTRY_KEYS
from scvi.module.base import BaseModuleClass
from torch import Tensor

from scgen_diffusion.diffusion import CONDITION_STRATEGIES, ConditionColumns, Guidance, expand_like
from scgen_diffusion.nn import keys_of_columns, null_condition, total_counts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from torch import nn
    from torch.optim.swa_utils import AveragedModel

    from scgen_diffusion.diffusion import ConditionStrategy, Denoiser, Generators, Sampler
    from scgen_diffusion.nn import ConditionEncoding, InputValues
    from scgen_diffusion.perturbation import PerturbationFlow

    from ._condition_effects import AbsentEffects, ConditionEffects

TensorMap = Callable[[Tensor], Tensor]
MOST_REDRAWS = 50  # of a cell; a tenth of draws with a count leaves 1 in 200 empty
CONDITIONS = "conditions"
"""Name of the cells' conditions in the registry and in batches."""


class ConditionedModule(BaseModuleClass):
    """A module that generates under conditions, tensors ``(cells, columns)``."""

    architecture: Any
    keeps_totals: ClassVar[bool] = False
    """Whether predictions under other conditions need the totals of the given cells."""
    loss_judges_cells: ClassVar[bool] = True
    """Whether a validation loss that rises means worse cells."""
    null_condition: Tensor
    key_of_column: Tensor
    conditions: tuple[ConditionEncoding, ...]
    unstandardise: Callable[[Tensor], Tensor]  # of modules with a perturbation flow

    def __init__(self, conditions: Sequence[ConditionEncoding]) -> None:
        super().__init__()
        self.conditions = tuple(conditions)
        self.register_buffer("null_condition", null_condition(conditions))
        self.register_buffer("key_of_column", keys_of_columns(conditions), persistent=False)
        self.perturbation_flow: PerturbationFlow | None = None  # for modules that learn one
        self.condition_effects: ConditionEffects | None = None  # likewise
        self.absent_effects: AbsentEffects | None = None  # likewise

    @property
    def device(self) -> torch.device:
        """Where the module is. Asking all parameters, as scvi-tools does, takes longer than small batches."""
        return self.null_condition.device

    @property
    @abstractmethod
    def network_and_average(self) -> tuple[nn.Module, AveragedModel]:
        """The conditional network, and the copy with averaged weights."""

    @property
    def condition_columns(self) -> ConditionColumns:
        """Layout of the condition columns."""
        return ConditionColumns(self.null_condition, self.key_of_column, len(self.conditions))

    @property
    def strategy(self) -> ConditionStrategy:
        """How training drops conditions and guidance composes them."""
        return CONDITION_STRATEGIES[self.architecture.condition_strategy]

    @property
    def unguided(self) -> Guidance:
        """Guidance of scale 1: the conditional prediction."""
        return Guidance(self.strategy.terms([1.0] * len(self.conditions)))

    def _get_inference_input(self, tensors: Mapping[str, Tensor], **_: Any) -> dict[str, Tensor]:
        return {"x": tensors[REGISTRY_KEYS.X_KEY]}

    def condition_of(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the conditions of a batch, ``(cells, columns)``."""
        null = self.null_condition
        if CONDITIONS not in tensors:
            return null.new_zeros(len(next(iter(tensors.values()))), 0)
        return tensors[CONDITIONS].to(null.dtype)

    def condition_tensor(self, codes: np.ndarray) -> Tensor:
        """Turn condition codes ``(n, columns)`` without open values into a tensor for the module."""
        return torch.from_numpy(codes).to(self.null_condition.device, self.null_condition.dtype)

    def drop_conditions(self, condition: Tensor, probability: float, generator: torch.Generator) -> Tensor:
        """Drop keys of training cells ``(cells, columns)`` as the strategy does, all of them with ``probability``."""
        return self.strategy.drop(condition, self.condition_columns, probability, generator)

    # --- generation ------------------------------------------------------------------------------------------------

    @abstractmethod
    def draw_noise(self, generators: Generators) -> Tensor:
        """Draw the noise that generation starts from, ``(cells, ...)``."""

    def initial_states(self, condition: Tensor, generators: Generators, library_size: np.ndarray | None) -> Tensor:
        """Draw the states that generation starts from, ``(cells, ...)``: by default noise."""
        return self.draw_noise(generators)

    @abstractmethod
    def denoiser(self, condition: Tensor, guidance: Guidance) -> Denoiser:
        """Return the denoiser for samplers, given ``condition (cells, columns)`` and guidance."""

    def perturbed_latents(self, states: Tensor, own: Tensor, new: Tensor, sampler: Sampler, **options: Any) -> Tensor:
        """Move the states ``(cells, ...)`` of cells whose conditions ``own (cells, columns)`` become ``new``."""
        assert self.perturbation_flow is not None
        moved = self.perturbation_flow.move(states, new, sampler=sampler, **options)
        return torch.where(expand_like((own == new).all(1), states), states, moved)

    def redraw_empty(self, draw: Callable[[Generators], Tensor], generators: Generators, number: int = 0) -> Tensor:
        """Draw cells ``(cells, genes)``, and those without any count again until they have one, as training cells do.

        Parameters
        ----------
        draw
            Draws all of them from random numbers.
        generators
            The generators of the cells; those of later draws follow from them.
        number
            Number of the draw, if cells are drawn several times.
        """
        cells, others = draw(generators), generators.apart(2 + number)
        for _ in range(MOST_REDRAWS):
            are_empty = self.are_empty(cells)
            if not are_empty.any():
                break
            cells = torch.where(are_empty, draw(others), cells)
        return cells

    def are_empty(self, cells: Tensor) -> Tensor:
        """Mark cells ``(cells, genes)`` without any count, ``(cells, 1)``; of several modalities, each for itself."""
        return (cells == 0).all(1, keepdim=True)

    @abstractmethod
    def cells_of(
        self,
        states: Tensor,
        draw_totals: TensorMap,
        generators: Generators,
        shown: Tensor,
        output: InputValues,
        **_: Any,
    ) -> Tensor:
        """Turn finished states ``(block, ...)`` into cells ``(block, genes)``.

        Parameters
        ----------
        states
            States at the end of the path.
        draw_totals
            Maps latents or profiles to total counts ``(block, ...)``.
        generators
            One random generator per cell.
        shown
            Conditions whose effects are added, ``(block, columns)``.
        output
            ``"counts"`` or ``"log1p"``.
        corrections
            Changes of log-normalised means ``(block, genes)`` that the decoder lacks; only after a perturbation flow.
        """

    @abstractmethod
    def predict_cells(
        self, x: Tensor, move: TensorMap, draw_totals: TensorMap, generators: Generators, output: InputValues, **_: Any
    ) -> Tensor:
        """Predict given cells under new conditions.

        Parameters
        ----------
        x
            Registered expression, ``(block, genes)``.
        move
            Moves the denoiser's states from the cells' own conditions to the new ones.
        draw_totals
            Maps latents or profiles to total counts ``(block, ...)``.
        generators
            One random generator per cell.
        output, keep_residuals
            Counts or profiles; whether cells keep their own residuals, ignored without the choice.

        Returns
        -------
        Tensor
            ``(block, genes)``.
        """

    def draw_totals(
        self, library_size: np.ndarray | None, generators: Generators, condition: Tensor, features: Tensor
    ) -> Tensor:
        """Draw total counts ``(cells, ...)``, except given ones, for conditions ``(cells, columns)`` and features."""
        uniform = generators.uniform(*self.library_size.shape)  # drawn for given totals, too: later draws stay the same
        given = None if library_size is None else uniform.new_tensor(library_size)
        return self.library_size.draw(condition, features, uniform, given)

    def decoding_totals(self, x: Tensor, z: Tensor, generators: Generators | None) -> Tensor:
        """Return the totals of cells ``x (cells, genes)``: their own, ``(cells, 1)``, whatever ``z``.

        Modules of several modalities predict those that a cell lacks.
        """
        return total_counts(x)

    def has_zeros(self, output: InputValues) -> bool:
        """Return whether generated cells have enough zeros to be stored sparse."""
        return output == "counts"
