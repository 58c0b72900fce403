"""Registering cells: what every model of the package has in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import LayerField
from scvi.model.base import BaseModelClass

from scgen_diffusion.data import (
    CategoricalKey,
    CellFiles,
    ConditionField,
    ConditionKey,
    Conditions,
    ConditionSetup,
    ContinuousKey,
    RegisteredCells,
    SetKey,
    build_anndata,
    check_expression,
    check_same_genes,
    check_same_registry,
    keys_of_state,
    savable_columns,
)
from scgen_diffusion.module import CONDITIONS
from scgen_diffusion.nn import Classes, ConditionSpec, Members, Number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import scipy.sparse as sp

    from scgen_diffusion.module import InputValues
    from scgen_diffusion.train import TrainingCells


class RegistrationMixin(BaseModelClass):
    """``setup_anndata`` for expression and conditions, and what models know of it afterwards."""

    var_: pd.DataFrame
    combinations_: np.ndarray
    combination_sizes_: np.ndarray
    _file_cells: TrainingCells | None = None  # those that `train` was given in place of an AnnData

    def __init__(self, adata: AnnData | None = None, registry: dict[str, Any] | None = None) -> None:
        if adata is None and registry is not None:
            registry = {**registry, "model_name": type(self).__name__}  # that of cells in files names none
        super().__init__(adata, registry)

    @property
    def adata(self) -> Any:
        """The cells in memory that the model has, AnnData or MuData, or None. Setting them puts them in the place of cells in files that it was trained on."""
        return self._adata

    @adata.setter
    def adata(self, adata: AnnData | MuData) -> None:
        BaseModelClass.adata.fset(self, adata)
        self._file_cells = None

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        *,
        layer: str | None = None,
        condition_keys: Sequence[str] = (),
        continuous_condition_keys: Sequence[str] = (),
        set_condition_keys: Sequence[str] | Mapping[str, str] = (),
        control_values: Mapping[str, Any] | None = None,
        condition_embeddings: Mapping[str, pd.DataFrame | str] | None = None,
        values: Literal["counts", "log1p"] = "counts",
        **kwargs: Any,
    ) -> None:
        """Register cells: where their counts are, and which columns of ``obs`` are conditions.

        Parameters
        ----------
        adata
            Cells by genes.
        layer
            Layer that holds the values; default ``adata.X``.
        condition_keys
            Categorical columns of ``obs`` to generate by, such as cell type or perturbation. Any number; none for an
            unconditional model.
        continuous_condition_keys
            Columns of numbers to generate by, such as dose, time or age. They are standardised, and what the model makes of them
            is a smooth function, so that values in between can be asked for. Outside the training range there is a warning.
            A dose that spans decades is best given as its logarithm.
        set_condition_keys
            Columns of sets to generate by, such as combinations of perturbations, written with a separator: ``"A+B"``. The order does
            not matter, and sets share what is known of their members, so that combinations never measured can be asked for. A list
            of columns (separator ``"+"``), or a mapping from column to separator.
        control_values
            What is written for unperturbed cells, by column: ``{"perturbation": "control"}``. In a column of sets this is
            the empty set, also as a part of others, as in ``"A+control"``. Without it the name of the control is a member like any other.
        condition_embeddings
            Known embeddings of the classes or members of some columns, such as fingerprints of drugs or vectors of a protein language
            model: a table with one row per class or member, or the name of one in ``adata.uns``. What the table has and the training
            cells have not can be generated too.
        values
            What the layer holds: raw ``"counts"``, or ``"log1p"`` for log-normalised values. These suit the gene-space
            models, and SCLDM with a Gaussian head; a model that learned from them cannot draw library sizes.
        **kwargs
            For scvi-tools.

        Raises
        ------
        KeyError
            For an unknown layer, column or entry of ``uns``.
        ValueError
            For values that are not what ``values`` says, cells without counts or conditions, duplicate genes, and names,
            numbers, sets and tables that do not fit.
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        cls._check_is_anndata(adata)
        check_expression(adata, layer, values)
        setup = ConditionSetup.of(
            adata, condition_keys, continuous_condition_keys, set_condition_keys, control_values, condition_embeddings
        )
        setup_method_args["setup_args"] |= setup.arguments
        fields = [
            LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=values == "counts"),
            ConditionField(CONDITIONS, setup),
        ]
        manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    @classmethod
    def setup_annbatch(cls, *_: Any, **__: Any) -> NoReturn:
        """Raise NotImplementedError: what scvi-tools 1.5 sets up by this name knows no conditions."""
        msg = (
            "`setup_annbatch` of scvi-tools knows no conditions. Open the files, or the collection of annbatch, with "
            f"scgen_diffusion.data.CellFiles, build {cls.__name__}(registry=cells.registry), and train(datamodule=cells)."
        )
        raise NotImplementedError(msg)

    @classmethod
    def _check_is_anndata(cls, adata: object) -> None:
        if isinstance(adata, AnnData):
            _check_is_no_part_of_file(adata)
            return
        if isinstance(adata, CellFiles):
            msg = "Cells in files were given where AnnData is needed; read those that you want into memory: `cells.read(indices)`."
            raise TypeError(msg)
        msg = f"`setup_anndata` takes AnnData, but found {type(adata).__name__}."
        if isinstance(adata, MuData):
            reads_several = hasattr(cls, "setup_mudata")
            msg += " Call `setup_mudata`" if reads_several else f" {cls.__name__} reads one modality only;"
            msg += f"{', or' if reads_several else ''} give one modality, for example mdata['rna']."
        raise TypeError(msg)

    def _describe_cells(self, adata: AnnData | None) -> None:
        """Keep the genes' columns, and how many of the model's cells have which conditions."""
        self.var_ = plain_columns(adata.var) if adata is not None else pd.DataFrame(index=self._registered_genes)
        self._count_combinations(self._registered_codes)

    def _take_cells(self, datamodule: TrainingCells | None) -> None:
        """Train on cells of files from now on; None for those that the model has."""
        if datamodule is None:
            return
        if not all(hasattr(datamodule, name) for name in ("loader", "codes", "digest", "registry")):
            msg = (
                f"`datamodule` must be scgen_diffusion.data.CellFiles or work like it, but found {type(datamodule).__name__}. Data modules of "
                "scvi-tools know no conditions; open the files that they read with CellFiles."
            )
            raise TypeError(msg)
        check_same_registry(datamodule.registry, self.registry_)
        self._file_cells = datamodule
        self.var_ = plain_columns(datamodule.var)

    @classmethod
    def _register_like(cls, adata: AnnData, registry: Mapping[str, Any], genes: pd.Index) -> None:
        """Register cells as the model's own ones were, of which this is the registry."""
        cls._check_is_anndata(adata)
        check_same_genes(adata.var_names, genes)
        cls.setup_anndata(adata, source_registry=registry, **registry["setup_args"])

    def _check_same_features(self, adata: AnnData) -> None:
        self._check_is_anndata(adata)
        check_same_genes(adata.var_names, self.var_.index)

    def _assemble(
        self,
        x: sp.csr_matrix | np.ndarray,
        obs: pd.DataFrame,
        provenance: Mapping[str, Any],
        *,
        is_log1p: bool,
        layers: Mapping[str, np.ndarray] | None = None,
    ) -> AnnData:
        return build_anndata(x, obs, self.var_, provenance, is_log1p=is_log1p, layers=layers)

    def _count_combinations(self, codes: np.ndarray) -> None:
        conditions = Conditions.from_codes(self._condition_keys, codes)
        self.combinations_, self.combination_sizes_ = conditions.combinations, conditions.n_cells

    @property
    def conditions(self) -> Conditions:
        """Condition keys, their classes, and how many training cells each combination has."""
        return Conditions(self._condition_keys, self.combinations_, self.combination_sizes_)

    @property
    def _input_values(self) -> InputValues:
        return self.registry_["setup_args"]["values"]

    @property
    def _condition_keys(self) -> list[ConditionKey]:
        return keys_of_state(self.registry_["field_registries"][CONDITIONS]["state_registry"])

    @property
    def _condition_specs(self) -> list[ConditionSpec]:
        """What the networks need to know of each key."""
        tables = self.registry_["setup_args"]["condition_embeddings"]
        return [_spec_of(key, tables.get(key.name)) for key in self._condition_keys]

    @property
    def _registered_codes(self) -> np.ndarray:
        """Condition codes of the model's cells, ``(cells, columns)``; of none, if it has none."""
        if not self._has_cells:
            return np.zeros((0, sum(key.n_columns for key in self._condition_keys)))
        return self._cells.codes

    @property
    def _has_cells(self) -> bool:
        return self._file_cells is not None or self.adata is not None

    @property
    def _cells(self) -> TrainingCells:
        """The cells that the model trains on, through which training reads all that it needs of them."""
        if not self._has_cells:
            msg = (
                "The model has no cells to train on; construct it with an AnnData, set model.adata, or give cells of files: "
                "`datamodule=scgen_diffusion.data.CellFiles(...)`."
            )
            raise ValueError(msg)
        return self._file_cells or RegisteredCells(self.adata_manager, CONDITIONS)

    def _condition_tensor(self, codes: np.ndarray) -> torch.Tensor:
        """Turn codes ``(n, columns)``, none of them open, into what the module takes."""
        null = self.module.null_condition
        return torch.from_numpy(codes).to(null.device, null.dtype)

    @property
    def _registered_genes(self) -> pd.Index:
        state = self.registry_["field_registries"][REGISTRY_KEYS.X_KEY]["state_registry"]
        return pd.Index([str(name) for name in state["column_names"]])


def _check_is_no_part_of_file(adata: AnnData) -> None:
    if adata.is_view and adata.isbacked:
        msg = (
            "`adata` is a view of a file, from which batches cannot be read. Write the part to a file of its own, `adata.copy('part.h5ad')`, "
            "or read it into memory, `adata.to_memory()`."
        )
        raise ValueError(msg)


def _spec_of(key: ConditionKey, table: pd.DataFrame | None) -> ConditionSpec:
    vectors = None if table is None else torch.from_numpy(table.to_numpy(dtype=np.float32))
    match key:
        case CategoricalKey():
            return Classes(len(key.values), vectors)
        case ContinuousKey():
            return Number()
        case SetKey():
            return Members(len(key.members), key.largest, vectors)
    msg = f"There is no embedding of conditions of the kind {type(key).__name__}."
    raise TypeError(msg)


def plain_columns(var: pd.DataFrame) -> pd.DataFrame:
    """Keep the columns that can be saved: text, numbers, truth values and categories."""
    plain = savable_columns(var)
    plain.index = plain.index.astype(str)
    return plain
