"""One Lightning module per stage: its parameters, and the loss of a batch."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
import pandas as pd
import torch
from scvi import REGISTRY_KEYS, settings
from torch.optim.swa_utils import get_ema_multi_avg_fn

from scgen_diffusion.diffusion import TARGETS, Joint, MutuallyExclusive, diffusion_loss, optimal_pairs, sample_seed
from scgen_diffusion.module import OutlierCounts

from ._recipes import RATE_AFTER_PLATEAU
from ._step_graph import StepGraph

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scvi.module.base import BaseModuleClass
    from torch import Tensor, nn
    from torch.optim.swa_utils import AveragedModel
    from torch.utils.hooks import RemovableHandle

    from scgen_diffusion.module import GeneSpaceModule, SCLDMModule

    from ._recipes import AutoencoderRecipe, DiffusionRecipe, PerturbationFlowRecipe, PriorRecipe, Recipe


logger = logging.getLogger(__name__)

REPLAYED_ON = ("cuda",)
N_CELLS = "n_cells"  # key in the sums of losses
OUTLIERS_COUNT_FROM = 0.1  # share of the steps
MOST_FALLS = 2  # of the learning rate; a further plateau ends training
PERTURBATION_FLOW = "module.perturbation_flow."  # prefix of names in a checkpoint
SAVED = ("fingerprint", "losses_before", "seed", "n_epochs_done", "losses", "plateau")  # attributes


class StagePlan(pl.LightningModule):
    """Base class of the stages: AdamW with a schedule, random numbers, history and checks of checkpoints.

    The random numbers of an epoch depend only on seed, epoch and process. A run that resumes after an epoch therefore
    continues as if it had not been interrupted.

    Parameters
    ----------
    module
        The model's module; a stage trains a part of it.
    recipe
        Optimiser, schedule and length.
    seed
        Seed of random numbers and of the order of cells. All processes of a distributed run use the seed of the first.

    Attributes
    ----------
    name
        Name of the stage.
    key_part
        Part of the loss for the progress bar and early stopping. It leaves out the library-size head, a small network
        that overfits within a few epochs and is calibrated after the stage.
    can_replay
        Whether a CUDA GPU may replay a recorded step: it never asks the GPU for a value.
    is_compiled
        Whether to compile the networks.
    compiled_parts
        What to compile: parts of the module that the losses call.
    trained_rows
        Parameters to train, each with a mask ``(rows, 1)`` or None for all rows; default: all parameters of the stage.
    fingerprint
        Digest of model and data; a checkpoint must have the same to be resumed.
    losses_before
        Training losses by epoch, without NaN, that the model remembered of this stage when the run was started. A
        checkpoint is resumed only if nothing is lost: the model is as it was then, or at an epoch of the run.
    losses
        Mean losses by name and epoch.
    n_epochs_done
        Finished epochs, including those before an interruption.
    was_stopped
        Whether the user stopped the stage.
    plateau
        Lowest validation loss so far, validations since it or the learning rate fell, and how often the latter did.
    """

    name: str
    key_part = "loss"
    can_replay = True

    def __init__(self, module: BaseModuleClass, recipe: Recipe, *, seed: int) -> None:
        super().__init__()
        self.module = module
        self.recipe = recipe
        self.seed = seed
        self.is_compiled = False
        self.trained_rows: Mapping[nn.Parameter, Tensor | None] | None = None
        self.fingerprint = ""
        self.losses_before: Mapping[int, float] = {}
        self.generator = torch.Generator()
        self.n_epochs_done = 0
        self.was_stopped = False
        self._sums: dict[str, dict[str, Any]] = {"train": {}, "validation": {}}
        self.losses: dict[str, dict[int, float]] = {}
        self._has_validated = False
        self.plateau: dict[str, float] = {"loss": math.inf, "n_waited": 0, "n_falls": 0}
        self._frozen: list[nn.Parameter] = []
        self._masks: list[RemovableHandle] = []
        self._graph: StepGraph | None = None
        self._has_recorded = self._is_replayed = False

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the parameters of this stage as groups for an optimiser; each belongs to the last one that has it."""

    @property
    def compiled_parts(self) -> Sequence[nn.Module]:
        return ()

    @abstractmethod
    def compute_losses(self, batch: Any, generator: torch.Generator, *, training: bool) -> dict[str, Tensor]:
        """Return the batch's losses; ``"loss"`` is the one to minimise."""

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss, for :meth:`backward`; where it can, a GPU replays the first step.

        Replayed are steps of one process and precision, with their own gradients, unmasked.
        """
        compute, trainer = partial(self.compute_losses, training=True), self.trainer
        is_plain = trainer.precision == "32-true" and trainer.world_size == trainer.accumulate_grad_batches == 1
        may_replay = self.can_replay and self.device.type in REPLAYED_ON and is_plain and not self._masks
        if may_replay and not self._has_recorded:
            self._has_recorded = True
            try:
                self._graph = StepGraph(compute, self.trained_parameters, batch, self.generator)
                self.generator = self._graph.generator
            except Exception as error:  # noqa: BLE001  training goes on, and an error of the step itself comes again
                logger.warning("Training is slower, because steps are not replayed as a CUDA graph: %s", error)
        self._is_replayed = may_replay and self._graph is not None and self._graph.fits(batch)
        losses = self._graph.replay(batch) if self._is_replayed else compute(batch, self.generator)
        self._add("train", losses, batch)
        if trainer.is_last_batch:  # before callbacks read the metrics of the epoch
            self._log_means("train")
        return losses["loss"]

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Compute the gradients, unless the replayed step did."""
        if self._is_replayed:
            self._graph.set_gradients()
        else:
            super().backward(loss, *args, **kwargs)

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Add up the losses, with the same random numbers at every validation."""
        generator = torch.Generator(self.device).manual_seed(batch_idx)
        self._add("validation", self.compute_losses(batch, generator, training=False), batch)

    def _add(self, subset: str, losses: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> None:
        """Add a batch's losses to the epoch's without synchronising; Lightning's means take a millisecond per loss."""
        sums, n_cells = self._sums[subset], len(next(iter(batch.values())))
        sums[N_CELLS] = sums.get(N_CELLS, 0) + n_cells
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + n_cells * value.detach()

    def _log_means(self, subset: str) -> None:
        """Log the means over the cells of an epoch, and reset the sums."""
        sums, self._sums[subset] = self._sums[subset], {}
        n_cells = sums.pop(N_CELLS)
        means = {f"{self.name}_{name}_{subset}": value / n_cells for name, value in sums.items()}
        self.log_dict(means, on_step=False, on_epoch=True, sync_dist=True, batch_size=1)

    # --- parameters and optimiser ----------------------------------------------------------------------------------

    @property
    def trained_groups(self) -> list[dict[str, Any]]:
        """The trained parameters of the stage, in groups.

        Partly trained tables have no weight decay, which would also change the frozen rows; Adam does not, because
        their gradients are zero.
        """
        groups, rows = self.parameter_groups(), self.trained_rows
        last = {p: number for number, group in enumerate(groups) for p in group["params"]}
        for number, group in enumerate(groups):
            group["params"] = [p for p in dict.fromkeys(group["params"]) if last[p] == number]
        if rows is not None:
            known = [{**group, "params": [p for p in group["params"] if p in rows]} for group in groups]
            whole = [{**group, "params": [p for p in group["params"] if rows[p] is None]} for group in known]
            partly = [{**group, "params": [p for p in group["params"] if rows[p] is not None]} for group in known]
            groups = [*whole, *({**group, "weight_decay": 0.0} for group in partly)]
        return [group for group in groups if group["params"]]

    @property
    def trained_parameters(self) -> list[nn.Parameter]:
        """The parameters of all groups."""
        return [parameter for group in self.trained_groups for parameter in group["params"]]

    def setup(self, stage: str) -> None:
        """Agree on the seed, and freeze other parameters; distributed training allows no unused ones."""
        self.seed = self.trainer.strategy.broadcast(self.seed)
        trained = {*self.trained_parameters}
        self._frozen = [p for p in self.module.parameters() if p.requires_grad and p not in trained]
        for parameter in self._frozen:
            parameter.requires_grad_(requires_grad=False)
        for parameter, mask in (self.trained_rows or {}).items():
            if mask is not None and parameter.requires_grad:
                self._masks.append(parameter.register_hook(partial(_mask_gradient, mask)))

    def teardown(self, stage: str) -> None:
        """Unfreeze the frozen parameters, and forget the recorded step and compiled networks."""
        for parameter in self._frozen:
            parameter.requires_grad_(requires_grad=True)
        for mask in self._masks:
            mask.remove()
        self._frozen, self._masks, self._graph = [], [], None
        for part in self.module.modules():
            vars(part).pop("forward", None)  # undoes `compile_for_training`

    def configure_optimizers(self) -> dict[str, Any]:
        """Build AdamW and its schedule."""
        recipe = self.recipe
        optimizer = torch.optim.AdamW(
            self.trained_groups,
            lr=recipe.learning_rate,
            betas=recipe.betas,
            weight_decay=recipe.weight_decay,
            fused=self.trainer.precision != "16-mixed",  # whose gradient scaler needs separate steps
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None = None, *_: Any, **__: Any
    ) -> None:
        """Clip the norm of all gradients in few kernels; Lightning refuses to with a fused optimiser."""
        if gradient_clip_val:
            trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(trained, gradient_clip_val, foreach=self.device.type in ("cpu", "cuda"))

    def _rate_factor(self, step: int) -> float:
        return self.recipe.rate_factor(step, self.n_steps) * RATE_AFTER_PLATEAU ** self.plateau["n_falls"]

    @property
    def n_steps(self) -> int:
        """Largest number of optimiser steps."""
        return int(self.trainer.estimated_stepping_batches)

    @property
    def progress(self) -> float:
        """Finished share of the steps."""
        return self.global_step / max(self.n_steps, 1)

    # --- epochs ----------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Compile the networks, which are on their device now, until training ends."""
        if self.is_compiled:
            for part in self.compiled_parts:
                compile_for_training(part)

    def on_train_start(self) -> None:
        """End a stage that was interrupted after its last plateau."""
        self.generator, self._has_recorded = torch.Generator(self.device), False
        self.trainer.should_stop = self.plateau["n_falls"] > MOST_FALLS

    def on_train_epoch_start(self) -> None:
        """Seed the random numbers of the epoch, differently in each process."""
        number = self.current_epoch * self.trainer.world_size + self.global_rank
        self.generator.manual_seed(sample_seed(self.seed, number))

    def on_validation_epoch_end(self) -> None:
        """Log the losses and mark them as this epoch's; Lightning keeps those of the last validation."""
        self._log_means("validation")
        self._has_validated = True

    def on_train_epoch_end(self) -> None:
        """Record the epoch's losses, before a checkpoint is written.

        Raises
        ------
        FloatingPointError
            If losses or weights are NaN or infinite.
        """
        if self._sums["train"]:  # an option such as `max_steps` ended the epoch before its last batch
            self._log_means("train")
        losses = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        values = torch.tensor(losses.get(f"{self.name}_loss_train", 0.0), device=self.device), *self.trained_parameters
        if not torch.stack([value.isfinite().all() for value in values]).all():
            msg = (
                f"The {self.name}'s loss or weights are NaN or infinite in epoch {self.current_epoch + 1}; try a lower "
                "learning rate, or look for extreme cells. The model is as it was before the stage."
            )
            raise FloatingPointError(msg)
        for name, value in losses.items():
            if self._has_validated or not name.endswith("_validation"):
                self.losses.setdefault(name, {})[self.current_epoch] = value
        self.n_epochs_done = self.current_epoch + 1
        if self._has_validated:
            self._lower_rate_on_plateau(losses[self.key_loss("validation")])
        self._has_validated = False

    def _lower_rate_on_plateau(self, loss: float) -> None:
        """Lower the learning rate, or end training, if the validation loss has not fallen for long."""
        plateau = self.plateau
        if loss < plateau["loss"]:
            plateau |= {"loss": loss, "n_waited": 0}
            return
        plateau["n_waited"] += 1
        if plateau["n_waited"] == self.recipe.patience:
            plateau |= {"n_waited": 0, "n_falls": plateau["n_falls"] + 1}
            self.trainer.should_stop = plateau["n_falls"] > MOST_FALLS

    @property
    def history(self) -> dict[str, pd.DataFrame]:
        """One table per loss, indexed by epoch, as in scvi-tools."""
        return {name: pd.Series(of, name=name).rename_axis("epoch").to_frame() for name, of in self.losses.items()}

    def key_loss(self, subset: Literal["train", "validation"]) -> str:
        """Name the key part of the loss, as in the history."""
        return f"{self.name}_{self.key_part}_{subset}"

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add history, seed, fingerprint and recipe."""
        checkpoint |= {name: getattr(self, name) for name in SAVED} | {"recipe": asdict(self.recipe)}

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Continue from the checkpoint.

        Raises
        ------
        ValueError
            If it belongs to another model, other cells or other settings, or the model was trained since.
        """
        before, losses = self.losses_before, checkpoint["losses"].get(f"{self.name}_loss_train", {})
        is_at_epoch = before.items() <= losses.items() or losses.items() <= before.items()
        are_same = {
            **{name: checkpoint["recipe"].get(name) == value for name, value in asdict(self.recipe).items()},
            "seed": settings.seed is None or checkpoint["seed"] == self.seed,
            "max_epochs": checkpoint["n_epochs_done"] <= self.trainer.max_epochs,
            "cells, split, settings or stage before it": checkpoint["fingerprint"] == self.fingerprint,
            "training since": is_at_epoch or before == checkpoint["losses_before"],
        }
        if differing := [name for name, is_same in are_same.items() if not is_same]:
            msg = (
                f"The checkpoint of the {self.name} was made with other {', '.join(differing)}. Use another "
                f"`checkpoint_dir`, or remove {self.name}.ckpt."
            )
            raise ValueError(msg)
        for name in SAVED:
            setattr(self, name, checkpoint[name])

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Restore everything but the flow; in the stage of the perturbation flow, only the perturbation flow."""
        is_of_flow = self.name == "perturbation_flow"
        own = {name: t for name, t in state_dict.items() if name.startswith(PERTURBATION_FLOW) == is_of_flow}
        return super().load_state_dict(own, strict=False)


class AverageUpdate:
    r"""Updates the exponential moving average of a network's weights after every step.

    After ``n`` updates the decay is :math:`\min(d, (1 + n) / (10 + n))`, with the given ``decay`` as :math:`d`, so that
    short runs average too. Updates are counted here: ``AveragedModel.update_parameters`` asks the device each time,
    which makes a GPU finish its work first. Buffers are copied once, since training does not change them.
    """

    @torch.no_grad()
    def __init__(self, averaged: AveragedModel, network: nn.Module, decay: float) -> None:
        self.averaged, self.decay = averaged, decay
        self.n_updates = int(averaged.n_averaged)  # read once
        self._pairs = [x.detach() for x in averaged.module.parameters()], [x.detach() for x in network.parameters()]
        for copy, buffer in zip(averaged.module.buffers(), network.buffers(), strict=True):
            copy.copy_(buffer)

    @torch.no_grad()
    def __call__(self) -> None:
        """Average the network's weights in; the first update copies them."""
        n = self.n_updates
        decay = min(self.decay, (1 + n) / (10 + n)) if n else 0.0
        get_ema_multi_avg_fn(decay)(*self._pairs, n)
        self.averaged.n_averaged.add_(1)
        self.n_updates += 1


