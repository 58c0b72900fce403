"""What the gene-space models have in common: diffusion of log-normalised profiles."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch

from scgen_diffusion.data import suggests_arguments
from scgen_diffusion.diffusion import DDIMSampler
from scgen_diffusion.generation import OTHER_NAMES, GuidanceOptions, numbers_of_groups
from scgen_diffusion.module import (
    GeneSpaceArchitecture,
    GeneSpaceModule,
    InputValues,
    build_gene_space_architecture,
)

from ._advice import ADVICE_IN_GENE_SPACE
from ._counterfactual import CounterfactualMixin
from ._diagnostics import check_not_diverged, warn_of_early_plateau, warn_of_missing_zeros
from ._docs import with_shared_texts
from ._gene_space_reference import load_gene_space_reference
from ._query import QueryMixin
from ._streaming import StreamingMixin
from ._training import GeneSpaceTrainingMixin

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData

    from scgen_diffusion.data import ConditionRequest, ValueSummary
    from scgen_diffusion.diffusion import Sampler
    from scgen_diffusion.generation import Composition, GuidanceScale
    from scgen_diffusion.module import LibrarySizeKind

DEFAULT_WAY = DDIMSampler(eta=1.0, default_n_steps=50)  # of given cells to others


class GeneSpaceModel(
    QueryMixin,
    GeneSpaceTrainingMixin,
    CounterfactualMixin,
    StreamingMixin,
):
    """A diffusion model of profiles; its subclasses differ in the network."""

    _module_cls = GeneSpaceModule
    _advice = ADVICE_IN_GENE_SPACE
    _family: ClassVar[str]
    architecture: GeneSpaceArchitecture

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict[str, Any] | None = None,
        *,
        size: Literal["default", "published"] = "default",
        **architecture: Any,
    ) -> None:
        super().__init__(adata, registry)
        self.architecture = build_gene_space_architecture(
            self._family,
            size,
            n_genes=self.summary_stats.n_vars,
            n_cells=self.summary_stats.n_cells,
            on_gpu=torch.cuda.is_available(),
            **architecture,
        )
        self._check_fits_genes()
        self.module = self._module_cls(
            self.summary_stats.n_vars,
            self._condition_specs,
            input_values=self._input_values,
            architecture=self.architecture,
            key_groups=numbers_of_groups(
                self.architecture.dropped_together, [key.name for key in self._condition_keys]
            ),
        )
        self._describe_cells(adata)
        self.default_sampler = default_sampler(self.architecture)
        self.trained_stages_ = []
        self.library_head_is_trained_ = False
        architecture = asdict(self.architecture)  # what is saved does not depend on the defaults of a later version
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
        counts: bool = False,
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
            ``"dpm_solver_3m"``, ``"dpm_solver"``, ``"heun"``, ``"ddim"`` or ``"ddpm"``; for flow matching ``"midpoint"``, ``"heun"``, ``"euler"``
            or ``"dopri5"``; or a sampler of :mod:`scgen_diffusion.diffusion`, such as ``DDIMSampler(eta=1.0)``.
        n_steps
            Steps of the sampler.
        counts
            Whether to turn the profiles into whole counts.
        library_size
            Total counts of the cells, if ``counts`` are asked for: ``"empirical"``, ``"normal"`` or ``"latent"`` distribution
            (default: as the model was constructed), one number, or one number per cell.
        %(work)s

        Returns
        -------
        AnnData
            Log-normalised values in ``X`` (CSR where zeros are exact; ``uns["log1p"]`` is set), or counts; conditions in
            ``obs``, ``var`` as in training, and how the cells were made in ``uns["scgen_diffusion"]``.
            ``obs["synthetic"]`` names the model, as do the cells' names, which no other request shares.

        Raises
        ------
        %(refused)s
        FloatingPointError
            If sampling diverges to values that are no numbers.
        """
        return self._generate(
            n_cells,
            condition,
            guidance=GuidanceOptions(guidance_scale, composition, guidance_interval, guidance_rescale),
            sampler=sampler,
            n_steps=n_steps,
            library_size=self._library_size_for(library_size, counts=counts),
            batch_size=batch_size,
            seed=seed,
            show_progress=show_progress,
            output="counts" if counts else "log1p",
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
        counts: bool = False,
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
        n_cells, condition, guidance_scale, composition, guidance_interval, guidance_rescale, sampler, n_steps, counts, library_size, batch_size, seed
        %(to_file_rest)s
        """
        return self._generate_to(
            path,
            n_cells,
            condition,
            guidance=GuidanceOptions(guidance_scale, composition, guidance_interval, guidance_rescale),
            sampler=sampler,
            n_steps=n_steps,
            library_size=self._library_size_for(library_size, counts=counts),
            batch_size=batch_size,
            seed=seed,
            show_progress=show_progress,
            output="counts" if counts else "log1p",
            shard_size=shard_size,
            rank=rank,
            n_ranks=n_ranks,
            overwrite=overwrite,
        )

    @suggests_arguments(OTHER_NAMES)
    @with_shared_texts
    def predict_perturbation(
        self,
        adata_control: AnnData | None = None,
        condition: ConditionRequest = None,
        *,
        indices: Sequence[int] | None = None,
        given_keys: Sequence[str] | None = None,
        strength: float = 1.0,
        guidance_scale: GuidanceScale = 1.0,
        composition: Composition | None = None,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float = 0.0,
        sampler: str | Sampler | None = None,
        n_steps: int | None = None,
        counts: bool = False,
        library_size: LibrarySizeKind | float | Sequence[float] | None = None,
        batch_size: int | None = None,
        seed: int | None = None,
        show_progress: bool = False,
    ) -> AnnData:
        """Predict what given cells would have been under another condition.

        Noise is drawn that leads to the cell in ancestral sampling under the cell's own condition, step by step, and sampling is
        done anew under the new condition with the same noise, so that what the condition does not say of the cell is kept. Under
        its own condition a cell comes back as it is. The probability flow itself has no way back from exact zeros, which all
        noises of a wide range lead to. See the user guide, "Counterfactuals".

        Parameters
        ----------
        %(control)s
        %(control_kept)s
        strength
            How far back to go, from just above 0 (cells hardly change) to 1 (all the way to noise).
        guidance_scale, composition, guidance_interval, guidance_rescale
            Guidance on the way to the new condition, as in :meth:`generate`. The way that leads to the cell has none.
        sampler
            ``"ddpm"`` (default) draws fresh noise at every step, ``"ddim"`` one noise for all; ``DDIMSampler(eta=...)`` is
            between. For flow matching also ``"euler"``, ``"midpoint"`` and ``"heun"``, which follow the probability flow.
        n_steps
            Steps of the sampler; default: 50.
        counts
            Whether to turn the profiles into whole counts.
        library_size
            Total counts of the predicted cells, if ``counts`` are asked for, as in :meth:`generate`; default: every cell keeps
            its own.
        %(control_work)s

        Returns
        -------
        AnnData
            %(counterpart)s Values in ``X`` as :meth:`generate` gives them. How they were made is in
            ``uns["scgen_diffusion"]``.

        Raises
        ------
        %(control_refused)s
        """
        return self._predict_perturbation(
            adata_control,
            condition,
            indices=indices,
            given_keys=given_keys,
            strength=strength,
            guidance=GuidanceOptions(guidance_scale, composition, guidance_interval, guidance_rescale),
            sampler=DEFAULT_WAY if sampler is None else sampler,
            n_steps=n_steps,
            library_size=self._library_size_for(library_size, counts=counts),
            sample=True,
            batch_size=batch_size,
            seed=seed,
            show_progress=show_progress,
            output="counts" if counts else "log1p",
        )

    @classmethod
    def from_reference_checkpoint(
        cls,
        path: str | os.PathLike[str],
        *,
        var_names: Sequence[str],
        n_heads: int = 8,
        zero_value: float | None = None,
    ) -> Self:
        """Build a model from weights of the published code, which know no conditions. Nothing in the file is executed.

        Parameters
        ----------
        path
            A state dict that torch saved (``.pt``), or ``.safetensors``.
        var_names
            Genes in the order of the weights.
        n_heads
            Attention heads of a transformer, which weights do not tell.
        zero_value
            The value of zeros in the data that the weights were trained on (published for scRDiT: -10).

        Raises
        ------
        ValueError
            If the file is damaged or would execute code, or weights and genes or model do not fit.
        """
        return load_gene_space_reference(cls, path, var_names=var_names, n_heads=n_heads, zero_value=zero_value)

    def _check_fits_genes(self) -> None:
        """Raise if patches or a list of genes do not fit the registered genes."""
        a, genes = self.architecture, self._registered_genes
        if a.backbone != "unet" and a.patch_size > len(genes):
            msg = f"`patch_size` is {a.patch_size}, but there are only {len(genes)} genes."
            raise ValueError(msg)
        if isinstance(a.gene_order, tuple) and sorted(a.gene_order) != sorted(genes):
            missing, unknown = genes.difference(list(a.gene_order)), set(a.gene_order) - set(genes)
            msg = (
                f"`gene_order` must list every gene once, but {len(missing)} of {len(genes)} genes are missing, "
                f"{len(unknown)} names are unknown, and {len(a.gene_order) - len(set(a.gene_order))} are repeated."
            )
            raise ValueError(msg)

    def _check_ready_to_generate(self) -> None:
        if not self.is_trained_:
            msg = "The model cannot generate yet; call train() first."
            raise RuntimeError(msg)

    def _check_can_read_cells(self) -> None:
        self._check_ready_to_generate()

    def _library_size_for(self, library_size: Any, *, counts: bool) -> Any:
        if counts and library_size is None and self._input_values == "log1p":
            msg = (
                "The model was trained on log-normalised values, which do not tell library sizes; give `library_size` as one "
                "number or one per cell to get counts."
            )
            raise ValueError(msg)
        if not counts and library_size is not None:
            msg = "`library_size` was given, but log-normalised values have none; set `counts=True`, or leave it out."
            raise ValueError(msg)
        return library_size

    def _check_result(self, values: ValueSummary, output: InputValues) -> None:
        module, a = self.module, self.architecture
        check_not_diverged(values, module.largest_value.item() if output == "log1p" else float("inf"))
        if a.clamp and output == "log1p":
            needs_negation = a.head == "regression" and a.zero_value is None
            warn_of_missing_zeros(values, module.training_zeros.item(), needs_negation=needs_negation)

    def _warn_if_nothing_was_learned(self) -> None:
        warn_of_early_plateau(self.history_ or {}, self.architecture.head)


def default_sampler(architecture: GeneSpaceArchitecture) -> str:
    """Name the sampler that needs the fewest evaluations; a prediction of noise, which errs far from data, needs shorter steps."""
    if architecture.path == "flow_matching":
        return "midpoint"
    return "dpm_solver_3m" if architecture.head == "spike_and_slab" else "dpm_solver"
