"""Fine-tuning: a trained model that learns new cells, with new conditions, and keeps what it knew."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch
from anndata import AnnData

from scgen_diffusion._compat import parse_device_args, replace_contents
from scgen_diffusion.data import check_same_genes, extended_table, known_names, occurring, pad_genes, recode
from scgen_diffusion.module import TRAINABLE, Trainable, take_over, trained_masks

from ._model_file import init_options
from ._saving import SavingMixin
from ._training import TrainingMixin, digest_of

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    import numpy as np
    import pandas as pd

    from ._registration import RegistrationMixin


class QueryMixin(SavingMixin, TrainingMixin):
    """``load_query_data`` and ``prepare_query_anndata`` of scvi-tools, for models of cells under conditions."""

    library_head_is_trained_: bool
    reference_: Mapping[str, Any] | None = None  # what a model that is fine-tuned keeps of its reference

    @classmethod
    def load_query_data(
        cls,
        adata: AnnData,
        reference_model: Self | str | os.PathLike[str],
        *,
        trainable: Trainable = "new_conditions",
        condition_embeddings: Mapping[str, pd.DataFrame | str] | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
    ) -> Self:
        """Build a model that knows what a trained one knows, to train it on new cells.

        New classes, and new members of sets, are added to the condition keys; they start at the mean of those that the reference
        learned. Numbers keep the reference's scale. Call :meth:`train` afterwards. Then conditions that are not asked for are drawn
        from the reference's cells and the new ones together, and library sizes of new combinations are those of the new cells.

        Parameters
        ----------
        adata
            New cells, with the layer and the columns of ``obs`` that the reference was set up with, and with its genes:
            see :meth:`prepare_query_anndata`. They need not be registered.
        reference_model
            A trained model of this class, or the folder that it was saved in. It stays as it is.
        trainable
            What :meth:`train` will change:

            - ``"new_conditions"``: the embeddings of classes and members that are new, and nothing else. The reference's
              conditions give the same cells as before, bit for bit.
            - ``"conditions"``: the embeddings of all conditions.
            - ``"network"``: the whole diffusion network, which for SCLDM is the prior; the autoencoder stays.
            - ``"all"``: everything, the autoencoder of SCLDM too.

            With all but the first, what the reference knew changes with the new cells, and what these lack is forgotten in part.
        condition_embeddings
            Further rows for the reference's tables of known embeddings, with the same columns: tables, or their names in ``adata.uns``.
        accelerator, device
            Where to put the model.

        Returns
        -------
        Self
            The model of the new cells.

        Raises
        ------
        KeyError
            For a layer or columns that the cells lack.
        RuntimeError
            If the reference is not trained.
        TypeError
            If ``adata`` is no AnnData, or the reference is no model or folder of one.
        ValueError
            For another class of model, other genes, values that are not what the reference learned from, and, with
            ``"new_conditions"``, cells without anything new.

        Examples
        --------
        >>> import scgen_diffusion as scgd
        >>> adata = scgd.datasets.pbmc68k_reduced()
        >>> is_new = adata.obs["cell_type"] == "CD34+"
        >>> old, new = adata[~is_new].copy(), adata[is_new].copy()
        >>> scgd.model.SCLDM.setup_anndata(old, layer="counts", condition_keys=["cell_type"])
        >>> reference = scgd.model.SCLDM(old)
        >>> reference.train()  # doctest: +SKIP
        >>> model = scgd.model.SCLDM.load_query_data(new, reference)  # doctest: +SKIP
        >>> model.train()  # doctest: +SKIP
        >>> synthetic = model.generate(1_000, condition={"cell_type": "CD34+"})  # doctest: +SKIP
        """
        _check_trainable(trainable)
        _, _, device = parse_device_args(accelerator, device, return_device="torch", validate_single_device=True)
        reference = cls._trained_reference(reference_model)
        _check_cells(adata, reference)
        registry = reference.registry_
        arguments = registry["setup_args"]
        tables = _extended_tables(arguments["condition_embeddings"], condition_embeddings, adata)
        arguments = {**arguments, "condition_embeddings": tables}
        cls.setup_anndata(adata, source_registry=registry, extend_categories=True, **arguments)
        model = cls(adata, **init_options(reference.init_params_))
        model._take_over(reference, trainable)
        model.to_device(device)
        model.module.eval()
        return model

    @classmethod
    def prepare_query_anndata(
        cls, adata: AnnData, reference_model: Self | str | os.PathLike[str], *, inplace: bool = False
    ) -> AnnData | None:
        """Give new cells the genes of a model, for :meth:`load_query_data`.

        Genes are put in the model's order. Those that the cells lack are filled with zeros, in every layer, and those that the
        model does not know are left out. A zero says "not seen", which is not quite "not measured": the fewer, the better.

        Parameters
        ----------
        adata
            New cells.
        reference_model
            A model of this class, or the folder that it was saved in.
        inplace
            Whether to change ``adata`` itself, and to return nothing.

        Returns
        -------
        AnnData
            The cells with the model's genes, whose columns in ``var`` are the model's. Without ``varm``, ``obsp`` and ``raw``.

        Raises
        ------
        ValueError
            If no gene is known, or one occurs more than once.

        Warns
        -----
        UserWarning
            If less than 80 % of the model's genes are there. How many there are is logged in any case.
        """
        padded = pad_genes(adata, cls._reference(reference_model).var_)
        if not inplace:
            return padded
        replace_contents(adata, padded)
        return None

    @classmethod
    def _reference(cls, reference_model: Self | str | os.PathLike[str]) -> Self:
        if not isinstance(reference_model, SavingMixin):
            return cls.load(reference_model, adata=False, accelerator="cpu")
        if type(reference_model) is not cls:
            msg = f"`reference_model` is of class {type(reference_model).__name__!r}, but {cls.__name__} was called."
            raise ValueError(msg)
        return reference_model

    @classmethod
    def _trained_reference(cls, reference_model: Self | str | os.PathLike[str]) -> Self:
        reference = cls._reference(reference_model)
        try:
            reference._check_ready_to_generate()
        except RuntimeError as error:
            msg = f"`reference_model` must be trained before it can be fine-tuned. {error}"
            raise RuntimeError(msg) from error
        return reference

    def _take_over(self, reference: Self, trainable: Trainable) -> None:
        keys = reference._condition_keys, self._condition_keys
        self.combinations_ = recode(reference.combinations_, *keys)
        self.combination_sizes_ = reference.combination_sizes_
        self.reference_ = {
            "trainable": trainable,
            "combinations": self.combinations_,
            "combination_sizes": self.combination_sizes_,
        }
        as_before = partial(recode, before=keys[0], after=keys[1])
        take_over(
            self.module,
            reference.module,
            self._learned(),
            lambda codes: torch.from_numpy(as_before(codes.cpu().numpy())),
        )
        self.var_ = reference.var_.copy()
        self._note_trained(
            *{*reference.trained_stages_} - {"transport"}
        )  # which is small, and learned anew from the new cells
        self.library_head_is_trained_ = reference.library_head_is_trained_
        if trainable == "new_conditions":
            self._check_something_is_new()

    def _check_something_is_new(self) -> None:
        if not trained_masks(self.module, "new_conditions", self._new()):
            msg = (
                "There is nothing to train: the new cells have no class or member that the reference did not learn, apart from "
                "those with known embeddings. To learn other combinations, numbers or cells, set `trainable` to one of "
                f"{TRAINABLE[1:]}."
            )
            raise ValueError(msg)

    def _count_combinations(self, codes: np.ndarray) -> None:
        super()._count_combinations(codes)
        if self.reference_ is not None:
            both = self.conditions.joined(self.reference_["combinations"], self.reference_["combination_sizes"])
            self.combinations_, self.combination_sizes_ = both.combinations, both.n_cells

    def _learned(self) -> list[torch.Tensor]:
        """Which classes and members the reference's cells had, per key."""
        assert self.reference_ is not None
        return [torch.from_numpy(are) for are in occurring(self._condition_keys, self.reference_["combinations"])]

    def _new(self) -> list[torch.Tensor]:
        """Which classes and members the model's cells have and the reference's had not, per key."""
        found = occurring(self._condition_keys, self._registered_codes)
        return [torch.from_numpy(here) & ~before for here, before in zip(found, self._learned(), strict=True)]

    def _trained_rows(self) -> Mapping[torch.nn.Parameter, torch.Tensor | None] | None:
        if self.reference_ is None:
            return None
        masks = trained_masks(self.module, self.reference_["trainable"], self._new())
        if not self.library_head_is_trained_:  # published weights have none
            masks |= dict.fromkeys(self.module.library_size.head.parameters())
        if (transport := getattr(self.module, "transport", None)) is not None:
            masks |= dict.fromkeys(transport.parameters())
        return masks

    @property
    def _keeps_scale(self) -> bool:
        return self.reference_ is not None

    @property
    def _keeps_autoencoder(self) -> bool:
        return self.reference_ is not None and self.reference_["trainable"] != "all"

    @property
    def _fingerprint(self) -> str:
        if self.reference_ is None:
            return super()._fingerprint
        return digest_of(super()._fingerprint, self.reference_["trainable"])


