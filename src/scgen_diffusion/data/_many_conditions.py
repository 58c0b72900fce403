"""The categories of many cells, looked at some at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ._condition_keys import ConditionKey, ContinuousKey

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd


class SeenCodes:
    """Looks at the codes of many cells, some at a time, to know the categories of all.

    Parameters
    ----------
    by_key
        The keys and where their columns are.
    """

    def __init__(self, by_key: Sequence[tuple[ConditionKey, slice]]) -> None:
        self._by_key = [(key, columns) for key, columns in by_key if not isinstance(key, ContinuousKey)]
        self._distinct = {key.name: np.zeros((0, key.n_columns)) for key, _ in self._by_key}

    def add(self, codes: np.ndarray) -> None:
        """Look at the codes ``(cells, columns)`` of some cells."""
        for key, columns in self._by_key:
            together = np.concatenate([self._distinct[key.name], codes[:, columns]])
            self._distinct[key.name] = np.unique(together, axis=0)

    @property
    def dtypes(self) -> dict[str, pd.CategoricalDtype]:
        """Categories of each key's column in a table of all cells."""
        return {key.name: key.decode(self._distinct[key.name]).dtype for key, _ in self._by_key}


def with_categories(obs: pd.DataFrame, dtypes: Mapping[str, pd.CategoricalDtype]) -> pd.DataFrame:
    """Return the table of some cells with the categories of all."""
    return obs.assign(**{name: obs[name].cat.set_categories(dtype.categories) for name, dtype in dtypes.items()})
