"""Cells of several modalities in one or several files, for training without reading them into memory."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from anndata.utils import make_index_unique

from scgen_diffusion._arguments import warn_user

from ._anndata_file import AnnDataFile, close_file, closing_if_refused, open_hdf5
from ._cell_files import CellFiles, list_paths, matrices_of_genes
from ._checks import check_not_empty, check_rows, check_size, check_values
from ._condition_setup import ConditionField, ConditionSetup
from ._conditions import Conditions
from ._mudata import (
    ModalitiesField,
    advice_on_counts,
    check_binary,
    choose_modalities,
    columns_of,
    modalities_of,
    mudata_of,
    take_rows,
    usual_likelihood,
)
from ._registry import expression_state
from ._windows import WINDOW_SIZE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import h5py
    from mudata import MuData

    from ._cell_files import Paths
    from ._matrices import FileMatrix, Rows
    from ._mudata import ModalityLikelihood


class MuDataFiles(CellFiles):
    """Cells of several modalities in one or several ``.h5mu`` files, to train a model without reading them into memory.

    :class:`CellFiles` for :class:`~scgen_diffusion.model.MULTISCLDM`: pass ``registry=cells.registry`` to the model and
    ``datamodule=cells`` to its ``train``. Cells may lack modalities, and a file may lack a whole modality.

    Parameters
    ----------
    paths
        An ``.h5mu`` file, or several, whose cells are joined. Matrices must be dense or CSR. In a modality, all files
        must have the same features, in any order.
    modalities, layers
        As in :meth:`setup_mudata <scgen_diffusion.model.MULTISCLDM.setup_mudata>`.
    condition_keys, continuous_condition_keys, set_condition_keys, control_values
        As in ``setup_mudata``.
    condition_embeddings, unlabeled_category
        Likewise. Names of embeddings refer to ``uns`` of the files.
    window_size, block_size
        As in :class:`CellFiles`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    KeyError
        For a modality, layer, column, array or embedding that a file lacks.
    TypeError
        As in ``setup_mudata``.
    ValueError
        For files that are not MuData or are stored by columns, for different features, and as in ``setup_mudata``.

    Examples
    --------
    >>> import scgen_diffusion as scgd
    >>> cells = scgd.data.MuDataFiles(  # doctest: +SKIP
    ...     ["a.h5mu", "b.h5mu"], layers="counts", condition_keys=["cell_type"]
    ... )
    >>> model = scgd.model.MULTISCLDM(registry=cells.registry)  # doctest: +SKIP
    >>> model.train(datamodule=cells)  # doctest: +SKIP
    """

    modality_vars: dict[str, pd.DataFrame]
    """The table of features of each modality."""

    def __init__(
        self,
        paths: Paths,
        *,
        modalities: Sequence[str] | Mapping[str, ModalityLikelihood | None] | None = None,
        layers: str | Mapping[str, str | None] | None = None,
        condition_keys: Sequence[str] | None = None,
        continuous_condition_keys: Sequence[str] | None = None,
        set_condition_keys: Sequence[str] | Mapping[str, str] | None = None,
        control_values: Mapping[str, Any] | None = None,
        condition_embeddings: Mapping[str, pd.DataFrame | str] | None = None,
        unlabeled_category: str | None = None,
        window_size: int = WINDOW_SIZE,
        block_size: int | None = None,
    ) -> None:
        self.files = []
        with closing_if_refused(self.close):
            self._open(paths, window_size, block_size, modalities=modalities, layers=layers)
            self._read_conditions(ConditionSetup.picked_from(locals()))

    @staticmethod
    def _opened_as(registry: Mapping[str, Any]) -> dict[str, Any]:
        arguments = registry["setup_args"]
        if "modalities" not in arguments:
            msg = (
                "The model was set up for one modality (setup_anndata); open the files with "
                "`CellFiles.like(model.registry, paths)`."
            )
            raise ValueError(msg)
        known = {"modalities": dict(arguments["modalities"]), "layers": dict(arguments["layers"])}
        return {**known, "features": {n: m.features for n, m in modalities_of(expression_state(registry)).items()}}

    def _open(  # type: ignore[override]  # the files hold something else
        self,
        paths: Paths,
        window_size: int,
        block_size: int | None,
        *,
        modalities: Sequence[str] | Mapping[str, str | None] | None,
        layers: str | Mapping[str, str | None] | None,
        features: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Open the files, and check all values, part by part. ``features`` are those of an existing model."""
        opened = []
        for path in list_paths(paths):
            opened.append(_MuDataFile(path))
            self.files.append(opened[-1].cells)
        known = list(features or dict.fromkeys(name for file in opened for name in file.modalities))
        likelihoods, self.layers = choose_modalities(modalities, layers, known)
        self.likelihoods, self.modality_vars = {}, {}
        self._totals = [np.zeros(cells.n_cells) for cells in self.files]
        blocks: list[list[_Block]] = [[] for _ in opened]
        for name, likelihood in likelihoods.items():
            having = [file for file in opened if name in file.modalities]
            if features is not None:  # a part of a MuData keeps modalities that its cells lack
                having = [file for file in having if file.modalities[name].n_cells or not file.cells.n_cells]
            var, matrices = self._matrices_of(name, having, None if features is None else features[name])
            of_file = dict(zip(having, matrices, strict=True))
            has_counts = False
            for file, totals, own in zip(opened, self._totals, blocks, strict=True):
                rows, matrix = file.rows_of(name), of_file.get(file)
                own.append(_Block(rows, matrix, len(var)))
                if matrix is not None:
                    found = self._check_values(name, likelihood, file.modalities[name], matrix)
                    totals[rows >= 0] += found[rows[rows >= 0]]
                    has_counts |= bool(found.any())
            if features is None and not has_counts:
                msg = f"The modality {name!r} holds no counts; leave it out, or give the layer with its counts."
                raise ValueError(msg)
            self.modality_vars[name], self.likelihoods[name] = var, likelihood or usual_likelihood(matrices, name)
        if features is None:
            _check_overlap(opened, list(likelihoods))
        for cells, totals in zip(self.files, self._totals, strict=True):
            if not totals.all():
                check_not_empty(totals, cells.all_names(), cells.name)
        names = [f"{name}:{feature}" for name, var in self.modality_vars.items() for feature in var.index]
        self.var = pd.DataFrame(index=pd.Index(names))
        self._read_from([_SideBySide(own) for own in blocks], window_size, block_size)

    def _matrices_of(
        self, name: str, files: Sequence[_MuDataFile], features: Sequence[str] | None
    ) -> tuple[pd.DataFrame, list[FileMatrix]]:
        """Return the features of a modality, and its matrix in each file that has it."""
        if not files:
            return pd.DataFrame(index=pd.Index(features)), []
        own = [file.modalities[name] for file in files]
        remedy = "Write files with the same features in each modality."
        return matrices_of_genes(own, self.layers[name], features, remedy)

    def _check_values(self, name: str, likelihood: str | None, file: AnnDataFile, matrix: FileMatrix) -> np.ndarray:
        """Raise unless the values are counts that fit the likelihood; return the row sums."""
        where = file.where(self.layers[name])
        check_size(matrix.shape, where)
        totals = check_values(matrix, where, "counts", advice_on_counts(name))
        if likelihood == "bernoulli":
            check_binary(name, matrix, where)
        return totals

    def _register(self, setup: ConditionSetup) -> dict[str, Any]:
        def one(name: str, var: pd.DataFrame) -> AnnData:
            x, layer = np.ones((1, len(var)), dtype=np.float32), self.layers[name]
            return AnnData(x, var=pd.DataFrame(index=var.index), layers={} if layer is None else {layer: x})

        cell = mudata_of({name: one(name, var) for name, var in self.modality_vars.items()})
        arguments = {"modalities": self.likelihoods, "layers": self.layers, **setup.arguments}
        fields = [ModalitiesField(self.likelihoods, self.layers), ConditionField(setup, self.by_key)]
        return self._registry_of(cell, fields, "setup_mudata", arguments)

    def read(self, indices: Sequence[int] | np.ndarray) -> MuData:
        """Read some cells into memory: conditions in ``obs`` and ``obsm``, values in ``X`` and the layers.

        Modalities that a cell lacks have no counts.

        Parameters
        ----------
        indices
            Row numbers, counted over all files, or a boolean mask.

        Returns
        -------
        MuData
            The cells, in the order of ``indices``.

        Warns
        -----
        UserWarning
            If cells have the same name, as the cells of several files may. MuData joins modalities by name, so the
            names get numbers.
        """
        rows = check_rows(indices, self.n_cells)
        self._check_conditions(self.codes[rows])
        names, values, codes = self.names(rows), self.read_values(rows), self.codes[rows]
        if (repeated := names.duplicated()).any():
            names, first = make_index_unique(names), names[repeated][0]
            warn_user(
                f"{repeated.sum()} of {len(names)} cells have the name of another one, such as {first!r}; their names "
                "got numbers, because MuData joins modalities by name."
            )
        parts = {}
        for name, own in columns_of(self.modality_vars).items():
            x, var, layer = values[:, own], self.modality_vars[name].copy(), self.layers[name]
            layers = {} if layer is None else {layer: x.copy()}  # X may be normalised in place
            parts[name] = AnnData(x, obs=pd.DataFrame(index=names), var=var, layers=layers)
        mdata, conditions = mudata_of(parts), Conditions.from_codes(self.by_key, self.codes[:0])
        mdata.obs = conditions.to_obs(codes, names)
        mdata.obsm.update(conditions.to_obsm(codes, names))
        return mdata

    def __repr__(self) -> str:
        files = ", ".join(file.name for file in self.files)
        modalities = ", ".join(f"{name} ({len(var)} features)" for name, var in self.modality_vars.items())
        conditions = [key.name for key in self.by_key]
        return f"{type(self).__name__} of {self.n_cells} cells with {modalities} in {files}; conditions: {conditions}"


