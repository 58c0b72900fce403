"""Methods of scvi-tools that a model lacks, and what to use instead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from scvi.model.base import BaseModelClass

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

ADVICE = {
    "differential_abundance": "compare the labels' shares between samples, for example with pertpy",
    "differential_expression": "call scanpy.tl.rank_genes_groups, on measured cells or on those that `generate` returns",
    "get_feature_correlation_matrix": "correlate the genes of cells that `generate` returns",
    "get_latent_library_size": "a cell's total count is taken as it is; sum its counts",
    "get_likelihood_parameters": "`get_reconstruction(sample=False)` returns expected counts",
    "get_marginal_ll": "`get_elbo` returns a lower bound of it",
    "minify_adata": "keep the latents, `adata.obsm['X_latent'] = model.get_latent_representation()`",
    "update_setup_method_args": "call `setup_anndata` again, and build the model anew",
}

NO_LATENT = "the model has no latent; SCLDM has one, or embed cells with scanpy.pp.pca"
NO_LIKELIHOOD = (
    "the model has no likelihood; compare what `generate` returns with held-out cells: scgen_diffusion.metrics.evaluate"
)
NO_RECONSTRUCTION = (
    "the model does not encode given cells; for new cells of their conditions call "
    "`generate(condition=adata.obs[model.conditions.keys])`, for other conditions of the same cells `predict_perturbation`"
)
ADVICE_IN_GENE_SPACE = ADVICE | {
    "get_elbo": NO_LIKELIHOOD,
    "get_latent_representation": NO_LATENT,
    "get_likelihood": NO_LIKELIHOOD,
    "get_likelihood_parameters": NO_LIKELIHOOD,
    "get_marginal_ll": NO_LIKELIHOOD,
    "get_normalized_expression": NO_RECONSTRUCTION,
    "get_reconstruction": NO_RECONSTRUCTION,
    "get_reconstruction_error": NO_LIKELIHOOD,
    "minify_adata": NO_LATENT,
    "posterior_predictive_sample": NO_RECONSTRUCTION,
}


class AdviceMixin(BaseModelClass):
    """Errors that say what to use. For a name that scvi-tools' base class has not, ``hasattr`` stays false."""

    _advice: ClassVar[Mapping[str, str]] = ADVICE

    if not TYPE_CHECKING:  # which would take every name for one that exists

        def __getattr__(self, name: str) -> NoReturn:
            msg = f"{type(self).__name__!r} object has no attribute {name!r}"
            if name in self._advice:
                msg = f"{type(self).__name__} has no `{name}`: {self._advice[name]}."
            raise AttributeError(msg, name=name, obj=self)

    def get_normalized_expression(self, *args: Any, **kwargs: Any) -> Any:
        """Raise NotImplementedError, which says what to use instead."""
        self._refuse("get_normalized_expression")

    def differential_abundance(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise NotImplementedError, which says what to use instead."""
        self._refuse("differential_abundance")

    def update_setup_method_args(self, setup_method_args: Any) -> NoReturn:
        """Raise NotImplementedError, which says what to use instead."""
        self._refuse("update_setup_method_args")

    def deregister_manager(self, adata: AnnData | None = None) -> None:
        """Forget how an AnnData was set up; default: all but the model's own.

        Parameters
        ----------
        adata
            Cells that were given to a method of this model.

        Raises
        ------
        ValueError
            If the model has no AnnData.
        """
        if self.adata is None:
            msg = "The model has no AnnData, so that there is nothing to deregister."
            raise ValueError(msg)
        super().deregister_manager(adata)

    def _refuse(self, name: str) -> NoReturn:
        msg = f"{type(self).__name__} has no `{name}`: {self._advice[name]}."
        raise NotImplementedError(msg)
