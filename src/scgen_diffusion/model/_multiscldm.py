"""MULTISCLDM: SCLDM for cells with several modalities."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

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
    check_is_mudata,
    check_same_features,
    modalities_of,
    resolve_modalities,
)
from scgen_diffusion.module import CONDITIONS, InputValues, ModalityPanel, MultimodalModule

from ._registration import check_is_no_view, check_setup_arguments, plain_columns
from ._scldm import SCLDM

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import scipy.sparse as sp
    from mudata import MuData
    from torch import Tensor

    from scgen_diffusion.generation import LibrarySizes


class MULTISCLDM(SCLDM):
    """Latent diffusion model of cells with several modalities, such as RNA with surface proteins or accessible chromatin.

    :class:`SCLDM` with a decoder and a likelihood for each modality over one latent. It learns from cells that lack some of the
    modalities, and generates cells that have all of them.

    Parameters
    ----------
    adata
        Cells registered with :meth:`setup_mudata`.
    registry
        Registry of such cells, to construct the model without them.
    size
        ``"default"``: the architecture that generates best, see the user guide. ``"published"``: that of the paper.
    **architecture
        Single parts and sizes, see :class:`~scgen_diffusion.module.SCLDMArchitecture`.

    Raises
    ------
    TypeError
        For an unknown option.
    ValueError
        For a value that is not allowed.

    Examples
    --------
    >>> import scgen_diffusion as scgd
    >>> mdata = scgd.datasets.pbmc10k_citeseq()  # doctest: +SKIP
    >>> scgd.model.MULTISCLDM.setup_mudata(mdata, layers="counts", condition_keys=["cell_type"])  # doctest: +SKIP
    >>> model = scgd.model.MULTISCLDM(mdata)  # doctest: +SKIP
    >>> model.train()  # doctest: +SKIP
    >>> synthetic = model.generate(1_000)  # MuData  # doctest: +SKIP
    """

    _module_cls = MultimodalModule
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
            Columns of ``mdata.obs`` to generate by, and what is known of them; see :meth:`SCLDM.setup_anndata`.
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
        >>> scgd.model.MULTISCLDM.setup_mudata(mdata, layers="counts", condition_keys=["cell_type"])  # doctest: +SKIP
        >>> model = scgd.model.MULTISCLDM(mdata)  # doctest: +SKIP
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        check_setup_arguments(cls.setup_mudata, kwargs)
        check_is_mudata(mdata)
        check_is_no_view(mdata, "mdata")
        for name, adata in mdata.mod.items():
            check_is_no_view(adata, f"mdata.mod[{name!r}]")
        if known := kwargs.get("source_registry"):  # of a model that is there; cells may lack a modality
            likelihoods, layers = (dict(known["setup_args"][name]) for name in ("modalities", "layers"))
        else:
            likelihoods, layers = resolve_modalities(mdata, modalities, layers)
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

    @classmethod
    def setup_anndata(cls, *_: Any, **__: Any) -> NoReturn:
        """Raise NotImplementedError: cells with several modalities are MuData."""
        msg = (
            f"{cls.__name__} reads cells with several modalities: call `setup_mudata`. For one modality there is SCLDM."
        )
        raise NotImplementedError(msg)

    @classmethod
    def load_query_data(cls, *_: Any, **__: Any) -> NoReturn:
        """Raise NotImplementedError: models of several modalities cannot be fine-tuned yet."""
        msg = "Models of several modalities cannot be fine-tuned yet; train one on all cells."
        raise NotImplementedError(msg)

    def predict_perturbation(self, *_: Any, **__: Any) -> NoReturn:
        """Raise NotImplementedError: cells of several modalities cannot be carried over yet."""
        msg = (
            f"`predict_perturbation` carries over cells of one modality, but this model has {list(self.modalities)}. "
            "Train a model on one of them, or ask `generate` for cells of the new condition."
        )
        raise NotImplementedError(msg)

    def generate_to(self, *_: Any, **__: Any) -> NoReturn:
        """Raise NotImplementedError: MuData are not streamed yet."""
        msg = (
            f"`generate_to` writes cells of one modality, but this model has {list(self.modalities)}. Call `generate` in "
            "parts, each with a seed of its own, and write them one by one."
        )
        raise NotImplementedError(msg)

    @property
    def modalities(self) -> dict[str, Modality]:
        """Features and likelihood of each modality."""
        return modalities_of(self._expression_state)

    def get_var_names(self, legacy_mudata_format: bool = False) -> Any:
        """Return the names of each modality's features, a dictionary with one array per modality."""
        if legacy_mudata_format:
            return self._expression_state["column_names"]
        return {name: np.array(modality.features) for name, modality in self.modalities.items()}

    @property
    def _input_values(self) -> InputValues:
        return "counts"

    @property
    def _expression_state(self) -> Mapping[str, Any]:
        return self.registry_["field_registries"][REGISTRY_KEYS.X_KEY]["state_registry"]

    def _build_module(self) -> MultimodalModule:
        panels = [ModalityPanel(len(m.features), m.likelihood) for m in self.modalities.values()]
        options: dict[str, Any] = {"architecture": self.architecture, "key_groups": self._key_groups}
        return MultimodalModule(panels, self._condition_specs, **options)

    def _describe_cells(self, adata: MuData | None) -> None:
        super()._describe_cells(None)
        self.modality_vars_ = {
            name: pd.DataFrame(index=pd.Index(modality.features))
            if adata is None or name not in adata.mod
            else plain_columns(adata[name].var)
            for name, modality in self.modalities.items()
        }

    @classmethod
    def _register_like(cls, adata: MuData, registry: Mapping[str, Any], genes: pd.Index) -> None:
        cls.setup_mudata(adata, source_registry=registry, **registry["setup_args"])

    def _check_same_features(self, adata: MuData) -> None:
        check_same_features(adata, self.modalities)

    def _check_values(self, x: Tensor, rows: np.ndarray, source: MuData) -> None:
        """Do nothing: a copy of the counts is read, which was made when they were checked."""

    def _check_gives_expression(self, method: str) -> None:
        msg = (
            f"`{method}` is for counts of one modality, but this model has the modalities {list(self.modalities)}. Call "
            "`get_reconstruction`."
        )
        raise NotImplementedError(msg)

    def _assemble(
        self,
        x: sp.csr_matrix | np.ndarray,
        obs: pd.DataFrame,
        provenance: Mapping[str, Any],
        *,
        is_log1p: bool,
        layers: Mapping[str, np.ndarray] | None = None,
    ) -> MuData:
        return build_mudata(x, obs, self.modality_vars_, provenance, is_log1p=is_log1p, layers=layers)

    @property
    def _library_sizes(self) -> LibrarySizes:
        largest = {
            name: len(modality.features) if modality.likelihood == "bernoulli" else np.inf
            for name, modality in self.modalities.items()
        }
        return replace(super()._library_sizes, largest=largest)

    @property
    def _fingerprint(self) -> str:
        """Tell this model and its cells from others, and from those that explain a modality otherwise."""
        return "-".join([super()._fingerprint, *(modality.likelihood for modality in self.modalities.values())])
