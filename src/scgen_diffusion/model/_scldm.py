"""SCLDM: the latent diffusion model of single cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from scgen_diffusion.data import suggests_arguments
from scgen_diffusion.generation import OTHER_NAMES, GuidanceOptions
from scgen_diffusion.module import InputValues, SCLDMModule, build_architecture

from ._latent_counterfactual import LatentCounterfactualMixin
from ._multimodal import MultimodalMixin
from ._query import QueryMixin
from ._reconstruction import ReconstructionMixin
from ._reference import load_reference
from ._sampling_path import SamplingPathMixin
from ._streaming import StreamingMixin
from ._transport_training import TransportTrainingMixin

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
    TransportTrainingMixin,
    ReconstructionMixin,
    LatentCounterfactualMixin,
    SamplingPathMixin,
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
        n_cells
            Number of cells; may be left out when ``condition`` gives one row or value per cell.
        condition
            What the cells shall be.

            - None: conditions are drawn from their joint distribution in the training cells.
            - A mapping from key to a value for all cells, or to a list: one value per cell, or fewer, of which each is then
              given to an equal share of consecutive cells. Keys left out are drawn given the others.
            - A table with one row per cell and keys as columns.

            A combination that never occurred in training can be asked for when every key is given.
        guidance_scale
            1: conditional; 0: unconditional; larger: more typical of the condition and less diverse. One number; a mapping
            from key to number (1 for keys that are left out); or a mapping from tuples of keys to numbers, which adds up
            what each of these subsets changes in the unconditional prediction. See the user guide, "Guidance".
        composition
            How scales of several keys work together: ``"joint"``, ``"mutually_exclusive"`` or ``"additive"`` (each key's
            influence given all others). Default: as the model was trained; others need what training showed it.
        guidance_interval
            Times, from 0 (noise) to 1 (data), between which the scale holds; it is 1 outside. Default: everywhere.
        guidance_rescale
            From 0 to 1: how far the spread of guided predictions, which a large scale blows up, is brought back to that of
            conditional ones.
        sampler
            ``"euler"``, ``"midpoint"``, ``"heun"`` or ``"dopri5"``, or a sampler of :mod:`scgen_diffusion.diffusion`.
        n_steps
            Steps of the sampler (not of ``"dopri5"``, which is adaptive).
        library_size
            Total counts of the cells: ``"empirical"``, ``"normal"`` or ``"latent"`` distribution (default: as the model was
            constructed), one number, or one number per cell. For several modalities a mapping from modality to numbers,
            ``{"prot": 3_000}``; those of the others are drawn.
        batch_size
            Cells in the works at most, rounded up to whole blocks (of 128 on a CPU), in which cells are made, several blocks at a
            time. Does not change the cells.
        seed
            Same seed, same cells; default ``scvi.settings.seed``, or else a random one. It is kept in ``uns``. Requests of one
            seed start from the same noise cell by cell, so that cell by cell they differ by their conditions alone.
        show_progress
            Whether to show a progress bar.

        Returns
        -------
        AnnData
            Counts (CSR) in ``X``, conditions in ``obs``, ``var`` as in training, and how the cells were made in
            ``uns["scgen_diffusion"]``. ``obs["synthetic"]`` names the model, as do the cells' names, which no other request shares. With a Gaussian head, log-normalised values in place of counts. From a model of MuData,
            MuData: each cell has all modalities.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            For unknown keys, values, samplers and sizes, and lengths that do not fit.
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

        A call that was killed goes on where it stopped when it is made again with the same arguments; a finished one returns
        at once. The cells are those of :meth:`generate`, whatever the shards and the ranks are.

        Parameters
        ----------
        path
            Where to: ``.zarr`` (sharded, of zarr's version 3) or ``.h5ad``. Until all is done, what is finished lies in a hidden
            folder beside it, which needs about as much space as the file.
        n_cells, condition, guidance_scale, composition, guidance_interval, guidance_rescale, sampler, n_steps, library_size, batch_size, seed
            See :meth:`generate`. Without any seed, the one that was drawn at first is gone on with.
        shard_size
            Cells that are finished at once, and of which zarr's shards are made; rounded up to whole blocks. More need more
            memory, and more is lost when the process is killed. Default: 32 million values, zeros included.
        rank, n_ranks
            Number of this process, from 0, and how many there are: each makes every ``n_ranks``-th shard, and the last one to
            finish puts them together. They need a common file system, and nothing else of each other. ``n_ranks`` may be
            another one when the call is made again.
        overwrite
            Whether a file of other generated cells may be replaced, which happens at the very end; and, by a single process,
            whether unfinished work on other cells may be removed. Anything else at the path is never replaced.
        show_progress
            Whether to show a progress bar; cells of an earlier call are counted.

        Returns
        -------
        pathlib.Path
            The path. As long as other ranks are still at work there is no file.

        Raises
        ------
        FileExistsError
            If there is a file of other cells.
        ValueError
            If unfinished cells of another request are there, and for what :meth:`generate` refuses.
        OSError
            If the folder does not exist or cannot be written to, or no space is left.
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
