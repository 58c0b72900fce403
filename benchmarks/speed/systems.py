"""The systems to measure, of the package and published ones; each takes steps on a batch of simulated cells."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import anndata as ad
import pandas as pd
import torch

from benchmarks.speed import published
from benchmarks.speed.meters import Measurement, clock, measure, synchronise
from benchmarks.speed.published_gene_space import DDIM_TIMESTEPS, DDPM_TIMESTEPS, Diffusion, NoisePredictor

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from torch import Tensor, nn

    from scgen_diffusion.model import SCRDIT
    from scgen_diffusion.train import StagePlan, TrainingCells

#: Two conditions, as in the published dentate-gyrus and perturbation sets.
N_CLASSES = {"cell_type": 20, "condition": 10}


@dataclass(frozen=True)
class Setting:
    """Sizes, device and precision.

    Parameters
    ----------
    n_genes, n_expressed
        Size of the panel, and expressed genes per cell.
    batch_size
        Cells per step.
    device, precision, compile, replay
        Where and how to compute; whether a GPU replays recorded training steps.
    n_cells
        Size of a whole data set, for stages that use one.
    n_steps
        Steps of the package's samplers; None for their defaults.
    architecture
        Changes to the default architecture of the package's models.
    """

    n_genes: int
    n_expressed: int
    batch_size: int = 128
    device: str = "cpu"
    precision: str = "float32"
    compile: bool = False
    replay: bool = True
    n_cells: int = 4096
    n_steps: int | None = None
    architecture: dict[str, Any] = field(default_factory=dict)

    @property
    def trainer_precision(self) -> str:
        """The precision by its name in Lightning."""
        return "bf16-mixed" if self.precision == "bf16" else "32-true"


@dataclass(frozen=True)
class Cells:
    """A batch of simulated cells on the device."""

    counts: Tensor  # (cells, genes)
    genes: Tensor  # (cells, expressed), 1-based
    expressed_counts: Tensor  # (cells, expressed)
    condition: Tensor  # (cells, keys)

    @classmethod
    def draw(cls, setting: Setting, seed: int = 0) -> Cells:
        """Simulate cells that express ``n_expressed`` random genes each."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.rand(setting.batch_size, setting.n_genes, generator=generator).argsort(dim=1)
        genes = order[:, : setting.n_expressed].sort(dim=1).values
        expressed = 1 + torch.poisson(torch.full(genes.shape, 1.5), generator=generator)
        counts = torch.zeros(setting.batch_size, setting.n_genes).scatter_(1, genes, expressed)
        classes = [torch.randint(n, (setting.batch_size,), generator=generator) for n in N_CLASSES.values()]
        tensors = (counts, genes + 1, expressed, torch.stack(classes, dim=1))
        return cls(*(tensor.to(setting.device) for tensor in tensors))


