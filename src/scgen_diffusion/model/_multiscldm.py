"""MULTISCLDM: SCLDM for cells with several modalities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self

import numpy as np
import pandas as pd
import torch
from scvi.data import AnnDataManager, AnnDataManagerValidationCheck

from scgen_diffusion._arguments import known_names
from scgen_diffusion._compat import was_set_up_last
from scgen_diffusion.data import (
    JOINED,
    PROVENANCE_KEY,
    ConditionField,
    ConditionSetup,
    ModalitiesField,
    Modality,
    ModalityLikelihood,
    build_mudata,
    check_is_mudata,
    check_modalities,
    check_same_features,
    expression_state,
    join_expression,
    layer_of,
    modalities_of,
    resolve_modalities,
    resolve_seed,
    savable_columns,
)
from scgen_diffusion.module import MultimodalModule

from ._base import refuse_unknown
from ._encoding import check_scale, gene_columns
from ._scldm import SCLDM

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import scipy.sparse as sp
    from mudata import MuData
    from sparse import GCXS
    from torch import Tensor


class MULTISCLDM(SCLDM):
    """Latent diffusion model of cells with several modalities, such as RNA with surface proteins or open chromatin.

    :class:`SCLDM` with one shared latent, and a decoder and a likelihood for each modality. Training cells may lack
    modalities; generated cells have all of them.

    Parameters
    ----------
    adata
        Cells registered with :meth:`setup_mudata`.
    registry
        Registry of such cells, to build the model without them.
    size
        Only ``"default"``: the recommended architecture, see the user guide.
    **architecture
        Options that change single parts and sizes, see :class:`~scgen_diffusion.module.SCLDMArchitecture`.

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
    >>> scgd.model.MULTISCLDM.setup_mudata(  # doctest: +SKIP
    ...     mdata, layers="counts", condition_keys=["cell_type"]
    ... )
    >>> model = scgd.model.MULTISCLDM(mdata)  # doctest: +SKIP
    >>> model.train()  # doctest: +SKIP
    >>> synthetic = model.generate(1_000)  # MuData  # doctest: +SKIP
    """

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
        condition_embeddings: Mapping[str, pd.DataFrame] | None = None,
        unlabeled_category: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Register a MuData: its modalities, where their counts are, and what the conditions are.

        Modalities need not have the same cells. A cell lacks a modality if it is not listed there or has no count
        there. Every modality must share some cells with another. A copy of all counts is kept in
        ``mdata.obsm["_scgen_expression"]``; call this method again if you change the counts.

        Parameters
        ----------
        mdata
            Cells with counts in every modality.
        modalities
            Names of the modalities (default: all), or a mapping from name to the distribution of the values:

            - ``"negative_binomial"``: counts, such as those of genes, proteins and fragments in peaks;
            - ``"bernoulli"``: 0 or 1;
            - None: ``"bernoulli"`` if all values are 0 or 1, else ``"negative_binomial"``. A list of names means this.

            Each modality's library size is predicted from those before it, so put first the one that most cells have.
        layers
            Layer with the counts: one name for all modalities, or a mapping from modality to name. Default: ``X``.
        condition_keys, continuous_condition_keys, set_condition_keys, control_values
            Columns of ``mdata.obs`` (numbers also arrays of ``mdata.obsm``) to condition on; see
            :meth:`SCLDM.setup_anndata`.
        condition_embeddings, unlabeled_category
            See :meth:`SCLDM.setup_anndata`.
        **kwargs
            Passed to scvi-tools.

        Raises
        ------
        TypeError
            If ``mdata`` is not MuData, and for an unknown argument.
        KeyError
            For unknown modalities, layers and columns.
        ValueError
            For values that are not counts, modalities without cells, features or counts, cells that do not match,
            cells without counts or labels, and duplicate names in a modality.

        Examples
        --------
        >>> import scgen_diffusion as scgd
        >>> mdata = scgd.datasets.pbmc10k_citeseq()  # doctest: +SKIP
        >>> scgd.model.MULTISCLDM.setup_mudata(  # doctest: +SKIP
        ...     mdata, layers="counts", condition_keys=["cell_type"]
        ... )
        >>> model = scgd.model.MULTISCLDM(mdata)  # doctest: +SKIP
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        refuse_unknown(kwargs)
        check_is_mudata(mdata)
        if known := kwargs.get("source_registry"):  # registered like a model's cells, which may lack a modality
            likelihoods, layers = (dict(known["setup_args"][name]) for name in ("modalities", "layers"))
        else:
            likelihoods, layers = resolve_modalities(mdata, modalities, layers)
        setup = ConditionSetup.of(setup_method_args["setup_args"])
        setup_method_args["setup_args"] |= {"modalities": likelihoods, "layers": layers, **vars(setup)}
        fields = [ModalitiesField(likelihoods, layers), ConditionField(setup)]
        manager = AnnDataManager(
            fields=fields,
            setup_method_args=setup_method_args,
            validation_checks=AnnDataManagerValidationCheck(check_fully_paired_mudata=False),
        )
        manager.register_fields(mdata, **kwargs)
        cls.register_manager(manager)

    @classmethod
    def setup_anndata(cls, *_: Any, **__: Any) -> NoReturn:
        """Raise NotImplementedError: use :meth:`setup_mudata`."""
        msg = (
            f"{cls.__name__} reads cells with several modalities: call `setup_mudata`. For one modality there is SCLDM."
        )
        raise NotImplementedError(msg)

    @torch.inference_mode()
    def get_normalized_expression(
        self,
        adata: MuData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        *,
        modality: str | None = None,
        gene_list: Sequence[str] | None = None,
        library_size: float | Literal["latent"] | None = None,
        n_samples: int = 1,
        return_mean: bool = True,
        return_numpy: bool | None = None,
        batch_size: int | None = None,
        seed: int | None = None,
    ) -> pd.DataFrame | np.ndarray | dict[str, pd.DataFrame | np.ndarray]:
        """Return expected values of each modality, decoded from a draw of the latent, such as denoised proteins.

        For counts, these are frequencies within the modality times ``library_size``, as
        :meth:`SCLDM.get_normalized_expression` returns them. The background of proteins is not removed.

        For a ``"bernoulli"`` modality, such as chromatin, they are probabilities of a one (accessibility). By default
        they are those at each cell's own number of ones, higher in cells in which more peaks were found.

        Modalities that a cell lacks, and their totals, are predicted from the others. Each call draws a latent, which
        such predictions depend on most: average over ``n_samples``, such as 25, or use :meth:`get_reconstruction` with
        ``sample=False``, which draws nothing.

        Parameters
        ----------
        adata
            Cells; default: the model's cells.
        indices
            Rows of the cells to use; default: all.
        modality
            Name of the modality to return. Default: all of them, in a dictionary.
        gene_list
            Features of ``modality`` to return, in the model's order; default: all.
        library_size
            Sum of a cell's values. ``"latent"``: expected counts, or probabilities, at each cell's own total. Default:
            1 for counts, and ``"latent"`` for probabilities.
        n_samples, return_mean, return_numpy, batch_size, seed
            As for :meth:`SCLDM.get_normalized_expression`.

        Returns
        -------
        pandas.DataFrame, numpy.ndarray or dict
            ``(cells, features)``; ``(n_samples, cells, features)`` for several samples without ``return_mean``. Without
            ``modality``, a dictionary from the name of each modality to this.

        Raises
        ------
        KeyError, TypeError
            As :meth:`get_latent_representation`, and for one string as ``gene_list``.
        RuntimeError
            If the autoencoder is not trained; and if a total must be predicted, but the prior is not trained.
        ValueError
            As :meth:`get_latent_representation`, for an unknown modality, feature or size, and a size of probabilities
            that is not below the number of features.

        Examples
        --------
        >>> proteins = model.get_normalized_expression(
        ...     modality="prot", library_size="latent", n_samples=25, seed=0
        ... )  # doctest: +SKIP
        """
        how: dict[str, Any] = {"n_samples": n_samples, "return_mean": return_mean, "return_numpy": return_numpy}
        how |= {"batch_size": batch_size, "seed": seed}
        if modality is None:
            how |= {"gene_list": gene_list, "library_size": library_size, "seed": resolve_seed(seed)}
            return {m: self.get_normalized_expression(adata, indices, modality=m, **how) for m in self.modalities}
        number, features = self._locate_modality(modality)
        is_binary = self.modalities[modality].likelihood == "bernoulli"
        scale = check_scale(("latent" if is_binary else 1) if library_size is None else library_size)
        if is_binary and scale is not None and scale >= len(features):
            msg = f"`library_size` of zeros and ones must be below {len(features)}, their number, but found {scale}."
            raise ValueError(msg)
        return self._decode_draws(number, features, gene_list, scale, adata, indices, **how)

    @torch.inference_mode()
    def posterior_predictive_sample(
        self,
        adata: MuData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        *,
        modality: str | None = None,
        n_samples: int = 1,
        gene_list: Sequence[str] | None = None,
        batch_size: int | None = None,
        seed: int | None = None,
    ) -> GCXS | dict[str, GCXS]:
        """Sample values of given cells in each modality, from their latents.

        As :meth:`SCLDM.posterior_predictive_sample`: each sample draws a latent and then counts, or zeros and ones, at
        the cell's own totals. Modalities that a cell lacks are drawn too, with their totals. The first sample equals
        :meth:`get_reconstruction` with the same seed. :class:`scvi.criticism.PosteriorPredictiveCheck` uses this method
        if all cells have the modality that it checks, in the same order.

        Parameters
        ----------
        adata
            Cells; default: the model's cells.
        indices
            Rows of the cells to use; default: all.
        modality
            Name of the modality to return. Default: all of them, in a dictionary.
        n_samples
            Samples per cell.
        gene_list
            Features of ``modality`` to return, in the model's order; default: all.
        batch_size
            Cells at a time. It does not change the draws.
        seed
            Seed of the draws. Default: ``scvi.settings.seed``, or else random.

        Returns
        -------
        sparse.GCXS or dict
            ``(cells, features)``; ``(cells, features, n_samples)`` for several samples. Without ``modality``, a
            dictionary from the name of each modality to this.

        Raises
        ------
        KeyError, TypeError
            As :meth:`get_latent_representation`, and for one string as ``gene_list``.
        RuntimeError
            If the autoencoder is not trained; and if cells lack a modality, but the prior is not trained.
        ValueError
            As :meth:`get_latent_representation`, and for an unknown modality or feature.
        """
        if modality is None:
            how = {"n_samples": n_samples, "gene_list": gene_list, "batch_size": batch_size, "seed": resolve_seed(seed)}
            return {m: self.posterior_predictive_sample(adata, indices, modality=m, **how) for m in self.modalities}
        number, features = self._locate_modality(modality)
        columns = sum(self.module.n_features[:number]) + gene_columns(gene_list, features)
        return self._sample_counts(columns, adata, indices, n_samples, batch_size, seed)

    @property
    def modalities(self) -> dict[str, Modality]:
        """Features and likelihood of each modality."""
        return modalities_of(expression_state(self.registry_))

    def get_var_names(self, legacy_mudata_format: bool = False) -> Any:
        """Return a dictionary from modality to the names of its features."""
        if legacy_mudata_format:
            return expression_state(self.registry_)["column_names"]
        return {name: np.array(modality.features) for name, modality in self.modalities.items()}

    def _build_module(self) -> MultimodalModule:
        panels = [(len(m.features), m.likelihood) for m in self.modalities.values()]
        return MultimodalModule(panels, self._condition_encodings, architecture=self.architecture)

    def _describe_cells(self, adata: MuData | None) -> None:
        super()._describe_cells(None)
        self.modality_vars_ = {
            name: pd.DataFrame(index=pd.Index(modality.features))
            if adata is None or name not in adata.mod
            else savable_columns(adata[name].var)
            for name, modality in self.modalities.items()
        }

    def _copy_features(self, reference: Self) -> None:
        super()._copy_features(reference)
        self.modality_vars_ = dict(reference.modality_vars_)  # the new cells may lack modalities

    @staticmethod
    def _check_same_features(cells: Any, registry: Mapping[str, Any]) -> None:
        check_is_mudata(cells)
        check_same_features(cells, modalities_of(expression_state(registry)))

    def _values_of(self, cells: MuData) -> tuple[sp.csr_matrix, str]:
        """Join and check the values of given cells; its own have a copy of theirs from when they were set up."""
        layers = self.registry_["setup_args"]["layers"]
        if cells is self.adata and was_set_up_last(self.adata_manager):
            return cells.obsm[JOINED], ""
        cells = cells.copy() if cells.is_view else cells
        if PROVENANCE_KEY in cells.uns:  # generated cells have their values in X
            layers = {name: layer_of(cells[name], layers.get(name)) for name in cells.mod}
        likelihoods = {name: modality.likelihood for name, modality in self.modalities.items()}
        check_modalities(cells, likelihoods, layers, are_known=True)
        return join_expression(cells, self.modalities, layers), ""

    def _trained_rows(self, stage: str) -> Mapping[torch.nn.Parameter, Tensor | None] | None:
        """Leave out what belongs to modalities that the cells lack: weight decay alone would change it."""
        trained, module = super()._trained_rows(stage), self.module
        has = [name in self.adata.mod for name in self.modalities]
        if stage == "perturbation_flow" or all(has):
            return trained
        trained = dict.fromkeys(module.parameters()) if trained is None else trained
        for network in (module.encoder, module.decoder, module.likelihood, module.library_size):
            parts = zip(network.parts, has, strict=True)
            absent = {parameter for part, is_there in parts if not is_there for parameter in part.parameters()}
            trained = {parameter: rows for parameter, rows in trained.items() if parameter not in absent}
        return trained

    def _locate_modality(self, name: str) -> tuple[int, pd.Index]:
        """Return the number of a modality, and the names of its features."""
        if name not in (names := list(self.modalities)):
            msg = f"There is no `modality` {name!r} in the model. {known_names(name, names)}"
            raise ValueError(msg)
        return names.index(name), pd.Index(self.modalities[name].features)

    def _build(self, x: sp.csr_matrix | np.ndarray, obs: pd.DataFrame, uns: Mapping[str, Any], obsm: Any = None) -> Any:
        return build_mudata(x, obs, self.modality_vars_, uns, obsm)
