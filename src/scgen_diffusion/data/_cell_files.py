"""Cells in one or several files, for training without reading them into memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

import anndata
import numpy as np
import pandas as pd
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import LayerField

from scgen_diffusion._arguments import as_list, check_count, known_names, list_first

from ._anndata_file import open_anndata_files
from ._checks import (
    check_names,
    check_natural_logarithms,
    check_not_empty,
    check_rows,
    check_size,
    check_unique_names,
    check_values,
)
from ._condition_keys import check_numbers
from ._condition_setup import (
    ConditionField,
    ConditionSetup,
    complete_columns,
    encode_conditions,
    extend_keys,
    extend_tables,
    registered_genes,
    registered_keys,
)
from ._conditions import Conditions
from ._matrices import JoinedMatrix, read_rows
from ._registered_cells import digest_of_cells, sampled_rows
from ._windows import WINDOW_SIZE, WindowLoader

if TYPE_CHECKING:
    from torch.utils.data import Sampler

    from ._anndata_file import AnnDataFile
    from ._condition_keys import ConditionKey
    from ._matrices import FileMatrix

ARGUMENTS = ("values", "modalities", "layer", "layers", "control_values")  # that cells and their model share

Paths: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""One file of cells, or several."""


class CellFiles:
    """Cells in one or several AnnData files, to train a model without reading them into memory.

    Pass ``registry=cells.registry`` to a model and ``datamodule=cells`` to its ``train``. Memory holds a few numbers
    per cell: its conditions (8 bytes per column), its total and its places in the split and in a sparse matrix (8 bytes
    each). Expression is read in windows. A window mixes blocks of neighbouring cells from all files and shuffles its
    cells; the next window is read in the background.

    Parameters
    ----------
    paths
        An ``.h5ad`` file, a ``.zarr`` store, an annbatch collection, or several of these, whose cells are joined.
        Matrices must be dense or CSR.
    layer
        Layer with the counts; default ``X``. Generated cells that lack it have them in ``X``.
    genes
        Names of the genes to use; ``"shared"`` for the genes that all files have. Default: the genes of the first file;
        the others must have the same genes in any order.
    condition_keys, continuous_condition_keys, set_condition_keys, control_values
        As in :meth:`setup_anndata <scgen_diffusion.model.SCLDM.setup_anndata>`.
    condition_embeddings, unlabeled_category, values
        Likewise.
    window_size
        Cells per window. Memory holds two windows. Larger windows shuffle better and need more memory.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    KeyError
        For a layer, column or array that a file lacks.
    TypeError
        For a string in place of a list of names, and as in ``setup_anndata``.
    ValueError
        For files that are not AnnData or are stored by columns, for different genes, and as in ``setup_anndata``.

    Examples
    --------
    >>> import scgen_diffusion as scgd
    >>> scgd.datasets.pbmc68k_reduced().write_h5ad("cells.h5ad")
    >>> cells = scgd.data.CellFiles(
    ...     "cells.h5ad", layer="counts", condition_keys=["cell_type"]
    ... )
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
        condition_embeddings: Mapping[str, pd.DataFrame] | None = None,
        unlabeled_category: str | None = None,
        values: Literal["counts", "log1p"] = "counts",
        window_size: int = WINDOW_SIZE,
    ) -> None:
        self._fill(paths, genes, window_size, locals())

    @classmethod
    def like(
        cls,
        registry: Mapping[str, Any],
        paths: Paths,
        *,
        new_values: bool = False,
        condition_embeddings: Mapping[str, pd.DataFrame] | None = None,
        window_size: int = WINDOW_SIZE,
    ) -> Self:
        """Open files for an existing model, with its layer, genes and conditions.

        Parameters
        ----------
        registry
            Registry of the model: ``model.registry``.
        new_values
            Whether the conditions learn new classes and members from the files, as for fine-tuning
            (:meth:`load_query_data <scgen_diffusion.model.SCLDM.load_query_data>`); else they are errors.
        condition_embeddings
            With ``new_values``: more rows for the model's embedding tables.
        paths, window_size
            As in :class:`CellFiles`.
        """
        arguments, by_key, genes = registry["setup_args"], registered_keys(registry), list(registered_genes(registry))
        if "layer" not in arguments:
            msg = "The model reads several modalities, which cannot stay in files: read them with `mudata.read_h5mu`."
            raise ValueError(msg)
        if new_values:
            tables = extend_tables(arguments["condition_embeddings"], condition_embeddings)
            arguments = {**arguments, "condition_embeddings": tables}
        cells = cls.__new__(cls)
        cells._fill(paths, genes, window_size, arguments, by_key, new_values=new_values)
        return cells

    def _fill(
        self,
        paths: Paths,
        genes: Sequence[str] | str | None,
        window_size: int,
        arguments: Mapping[str, Any],
        by_key: Sequence[ConditionKey] | None = None,
        *,
        new_values: bool = False,
    ) -> None:
        """Open files, check their values, and encode the conditions by known keys, or by keys that are learned.

        ``arguments`` are those of ``setup_anndata``.
        """
        self.layer, self.values, setup = arguments["layer"], arguments["values"], ConditionSetup.of(arguments)
        self.window_size = check_count("window_size", window_size)
        self.files: list[AnnDataFile] = []
        try:
            for path in as_list(paths):
                self.files += open_anndata_files(path)
            if not self.files:
                msg = "`paths` is empty; name at least one file."
                raise ValueError(msg)
            self.var, matrices = matrices_of_genes(self.files, self.layer, genes)
            self.matrix = JoinedMatrix(matrices)
            self._totals = self._check_cells(matrices)
            obsm = read_arrays(self.files, setup.continuous_condition_keys)
            cells = ReadTables(self.read_columns(name for name in setup.names if name not in obsm), obsm)
            if by_key is None:
                by_key = setup.keys_of(cells)
            elif new_values:
                by_key = extend_keys(by_key, cells, setup.condition_embeddings)
            self._register(setup, by_key, cells)
        except Exception:  # a notebook keeps the traceback, and with it open files, which none can mend
            self.close()
            raise

    def _check_cells(self, matrices: Sequence[FileMatrix]) -> np.ndarray:
        """Check all values, part by part, and return the row sums."""
        found = []
        for file, matrix in zip(self.files, matrices, strict=True):
            check_size(matrix.shape, matrix.name)
            totals = check_values(matrix, matrix.name, self.values)
            if self.values == "log1p" and "log1p" in file.keys("uns"):
                check_natural_logarithms(file.read("uns", "log1p"), matrix.name)
            if not totals.all():
                check_not_empty(totals, file.names, matrix.name)
            found.append(totals)
        return np.concatenate(found)

    def read_columns(self, names: Iterable[str]) -> pd.DataFrame:
        """Read columns of ``obs``; classes are the union over files, and text becomes classes.

        Classes keep their order if all files have the same ones in the same order, as in ``anndata.concat``.

        Parameters
        ----------
        names
            Names of the columns.

        Raises
        ------
        KeyError
            For a column that a file lacks.
        """
        columns = {}
        for name in names:
            for file in self.files:
                if name not in (known := file.keys("obs")):
                    msg = f"The key {name!r} is not in obs of {file.name}. {known_names(name, known)}"
                    raise KeyError(msg)
            joined = pd.concat([file.column(name) for file in self.files], ignore_index=True)
            is_text = joined.dtype == object or pd.api.types.is_string_dtype(joined.dtype)
            columns[name] = joined.astype("category") if is_text else joined
        return pd.DataFrame(columns, index=pd.RangeIndex(self.n_cells))

    def _register(self, setup: ConditionSetup, by_key: Sequence[ConditionKey], cells: ReadTables) -> None:
        """Encode the conditions, and make the registry that ``setup_anndata`` would, from a cell that is made up."""
        self.by_key = list(by_key)
        self.codes = encode_conditions(cells, by_key)
        """Conditions of the cells, ``(cells, columns)``."""
        one, codes, name = np.ones((1, len(self.var)), np.float32), np.zeros((1, self.codes.shape[1])), pd.Index(["0"])
        conditions = Conditions.from_codes(self.by_key, codes)
        cell = anndata.AnnData(
            one,
            obs=conditions.to_obs(codes, name),
            var=pd.DataFrame(index=self.var.index),
            layers={} if self.layer is None else {self.layer: one},
            obsm=conditions.to_obsm(codes),
        )
        arguments = {"layer": self.layer, **vars(setup), "values": self.values}
        made_by = {"setup_method_name": "setup_anndata", "setup_args": arguments}
        fields = [LayerField(REGISTRY_KEYS.X_KEY, self.layer), ConditionField(setup, self.by_key)]
        manager = AnnDataManager(fields=fields, setup_method_args=made_by)
        manager.register_fields(cell)
        self.registry = dict(manager.registry)
        """Registry to build a model from, in place of cells in memory."""
        expression = self.registry["field_registries"][REGISTRY_KEYS.X_KEY]
        expression["state_registry"]["n_obs"] = expression["summary_stats"]["n_cells"] = self.n_cells

    @property
    def n_cells(self) -> int:
        """Number of cells in all files."""
        return self.matrix.shape[0]

    @cached_property
    def obs_names(self) -> pd.Index:
        """Names of the cells."""
        return pd.Index(np.concatenate([file.names for file in self.files]))

    @cached_property
    def digest(self) -> str:
        """Digest of the cells' names and values."""
        return digest_of_cells(self.obs_names, self._totals, self.matrix.read(sampled_rows(self.n_cells)))

    def close(self) -> None:
        """Close the files, so that they can be replaced. Their cells cannot be read afterwards."""
        for file in self.files:
            file.close()

    def __deepcopy__(self, memo: Any) -> Self:
        """Return the files themselves, which do not change, so that models can be copied."""
        return self

    def match_labels(self, names: Sequence[str]) -> pd.DataFrame:
        """Read columns of ``obs`` of all files, such as the donor, with a label for every cell."""
        return complete_columns(ReadTables(self.read_columns(names), {}), names)

    def loader(self, indices: np.ndarray | None, batch_size: int, *, batches: Sampler | None = None) -> WindowLoader:
        """Return a loader of batches of dense expression and conditions, by their names in the registry.

        Parameters
        ----------
        indices
            Row numbers; None for all cells.
        batch_size
            Cells per batch.
        batches
            As in :class:`WindowLoader`; default: ``indices`` in order.
        """
        chosen = np.arange(self.n_cells) if indices is None else np.asarray(indices)
        return WindowLoader(self.matrix, self.codes, chosen, batch_size, batches, window_size=self.window_size)

    def read(self, indices: Sequence[int] | np.ndarray) -> anndata.AnnData:
        """Read some cells into memory: conditions in ``obs`` and ``obsm``, values in ``X`` and the layer.

        Parameters
        ----------
        indices
            Row numbers, counted over all files, or a boolean mask.

        Returns
        -------
        AnnData
            The cells, in the order of ``indices``.
        """
        rows = check_rows(indices, self.n_cells)
        names, values = self.obs_names[rows], read_rows(self.matrix, rows)
        conditions = Conditions.from_codes(self.by_key, self.codes[:0])
        obs, obsm = conditions.to_obs(self.codes[rows], names), conditions.to_obsm(self.codes[rows])
        layers = {} if self.layer is None else {self.layer: values.copy()}  # X may be normalised in place
        uns: dict[str, Any] = {"log1p": {}} if self.values == "log1p" else {}
        return anndata.AnnData(values, obs=obs, var=self.var.copy(), uns=uns, layers=layers, obsm=obsm)

    def __repr__(self) -> str:
        names, conditions = ", ".join(file.name for file in self.files), [key.name for key in self.by_key]
        shape = f"{self.n_cells} cells and {len(self.var)} genes"
        return f"{type(self).__name__} of {shape} in {names}; conditions: {conditions}"


