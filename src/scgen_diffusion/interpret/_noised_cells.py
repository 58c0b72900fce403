"""Noised cells to look at a white-box network with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scvi import REGISTRY_KEYS

from scgen_diffusion._arguments import is_number
from scgen_diffusion.data import as_labels, check_rows, obs_column, resolve_seed
from scgen_diffusion.diffusion import Generators, Joint, MutuallyExclusive
from scgen_diffusion.model import WBDIT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData
    from torch import Tensor

    from scgen_diffusion.diffusion import VariancePreserving
    from scgen_diffusion.nn import GeneDiT

ALL = "all"  # the group of all cells, and all heads of a layer together
TOKENS_AT_A_TIME = 4096

#: Timesteps from data to noise.
DEFAULT_TIMES = (0, 100, 250, 500, 750, 999)
#: A timestep at which a gene's own value says little, so the network must infer it from other genes.
DEFAULT_TIME = 500


def check_times(path: VariancePreserving, times: Sequence[float] | float, *, most: float = np.inf) -> list[float]:
    """Return timesteps as a list; raise ValueError for none, too many, and those that the path does not have."""
    values, highest = np.ravel(times).tolist(), path.n_timesteps - 1
    if not 0 < len(values) <= most or not all(is_number(value) and 0 <= value <= highest for value in values):
        msg = f"`times` must be numbers from 0 to {highest}, but found {times!r}."
        raise ValueError(msg)
    return [float(value) for value in values]


def path_time(path: VariancePreserving, timestep: float) -> Tensor:
    """Return the time of a timestep on the path's scale."""
    return path.time(torch.tensor(timestep, dtype=torch.float64))


def groups_of(adata: AnnData, rows: np.ndarray, groupby: str | None) -> pd.Series:
    """Return the group of every cell as a category; raise ValueError if a cell in ``rows`` has none."""
    if groupby is None:
        return pd.Series(ALL, adata.obs_names, dtype="category")
    groups = obs_column(adata, groupby, "adata").astype("category")
    if n_missing := int(groups.iloc[rows].isna().sum()):
        msg = f"{n_missing} cells have no value of {groupby!r}; exclude them with `indices`."
        raise ValueError(msg)
    return groups.cat.rename_categories(as_labels(pd.Series(groups.cat.categories)).tolist())


@dataclass(frozen=True)
class CellBatch:
    """A batch of cells: their rows, the values that diffuse, each cell's own noise, and the conditions for the network.

    ``generators`` draw all further random numbers.
    """

    rows: np.ndarray
    data: Tensor
    noise: Tensor
    condition: Tensor
    generators: Generators
    path: VariancePreserving

    def at(self, timestep: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return noised cells at a timestep, the timestep of each, and their conditions."""
        t = torch.full_like(self.data[:, 0], path_time(self.path, timestep).item())
        return self.path.interpolate(self.data, self.noise, t), torch.full_like(t, timestep), self.condition


def opened_network(model: WBDIT) -> GeneDiT:
    """Return the network that a trained model generates with; raise for any other."""
    if not isinstance(model, WBDIT):
        msg = f"`model` must be a WBDIT, but found {type(model).__name__}."
        raise ValueError(msg)
    if not model.is_trained_:
        msg = "The model is not trained; call train() first."
        raise RuntimeError(msg)
    return model.module.averaged_network.module.backbone


def opened(
    model: WBDIT, adata: AnnData | None, indices: Sequence[int] | np.ndarray | None
) -> tuple[GeneDiT, AnnData, np.ndarray]:
    """Return the network, the cells to look at, by default those of the model, and the requested rows."""
    network, source = opened_network(model), model.given_cells(adata, "adata")
    return network, source, check_rows(indices, source.n_obs)


def noised_cells(
    model: WBDIT,
    source: AnnData,
    rows: np.ndarray,
    *,
    conditional: bool,
    seed: int | None,
) -> Iterator[CellBatch]:
    """Yield batches of cells with their own noise, which depends only on the seed and the row.

    Given cells need conditions only if ``conditional``.
    """
    seed, module = resolve_seed(seed), model.module
    if conditional and isinstance(module.strategy, MutuallyExclusive) and len(model.conditions.keys) > 1:
        msg = "`conditional` must be False: of `mutually_exclusive` conditions, training shows one key at a time."
        raise ValueError(msg)
    batch_size = max(1, TOKENS_AT_A_TIME // len(opened_network(model).network.positions))
    given = model.open_cells(source, "adata", rows, with_labels=conditional)
    for tensors, batch in model.read_cells(*given, batch_size):
        data = module.inference(tensors[REGISTRY_KEYS.X_KEY])["data"]
        generators = Generators(seed, batch, data.device)
        noise = module.draw_noise(generators)
        own = module.condition_of(tensors)
        if isinstance(module.strategy, Joint):
            own = module.condition_columns.complete(own)  # training shows all conditions of a cell or none
        condition = own if conditional else module.condition_columns.keep(own, ())
        yield CellBatch(batch, data, noise, condition, generators, module.path)