class System:
    """Steps on one batch: a method without arguments for each of the ``stages``.

    Attributes
    ----------
    stages
        Names of the steps.
    counted
        Stages whose FLOPs are counted, to compare the time with the device's limit.
    """

    stages: tuple[str, ...]
    counted: tuple[str, ...] = ()

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def n_cells(self, stage: str) -> int:
        """Return how many cells one call of a stage handles."""
        return self.setting.batch_size

    def prepare(self, stage: str) -> None:
        """Prepare a stage before it is measured. Does nothing by default."""

    def measure(self, stage: str, seconds: float) -> Measurement:
        """Measure a stage for about ``seconds``."""
        self.prepare(stage)
        return measure(getattr(self, stage), self.n_cells(stage), device=self.setting.device, seconds=seconds)

    def precision(self, stage: str) -> str:
        """Return what a stage computes in."""
        return "float32"

    def share(self, stage: str) -> float:
        """Return the share of a stage's work that one call does; the rest is extrapolated."""
        return 1.0

    def describe(self, stage: str) -> str:
        """Say how the stage was computed."""
        raise NotImplementedError

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The networks that are trained."""
        raise NotImplementedError

    @property
    def n_parameters(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for network in self.networks for p in network.parameters() if p.requires_grad)

    def _autocast(self) -> torch.autocast:
        is_bf16 = self.setting.precision == "bf16"
        return torch.autocast(torch.device(self.setting.device).type, torch.bfloat16, enabled=is_bf16)


class StandInTrainer:
    """What a stage's plan needs from Lightning's trainer, half-way through training."""

    estimated_stepping_batches = 10_000
    global_step = estimated_stepping_batches // 2
    world_size, global_rank = 1, 0
    max_epochs, accumulate_grad_batches, early_stopping_callbacks = 12, 1, ()

    def __init__(self, precision: str) -> None:
        self.precision = precision


class PlannedSteps:
    """Optimiser steps as in training, with the plan's optimiser, clipping and averages, but without Lightning."""

    def __init__(self, plan: StagePlan, setting: Setting) -> None:
        self.plan = plan.to(setting.device)
        self.trainer = plan.trainer = StandInTrainer(setting.trainer_precision)
        self.optimizer = plan.configure_optimizers()["optimizer"]
        plan.can_replay = plan.can_replay and setting.replay
        plan.on_fit_start()
        plan.on_train_start()
        is_bf16 = setting.precision == "bf16"
        self.autocast = torch.autocast(torch.device(setting.device).type, torch.bfloat16, enabled=is_bf16)

    def take(self, batch: dict[str, Tensor]) -> None:
        """Take one step."""
        self.plan.on_train_batch_start(batch, 0)
        with self.autocast:
            loss = self.plan.take_losses(batch)["loss"]
        self.optimizer.zero_grad(set_to_none=True)
        self.plan.backward(loss)
        self.plan.configure_gradient_clipping(self.optimizer, self.plan.recipe.gradient_clip, "norm")
        self.optimizer.step()
        self.trainer.global_step += 1
        self.plan.on_train_batch_end(loss, batch, 0)