class AveragingPlan(StagePlan):
    """A stage that keeps averaged weights of its network."""

    module: SCLDMModule | GeneSpaceModule
    update_average: AverageUpdate

    @property
    def compiled_parts(self) -> Sequence[nn.Module]:
        """The network."""
        return self.module.network_and_average[:1]

    def on_train_start(self) -> None:
        """Start averaging, or continue from the checkpoint."""
        super().on_train_start()
        network, averaged = self.module.network_and_average
        self.update_average = AverageUpdate(averaged, network, self.module.architecture.ema_decay)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take the step, and update the averaged weights."""
        super().optimizer_step(*args, **kwargs)
        self.update_average()


class AutoencoderPlan(StagePlan):
    """Train encoder, decoder, likelihood and condition effects of SCLDM on cells.

    Parameters as in :class:`StagePlan`.
    """

    name = "autoencoder"
    module: SCLDMModule
    recipe: AutoencoderRecipe
    kl_weight: Tensor

    def __init__(self, module: SCLDMModule, recipe: AutoencoderRecipe, *, seed: int) -> None:
        super().__init__(module, recipe, seed=seed)
        self.register_buffer("kl_weight", torch.tensor(recipe.kl_weight), persistent=False)

    @property
    def compiled_parts(self) -> Sequence[nn.Module]:
        """Encoder and decoder, and on a GPU the likelihood; on a CPU, it is faster for non-zero counts only."""
        networks = self.module.encoder, self.module.decoder
        return networks if self.device.type == "cpu" else (*networks, self.module.likelihood)

    def on_train_batch_start(self, *_: Any) -> None:
        """Let the weight of the KL divergence rise, and later means leave counts to outliers.

        Outliers would explain genes that few cells have, before the decoder can tell these cells from others; in
        fine-tuning, it can. Both numbers are on the device, where replayed steps read them.
        """
        warm_up = self.recipe.kl_warm_up
        self.kl_weight.fill_(self.recipe.kl_weight * (min(self.progress / warm_up, 1.0) if warm_up else 1.0))
        is_start = self.progress < OUTLIERS_COUNT_FROM and self.trained_rows is None
        self._weigh_outliers(0.0 if is_start else 1.0)

    def _weigh_outliers(self, weight: float) -> None:
        for part in self.module.likelihood.modules():
            if isinstance(part, OutlierCounts):
                part.responsibility_weight.fill_(weight)

    def teardown(self, stage: str) -> None:
        """Let outliers count again, also if training was stopped at its start."""
        super().teardown(stage)
        self._weigh_outliers(1.0)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Group parameters: dispersions have their own learning rate, gene loadings and effects their own decay."""
        module, recipe = self.module, self.recipe
        effects = () if module.condition_effects is None else module.condition_effects.parameters()
        rate = recipe.learning_rate * recipe.dispersion_learning_rate_factor
        return [
            {"params": [*module.encoder.parameters(), *module.decoder.parameters()]},
            {"params": [*module.likelihood.parameters()], "lr": rate, "weight_decay": 0.0},
            {"params": module.gene_loadings(), "weight_decay": recipe.loading_weight_decay},
            {"params": [*effects], "weight_decay": recipe.effect_weight_decay},
        ]

    def compute_losses(
        self, batch: Mapping[str, Tensor], generator: torch.Generator, *, training: bool
    ) -> dict[str, Tensor]:
        """Encode (in training a thinned copy of) the cells, draw latents, decode and compare."""
        module, recipe, x = self.module, self.recipe, batch[REGISTRY_KEYS.X_KEY]
        noise = torch.randn(len(x), *module.latent_shape, generator=generator, device=x.device)
        keep = module.draw_keep(x, recipe.min_kept_fraction, generator) if training else None
        condition = None  # effects learn in training and are no part of the loss
        if training and module.condition_effects is not None:
            condition, columns = module.condition_of(batch), module.condition_columns
            # effects add up over keys, so those of one key must not learn while another is hidden from every cell
            strategy = Joint() if isinstance(module.strategy, MutuallyExclusive) else module.strategy
            condition = strategy.drop(condition, columns, recipe.drop_probability, generator)
        _, _, losses = module(
            batch,
            inference_kwargs={"noise": noise, "keep": keep, "generator": generator},
            loss_kwargs={"kl_weight": self.kl_weight if training else recipe.kl_weight, "condition": condition},
        )
        return {
            "loss": losses.loss,
            "reconstruction_loss": losses.reconstruction_loss_sum / len(x),
            "kl": losses.kl_local_sum / len(x),
        }


