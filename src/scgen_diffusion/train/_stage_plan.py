"""What the Lightning training plans of all stages share."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from scgen_diffusion._compat import is_attached
from scgen_diffusion.diffusion import SharedGenerator, sample_seed
from scgen_diffusion.module import AverageUpdate

from ._distributed import from_first_process
from ._epoch_means import EpochMeans
from ._resumption import ResumedState, check_same_options
from ._schedules import learning_rate_factor
from ._sharing import Share
from ._stage_data import StageDataModule

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
        Seed of the stage's random numbers and of the order of cells. All processes of a distributed run take the first one's.
    fingerprint
        What a checkpoint must have been made with to be resumed from.

    Attributes
    ----------
    only
        What is trained of this stage's parameters; None for all.
    position
        Epoch, and how many of its batches are done.
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
        self.position = (0, 0)
        self.means = {"train": EpochMeans(), "validation": EpochMeans()}
        self._generator: SharedGenerator | None = None
        self._resumed: ResumedState | None = None

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
        """Freeze what this stage does not train, since distributed training allows no unused parameters; agree on the seed."""
        self.seed = from_first_process(self.seed)
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
            fused=self.device.type in FUSED_ON
            and self.trainer.precision != "16-mixed",  # whose scaler must come between
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
    def generator(self) -> SharedGenerator:
        """Source of the stage's training randomness, in the same state in all processes."""
        if self._generator is None:
            self._generator = SharedGenerator(self.device).manual_seed(self.seed)
            if self._resumed is not None:
                self._resumed.continue_with(self._generator)
        return self._generator

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss, weighted so that the mean over processes is that over their cells, and add it to the epoch's."""
        share = self._share(batch, batch_idx, training=True)
        losses = self.compute_losses(batch, self._drawing(self.generator, share), training=True)
        self.means["train"].add(losses, share.n_counted)
        return losses["loss"] if share.is_whole else losses["loss"] * share.weight

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add the losses to the validation's, with the same random numbers at every validation."""
        share = self._share(batch, batch_idx, training=False)
        generator = SharedGenerator(self.device).manual_seed(VALIDATION_SEED + batch_idx)
        losses = self.compute_losses(batch, self._drawing(generator, share), training=False)
        self.means["validation"].add(losses, share.n_counted)

    def _share(self, batch: Any, batch_idx: int, *, training: bool) -> Share:
        """Return which rows of all processes' batch these are."""
        data = self.trainer.datamodule
        share = data.share(batch_idx, training=training) if isinstance(data, StageDataModule) else None
        if share is not None:
            return share
        n_rows, n_processes = len(next(iter(batch.values()))), self.trainer.world_size
        return Share.of(n_rows * n_processes, self.global_rank, n_processes)

    def _drawing(self, generator: SharedGenerator, share: Share) -> SharedGenerator:
        """Let a generator draw for all processes, and keep this one's rows."""
        if not share.is_whole:
            generator.rows, generator.n_rows = share.rows, share.n_rows
            seed = sample_seed(self.seed + 1 + self.global_rank, self.global_step)
            generator.own = torch.Generator(self.device).manual_seed(seed)
        return generator

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep where the stage is: its position, random numbers and sums of losses, and what it was trained with."""
        checkpoint |= {
            "fingerprint": self.fingerprint,
            "options": self._options,
            "is_finished": self.is_finished,
            "max_epochs": self.trainer.max_epochs,
            "position": list(self.position),
            "seed": self.seed,
            "generator_device": self.device.type,
            "generator_state": self.generator.get_state(),
            "means": self.means["train"].state_dict(),
            "order": self._order,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on where the checkpoint left off.

        Raises
        ------
        ValueError
            If it belongs to another model, other cells or other settings.
        """
        if checkpoint.get("fingerprint") != self.fingerprint:
            msg = (
                f"The checkpoint of the {self.name} is of another model, of other cells, another split or other settings, or older than what it was trained on; "
                "remove it or use another `checkpoint_dir` (`--restart` of the command line)."
            )
            raise ValueError(msg)
        check_same_options(self.name, checkpoint["options"], self._options)
        self.seed, self.position = checkpoint["seed"], tuple(checkpoint["position"])
        self.means["train"].load_state_dict(checkpoint["means"], self.device)
        self._generator, self._resumed = None, ResumedState.of(checkpoint)

    def on_train_start(self) -> None:
        """Refuse to go on in the middle of an epoch whose cells would come in another order now; loaders know theirs by now."""
        if self._resumed is not None:
            self._resumed.check_same_order(self.name, self._order)

    @property
    def _order(self) -> dict[str, Any]:
        """What the order of an epoch's cells depends on besides seed, epoch and batch size."""
        data = self.trainer.datamodule
        return data.order_depends_on if isinstance(data, StageDataModule) else {}

    @property
    def _options(self) -> dict[str, Any]:
        """What a resumed run has to have in common with the one that was interrupted."""
        options = asdict(self.recipe)
        batch_size = options.pop("batch_size")
        if not is_attached(self):  # a finished stage is restored before processes know of each other
            return options
        return {**options, "batch_size": batch_size * self.trainer.world_size}

    @property
    def is_finite(self) -> bool:
        """Whether the epoch's losses so far, and what is trained, are numbers; waits for the device."""
        weights = (p for group in self.trained_groups for p in group["params"])
        return self.means["train"].is_finite and all(bool(torch.isfinite(p).all()) for p in weights)

    def check_loss(self, metrics: Mapping[str, Tensor]) -> None:
        """Stop at once when the epoch's loss is no number any more.

        Raises
        ------
        FloatingPointError
            If the epoch's loss is NaN or infinite.
        """
        loss = metrics.get(f"{self.name}_loss_train")
        if loss is not None and not torch.isfinite(loss):
            msg = (
                f"The {self.name}'s loss is {float(loss)}; try a lower learning rate, or look for extreme cells. A `checkpoint_dir` still has the "
                "last good state, which goes on with its own learning rate only: to change that, use another `checkpoint_dir`."
            )
            raise FloatingPointError(msg)

    def log_training(self) -> None:
        """Log the means of the epoch's losses."""
        self._log("train")

    def on_validation_epoch_end(self) -> None:
        """Log the means of the validation's losses."""
        self._log("validation")

    def _log(self, subset: str) -> None:
        for name, value in self.means[subset].compute().items():
            self.log(f"{self.name}_{name}_{subset}", value, prog_bar=name == "loss", batch_size=1)


class AveragingPlan(StagePlan):
    """A stage that keeps averaged weights of its network."""

    module: SCLDMModule | GeneSpaceModule
    _update_average: AverageUpdate | None = None

    def on_train_start(self) -> None:
        """Average on where the checkpoint left off."""
        super().on_train_start()
        self._update_average = None

    def on_train_batch_end(self, *_: Any) -> None:
        """Update the averaged weights."""
        if self._update_average is None:
            network, averaged = self.module.network_and_average
            self._update_average = AverageUpdate(averaged, network)
        self._update_average()
