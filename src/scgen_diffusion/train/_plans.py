"""Lightning training plans, one per stage."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from scvi import REGISTRY_KEYS
from torch import Tensor, nn

from ._schedules import learning_rate_factor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scgen_diffusion.module import SCLDMModule

    from ._recipes import AutoencoderRecipe, PriorRecipe, Recipe

VALIDATION_SEED = 0


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
    """

    name: str

    def __init__(self, module: SCLDMModule, recipe: Recipe, *, seed: int, fingerprint: str = "") -> None:
        super().__init__()
        self.fingerprint = fingerprint
        self.is_finished = False
        self._frozen: list[nn.Parameter] = []
        self.module = module
        self.recipe = recipe
        self.seed = seed
        self._generator: torch.Generator | None = None
        self._generator_state: Tensor | None = None
        self._shuffling_state: Tensor | None = None

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """List the parameters that this stage trains."""

    @abstractmethod
    def compute_losses(self, batch: Any, generator: torch.Generator, *, training: bool) -> dict[str, Tensor]:
        """Return the batch's losses; ``"loss"`` is the one to minimise."""

    def setup(self, stage: str) -> None:
        """Freeze what this stage does not train; distributed training allows no unused parameters."""
        trained = {id(p) for group in self.parameter_groups() for p in group["params"]}
        self._frozen = [p for p in self.module.parameters() if p.requires_grad and id(p) not in trained]
        for parameter in self._frozen:
            parameter.requires_grad_(requires_grad=False)

    def teardown(self, stage: str) -> None:
        """Release what was frozen."""
        for parameter in self._frozen:
            parameter.requires_grad_(requires_grad=True)

    def configure_optimizers(self) -> dict[str, Any]:
        """Build AdamW and its schedule."""
        recipe = self.recipe
        optimizer = torch.optim.AdamW(
            self.parameter_groups(), lr=recipe.learning_rate, betas=recipe.betas, weight_decay=recipe.weight_decay
        )
        factor = learning_rate_factor(recipe.schedule, n_steps=self.n_steps, warm_up=recipe.warm_up)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

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
                f"The checkpoint of the {self.name} is of another model, of other cells, or older than the autoencoder; "
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


class AutoencoderPlan(StagePlan):
    """Train encoder, decoder and likelihood on cells.

    Parameters
    ----------
    module
        The model's module.
    recipe
        Optimiser, schedule, length, KL weight and thinning.
    seed
        Seed of thinning and latent noise.
    """

    name = "autoencoder"
    recipe: AutoencoderRecipe

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Give dispersions a rate, and gene loadings a weight decay, of their own."""
        module, recipe = self.module, self.recipe
        dispersions, loadings = list(module.likelihood.parameters()), module.gene_loadings()
        special = {id(parameter) for parameter in (*dispersions, *loadings)}
        others = [p for part in (module.encoder, module.decoder) for p in part.parameters() if id(p) not in special]
        rate = recipe.learning_rate * recipe.dispersion_learning_rate_factor
        groups = [
            {"params": list(dict.fromkeys(others))},
            {"params": dispersions, "lr": rate, "weight_decay": 0.0},
            {"params": loadings, "weight_decay": recipe.loading_weight_decay},
        ]
        return [group for group in groups if group["params"]]

    def compute_losses(
        self, batch: Mapping[str, Tensor], generator: torch.Generator, *, training: bool
    ) -> dict[str, Tensor]:
        """Encode (in training a thinned copy of) the cells, draw latents, decode and compare."""
        x = batch[REGISTRY_KEYS.X_KEY]
        noise = torch.randn(len(x), *self.module.latent_shape, generator=generator, device=x.device)
        keep = self._keep(x, generator) if training else None
        _, _, losses = self.module(
            batch,
            inference_kwargs={"noise": noise, "keep": keep, "generator": generator},
            loss_kwargs={"kl_weight": self._kl_weight(training=training)},
        )
        return {
            "loss": losses.loss,
            "reconstruction_loss": losses.reconstruction_loss_sum / len(x),
            "kl": losses.kl_local_sum / len(x),
        }

    def _keep(self, x: Tensor, generator: torch.Generator) -> Tensor | None:
        low = self.recipe.keep_at_least
        if low >= 1 or self.module.input_values != "counts":
            return None
        return low + (1 - low) * torch.rand(len(x), 1, generator=generator, device=x.device)

    def _kl_weight(self, *, training: bool) -> float:
        rise = min(self.progress / self.recipe.kl_warm_up, 1.0) if training and self.recipe.kl_warm_up else 1.0
        return self.recipe.kl_weight * rise


class PriorPlan(StagePlan):
    """Train the prior, and the reader of library sizes, on latents of the training cells.

    Parameters
    ----------
    module
        The model's module.
    recipe
        Optimiser, schedule, length and condition dropout.
    seed
        Seed of noise, times and dropped conditions.
    """

    name = "prior"
    recipe: PriorRecipe

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Train the prior and the library-size head."""
        return [{"params": [*self.module.prior.parameters(), *self.module.library_size.head.parameters()]}]

    def compute_losses(
        self, batch: Mapping[str, Tensor], generator: torch.Generator, *, training: bool
    ) -> dict[str, Tensor]:
        """Draw latents from their posteriors and compare velocities; validation uses the averaged weights."""
        mean = batch["mean"]
        z = mean + batch["std"] * torch.randn(mean.shape, generator=generator, device=mean.device)
        drop_probability = self.recipe.drop_probability if training else 0.0
        velocity_loss = self.module.prior_loss(
            z, batch["condition"], drop_probability=drop_probability, generator=generator, averaged=not training
        ).mean()
        if self.module.architecture.likelihood != "negative_binomial":  # nothing to draw totals for
            return {"loss": velocity_loss}
        library_loss = self.module.library_size.loss(z, batch["log_total"]).mean()
        total = velocity_loss + library_loss
        return {"loss": total, "velocity_loss": velocity_loss, "library_size_loss": library_loss}

    def on_train_batch_end(self, *_: Any) -> None:
        """Update the averaged weights."""
        self.module.averaged_prior.update_parameters(self.module.prior)
