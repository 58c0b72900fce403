"""What models over all genes share: one stage, and a network without latents."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from scgen_diffusion.diffusion import DDIMSampler
from scgen_diffusion.module import GeneSpaceModule, ProfileModule
from scgen_diffusion.train import (
    DIFFUSION_RECIPES,
    DiffusionPlan,
    describe_totals,
    include_cells,
    start_gene_space,
)

from ._base import DiffusionModel

if TYPE_CHECKING:
    from scgen_diffusion.diffusion import Sampler
    from scgen_diffusion.module import GeneSpaceArchitecture, ProfileArchitecture
    from scgen_diffusion.nn import InputValues
    from scgen_diffusion.train import Recipe, StagePlan

    from ._training import StageRun


class GeneSpaceModel(DiffusionModel):
    """Base class of diffusion models over all genes."""

    _stages = ("diffusion",)
    _stages_to_generate = frozenset(_stages)
    module: GeneSpaceModule
    architecture: GeneSpaceArchitecture

    def _train_diffusion(self, run: StageRun) -> StagePlan:
        module, cells = self.module, self._cells
        self._start_training()
        if self._input_values == "counts":
            describe_totals(module, cells, self._seen_indices)
        start = [buffer.cpu().numpy() for buffer in module.buffers(recurse=False)]
        plan = self._fit(run, DiffusionPlan, self._cell_data(), *start)
        self._record_trained("diffusion")
        return plan

    def _start_training(self) -> None:
        """Initialise the module from the training cells, unless it was trained."""
        if not self.is_trained_:
            start_gene_space(self.module, self._cells, self.train_indices_)


class ProfileModel(GeneSpaceModel):
    """Base class of diffusion models of log-normalised profiles; subclasses differ in the network."""

    _backbones: ClassVar[tuple[str, ...]]
    module: ProfileModule
    architecture: ProfileArchitecture

    def _build_module(self) -> ProfileModule:
        if self.architecture.backbone not in self._backbones:
            msg = f"`backbone` must be one of {list(self._backbones)}, but found {self.architecture.backbone!r}."
            raise ValueError(msg)
        # noise predictions need shorter steps
        self.default_sampler = "dpm_solver_3m" if self.architecture.head == "spike_and_slab" else "dpm_solver"
        n_genes, encodings, values = self.summary_stats.n_vars, self._condition_encodings, self._input_values
        return ProfileModule(n_genes, encodings, input_values=values, architecture=self.architecture)

    def _start_training(self) -> None:
        super()._start_training()
        keeps_cells = self.reference_ is not None and self.reference_["trainable"] not in ("network", "all")
        if self.is_trained_ and not keeps_cells:
            include_cells(self.module, self._cells, self.train_indices_)

    def _recipe(self, stage: str) -> Recipe:
        return DIFFUSION_RECIPES[type(self).__name__][self._recipe_name]

    @property
    def _outputs(self) -> tuple[InputValues, ...]:
        return ("log1p", "counts")

    def _prediction_sampler(self, sampler: str | Sampler | None) -> str | Sampler:
        if sampler not in (None, "ddpm", "ddim"):
            return sampler
        return DDIMSampler(eta=0.0 if sampler == "ddim" else 1.0, default_n_steps=50)
