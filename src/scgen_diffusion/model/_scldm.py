"""SCLDM: the latent diffusion model of single cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from scgen_diffusion.data import warn_user
from scgen_diffusion.module import InputValues, SCLDMModule, build_architecture

from ._autoencoder import AutoencoderModel
from ._reference import load_reference
from ._training import LatentTrainingMixin

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from anndata import AnnData

    from ._counterfactual import ControlCells

NO_PERTURBATION = (
    "The transport goes from unperturbed cells to perturbed ones, and changes nothing else; but some of these cells are perturbed already, "
    "or shall change in other keys too."
)


class SCLDM(AutoencoderModel, LatentTrainingMixin):
    """Latent diffusion model of single cells.

    A permutation-invariant autoencoder turns the set of a cell's expressed genes into a few latent tokens and back into the
    parameters of a count distribution. A diffusion transformer learns the distribution of the latents under any number of
    conditions by flow matching. New cells are noise, carried to a latent by the transformer and decoded.

    Parameters
    ----------
    adata
        Cells registered with :meth:`setup_anndata`. For RNA together with further modalities see :class:`MULTISCLDM`.
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

    References
    ----------
    scLDM: arXiv 2511.02986. What differs from it is told in the user guide.

    Examples
    --------
    >>> import scgen_diffusion as scgd
    >>> adata = scgd.datasets.pbmc68k_reduced()
    >>> scgd.model.SCLDM.setup_anndata(adata, layer="counts", condition_keys=["cell_type"])
    >>> model = scgd.model.SCLDM(adata)
    >>> model.train()  # doctest: +SKIP
    >>> synthetic = model.generate(1_000, condition={"cell_type": "CD19+ B"})  # doctest: +SKIP
    """

    _module_cls = SCLDMModule
    _counterfactual_ways: ClassVar = {
        "method": ("transport", "inversion"),
        "residuals": ("own", "new"),
        "sample": (True, False),
    }
    default_sampler = "midpoint"

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict[str, Any] | None = None,
        *,
        size: Literal["default", "published"] = "default",
        **architecture: Any,
    ) -> None:
        super().__init__(adata, registry)
        self.architecture = build_architecture(size, **architecture)
        if self._input_values == "log1p" and self.architecture.likelihood != "gaussian":
            msg = "Log-normalised values (`values='log1p'`) need `likelihood='gaussian'`; counts are needed for any other."
            raise ValueError(msg)
        self.module = self._build_module()
        self._describe_cells(adata)
        self.trained_stages_ = []
        self.library_head_is_trained_ = False
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    def from_reference_checkpoint(
        cls,
        path: str | os.PathLike[str],
        *,
        var_names: Sequence[str],
        categories: Mapping[str, Sequence[str]],
        library_size: pd.DataFrame | None = None,
        condition_strategy: Literal["joint", "mutually_exclusive"] = "joint",
        n_heads: int = 8,
        n_heads_cross: int = 4,
        prior_n_heads: int = 8,
        ema: bool = False,
        padded_length: int | None = None,
    ) -> Self:
        """Build a model from weights of the published scLDM code. Nothing in the file is executed.

        Parameters
        ----------
        path
            A Lightning ``.ckpt``, or ``.safetensors``.
        var_names
            Genes in the order of the weights.
        categories
            Classes of each condition key, in the order of the weights.
        library_size
            Statistics of log total counts: one row per group of cells, with the columns ``mean`` and ``std`` and one column
            per condition key (a missing value stands for any class). Without it, ``generate`` needs ``library_size``.
        condition_strategy
            The strategy that the weights were trained with.
        n_heads, n_heads_cross, prior_n_heads
            Attention heads, which weights do not tell.
        ema
            Whether to generate with the averaged weights, if the file has them.
        padded_length
            Number of gene tokens that the weights were trained with. The published encoder lets padding take part in the
            attention, so a cell's latent depends on it. Default: as many as the longest cell of a batch needs.

        Raises
        ------
        ValueError
            If the file is damaged or would execute code, or weights and genes or categories do not fit.
        """
        return load_reference(
            cls,
            path,
            var_names=var_names,
            categories=categories,
            library_size=library_size,
            condition_strategy=condition_strategy,
            n_heads=n_heads,
            n_heads_cross=n_heads_cross,
            prior_n_heads=prior_n_heads,
            ema=ema,
            padded_length=padded_length,
        )

    def _build_module(self) -> SCLDMModule:
        return self._module_cls(
            self.summary_stats.n_vars,
            self._condition_specs,
            input_values=self._input_values,
            architecture=self.architecture,
            key_groups=self._key_groups,
        )

    @property
    def _outputs(self) -> tuple[InputValues, ...]:
        return ("log1p",) if self.architecture.likelihood == "gaussian" else ("counts",)

    def _check_ready_to_generate(self) -> None:
        if not self.is_trained_:
            missing = "train_prior()" if "autoencoder" in self.trained_stages_ else "train()"
            msg = f"The model cannot generate yet; call {missing} first."
            raise RuntimeError(msg)

    def _counterfactual_method(self, cells: ControlCells, method: str | None) -> str:
        own, codes = self.module.condition_tensor(cells.own), self.module.condition_tensor(cells.codes)
        has_transport = "transport" in self.trained_stages_
        if method == "transport" and not has_transport:
            msg = "The model has no transport yet; call train_transport() first, or choose method='inversion'."
            raise RuntimeError(msg)
        fits = has_transport and self.module.transport.explains(own, codes)
        if method == "transport" and not fits:
            msg = f"{NO_PERTURBATION} Choose method='inversion'."
            raise ValueError(msg)
        if method != "inversion" and fits:
            return "transport"
        self._check_ready_to_generate()
        if method is None and has_transport and (cells.own != cells.codes).any():
            warn_user(f"Predicted by inversion. {NO_PERTURBATION}")
        return "inversion"
