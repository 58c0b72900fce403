"""Checked requests for cells, and how provenance describes them."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scgen_diffusion._arguments import check_count

if TYPE_CHECKING:
    from scgen_diffusion.data import ConditionRequest, RequestedCodes
    from scgen_diffusion.diffusion import Guidance, Sampler
    from scgen_diffusion.nn import InputValues

    from ._support import Corrections, PerturbedGroups

DEFAULT_BATCH_SIZE = 2048
LONGEST_LIST = 1000  # largest length of a list in provenance


@dataclass(frozen=True)
class SamplingOptions:
    """Checked sampling options of a request.

    Parameters
    ----------
    sampler
        The sampler.
    n_steps
        Its number of steps; None for its default.
    guidance
        Guidance.
    output
        Kind of values, ``"counts"`` or ``"log1p"``.
    record
        The options as provenance records them.
    """

    sampler: Sampler
    n_steps: int | None
    guidance: Guidance
    output: InputValues
    record: Mapping[str, Any]


@dataclass
class CellRequest:
    """A request for cells. Any range of its cells can be made alone, and gives the same cells.

    Parameters
    ----------
    codes
        Condition codes ``(cells, columns)``, open for keys left out.
    sampling
        Sampling options.
    library_size
        Totals ``(cells, ...)``, NaN for those to draw; None: all are drawn.
    seed
        Seed of all draws.
    corrections
        Changes that the decoder lacks where the perturbation flow moves cells; None: none.
    """

    codes: RequestedCodes
    sampling: SamplingOptions
    library_size: Any
    seed: int
    corrections: Corrections | None = None


@dataclass
class PredictionRequest:
    """A checked request to predict given cells under new conditions.

    Parameters
    ----------
    own, codes
        Codes of their own and of their new conditions, ``(cells, columns)``.
    sampling
        Sampler, steps, and guidance on the way to the new condition.
    by_flow
        Whether the trained perturbation flow moves cells; else the sampler inverts them.
    keep_residuals
        Whether cells keep their own residuals or draw new ones.
    library_size
        Totals ``(cells, ...)``, NaN for the cells' own; None: all are the cells' own.
    seed
        Seed of all draws.
    groups
        Groups of cells that the perturbation flow perturbs, whose mean changes are wanted; None for none.
    corrections
        Changes that the decoder lacks; None: none.
    """

    own: np.ndarray
    codes: np.ndarray
    sampling: SamplingOptions
    by_flow: bool
    keep_residuals: bool
    library_size: Any
    seed: int
    groups: PerturbedGroups | None = None
    corrections: Corrections | None = None


def check_batch_size(batch_size: int | None) -> int:
    """Return the batch size or its default; raise unless it is a number of cells."""
    return DEFAULT_BATCH_SIZE if batch_size is None else check_count("batch_size", batch_size)


def describe_condition(condition: ConditionRequest) -> Any:
    """Return the requested conditions in a form that can be written to files."""
    if condition is None:
        return "drawn from the training distribution"
    if isinstance(condition, Mapping):
        return {key: _describe_values(values) for key, values in condition.items()}
    return f"a table with the columns {', '.join(condition.columns)}"


def _describe_values(values: Any) -> Any:
    """Return one value as it is, a set as text, and several values as an array; of a long list the length."""
    if isinstance(values, AbstractSet):
        return ", ".join(sorted(map(str, values)))
    if np.ndim(values) == 0:
        return values.item() if hasattr(values, "item") else values
    if len(values) > LONGEST_LIST:
        return f"{len(values)} values"  # `obs` has them
    array = np.array([_describe_values(value) for value in np.asarray(values, dtype=object)])
    return array if array.dtype.kind in "biuf" else array.astype(str).tolist()