class _MuDataFile:
    """A MuData in HDF5: its table of cells, and its modalities.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    TypeError
        For MuData within MuData.
    ValueError
        If it is not a MuData that shares cells, or its modalities have other cells than it lists.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            msg = f"There is no file {path}."
            raise FileNotFoundError(msg)
        root = open_hdf5(path, ".h5mu")
        with closing_if_refused(partial(close_file, root)):
            self._read(root, path)

    def _read(self, root: h5py.File, path: Path) -> None:
        if "mod" not in root:
            msg = f"{path.name} is not MuData (.h5mu): it has no modalities. For one modality there is CellFiles."
            raise ValueError(msg)
        if (axis := root.attrs.get("axis", 0)) != 0:
            msg = f"The modalities of {path.name} must share cells (axis 0), but they share axis {axis}."
            raise ValueError(msg)
        self.cells = AnnDataFile(root, path.name)
        order = [str(name) for name in root["mod"].attrs.get("mod-order", list(root["mod"]))]
        if nested := [name for name in order if "mod" in root["mod"][name]]:
            msg = f"The modality {nested[0]!r} of {path.name} is a MuData itself; put its modalities into one MuData."
            raise TypeError(msg)
        self.modalities = {name: AnnDataFile(root["mod"][name], f"{path.name}[{name!r}]") for name in order}
        self._rows = {name: self._read_rows(root, name) for name in order}

    def rows_of(self, name: str) -> np.ndarray:
        """Return the row of each cell in a modality, -1 for cells that lack it."""
        return self._rows[name] if name in self._rows else np.full(self.cells.n_cells, -1)

    def _read_rows(self, root: Any, name: str) -> np.ndarray:
        part = self.modalities[name]
        rows = np.asarray(root.get(f"obsmap/{name}", ())).ravel().astype(np.int64) - 1  # 0 is "lacks it"
        if not np.array_equal(np.sort(rows[rows >= 0]), np.arange(part.n_cells)) or len(rows) != self.cells.n_cells:
            msg = (
                f"{part.name} has other cells than obs of {self.cells.name}. Read the file, call mdata.update(), and "
                "write it."
            )
            raise ValueError(msg)
        return rows


def _check_overlap(files: Sequence[_MuDataFile], names: Sequence[str]) -> None:
    """Raise if one of several modalities shares no cell with another."""
    for name in names:
        others = [other for other in names if other != name]
        overlaps = (
            ((file.rows_of(name) >= 0) & (file.rows_of(other) >= 0)).any() for file in files for other in others
        )
        if others and not any(overlaps):
            msg = (
                f"No cell of the modality {name!r} is in another modality. A cell must have the same name in every "
                "modality."
            )
            raise ValueError(msg)


class _Block:
    """A modality of one file: a row for every cell of the file, zeros for those that lack it.

    Parameters
    ----------
    rows
        Row of each cell in ``matrix``, -1 for none.
    matrix
        Values of the cells that have the modality; None if the file lacks it.
    n_features
        Number of features.
    """

    def __init__(self, rows: np.ndarray, matrix: FileMatrix | None, n_features: int) -> None:
        self.rows, self.matrix, self.n_features = rows, matrix, n_features

    def read(self, cells: np.ndarray) -> sp.csr_matrix:
        """Read cells in ascending order."""
        rows = self.rows[cells]
        distinct = np.unique(rows[rows >= 0])
        if self.matrix is None or not len(distinct):
            return sp.csr_matrix((len(cells), self.n_features), dtype=np.float32)
        return take_rows(self.matrix.read(distinct), pd.Index(distinct).get_indexer(rows))


class _SideBySide:
    """The modalities of one file as one matrix.

    Parameters
    ----------
    blocks
        The modalities, of which at least one is in the file.
    """

    def __init__(self, blocks: Sequence[_Block]) -> None:
        self.blocks = list(blocks)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of cells and of features of all modalities."""
        return len(self.blocks[0].rows), sum(block.n_features for block in self.blocks)

    @property
    def rows_per_chunk(self) -> float:
        """Largest number of rows in a chunk of a modality."""
        return max(block.matrix.rows_per_chunk for block in self.blocks if block.matrix is not None)

    def read(self, rows: np.ndarray) -> Rows:
        """Read rows in ascending order."""
        return sp.hstack([block.read(rows) for block in self.blocks], format="csr")