class ComparedFiles(CellFiles):
    """Cells in files that ``evaluate`` compares but no model trains on.

    Values are checked as they are read, so that cells without counts, and logarithms, are allowed as in one file.
    """

    def _check_cells(self, matrices: Sequence[FileMatrix]) -> np.ndarray:
        return np.zeros(0)


# --- genes and arrays of several files --------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReadTables:
    """Columns and arrays of cells, such as those in files, under the attributes of an AnnData."""

    obs: pd.DataFrame
    obsm: Mapping[str, np.ndarray]


def matrices_of_genes(
    files: Sequence[AnnDataFile], layer: str | None, genes: Sequence[str] | Literal["shared"] | None
) -> tuple[pd.DataFrame, list[FileMatrix]]:
    """Return the table of the genes to use, and their values in a layer, or X, of each file.

    Raises
    ------
    KeyError
        For a file without the layer.
    ValueError
        For values that cannot be read, and for genes that a file lacks or has twice.
    """
    tables = [file.read("var") for file in files]
    names = [pd.Index(table.index.astype(str)) for table in tables]
    for file, own in zip(files, names, strict=True):
        check_unique_names(own, f"var_names of {file.name}")
    if isinstance(genes, str) and genes == "shared":
        wanted = reduce(lambda shared, own: shared[shared.isin(own)], names)
    else:
        wanted = names[0] if genes is None else pd.Index(check_names(genes, "genes"))
        check_unique_names(wanted, "`genes`")
    matrices = []
    for file, own in zip(files, names, strict=True):
        place = own.get_indexer(wanted)
        if (place < 0).any() or (genes is None and len(own) > len(wanted)):
            differ = list_first(wanted[place < 0].append(own.difference(wanted)))
            msg = f"`genes` differ from those of {file.name}: {differ}. Try `genes='shared'`, or list some."
            raise ValueError(msg)
        columns = None if np.array_equal(place, np.arange(len(own))) else place
        matrices.append(replace(file.matrix(layer), columns=columns))
    return tables[0].set_axis(names[0]).loc[wanted], matrices


