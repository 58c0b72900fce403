"""Registering cells: what every model of the package has in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import CategoricalJointObsField, LayerField
from scvi.model.base import BaseModelClass

from scgen_diffusion.data import Conditions, build_anndata, check_conditions, check_expression, check_same_genes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import scipy.sparse as sp

    from scgen_diffusion.module import InputValues


class RegistrationMixin(BaseModelClass):
    """``setup_anndata`` for expression and conditions, and what models know of it afterwards."""

    var_: pd.DataFrame
    combinations_: np.ndarray
    combination_sizes_: np.ndarray

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        *,
        layer: str | None = None,
        condition_keys: Sequence[str] = (),
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
        values
            What the layer holds: raw ``"counts"``, or ``"log1p"`` for log-normalised values. These suit the gene-space
            models, and SCLDM with a Gaussian head; a model that learned from them cannot draw library sizes.
        **kwargs
            For scvi-tools.

        Raises
        ------
        KeyError
            For an unknown layer or column.
        ValueError
            For values that are not what ``values`` says, cells without counts, cells without labels, duplicate genes.
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        if values not in ("counts", "log1p"):
            msg = f"`values` must be 'counts' or 'log1p', but found {values!r}."
            raise ValueError(msg)
        cls._check_is_anndata(adata)
        check_expression(adata, layer, values)
        check_conditions(adata.obs, condition_keys)
        setup_method_args["setup_args"]["condition_keys"] = list(condition_keys)
        fields = [
            LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=values == "counts"),
            CategoricalJointObsField(REGISTRY_KEYS.CAT_COVS_KEY, list(condition_keys)),
        ]
        manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    @classmethod
    def _check_is_anndata(cls, adata: object) -> None:
        if isinstance(adata, AnnData):
            return
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
        conditions = Conditions.from_codes(self._categories, codes)
        self.combinations_, self.combination_sizes_ = conditions.combinations, conditions.n_cells

    @property
    def conditions(self) -> Conditions:
        """Condition keys, their classes, and how many training cells each combination has."""
        return Conditions(self._categories, self.combinations_, self.combination_sizes_)

    @property
    def _input_values(self) -> InputValues:
        return self.registry_["setup_args"]["values"]

    @property
    def _categories(self) -> dict[str, list[Any]]:
        state = self.registry_["field_registries"][REGISTRY_KEYS.CAT_COVS_KEY]["state_registry"]
        return {key: list(values) for key, values in state.get("mappings", {}).items()}

    @property
    def _n_classes(self) -> list[int]:
        return [len(categories) for categories in self._categories.values()]

    @property
    def _registered_codes(self) -> np.ndarray:
        """Condition codes of the model's cells, ``(cells, keys)``; of none, if it has none."""
        if self.adata_manager is None or not self._categories:
            return np.zeros((0, len(self._categories)), dtype=int)
        return np.asarray(self.adata_manager.get_from_registry(REGISTRY_KEYS.CAT_COVS_KEY))

    @property
    def _registered_genes(self) -> pd.Index:
        state = self.registry_["field_registries"][REGISTRY_KEYS.X_KEY]["state_registry"]
        return pd.Index([str(name) for name in state["column_names"]])


def plain_columns(var: pd.DataFrame) -> pd.DataFrame:
    """Keep the columns that can be saved as plain values: text, numbers and truth values."""
    plain = var.select_dtypes(include=["number", "bool", "object", "category", "string"]).copy()
    for name in plain.select_dtypes(include=["category", "string"]):
        plain[name] = plain[name].astype(object)
    plain = plain[[name for name in plain if plain[name].map(lambda v: isinstance(v, str | int | float | bool)).all()]]
    plain.index = plain.index.astype(str)
    return plain