class PriorPlan(AveragingPlan):
    """Train SCLDM's prior and library-size head on latents of the cells. Parameters as in :class:`StagePlan`."""

    name = "prior"
    key_part = "velocity_loss"
    module: SCLDMModule
    recipe: PriorRecipe

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the parameters of the prior, and of the library-size head if there are counts."""
        head = self.module.library_size.parameters() if self.module.output_values == "counts" else []
        return [{"params": [*self.module.prior.parameters(), *head]}]

    def compute_losses(
        self, batch: Mapping[str, Tensor], generator: torch.Generator, *, training: bool
    ) -> dict[str, Tensor]:
        """Draw latents from their posteriors and compare velocities; validation uses the averaged weights."""
        module, mean, device = self.module, batch["mean"], batch["mean"].device
        network = module.prior if training else module.averaged_prior
        drop_probability = self.recipe.drop_probability if training else 0.0
        z = mean + batch["std"] * torch.randn(mean.shape, generator=generator, device=device)
        drawn = {
            "noise": torch.randn(mean.shape, generator=generator, device=device),
            "t": module.path.draw_times(len(z), generator, device),
            "condition": module.drop_conditions(batch["condition"], drop_probability, generator),
        }
        data = module.standardise(z)
        losses = {"velocity_loss": diffusion_loss(network, module.path, TARGETS["velocity"], data, **drawn).mean()}
        if module.output_values == "counts":
            condition = module.drop_conditions(batch["condition"], drop_probability, generator)
            losses["library_size_loss"] = module.library_size.loss(condition, z, batch["log_total"]).mean()
        return {"loss": sum(losses.values()), **losses}


class PerturbationFlowPlan(StagePlan):
    """Train the velocity between latents of control and perturbed cells. Parameters as in :class:`StagePlan`."""

    name = "perturbation_flow"
    can_replay = False  # the host pairs cells
    module: SCLDMModule
    recipe: PerturbationFlowRecipe

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the parameters of the perturbation flow."""
        return [{"params": list(self.module.perturbation_flow.parameters())}]

    def compute_losses(
        self, batch: Mapping[str, Tensor], generator: torch.Generator, *, training: bool
    ) -> dict[str, Tensor]:
        """Draw latents ``(2, pairs, ...)`` from their posteriors, pair them group by group, and compare velocities."""
        mean = batch["mean"]
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        start, end = self.module.standardise(mean + batch["std"] * noise).unbind()
        along_axes, n_paired = self.module.perturbation_flow.along_axes, self.recipe.n_paired
        groups = zip(*(states.split(n_paired) for states in (along_axes(start), along_axes(end), end)), strict=True)
        end = torch.cat([ends[optimal_pairs(*seen)] for *seen, ends in groups])
        condition = batch["condition"][1]  # equal within a group
        return {"loss": self.module.perturbation_flow.loss(start, end, condition, generator).mean()}


