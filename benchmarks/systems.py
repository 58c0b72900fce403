"""The systems whose speed is compared, each as steps on one batch of made-up cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import published
import torch
from calls import CallsScldm, CallsScrdit, CallsWbdit
from gene_space_systems import (
    PackageScrdit,
    PackageScrditPublishedSize,
    PackageWbdit,
    PackageWbditPublishedSize,
    PublishedScrdit,
    PublishedWbdit,
)
from system import N_CLASSES, Cells, PlannedSteps, Setting, System, optimise

if TYPE_CHECKING:
    from torch import Tensor, nn

#: An untrained prior is nearly a straight line, which an adaptive solver crosses in a few evaluations; a trained one is not.
N_PRIOR_STEPS_BEFORE_SAMPLING = 50

STAGES = ("autoencoder_step", "prior_step", "generate")

N_PERTURBATION_GROUPS = 16  # that a step of the transport draws, as with the default recipe


class PublishedSystem(System):
    """The published scLDM at its published sizes: eager, float32, encoding again in every step of the prior."""

    stages = STAGES
    yardstick = "published"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        torch.manual_seed(0)
        self.cells = Cells.draw(setting)
        self.condition = dict(zip(N_CLASSES, self.cells.condition.T, strict=True))
        self.autoencoder = published.Autoencoder(setting.n_genes).to(setting.device)
        self.prior = published.Prior(N_CLASSES).to(setting.device)
        self.autoencoder_optimizer = torch.optim.AdamW(
            self.autoencoder.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0
        )
        self.prior_optimizer = torch.optim.AdamW(self.prior.parameters(), lr=5e-4)
        self.n_prior_steps = 0
        self.n_evaluations = 0
        self.prior.register_forward_hook(self._count)

    def autoencoder_step(self) -> None:
        """Take one optimiser step of the autoencoder."""
        cells = self.cells
        loss = self.autoencoder.loss(cells.genes, cells.expressed_counts, cells.counts).mean()
        optimise(loss, self.autoencoder, self.autoencoder_optimizer)

    def prior_step(self) -> None:
        """Encode the batch and take one optimiser step of the prior."""
        with torch.no_grad():
            z = self.autoencoder.encode(self.cells.genes, self.cells.expressed_counts)
        optimise(self.prior.loss(z, self.condition), self.prior, self.prior_optimizer)
        self.n_prior_steps += 1

    def generate(self) -> None:
        """Sample latents by dopri5, decode them and draw counts."""
        while self.n_prior_steps < N_PRIOR_STEPS_BEFORE_SAMPLING:
            self.prior_step()
        self.n_evaluations = 0
        with torch.inference_mode():
            noise = torch.randn(len(self.cells.counts), 16, 16, device=self.cells.counts.device)
            z = self.prior.sample(noise, self.condition)
            mean, theta = self.autoencoder.decode(z, self.cells.counts.sum(1, keepdim=True))
            torch.poisson(torch.distributions.Gamma(theta, theta / mean.clamp(min=1e-8)).sample())

    def describe(self, stage: str) -> str:
        """Say how the stage was computed."""
        return f"dopri5, {self.n_evaluations} evaluations" if stage == "generate" else "eager float32"

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """Autoencoder and prior."""
        return self.autoencoder, self.prior

    def _count(self, *_: object) -> None:
        self.n_evaluations += 1


class PackageSystem(System):
    """SCLDM with its default architecture and recipes; the prior trains on latents computed once."""

    stages = (*STAGES, "transport_step")
    yardstick = "published"
    size = "default"
    counted = stages

    def __init__(self, setting: Setting) -> None:
        from scgen_diffusion.module import SCLDMModule, build_architecture
        from scgen_diffusion.train import RECIPES, AutoencoderPlan, PriorPlan

        super().__init__(setting)
        torch.manual_seed(0)
        self.cells = Cells.draw(setting)
        architecture = build_architecture(self.size, **setting.architecture)
        self.module = SCLDMModule(setting.n_genes, list(N_CLASSES.values()), architecture=architecture)
        self.module.to(setting.device)
        self.latents = self._start()
        recipe = RECIPES[self.size]
        self.autoencoder_steps = PlannedSteps(AutoencoderPlan(self.module, recipe.autoencoder, seed=0), setting)
        self.prior_steps = PlannedSteps(PriorPlan(self.module, recipe.prior, seed=0), setting)
        if setting.compile:
            for network in (self.module.encoder, self.module.decoder, self.module.prior):
                network.compile()

    def autoencoder_step(self) -> None:
        """Take one optimiser step of the autoencoder, as in training."""
        self.autoencoder_steps.take({"X": self.cells.counts})

    def prior_step(self) -> None:
        """Take one optimiser step of the prior on cached latents, and update the averaged weights."""
        self.prior_steps.take(self.latents)

    def transport_step(self) -> None:
        """Pair latents of control and perturbed cells, and take one optimiser step of the transport between them."""
        self.transport_steps.take(self.pairs)

    def generate(self) -> None:
        """Sample latents by the default sampler, draw library sizes, decode and draw counts."""
        from scgen_diffusion.diffusion import FLOW_SAMPLERS, Generators, Guidance
        from scgen_diffusion.model import SCLDM

        condition = self.cells.condition
        with torch.inference_mode(), self._autocast():
            generators = Generators(0, range(len(condition)), self.setting.device)
            z = self.module.sample_latents(
                generators.normal(*self.module.latent_shape),
                condition,
                guidance=Guidance.of(self.module.strategy, [1.0] * len(N_CLASSES)),
                sampler=FLOW_SAMPLERS[SCLDM.default_sampler],
                n_steps=self.setting.n_steps,
            )
            kind = self.module.architecture.library_size
            totals = self.module.library_size.draw(kind, condition, z, generators.uniform())
            self.module.draw_cells(z, totals, generators)

    def describe(self, stage: str) -> str:
        """Say how the stage was computed."""
        from scgen_diffusion.diffusion import FLOW_SAMPLERS
        from scgen_diffusion.model import SCLDM

        how = f"{self.size}, {'compiled ' if self.setting.compile else ''}{self.setting.precision}"
        if stage != "generate":
            return how
        n_steps = self.setting.n_steps or FLOW_SAMPLERS[SCLDM.default_sampler].default_n_steps
        return f"{how}, {SCLDM.default_sampler} {n_steps} steps"

    def precision(self, stage: str) -> str:
        """Return what a stage computes in."""
        return self.setting.precision

    def prepare(self, stage: str) -> None:
        """Make the transport, which few models have."""
        if stage == "transport_step" and self.module.transport is None:
            self._make_transport()

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """Autoencoder and prior."""
        module = self.module
        return module.encoder, module.decoder, module.likelihood, module.prior

    @torch.no_grad()
    def _start(self) -> dict[str, Tensor]:
        """Do what training does before its first steps: start from the mean cell, compute latents and library statistics."""
        from scgen_diffusion.module import total_counts

        x, condition, module = self.cells.counts, self.cells.condition, self.module
        module.start_from_means(module.target(x).mean(0), module.pooled_profile(x).mean(0))
        posterior = module.inference(x)["posterior"]
        log_total = total_counts(x)[:, 0].log()
        module.library_size.fit(log_total, condition)
        return {"mean": posterior.mean, "std": posterior.std, "condition": condition, "log_total": log_total}

    def _make_transport(self) -> None:
        from scgen_diffusion.train import TransportPlan, TransportRecipe

        condition = self.cells.condition
        control = torch.tensor([float("inf"), 0.0], device=condition.device)  # the second key perturbs
        self.module.add_transport().start_from(control)
        recipe = TransportRecipe(n_paired=max(len(condition) // N_PERTURBATION_GROUPS, 1))
        self.transport_steps = PlannedSteps(TransportPlan(self.module, recipe, seed=0), self.setting)
        self.pairs = {name: torch.stack([self.latents[name]] * 2) for name in ("mean", "std", "condition")}


class PackagePublishedSizes(PackageSystem):
    """SCLDM with the published architecture, computed the package's way."""

    size = "published"


SYSTEMS: dict[str, type[System]] = {
    "published": PublishedSystem,
    "package": PackageSystem,
    "package-published-sizes": PackagePublishedSizes,
    "calls-SCLDM": CallsScldm,
    "calls-SCRDIT": CallsScrdit,
    "calls-WBDIT": CallsWbdit,
    "published-scrdit": PublishedScrdit,
    "published-wbdit": PublishedWbdit,
    "SCRDIT": PackageScrdit,
    "SCRDIT-published-size": PackageScrditPublishedSize,
    "WBDIT": PackageWbdit,
    "WBDIT-published-size": PackageWbditPublishedSize,
}