def _check_trainable(trainable: str) -> None:
    if trainable not in TRAINABLE:
        msg = f"`trainable` must be one of {TRAINABLE}, but found {trainable!r}. {known_names(trainable, TRAINABLE)}"
        raise ValueError(msg)


def _check_cells(adata: AnnData, reference: RegistrationMixin) -> None:
    if getattr(reference, "modalities", None):
        msg = "Models of several modalities cannot be fine-tuned yet; train one on all cells."
        raise NotImplementedError(msg)
    if not isinstance(adata, AnnData):
        msg = f"`adata` must be an AnnData, but found {type(adata).__name__}."
        raise TypeError(msg)
    try:
        check_same_genes(adata.var_names, reference.var_.index)
    except ValueError as error:
        msg = f"{error} `prepare_query_anndata` gives cells the reference's genes."
        raise ValueError(msg) from error


def _extended_tables(
    tables: Mapping[str, pd.DataFrame], further: Mapping[str, pd.DataFrame | str] | None, adata: AnnData
) -> dict[str, pd.DataFrame]:
    """Add further rows to the reference's tables of known embeddings."""
    for name in further or {}:
        if name not in tables:
            msg = f"`condition_embeddings` names {name!r}, of which the reference has no known embeddings. {known_names(name, list(tables))}"
            raise ValueError(msg)
    more = {name: extended_table(adata, name, tables[name], table) for name, table in (further or {}).items()}
    return {**tables, **more}
