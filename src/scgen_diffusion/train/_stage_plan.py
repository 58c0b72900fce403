"""What the Lightning training plans of all stages share."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from scgen_diffusion.module import AverageUpdate

from ._schedules import learning_rate_factor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scvi.module.base import BaseModuleClass
    from torch.utils.hooks import RemovableHandle

    from scgen_diffusion.module import GeneSpaceModule, SCLDMModule

    from ._recipes import Recipe
    from ._trained_rows import TrainedRows

VALIDATION_SEED = 0
FUSED_ON = ("cpu", "cuda")
TRANSPORT = "module.transport."  # in the names of a checkpoint


class StagePlan(pl.LightningModule):
    """What the stages share: AdamW, a schedule over all steps, a generator of their own that checkpoints keep.

    Parameters
    ----------
    module
        The model's module; a stage trains a part of it.
    recipe
        Optimiser, schedule and length.
    seed
        Seed of the stage's random numbers. Each process of a distributed run adds its rank.
    fingerprint
        What a checkpoint must have been made with to be resumed from.

    Attributes
    ----------
    only
        What is trained of this stage's parameters; None for all.
    """

    name: str

    def __init__(self, module: BaseModuleClass, recipe: Recipe, *, seed: int, fingerprint: str = "") -> None:
        super().__init__()
        self.fingerprint = fingerprint
        self.is_finished = False
        self.only: TrainedRows | None = None
        self._frozen: list[nn.Parameter] = []
        self._masks: list[RemovableHandle] = []
        self.module = module
        self.recipe = recipe
        self.seed = seed
        self._generator: torch.Generator | None = None
        self._generator_state: Tensor | None = None
        self._shuffling_state: Tensor | None = None

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """List the parameters that this stage trains."""

    @property
    def trained_groups(self) -> list[dict[str, Any]]:
        """Those of them that are trained."""
        groups = self.parameter_groups()
        return groups if self.only is None else self.only.of(groups)

    @abstractmethod
    def compute_losses(self, batch: Any, generator: torch.Generator, *, training: bool) -> dict[str, Tensor]:
        """Return the batch's losses; ``"loss"`` is the one to minimise."""

    def setup(self, stage: str) -> None:
        """Freeze what this stage does not train; distributed training allows no unused parameters."""
        trained = {id(p) for group in self.trained_groups for p in group["params"]}
        self._frozen = [p for p in self.module.parameters() if p.requires_grad and id(p) not in trained]
        for parameter in self._frozen:
            parameter.requires_grad_(requires_grad=False)
        self._masks = [] if self.only is None else self.only.mask_gradients()

    def owns(self, name: str) -> bool:
        """Tell whether a tensor of a checkpoint is this stage's to restore; a transport belongs to its own stage."""
        return not name.startswith(TRANSPORT)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Restore what is this stage's, and leave the rest of the module as it is."""
        own = {name: tensor for name, tensor in state_dict.items() if self.owns(name)}
        others = {name: tensor for name, tensor in self.state_dict().items() if not self.owns(name)}
        return super().load_state_dict({**others, **own}, *args, **kwargs)

    def teardown(self, stage: str) -> None:
        """Release what was frozen."""
        for parameter in self._frozen:
            parameter.requires_grad_(requires_grad=True)
        for mask in self._masks:
            mask.remove()

    def configure_optimizers(self) -> dict[str, Any]:
        """Build AdamW and its schedule."""
        recipe = self.recipe
        optimizer = torch.optim.AdamW(
            self.trained_groups,
            lr=recipe.learning_rate,
            betas=recipe.betas,
            weight_decay=recipe.weight_decay,
            fused=self.device.type in FUSED_ON and self.trainer.precision != "16-mixed",  # whose scaler must come between
        )
        factor = learning_rate_factor(recipe.schedule, n_steps=self.n_steps, warm_up=recipe.warm_up)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm of all gradients together, in few kernels; Lightning itself refuses to where the optimiser is fused."""
        if gradient_clip_algorithm not in (None, "norm"):
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(trained, gradient_clip_val, foreach=self.device.type in FUSED_ON)

    @property
    def n_steps(self) -> int:
        """Number of optimiser steps of the whole stage."""
        return int(self.trainer.estimated_stepping_batches)

    @property
    def progress(self) -> float:
        """Share of the stage that is done."""
        return self.global_step / max(self.n_steps, 1)

    @property
    def generator(self) -> torch.Generator:
        """Source of the stage's training randomness."""
        if self._generator is None:
            self._generator = torch.Generator(self.device).manual_seed(self.seed + self.global_rank)
            if self._generator_state is not None:
                self._generator.set_state(self._generator_state)
        return self._generator

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Compute, log and return the loss."""
        losses = self.compute_losses(batch, self.generator, training=True)
        self._log(losses, batch, "train")
        return losses["loss"]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the losses, with the same random numbers at every validation."""
        generator = torch.Generator(self.device).manual_seed(VALIDATION_SEED + batch_idx)
        self._log(self.compute_losses(batch, generator, training=False), batch, "validation")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the state of the random numbers: the stage's own, and torch's, by which loaders shuffle."""
        checkpoint["fingerprint"] = self.fingerprint
        checkpoint["is_finished"], checkpoint["max_epochs"] = self.is_finished, self.trainer.max_epochs
        checkpoint["generator_device"] = self.device.type
        checkpoint["generator_state"] = self.generator.get_state()
        checkpoint["shuffling_state"] = torch.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the random numbers where the checkpoint left off.

        Raises
        ------
        ValueError
            If it belongs to another model or other cells.
        """
        if checkpoint.get("fingerprint") != self.fingerprint:
            msg = (
                f"The checkpoint of the {self.name} is of another model, of other cells or settings, or older than what it was trained on; "
                "remove it or use another `checkpoint_dir`."
            )
            raise ValueError(msg)
        if checkpoint["generator_device"] == self.device.type and self.global_rank == 0:
            self._generator_state = checkpoint["generator_state"].cpu()
        self._shuffling_state = checkpoint["shuffling_state"].cpu()

    def on_train_start(self) -> None:
        """Shuffle on where the checkpoint left off."""
        if self._shuffling_state is not None:
            torch.set_rng_state(self._shuffling_state)

    def on_train_epoch_end(self) -> None:
        """Stop at once when the loss is no number any more.

        Raises
        ------
        FloatingPointError
            If the epoch's loss is NaN or infinite.
        """
        loss = self.trainer.callback_metrics.get(f"{self.name}_loss_train")
        if loss is not None and not torch.isfinite(loss):
            msg = f"The {self.name}'s loss is {float(loss)}; try a lower learning rate, or look for extreme cells."
            raise FloatingPointError(msg)

    def _log(self, losses: Mapping[str, Tensor], batch: Any, subset: str) -> None:
        n_cells = len(next(iter(batch.values())))
        for name, value in losses.items():
            self.log(
                f"{self.name}_{name}_{subset}",
                value.detach(),
                on_step=False,
                on_epoch=True,
                batch_size=n_cells,
                prog_bar=name == "loss",
                sync_dist=self.trainer.world_size > 1,
            )


class AveragingPlan(StagePlan):
    """A stage that keeps averaged weights of its network."""

    module: SCLDMModule | GeneSpaceModule
    _update_average: AverageUpdate | None = None

    def on_train_start(self) -> None:
        """Shuffle on, and average on, where the checkpoint left off."""
        super().on_train_start()
        self._update_average = None

    def on_train_batch_end(self, *_: Any) -> None:
        """Update the averaged weights."""
        if self._update_average is None:
            network, averaged = self.module.network_and_average
            self._update_average = AverageUpdate(averaged, network)
        self._update_average()
