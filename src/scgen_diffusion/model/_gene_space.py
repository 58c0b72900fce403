"""What models over all genes share: one stage, and a network without latents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scgen_diffusion.train import DiffusionPlan, describe_totals, start_gene_space

from ._base import DiffusionModel

if TYPE_CHECKING:
    from scgen_diffusion.module import GeneSpaceArchitecture, GeneSpaceModule
    from scgen_diffusion.train import StagePlan

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
