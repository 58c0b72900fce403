"""Lightning training plans, one per stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scvi import REGISTRY_KEYS

from scgen_diffusion.diffusion import draw_normal

from ._stage_plan import AveragingPlan, StagePlan

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor

    from scgen_diffusion.module import GeneSpaceModule, SCLDMModule

    from ._recipes import AutoencoderRecipe, DiffusionRecipe, PriorRecipe


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
    module: SCLDMModule
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
        noise = draw_normal((len(x), *self.module.latent_shape), generator, x.device)
        keep = self.module.draw_keep(x, self.recipe.keep_at_least, generator) if training else None
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

    def _kl_weight(self, *, training: bool) -> float:
        rise = min(self.progress / self.recipe.kl_warm_up, 1.0) if training and self.recipe.kl_warm_up else 1.0
        return self.recipe.kl_weight * rise


class PriorPlan(AveragingPlan):
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
    module: SCLDMModule
    recipe: PriorRecipe

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Train the prior and the library-size head."""
        return [{"params": [*self.module.prior.parameters(), *self.module.library_size.parameters()]}]

    def compute_losses(
        self, batch: Mapping[str, Tensor], generator: torch.Generator, *, training: bool
    ) -> dict[str, Tensor]:
        """Draw latents from their posteriors and compare velocities; validation uses the averaged weights."""
        mean = batch["mean"]
        z = mean + batch["std"] * draw_normal(mean.shape, generator, mean.device)
        drop_probability = self.recipe.drop_probability if training else 0.0
        velocity_loss = self.module.prior_loss(
            z, batch["condition"], drop_probability=drop_probability, generator=generator, averaged=not training
        ).mean()
        if self.module.architecture.likelihood != "negative_binomial":  # nothing to draw totals for
            return {"loss": velocity_loss}
        library_loss = self.module.library_size.loss(z, batch["log_total"]).mean()
        total = velocity_loss + library_loss
        return {"loss": total, "velocity_loss": velocity_loss, "library_size_loss": library_loss}


class DiffusionPlan(AveragingPlan):
    """Train a gene-space network, and the reader of library sizes, on cells.

    Parameters
    ----------
    module
        The model's module.
    recipe
        Optimiser, schedule, length and condition dropout.
    seed
        Seed of noise, times and dropped conditions.
    """

    name = "diffusion"
    module: GeneSpaceModule
    recipe: DiffusionRecipe

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Give gene loadings a weight decay of their own; train the library-size head where there are totals to learn from."""
        loadings = self.module.gene_loadings()
        special = {id(parameter) for parameter in loadings}
        others = [p for p in self.module.network.parameters() if id(p) not in special]
        head = self.module.library_size.head.parameters() if self.module.input_values == "counts" else ()
        groups = [
            {"params": others},
            {"params": loadings, "weight_decay": self.recipe.loading_weight_decay},
            {"params": list(head)},
        ]
        return [group for group in groups if group["params"]]

    def compute_losses(
        self, batch: Mapping[str, Tensor], generator: torch.Generator, *, training: bool
    ) -> dict[str, Tensor]:
        """Noise the cells to random times and compare predictions; validation uses the averaged weights."""
        module, x = self.module, batch[REGISTRY_KEYS.X_KEY]
        noise = draw_normal(x.shape, generator, x.device)
        t = module.path.draw_times(len(x), generator, x.device)
        condition = module.condition_of(batch)
        if training:
            condition = module.strategy.drop(
                condition, module.condition_columns, self.recipe.drop_probability, generator
            )
        _, _, losses = module(
            batch, generative_kwargs={"noise": noise, "t": t, "condition": condition, "averaged": not training}
        )
        return {"loss": losses.loss, **losses.extra_metrics}