class DiffusionPlan(AveragingPlan):
    """Train a gene-space network and its library-size head on cells. Parameters as in :class:`StagePlan`."""

    name = "diffusion"
    key_part = "denoising_loss"
    module: GeneSpaceModule
    recipe: DiffusionRecipe

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Group parameters; dispersions have their own learning rate, gene loadings their own weight decay."""
        module, recipe = self.module, self.recipe
        head = module.library_size.parameters() if module.input_values == "counts" else ()
        rate = recipe.learning_rate * recipe.dispersion_learning_rate_factor
        return [
            {"params": [*module.network.parameters()]},
            {"params": module.gene_loadings(), "weight_decay": recipe.loading_weight_decay},
            {"params": module.dispersions(), "lr": rate, "weight_decay": 0.0},
            {"params": [*head]},
        ]

    def compute_losses(
        self, batch: Mapping[str, Tensor], generator: torch.Generator, *, training: bool
    ) -> dict[str, Tensor]:
        """Noise the cells to random times and compare predictions; validation uses the averaged weights."""
        module, x = self.module, batch[REGISTRY_KEYS.X_KEY]
        drawn = module.draw_for_training(x, generator, training=training)
        condition = module.condition_of(batch)
        drop_probability = self.recipe.drop_probability if training else 0.0
        condition = module.drop_conditions(condition, drop_probability, generator)
        _, _, losses = module(batch, generative_kwargs={**drawn, "condition": condition, "averaged": not training})
        return {"loss": losses.loss, **losses.extra_metrics}


def _mask_gradient(mask: Tensor, gradient: Tensor) -> Tensor:
    return torch.where(mask.to(gradient.device), gradient, 0)


def compile_for_training(network: nn.Module, **options: Any) -> None:
    """Compile the forward pass for batches of the first size that come with gradients, in place; others run as before.

    Smaller last batches, validation and generation would each be compiled anew, which takes longer than it saves.

    Parameters
    ----------
    network
        The network.
    **options
        Passed to :func:`torch.compile`.
    """
    plain, compiled = network.forward, torch.compile(network.forward, dynamic=False, **options)
    size: int | None = None

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal size
        if not torch.is_grad_enabled():
            return plain(*args, **kwargs)
        n = next(len(value) for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
        size = n if size is None else size
        return (compiled if n == size else plain)(*args, **kwargs)

    network.forward = forward
