"""SCLDM on MuData: registration, library sizes and results of several modalities."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager, AnnDataManagerValidationCheck

from scgen_diffusion.data import (
    ConditionField,
    ConditionSetup,
    ModalitiesField,
    Modality,
    ModalityLikelihood,
    build_mudata,
    check_condition_columns,
    check_is_mudata,
    check_same_features,
    condition_names,
    guess_likelihood,
    modalities_of,
    resolve_layers,
    resolve_modalities,
)
from scgen_diffusion.generation import numbers_of_groups
from scgen_diffusion.module import CONDITIONS, ModalityPanel, MultimodalModule, SCLDMModule

from ._counterfactual import CounterfactualMixin
from ._registration import check_is_no_view, check_setup_arguments, plain_columns
from ._training import TrainingMixin

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import scipy.sparse as sp
    from anndata import AnnData
    from mudata import MuData

    from scgen_diffusion.generation import LibrarySizes
    from scgen_diffusion.module import SCLDMArchitecture

    from ._counterfactual import ControlCells


class MultimodalMixin(CounterfactualMixin, TrainingMixin):
    """``setup_mudata``, and what differs for cells with several modalities from cells with one."""

    architecture: SCLDMArchitecture
    modality_vars_: dict[str, pd.DataFrame]

    @classmethod
    def setup_mudata(
        cls,
        mdata: MuData,
        *,
        modalities: Sequence[str] | Mapping[str, ModalityLikelihood | None] | None = None,
        layers: str | Mapping[str, str | None] | None = None,
        condition_keys: Sequence[str] | None = None,
        continuous_condition_keys: Sequence[str] | None = None,
        set_condition_keys: Sequence[str] | Mapping[str, str] | None = None,
        control_values: Mapping[str, Any] | None = None,
        condition_embeddings: Mapping[str, pd.DataFrame | str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Register cells with several modalities, such as RNA with surface proteins or accessible chromatin.

        Modalities need not have the same cells: a cell that a modality lacks, or that has no count in it, is a cell without
        that modality. Every modality has to share some cells with another. A copy of the counts, side by side, is kept in
        ``mdata.obsm["_scgen_expression"]``; call this again after a change of values.

        Parameters
        ----------
        mdata
            Cells, with counts in every modality.
        modalities
            Names of the modalities, all by default, or a mapping from names to what explains their values:

            - ``"negative_binomial"``: counts, such as those of genes and proteins;
            - ``"poisson"``: counts that vary no more than chance makes them, such as fragments in peaks;
            - ``"bernoulli"``: 0 or 1;
            - None, as for a list of names: ``"bernoulli"`` where there are 0 and 1 only, ``"negative_binomial"`` otherwise.

            A modality's library size is predicted from those before it, too; name first what most cells have.
        layers
            Layer that holds the counts: one name for all modalities, or a mapping from modality to name. Default: ``X``.
        condition_keys, continuous_condition_keys, set_condition_keys, control_values, condition_embeddings
            Columns of ``mdata.obs`` to generate by, and what is known of them; see :meth:`setup_anndata`.
        **kwargs
            For scvi-tools.

        Raises
        ------
        TypeError
            For what is not MuData, and for an unknown argument.
        KeyError
            For unknown modalities, layers and columns.
        ValueError
            For values that are no counts, modalities without cells, features or counts or with cells of other names, cells
            without any count, cells without labels, and names that occur twice in a modality.

        Examples
        --------
        >>> import scgen_diffusion as scgd
        >>> mdata = scgd.datasets.pbmc10k_citeseq()  # doctest: +SKIP
        >>> scgd.model.SCLDM.setup_mudata(mdata, layers="counts", condition_keys=["cell_type"])  # doctest: +SKIP
        >>> model = scgd.model.SCLDM(mdata)  # doctest: +SKIP
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        check_setup_arguments(cls.setup_mudata, kwargs)
        check_is_mudata(mdata)
        check_is_no_view(mdata, "mdata")
        for name, adata in mdata.mod.items():
            check_is_no_view(adata, f"mdata.mod[{name!r}]")
        keys = condition_names(condition_keys, continuous_condition_keys, set_condition_keys)
        check_condition_columns(mdata, [name for names in keys for name in names])
        likelihoods = _likelihoods(mdata, modalities, layers, kwargs.get("source_registry"))
        layers = resolve_layers(layers, list(likelihoods))
        setup = ConditionSetup.of(
            mdata, condition_keys, continuous_condition_keys, set_condition_keys, control_values, condition_embeddings
        )
        setup_method_args["setup_args"] |= {"modalities": likelihoods, "layers": layers, **setup.arguments}
        fields = [ModalitiesField(likelihoods, layers), ConditionField(CONDITIONS, setup)]
        manager = AnnDataManager(
            fields=fields,
            setup_method_args=setup_method_args,
            validation_checks=AnnDataManagerValidationCheck(check_fully_paired_mudata=False),
        )
        manager.register_fields(mdata, **kwargs)
        cls.register_manager(manager)

    @property
    def modalities(self) -> dict[str, Modality]:
        """Features and likelihood of each modality; empty for a model of AnnData."""
        return modalities_of(self.registry_["field_registries"][REGISTRY_KEYS.X_KEY]["state_registry"])

    @property
    def _input_values(self) -> Any:
        return "counts" if self.modalities else super()._input_values

    def get_var_names(self, legacy_mudata_format: bool = False) -> Any:
        """Return the names of the model's genes, an array; of a model of MuData, a dictionary with one array per modality."""
        if self.modalities and not legacy_mudata_format:
            return {name: np.array(modality.features) for name, modality in self.modalities.items()}
        return self.registry_["field_registries"][REGISTRY_KEYS.X_KEY]["state_registry"]["column_names"]

    def _build_module(self) -> SCLDMModule:
        groups = numbers_of_groups(self.architecture.dropped_together, [key.name for key in self._condition_keys])
        options: dict[str, Any] = {"architecture": self.architecture, "key_groups": groups}
        if self.modalities:
            panels = [ModalityPanel(len(m.features), m.likelihood) for m in self.modalities.values()]
            return MultimodalModule(panels, self._condition_specs, **options)
        n_genes, values = self.summary_stats.n_vars, self._input_values
        return SCLDMModule(n_genes, self._condition_specs, input_values=values, **options)

    @property
    def _fingerprint(self) -> str:
        """Tell this model and its cells from others, and from those that explain a modality otherwise."""
        likelihoods = [modality.likelihood for modality in self.modalities.values()]
        return "-".join([super()._fingerprint, *likelihoods])

    def _describe_cells(self, adata: AnnData | MuData | None) -> None:
        if not self.modalities:
            super()._describe_cells(adata)
            return
        super()._describe_cells(None)
        self.modality_vars_ = {
            name: pd.DataFrame(index=pd.Index(modality.features))
            if adata is None or name not in adata.mod
            else plain_columns(adata[name].var)
            for name, modality in self.modalities.items()
        }

    @classmethod
    def _register_like(cls, adata: AnnData | MuData, registry: Mapping[str, Any], genes: pd.Index) -> None:
        if registry.get("setup_method_name") == "setup_mudata":
            cls.setup_mudata(adata, source_registry=registry, **registry["setup_args"])
        else:
            super()._register_like(adata, registry, genes)

    def _check_same_features(self, adata: AnnData | MuData) -> None:
        if self.modalities:
            check_same_features(adata, self.modalities)
        else:
            super()._check_same_features(adata)

    def _assemble(
        self,
        x: sp.csr_matrix | np.ndarray,
        obs: pd.DataFrame,
        provenance: Mapping[str, Any],
        *,
        is_log1p: bool,
        layers: Mapping[str, np.ndarray] | None = None,
    ) -> AnnData | MuData:
        if self.modalities:
            return build_mudata(x, obs, self.modality_vars_, provenance, is_log1p=is_log1p, layers=layers)
        return super()._assemble(x, obs, provenance, is_log1p=is_log1p, layers=layers)

    def _control_cells(self, *arguments: Any) -> ControlCells:
        if self.modalities:
            msg = (
                f"`predict_perturbation` carries over cells of one modality, but this model has {list(self.modalities)}. "
                "Train a model on one of them, or ask `generate` for cells of the new condition."
            )
            raise NotImplementedError(msg)
        return super()._control_cells(*arguments)

    def _check_can_stream(self) -> None:
        if self.modalities:
            msg = (
                f"`generate_to` writes cells of one modality, but this model has {list(self.modalities)}. Call `generate` in "
                "parts, each with a seed of its own, and write them one by one."
            )
            raise NotImplementedError(msg)

    @property
    def _library_sizes(self) -> LibrarySizes:
        largest = {
            name: len(modality.features) if modality.likelihood == "bernoulli" else np.inf
            for name, modality in self.modalities.items()
        }
        return replace(super()._library_sizes, largest=largest)


def _likelihoods(
    mdata: MuData,
    modalities: Sequence[str] | Mapping[str, str | None] | None,
    layers: str | Mapping[str, str | None] | None,
    source_registry: Mapping[str, Any] | None,
) -> dict[str, str]:
    """Say what explains each modality: as a model that is there already has it, as the user says, or guessed."""
    if source_registry is not None:
        return dict(source_registry["setup_args"]["modalities"])
    chosen = resolve_modalities(mdata, modalities)
    layer_names = resolve_layers(layers, list(chosen))
    return {
        name: likelihood or guess_likelihood(mdata[name], layer_names[name], name)
        for name, likelihood in chosen.items()
    }
