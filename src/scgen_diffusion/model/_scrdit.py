"""SCRDIT and WBDIT: diffusion in gene space, of molecules or of log-normalised profiles."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn

import torch

from scgen_diffusion.diffusion import DDIMSampler
from scgen_diffusion.module import GeneSpaceArchitecture, build_gene_space_architecture, gene_space_module
from scgen_diffusion.train import (
    DIFFUSION_RECIPES,
    DiffusionPlan,
    describe_predicted_profile_totals,
    describe_totals,
    start_gene_space,
    widen_limits,
)

from ._base import DiffusionModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

    from scgen_diffusion.diffusion import Sampler
    from scgen_diffusion.nn import InputValues
    from scgen_diffusion.train import DiffusionRecipe, Recipe, StagePlan

    from ._training import StageRun


class GeneSpaceModel(DiffusionModel):
    """Base class of diffusion models in gene space; subclasses differ in the network."""

    _family: ClassVar[str]
    _stages = ("diffusion",)
    _stages_to_generate = frozenset(_stages)
    _recipes: ClassVar[Mapping[str, DiffusionRecipe]]
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
            values=self._input_values,
            n_genes=self.summary_stats.n_vars,
            n_cells=self.summary_stats.n_cells,
            on_gpu=torch.cuda.is_available(),
            **architecture,
        )
        if self.architecture.path == "masking" and self._input_values != "counts":
            msg = "`path='masking'` needs counts, but the registered values are log-normalised; register counts."
            raise ValueError(msg)
        self.module = gene_space_module(self.architecture)(
            self.summary_stats.n_vars,
            self._condition_specs,
            input_values=self._input_values,
            architecture=self.architecture,
        )
        self._describe_cells(adata)
        self.default_sampler = default_sampler(self.architecture)
        architecture = asdict(self.architecture)  # save all values, so that later versions may change defaults
        self.init_params_ = self._get_init_params(locals())

    def get_normalized_expression(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise NotImplementedError: the model does not encode cells."""
        msg = f"{type(self).__name__} has no `get_normalized_expression`; SCLDM has. Use `generate` for new cells."
        raise NotImplementedError(msg)

    def _train_diffusion(self, run: StageRun) -> StagePlan:
        module, cells, has_counts = self.module, self._cells, self._input_values == "counts"
        if not self.is_trained_:
            start_gene_space(module, cells, self.train_indices_)
        elif self.architecture.path != "masking":
            keeps_cells = self.reference_ is not None and self.reference_["trainable"] not in ("network", "all")
            widen_limits(module, cells, self.train_indices_, cut=not keeps_cells)
        if has_counts:
            describe_totals(module, cells, self._seen_indices)
        start = [tensor.cpu().numpy() for tensor in (module.shift, module.scale, module.training_zeros)]
        plan = self._fit(run, DiffusionPlan(module, run.recipe, seed=run.seed), self._cell_data(run.recipe), *start)
        self._record_trained("diffusion")
        if module.predicts_totals:
            describe_predicted_profile_totals(module, cells, self._seen_indices)
            self.library_head_is_trained_ = True
        return plan

    def _recipe(self, stage: str) -> Recipe:
        if self.architecture.path != "masking":
            return self._recipes["published" if self._recipe_name == "published" else "profiles"]
        recipe = self._recipes["mlp" if self.architecture.backbone == "mlp" else "transformer"]
        return recipe if self.reference_ is not None else recipe.for_many_cells(len(self.train_indices_))

    @property
    def _outputs(self) -> tuple[InputValues, ...]:
        return ("log1p", "counts")

    def _counterfactual_sampler(self, sampler: str | Sampler | None) -> str | Sampler:
        if self.architecture.path == "masking":
            return super()._counterfactual_sampler(sampler)
        if sampler not in (None, "ddpm", "ddim"):
            return sampler
        return DDIMSampler(eta=0.0 if sampler == "ddim" else 1.0, default_n_steps=50)


class SCRDIT(GeneSpaceModel):
    """Gene-space diffusion model of single cells.

    From counts, a network learns to tell the genes of masked molecules from those that it sees, under any number of
    conditions. New cells start with all molecules masked, and are unmasked step by step. From log-normalised values, or
    with ``path="vp_linear"``, a transformer over patches of genes learns to remove noise from profiles, as published.

    Parameters
    ----------
    adata
        Cells registered with :meth:`setup_anndata`.
    registry
        Registry of such cells, to build the model without them.
    size
        ``"default"``: the recommended architecture, see the user guide. ``"published"``: network and path of the paper.
    **architecture
        Options that change single parts and sizes, see :class:`~scgen_diffusion.module.GeneSpaceArchitecture`.

    Raises
    ------
    TypeError
        For an unknown option.
    ValueError
        For a value that is not allowed.

    References
    ----------
    scRDiT: arXiv 2404.06153. The user guide lists the differences.

    Examples
    --------
    >>> import scgen_diffusion as scgd
    >>> adata = scgd.datasets.pbmc68k_reduced()
    >>> scgd.model.SCRDIT.setup_anndata(adata, layer="counts", condition_keys=["cell_type"])
    >>> model = scgd.model.SCRDIT(adata)
    >>> model.train()  # doctest: +SKIP
    >>> synthetic = model.generate(
    ...     1_000, condition={"cell_type": "CD19+ B"}
    ... )  # doctest: +SKIP
    """

    _family = "SCRDIT"
    _recipes = DIFFUSION_RECIPES["SCRDIT"]


class WBDIT(GeneSpaceModel):
    """White-box diffusion model of single cells in gene space.

    :class:`SCRDIT` with a transformer of CRATE blocks. One half of each block compresses the representation of the
    tokens, the other makes it sparse. :mod:`scgen_diffusion.interpret` measures whether they do, and
    :mod:`scgen_diffusion.pl` plots the results.

    Parameters
    ----------
    adata
        Cells registered with :meth:`setup_anndata`.
    registry
        Registry of such cells, to build the model without them.
    size
        ``"default"``: the recommended architecture, see the user guide. ``"published"``: network and path of the paper.
    **architecture
        Options that change single parts and sizes, see :class:`~scgen_diffusion.module.GeneSpaceArchitecture`.

    Raises
    ------
    TypeError
        For an unknown option.
    ValueError
        For a value that is not allowed.

    References
    ----------
    White-Box Diffusion Transformer: arXiv 2411.06785. CRATE: arXiv 2306.01129.

    Examples
    --------
    >>> import scgen_diffusion as scgd
    >>> adata = scgd.datasets.pbmc68k_reduced()
    >>> scgd.model.WBDIT.setup_anndata(adata, layer="counts", condition_keys=["cell_type"])
    >>> model = scgd.model.WBDIT(adata)
    >>> model.train()  # doctest: +SKIP
    >>> synthetic = model.generate(
    ...     1_000, condition={"cell_type": "CD19+ B"}
    ... )  # doctest: +SKIP
    """

    _family = "WBDIT"
    _recipes = DIFFUSION_RECIPES["WBDIT"]


def default_sampler(architecture: GeneSpaceArchitecture) -> str:
    """Name the sampler that needs the fewest evaluations; noise predictions need shorter steps."""
    if architecture.path == "masking":
        return "unmasking"
    return "dpm_solver_3m" if architecture.head == "spike_and_slab" else "dpm_solver"
