"""SCLDM: the latent diffusion model of single cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from scgen_diffusion.data import suggests_arguments
from scgen_diffusion.generation import OTHER_NAMES, GuidanceOptions
from scgen_diffusion.module import InputValues, SCLDMModule, build_architecture

from ._docs import with_shared_texts
from ._latent_counterfactual import LatentCounterfactualMixin
from ._multimodal import MultimodalMixin
from ._query import QueryMixin
from ._reconstruction import ReconstructionMixin
from ._reference import load_reference
from ._streaming import StreamingMixin
from ._training import LatentTrainingMixin

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData

    from scgen_diffusion.data import ConditionRequest
    from scgen_diffusion.diffusion import Sampler
    from scgen_diffusion.generation import Composition, GuidanceScale
    from scgen_diffusion.module import LibrarySizeKind


class SCLDM(
    MultimodalMixin,
    QueryMixin,
    LatentTrainingMixin,
    ReconstructionMixin,
    LatentCounterfactualMixin,
    StreamingMixin,
):
    """Latent diffusion model of single cells.

    A permutation-invariant autoencoder turns the set of a cell's expressed genes into a few latent tokens and back into the
    parameters of a count distribution. A diffusion transformer learns the distribution of the latents under any number of
    conditions by flow matching. New cells are noise, carried to a latent by the transformer and decoded.

    Parameters
    ----------
    adata
        Cells registered with :meth:`setup_anndata`; or with :meth:`setup_mudata`, for RNA together with further modalities.
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

    @suggests_arguments(OTHER_NAMES)
    @with_shared_texts
    def generate(
        self,
        n_cells: int | None = None,
        condition: ConditionRequest = None,
        *,
        guidance_scale: GuidanceScale = 1.0,
        composition: Composition | None = None,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float = 0.0,
        sampler: str | Sampler | None = None,
        n_steps: int | None = None,
        library_size: LibrarySizeKind | float | Sequence[float] | None = None,
        batch_size: int | None = None,
        seed: int | None = None,
        show_progress: bool = False,
    ) -> AnnData:
        """Generate cells.

        Parameters
        ----------
        %(request)s
        sampler
            ``"euler"``, ``"midpoint"``, ``"heun"`` or ``"dopri5"``, or a sampler of :mod:`scgen_diffusion.diffusion`.
        n_steps
            Steps of the sampler (not of ``"dopri5"``, which is adaptive).
        library_size
            Total counts of the cells: ``"empirical"``, ``"normal"`` or ``"latent"`` distribution (default: as the model was
            constructed), one number, or one number per cell. For several modalities a mapping from modality to numbers,
            ``{"prot": 3_000}``; those of the others are drawn.
        %(work)s

        Returns
        -------
        AnnData
            Counts (CSR) in ``X``, conditions in ``obs``, ``var`` as in training, and how the cells were made in
            ``uns["scgen_diffusion"]``. ``obs["synthetic"]`` names the model, as do the cells' names, which no other request shares. With a Gaussian head, log-normalised values in place of counts. From a model of MuData,
            MuData: each cell has all modalities.

        Raises
        ------
        %(refused)s
        """
        return self._generate(
            n_cells,
            condition,
            guidance=GuidanceOptions(guidance_scale, composition, guidance_interval, guidance_rescale),
            sampler=sampler,
            n_steps=n_steps,
            library_size=library_size,
            batch_size=batch_size,
            seed=seed,
            show_progress=show_progress,
            output=self._default_output,
        )

    @suggests_arguments(OTHER_NAMES)
    @with_shared_texts
    def generate_to(
        self,
        path: str | os.PathLike[str],
        n_cells: int | None = None,
        condition: ConditionRequest = None,
        *,
        guidance_scale: GuidanceScale = 1.0,
        composition: Composition | None = None,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float = 0.0,
        sampler: str | Sampler | None = None,
        n_steps: int | None = None,
        library_size: LibrarySizeKind | float | Sequence[float] | None = None,
        batch_size: int | None = None,
        seed: int | None = None,
        show_progress: bool = False,
        shard_size: int | None = None,
        rank: int = 0,
        n_ranks: int = 1,
        overwrite: bool = False,
    ) -> Path:
        """Generate cells to a file: any number of them in the same memory, and by as many processes as there are.

        %(to_file)s
        n_cells, condition, guidance_scale, composition, guidance_interval, guidance_rescale, sampler, n_steps, library_size, batch_size, seed
        %(to_file_rest)s
        """
        return self._generate_to(
            path,
            n_cells,
            condition,
            guidance=GuidanceOptions(guidance_scale, composition, guidance_interval, guidance_rescale),
            sampler=sampler,
            n_steps=n_steps,
            library_size=library_size,
            batch_size=batch_size,
            seed=seed,
            show_progress=show_progress,
            output=self._default_output,
            shard_size=shard_size,
            rank=rank,
            n_ranks=n_ranks,
            overwrite=overwrite,
        )

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

    @property
    def _default_output(self) -> InputValues:
        return "counts" if self._generates_counts else "log1p"

    @property
    def _generates_counts(self) -> bool:
        return self.architecture.likelihood != "gaussian"

    def _check_ready_to_generate(self) -> None:
        if not self.is_trained_:
            missing = "train_prior()" if "autoencoder" in self.trained_stages_ else "train()"
            msg = f"The model cannot generate yet; call {missing} first."
            raise RuntimeError(msg)