def read_shuffled(cells: TrainingCells, rows: np.ndarray, batch_size: int = 128, n_cells: int | None = None) -> None:
    """Read cells in batches as a training epoch does, or only the first ``n_cells``."""
    from scgen_diffusion.train import EpochBatches

    batches = cells.loader(rows, batch_size, batches=EpochBatches(len(rows), batch_size, seed=0))
    for _ in islice(batches, None if n_cells is None else -(-n_cells // batch_size)):
        pass


def optimise(loss: Tensor, network: nn.Module, optimizer: torch.optim.Optimizer, gradient_clip: float = 10.0) -> None:
    """Take one optimiser step; a clip of 0 means no clipping."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if gradient_clip:
        torch.nn.utils.clip_grad_norm_(network.parameters(), gradient_clip)
    optimizer.step()


# --- SCLDM ----------------------------------------------------------------------------------------------------

#: An untrained prior is nearly a straight line, which an adaptive solver crosses in a few evaluations.
N_PRIOR_STEPS_BEFORE_SAMPLING = 50

N_PERTURBATION_GROUPS = 16  # groups per step of the transport, as in the default recipe


class PublishedSystem(System):
    """The published scLDM at its published sizes: eager, float32, encoding again in every step of the prior."""

    stages = ("autoencoder_step", "prior_step", "generate")

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
    """SCLDM with its default architecture and recipes; the prior trains on latents that are computed once."""

    stages = ("autoencoder_step", "prior_step", "generate", "transport_step")
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
        recipe, options = RECIPES[self.size], {"seed": 0, "compile": setting.compile}
        self.autoencoder_steps = PlannedSteps(AutoencoderPlan(self.module, recipe.autoencoder, **options), setting)
        self.prior_steps = PlannedSteps(PriorPlan(self.module, recipe.prior, **options), setting)

    def autoencoder_step(self) -> None:
        """Take one optimiser step of the autoencoder, as in training."""
        from scvi import REGISTRY_KEYS

        from scgen_diffusion.module import CONDITIONS

        self.autoencoder_steps.take({REGISTRY_KEYS.X_KEY: self.cells.counts, CONDITIONS: self.cells.condition})

    def prior_step(self) -> None:
        """Take one optimiser step of the prior on cached latents, and update the averaged weights."""
        self.prior_steps.take(self.latents)

    def transport_step(self) -> None:
        """Pair latents of control and perturbed cells, and take one optimiser step of the transport between them."""
        self.transport_steps.take(self.pairs)

    def generate(self) -> None:
        """Sample latents by the default sampler, draw library sizes, decode and draw counts."""
        from scgen_diffusion.diffusion import FLOW_SAMPLERS, Generators, ResolvedGuidance
        from scgen_diffusion.model import SCLDM

        condition = self.cells.condition
        with torch.inference_mode(), self._autocast():
            self.module.sample_cells(
                condition,
                Generators(0, range(len(condition)), self.setting.device),
                guidance=ResolvedGuidance.of(self.module.strategy, [1.0] * len(N_CLASSES)),
                sampler=FLOW_SAMPLERS[SCLDM.default_sampler],
                n_steps=self.setting.n_steps,
                library_size=self.module.architecture.library_size,
                n_wanted=len(condition),
            )

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
        """Build the transport if the stage needs it."""
        if stage == "transport_step" and self.module.transport is None:
            self._make_transport()

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """Autoencoder and prior."""
        module = self.module
        return module.encoder, module.decoder, module.likelihood, module.prior

    @torch.no_grad()
    def _start(self) -> dict[str, Tensor]:
        """Do what training does first: start from the mean cell, compute latents and library statistics."""
        from scgen_diffusion.module import total_counts

        x, condition, module = self.cells.counts, self.cells.condition, self.module
        module.start_from_means(module.modelled_values(x).mean(0), module.pooled_profile(x).mean(0))
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
    """SCLDM with the published architecture, computed as in the package."""

    stages = ("autoencoder_step", "prior_step", "generate")
    size = "published"
    # torch's counter fails where gene queries are decoded without gradients
    counted = ("autoencoder_step", "prior_step")


# --- gene space ------------------------------------------------------------------------------------------------

LONGEST_SAMPLING = 60.0  # seconds; a batch that takes longer is not sampled in full
N_STEPS = 3  # steps to measure of a sampler that takes longer
LONG_STEP = 2.0  # seconds; one step of this length is enough
ZERO_VALUE = -10.0  # published for scRDiT
N_SAMPLED = {"cpu": 128, "cuda": 8192}  # a block on a CPU; eight on a GPU, as a request has costs of its own


class Extrapolation:
    """How much of a sampler's work is measured: all of it, or a few steps, which all cost the same."""

    def __init__(self, n_steps: int) -> None:
        self.n_steps = self.n_measured = n_steps

    def choose(self, take_steps: Callable[[int], object], device: str) -> None:
        """Measure what a step more costs, without what every call costs, and then all steps if they are fast enough."""

        def seconds(n_steps: int) -> float:
            synchronise(device)
            started = clock(device)
            take_steps(n_steps)
            synchronise(device)
            return clock(device) - started

        seconds(1)  # the first call warms up
        step = seconds(2) - seconds(1)
        few = min(N_STEPS if step < LONG_STEP else 1, self.n_steps)
        self.n_measured = self.n_steps if step * self.n_steps <= LONGEST_SAMPLING else few

    @property
    def share(self) -> float:
        """Share of the work that is measured."""
        return self.n_measured / self.n_steps

    def describe(self) -> str:
        """Describe the number of steps in words."""
        if self.n_measured == self.n_steps:
            return f"{self.n_steps} steps"
        return f"{self.n_steps} steps, extrapolated from {self.n_measured}"


class PublishedScrdit(System):
    """The published scRDiT at its published size: eager, float32, unconditional, unfused attention."""

    stages = ("training_step", "generate_ddpm", "generate_ddim")
    white_box = False
    learning_rate = 3e-4

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        torch.manual_seed(0)
        self.profiles = self._profiles()
        self.diffusion = Diffusion(setting.device)
        self.network = NoisePredictor(self.profiles.shape[1], white_box=self.white_box).to(setting.device)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.learning_rate)
        self.timesteps = {"generate_ddpm": DDPM_TIMESTEPS, "generate_ddim": DDIM_TIMESTEPS}
        self.extrapolations = {stage: Extrapolation(len(t) - 1) for stage, t in self.timesteps.items()}

    def training_step(self) -> None:
        """Take one optimiser step."""
        optimise(self.diffusion.loss(self.network, self.profiles), self.network, self.optimizer, gradient_clip=0)

    def generate_ddpm(self) -> None:
        """Sample a batch in 999 ancestral steps."""
        self._generate("generate_ddpm", self.diffusion.ddpm)

    def generate_ddim(self) -> None:
        """Sample a batch in 100 steps of DDIM with eta 1."""
        self._generate("generate_ddim", self.diffusion.ddim)

    def n_cells(self, stage: str) -> int:
        """Return how many cells one call of a stage handles."""
        return n_cells(self.setting, stage)

    def share(self, stage: str) -> float:
        """Share of the stage's work that one call does."""
        return self.extrapolations[stage].share if stage in self.extrapolations else 1.0

    def describe(self, stage: str) -> str:
        """Say how the stage was computed."""
        how = "eager float32"
        return f"{how}, {self.extrapolations[stage].describe()}" if stage in self.extrapolations else how

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The network."""
        return (self.network,)

    @torch.inference_mode()
    def prepare(self, stage: str) -> None:
        """Find out how much of the sampling can be measured."""
        if stage in self.extrapolations:
            x = self._noise(stage)
            t = x.new_zeros(len(x))
            self.extrapolations[stage].choose(
                lambda n_steps: [self.network(x, t) for _ in range(n_steps)], self.setting.device
            )

    @torch.inference_mode()
    def _generate(self, stage: str, sampler: Callable[..., torch.Tensor]) -> None:
        timesteps = self.timesteps[stage][: self.extrapolations[stage].n_measured + 1]
        sampler(self.network, self._noise(stage), timesteps).clamp(min=0)

    def _noise(self, stage: str) -> torch.Tensor:
        return torch.randn(self.n_cells(stage), self.profiles.shape[1], device=self.setting.device)

    def _profiles(self) -> torch.Tensor:
        counts = Cells.draw(self.setting).counts
        profiles = (1e4 * counts / counts.sum(1, keepdim=True)).log1p()
        return profiles if self.white_box else torch.where(profiles == 0, ZERO_VALUE, profiles)


class PublishedWbdit(PublishedScrdit):
    """The published white-box diffusion transformer."""

    white_box = True
    learning_rate = 1e-4


class PackageScrdit(System):
    """SCRDIT, trained and sampled as in the package."""

    stages = ("training_step", "generate")
    counted = stages
    model_class = "SCRDIT"
    size = "default"

    def __init__(self, setting: Setting) -> None:
        from scgen_diffusion.train import DiffusionPlan

        super().__init__(setting)
        torch.manual_seed(0)
        self.cells = Cells.draw(setting)
        self.model = self._model()
        self.condition = torch.from_numpy(self.model.conditions.encode(self._obs(), None)).to(setting.device)
        self.module = self.model.module
        recipe = self.model._recipe("diffusion")
        self.steps = PlannedSteps(DiffusionPlan(self.module, recipe, seed=0, compile=setting.compile), setting)
        self.extrapolation = Extrapolation(setting.n_steps or self._sampler.default_n_steps)
        if setting.compile:  # for generation, which the package does not compile
            self.module.averaged_network.compile()

    def training_step(self) -> None:
        """Take one optimiser step, as in training, and update the averaged weights."""
        from scvi import REGISTRY_KEYS

        from scgen_diffusion.module import CONDITIONS

        batch = {REGISTRY_KEYS.X_KEY: self.cells.counts, CONDITIONS: self.condition}
        self.steps.take(batch)

    def generate(self) -> None:
        """Generate profiles, as the published systems do, by the default sampler."""
        self._sample(self.extrapolation.n_measured)

    def n_cells(self, stage: str) -> int:
        """Return how many cells one call of a stage handles."""
        return n_cells(self.setting, stage)

    def share(self, stage: str) -> float:
        """Share of the stage's work that one call does."""
        return self.extrapolation.share if stage == "generate" else 1.0

    def describe(self, stage: str) -> str:
        """Say how the stage was computed; `generate` always uses float32."""
        compiled = f"{self.size} size, {'compiled ' if self.setting.compile else ''}"
        if stage != "generate":
            return f"{compiled}{self.setting.precision}"
        return f"{compiled}float32, {self.model.default_sampler}, {self.extrapolation.describe()}"

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The network."""
        return (self.module.network,)

    def precision(self, stage: str) -> str:
        """Return what a stage computes in."""
        return "float32" if stage == "generate" else self.setting.precision

    def prepare(self, stage: str) -> None:
        """Find out how much of the sampling can be measured."""
        if stage == "generate":
            self.extrapolation.choose(self._sample, self.setting.device)

    def _sample(self, n_steps: int) -> None:
        with warnings.catch_warnings(action="ignore"):  # an untrained network's cells are far from real ones
            self.model.generate(self.n_cells("generate"), n_steps=n_steps, seed=0, show_progress=False)

    @property
    def _sampler(self) -> Any:
        from scgen_diffusion.diffusion import samplers_for

        sampler = self.model.default_sampler
        return samplers_for(self.module.path)[sampler] if isinstance(sampler, str) else sampler

    def _model(self) -> SCRDIT:
        """Build the model and train it for one step, which also computes its statistics of the cells."""
        from scgen_diffusion import model

        model_class = getattr(model, self.model_class)
        adata = self._adata()
        model_class.setup_anndata(adata, layer="counts", condition_keys=list(N_CLASSES))
        built = model_class(adata, size=self.size, **self.setting.architecture)
        accelerator = "gpu" if self.setting.device.startswith("cuda") else "cpu"
        quiet = {"enable_progress_bar": False, "logger": False}
        size = {"batch_size": self.setting.batch_size, "train_size": 1.0}
        built.train(1, accelerator=accelerator, **size, **quiet)
        built.module.to(self.setting.device).train()
        return built

    def _adata(self) -> ad.AnnData:
        counts = self.cells.counts.cpu().numpy()
        return ad.AnnData(counts, obs=self._obs(), layers={"counts": counts})

    def _obs(self) -> pd.DataFrame:
        """Return the cells' conditions as a table."""
        codes = self.cells.condition.cpu().numpy()
        columns = {key: pd.Categorical(codes[:, i].astype(str)) for i, key in enumerate(N_CLASSES)}
        return pd.DataFrame(columns, index=[f"cell-{i}" for i in range(len(codes))])


def n_cells(setting: Setting, stage: str) -> int:
    """Return how many cells one call of a stage handles: sampling uses whole blocks, whatever the batch size."""
    return N_SAMPLED[torch.device(setting.device).type] if stage.startswith("generate") else setting.batch_size


class PackageScrditPublishedSize(PackageScrdit):
    """SCRDIT at the published size."""

    size = "published"


class PackageWbdit(PackageScrdit):
    """WBDIT."""

    model_class = "WBDIT"


class PackageWbditPublishedSize(PackageWbdit):
    """WBDIT at the published size."""

    size = "published"