def read_arrays(files: Sequence[AnnDataFile], names: Iterable[str]) -> dict[str, np.ndarray]:
    """Read those of the named arrays of ``obsm`` that the first file has, and join them; all must be like the first."""
    arrays = {}
    for name in (name for name in names if name in files[0].keys("obsm")):
        for file in files:
            if name not in file.keys("obsm") or name in file.keys("obs"):
                msg = f"The condition key {name!r} must be in obsm, and not in obs, of {file.name}."
                raise ValueError(msg)
        parts = [check_numbers(name, file.read("obsm", name)) for file in files]
        if len(widths := {part.shape[1] for part in parts}) > 1:
            msg = f"The files have different numbers of columns of obsm[{name!r}]: {sorted(widths)}."
            raise ValueError(msg)
        arrays[name] = np.concatenate(parts)
    return arrays


def check_same_registry(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise ValueError unless cells were registered with the genes, conditions and values of a model."""

    def parts(registry: Mapping[str, Any]) -> dict[str, Any]:
        given = {name: registry["setup_args"].get(name) for name in ARGUMENTS}
        return {"genes": list(registered_genes(registry)), "conditions": registered_keys(registry), **given}

    wanted = parts(expected)
    for what, part in parts(found).items():
        if part != wanted[what]:
            msg = f"The {what} of the cells are not those of the model; open files with `CellFiles.like`."
            raise ValueError(msg)
