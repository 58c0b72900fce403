"""Cells in one or several files, as training takes them: nothing is read whole."""

from __future__ import annotations

import os
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

import anndata
import numpy as np
import pandas as pd
from scvi import REGISTRY_KEYS

from scgen_diffusion._arguments import check_count

from ._anndata_file import open_anndata_files
from ._cell_digest import digest_of_cells, sampled_rows
from ._checks import (
    check_natural_logarithms,
    check_not_empty,
    check_size,
    check_values,
    row_numbers,
)
from ._condition_keys import ContinuousKey
from ._condition_setup import ConditionSetup, check_conditions, condition_names, encode_obs, keys_of_state
from ._conditions import Conditions
from ._file_matrix import JoinedMatrix
from ._file_obs import ReadTables, columns_of_genes, looked_up, read_columns
from ._file_registry import CONDITIONS, file_registry
from ._windows import WINDOW_SIZE, Batches, ToTensors, WindowLoader, read_windows, suitable_block, window_plan

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from ._condition_keys import ConditionKey
    from ._file_matrix import Rows
    from ._window_plan import Window

    Paths: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class CellFiles:
    """Cells in one or several AnnData files, to train a model on without reading them into memory.

    Pass ``registry=cells.registry`` to a model, and ``datamodule=cells`` to its ``train``. What is kept of each cell in memory are its
    conditions (8 bytes for each column), its total (8 bytes) and, by the model, its number in the split (8 bytes). Expression is read in windows of cells; a
    window mixes blocks of neighbouring cells from all over the files, its cells are shuffled, and the next one is read meanwhile.

    Parameters
    ----------
    paths
        An ``.h5ad`` file, a ``.zarr`` store, a collection that annbatch wrote, or several of these. They are cells of one set, one file
        after the other. Matrices are dense or CSR.
    layer
        Layer that holds the values; default ``X``.
    genes
        Names of the genes to take; ``"shared"`` for those that all files have. Default: those of the first file, which the others must have,
        in whatever order, and no more.
    condition_keys, continuous_condition_keys, set_condition_keys, control_values, condition_embeddings, values
        As in :meth:`setup_anndata <scgen_diffusion.model.SCLDM.setup_anndata>`. Names of tables are looked up in ``uns`` of the files.
    window_size
        Cells in memory together, twice: in use, and being read. More mix better and take more memory.
    block_size
        Neighbouring cells that are read together. Fewer mix better and are read more slowly. Default: 128, or as many as fit the parts
        in which a file is stored, up to 512.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    KeyError
        For a layer, column or table that a file lacks.
    ValueError
        For files that are no AnnData or stored by columns, other genes, and whatever ``setup_anndata`` refuses; errors name the file.

    Examples
    --------
    >>> import scgen_diffusion as scgd
    >>> scgd.datasets.pbmc68k_reduced().write_h5ad("cells.h5ad")
    >>> cells = scgd.data.CellFiles("cells.h5ad", layer="counts", condition_keys=["cell_type"])
    >>> model = scgd.model.SCLDM(registry=cells.registry)
    >>> model.train(datamodule=cells)  # doctest: +SKIP
    """

    def __init__(
        self,
        paths: Paths,
        *,
        layer: str | None = None,
        genes: Sequence[str] | Literal["shared"] | None = None,
        condition_keys: Sequence[str] | None = None,
        continuous_condition_keys: Sequence[str] | None = None,
        set_condition_keys: Sequence[str] | Mapping[str, str] | None = None,
        control_values: Mapping[str, Any] | None = None,
        condition_embeddings: Mapping[str, pd.DataFrame | str] | None = None,
        values: Literal["counts", "log1p"] = "counts",
        window_size: int = WINDOW_SIZE,
        block_size: int | None = None,
    ) -> None:
        self._open(paths, layer, genes, values, window_size, block_size)
        keys = condition_names(condition_keys, continuous_condition_keys, set_condition_keys)
        obs = read_columns(self.files, chain.from_iterable(keys), numbers=keys[1])
        uns = looked_up(self.files, condition_embeddings)
        setup = ConditionSetup.of(
            ReadTables(obs, uns),
            condition_keys,
            continuous_condition_keys,
            set_condition_keys,
            control_values,
            condition_embeddings,
        )
        self._encode(setup, setup.keys_of(obs), obs)

    @classmethod
    def like(
        cls,
        registry: Mapping[str, Any],
        paths: Paths,
        *,
        window_size: int = WINDOW_SIZE,
        block_size: int | None = None,
    ) -> Self:
        """Open files for a model that is there already, with the layer, genes and conditions that it knows.

        Parameters
        ----------
        registry
            Of the model: ``model.registry``.
        paths, window_size, block_size
            As for the class itself.
        """
        arguments = registry["setup_args"]
        if "layer" not in arguments:
            msg = "The model was set up for several modalities (setup_mudata), which are not read from files; load the MuData."
            raise ValueError(msg)
        fields = registry["field_registries"]
        genes = [str(name) for name in fields[REGISTRY_KEYS.X_KEY]["state_registry"]["column_names"]]
        by_key = keys_of_state(fields[CONDITIONS]["state_registry"])
        cells = cls.__new__(cls)
        cells._open(paths, arguments["layer"], genes, arguments["values"], window_size, block_size)
        numbers = [key.name for key in by_key if isinstance(key, ContinuousKey)]
        obs = read_columns(cells.files, [key.name for key in by_key], numbers)
        check_conditions(obs, list(obs.columns))
        cells._encode(ConditionSetup.from_arguments(arguments), by_key, obs)
        return cells

    def _open(
        self,
        paths: Paths,
        layer: str | None,
        genes: Sequence[str] | str | None,
        values: Literal["counts", "log1p"],
        window_size: int,
        block_size: int | None,
    ) -> None:
        """Open the files, and check every value in them, part by part."""
        self.layer, self.values = layer, values
        listed = _listed(paths)
        self.files = list(chain.from_iterable(map(open_anndata_files, listed)))
        _check_distinct(listed)
        self.var, columns = columns_of_genes(self.files, genes)
        self.matrix = JoinedMatrix(
            [file.matrix(layer, places) for file, places in zip(self.files, columns, strict=True)]
        )
        largest = max(part.rows_per_chunk for part in self.matrix.parts)
        self.window_size = check_count("window_size", window_size)
        self.block_size = suitable_block(largest) if block_size is None else check_count("block_size", block_size)
        self._totals = []
        for file, part in zip(self.files, self.matrix.parts, strict=True):
            check_size(part.shape, file.where(layer))
            with file.reading("X" if layer is None else f"layers[{layer!r}]"):
                totals = check_values(part, file.where(layer), values)
            if values == "log1p":
                check_natural_logarithms(file.unstructured("log1p"), file.where(layer))
            if not totals.all():
                check_not_empty(totals, file.all_names(), file.where(layer))
            self._totals.append(totals)

    def _encode(self, setup: ConditionSetup, by_key: Sequence[ConditionKey], obs: pd.DataFrame) -> None:
        self.by_key = list(by_key)
        self.codes = encode_obs(obs, by_key)
        """Conditions of the cells, ``(cells, columns)``."""
        self.registry = file_registry(self.var.index, self.n_cells, setup, by_key, layer=self.layer, values=self.values)
        """What models of scvi-tools are built from in the place of cells."""

    @property
    def n_cells(self) -> int:
        """How many cells there are, in all files."""
        return self.matrix.shape[0]

    @cached_property
    def digest(self) -> str:
        """Tell these cells from others, by their names and values."""
        names = chain.from_iterable(file.names() for file in self.files)
        return digest_of_cells(names, self._totals, self.matrix.read(sampled_rows(self.n_cells)))

    def check(self) -> None:
        """Nothing can have changed: conditions were read once, and files are open for reading only."""

    def loader(self, indices: np.ndarray | None, batch_size: int, *, batches: Batches | None = None) -> WindowLoader:
        """Return batches of dense expression and conditions, by their names in the registry.

        Parameters
        ----------
        indices
            Which cells; None for all.
        batch_size
            Cells per batch.
        batches
            Seed, epoch and share of this process in a stage of training; default: ``indices`` in order.
        """
        chosen = np.arange(self.n_cells) if indices is None else np.asarray(indices)
        plan = window_plan(chosen, batch_size, batches, block_size=self.block_size, window_size=self.window_size)
        to_tensors = ToTensors(REGISTRY_KEYS.X_KEY, CONDITIONS, self.codes)
        return WindowLoader(plan, self._read_windows, to_tensors, batches)

    def read(self, indices: Sequence[int] | np.ndarray) -> anndata.AnnData:
        """Read some cells into memory, for what takes an AnnData: with their conditions in ``obs``, and the values in their layer.

        Parameters
        ----------
        indices
            Row numbers, in the order of the files; or one truth value per cell.

        Returns
        -------
        AnnData
            The cells in the order that is asked for.
        """
        rows = row_numbers(indices, self.n_cells)
        distinct, positions = np.unique(rows, return_inverse=True)
        names = self._names_of(distinct)[positions]
        values = self.matrix.read(distinct)[positions]
        obs = Conditions.from_codes(self.by_key, self.codes[:0]).to_obs(self.codes[rows], names)
        layers = {} if self.layer is None else {self.layer: values}
        return anndata.AnnData(values, obs=obs, var=self.var.copy(), layers=layers)

    def _names_of(self, rows: np.ndarray) -> pd.Index:
        """Return the names of cells, whose numbers ascend."""
        wanted, names, start = set(rows.tolist()), [], 0
        for part in chain.from_iterable(file.names() for file in self.files):
            names += [name for number, name in enumerate(part, start) if number in wanted]
            start += len(part)
        return pd.Index(names)

    def __repr__(self) -> str:
        names = ", ".join(file.name for file in self.files)
        conditions = [key.name for key in self.by_key]
        return f"{type(self).__name__} of {self.n_cells} cells and {len(self.var)} genes in {names}; conditions: {conditions}"

    def _read_windows(self, windows: Iterable[Window]) -> Iterator[tuple[Rows, np.ndarray]]:
        return read_windows(self.matrix, windows)


def _listed(paths: Paths) -> list[Path]:
    listed = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not listed:
        msg = "`paths` is empty; name at least one file."
        raise ValueError(msg)
    return [Path(path) for path in listed]


def _check_distinct(paths: Sequence[Path]) -> None:
    """Raise if two paths, which exist, lead to the same file: its cells would count twice."""
    first: dict[tuple[int, int], Path] = {}
    for path in paths:
        found = path.stat()
        same = first.setdefault((found.st_dev, found.st_ino), path)
        if same is not path:
            msg = f"`paths` names the same file twice, as {str(same)!r} and as {str(path)!r}; name it once."
            raise ValueError(msg)
