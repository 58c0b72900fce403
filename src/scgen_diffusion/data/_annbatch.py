"""Cells in zarr stores, read by annbatch: many parts of a store at a time."""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np

from ._cell_files import CellFiles
from ._file_matrix import runs_of, stacked
from ._windows import read_windows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ._file_matrix import FileMatrix, JoinedMatrix, Rows
    from ._window_plan import Window


class AnnbatchCells(CellFiles):
    """Cells of a collection that annbatch wrote, or of other zarr stores, read by its loader.

    Takes what :class:`CellFiles` takes, gives the same batches, and reads a window's parts of the store all at a time, which pays
    for compressed shards and slow storage. Needs annbatch, and with it Python 3.12 or later.

    Raises
    ------
    ImportError
        If annbatch is not installed.
    ValueError
        For stores that it cannot read, such as ``.h5ad`` files.

    Examples
    --------
    >>> import scgen_diffusion as scgd
    >>> cells = scgd.data.AnnbatchCells("collection.zarr", condition_keys=["cell_type"])  # doctest: +SKIP
    >>> model = scgd.model.SCLDM(registry=cells.registry)  # doctest: +SKIP
    >>> model.train(datamodule=cells)  # doctest: +SKIP
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _import_annbatch()
        super().__init__(*args, **kwargs)

    def _read_windows(self, windows: Iterable[Window]) -> Iterator[tuple[Rows, np.ndarray]]:
        return read_windows(self._annbatch, windows)

    @cached_property
    def _annbatch(self) -> AnnbatchMatrix:
        return AnnbatchMatrix(self.matrix)


class AnnbatchMatrix:
    """Rows of several matrices in zarr, one below the other, by annbatch.

    Parameters
    ----------
    matrix
        The matrices, all sparse or all dense.
    """

    def __init__(self, matrix: JoinedMatrix) -> None:
        self.columns = [part.columns for part in matrix.parts]
        self.starts = np.append(0, matrix.ends[:-1])
        self.backed = [_backed(part) for part in matrix.parts]

    def read(self, rows: np.ndarray) -> Rows:
        """Read rows, whose numbers ascend."""
        annbatch = _import_annbatch()
        asked = np.concatenate([np.arange(run[0], run[-1] + 1) for run in runs_of(rows)])
        sampler = _sampler_of(asked, np.searchsorted(asked, rows))
        loader = annbatch.Loader(batch_sampler=sampler, preload_to_gpu=False)
        (batch,) = loader.add_adatas(self.backed)
        return self._selected(batch["X"], rows)

    def _selected(self, read: Rows, rows: np.ndarray) -> Rows:
        """Take the columns that are wanted, which can lie elsewhere in each matrix."""
        if all(columns is None for columns in self.columns):
            return read
        bounds = [*np.searchsorted(rows, self.starts), len(rows)]
        parts = [read[low:high] for low, high in pairwise(bounds)]
        return stacked(
            [part if columns is None else part[:, columns] for part, columns in zip(parts, self.columns, strict=True)]
        )


def _backed(part: FileMatrix) -> anndata.AnnData:
    if "zarr" not in type(part.element).__module__:
        msg = "annbatch reads zarr stores only; give `.zarr` paths, or take CellFiles, which reads `.h5ad` too."
        raise ValueError(msg)
    return anndata.AnnData(anndata.io.sparse_dataset(part.element) if part.is_sparse else part.element)


def _import_annbatch() -> Any:
    try:
        import annbatch
    except ImportError as error:
        msg = "AnnbatchCells needs annbatch, for Python 3.12 or later: `pip install annbatch`. CellFiles reads the same stores without it."
        raise ImportError(msg) from error
    return annbatch


def _sampler_of(rows: np.ndarray, kept: np.ndarray) -> Any:
    """Return a sampler of annbatch that asks for these rows, and for one batch of those at the positions that are kept."""
    from annbatch.abc import Sampler

    class OneRequest(Sampler):
        batch_size = len(kept)
        shuffle = False

        def n_batches(self, n_obs: int) -> int:
            return 1

        def validate(self, n_obs: int) -> None:
            """Accept what the plan asks for, which knows how many cells there are."""

        def _sample(self, n_obs: int) -> Iterator[dict[str, Any]]:
            yield {"requests": rows, "splits": [kept]}

    return OneRequest()
