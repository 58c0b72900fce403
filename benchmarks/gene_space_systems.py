"""The gene-space systems whose speed is compared, each as steps on one batch of made-up cells."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import anndata as ad
import pandas as pd
import torch
from measuring import clock, synchronise
from published_gene_space import DDIM_TIMESTEPS, DDPM_TIMESTEPS, Diffusion, NoisePredictor
from system import N_CLASSES, Cells, PlannedSteps, Setting, System, optimise

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from scgen_diffusion.model import SCRDIT

LONGEST_SAMPLING = 60.0  # seconds that a batch may take to be sampled in full
N_STEPS = 3  # of a sampler that would take longer
LONG_STEP = 2.0  # seconds; of such steps, one is enough
ZERO_VALUE = -10.0  # published for scRDiT
N_SAMPLED = {"cpu": 128, "cuda": 1024}  # cells sampled at a time, as many as the package takes


class Extrapolation:
    """How much of a sampler's work is measured: all of it, or a few of its steps, each of which costs the same."""

    def __init__(self, n_steps: int) -> None:
        self.n_steps = self.n_measured = n_steps

    def choose(self, take_step: Callable[[], object], device: str) -> None:
        """Time one step, the second one, and measure all if they are done soon enough."""
        take_step()
        synchronise(device)
        started = clock(device)
        take_step()
        synchronise(device)
        spent = clock(device) - started
        few = min(N_STEPS if spent < LONG_STEP else 1, self.n_steps)
        self.n_measured = self.n_steps if spent * self.n_steps <= LONGEST_SAMPLING else few

    @property
    def share(self) -> float:
        """Share of the work that is measured."""
        return self.n_measured / self.n_steps

    def describe(self) -> str:
        """Say so in words."""
        if self.n_measured == self.n_steps:
            return f"{self.n_steps} steps"
        return f"{self.n_steps} steps, extrapolated from {self.n_measured}"


class PublishedScrdit(System):
    """The published scRDiT at its published size: eager, float32, unconditional, unfused attention."""

    stages = ("training_step", "generate_ddpm", "generate_ddim")
    yardstick = "published-scrdit"
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
            self.extrapolations[stage].choose(lambda: self.network(x, t), self.setting.device)

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

    yardstick = "published-wbdit"
    white_box = True
    learning_rate = 1e-4


class PackageScrdit(System):
    """SCRDIT, trained and sampled the package's way."""

    stages = ("training_step", "generate")
    yardstick = "published-scrdit"
    counted = stages
    model_class = "SCRDIT"
    size = "default"

    def __init__(self, setting: Setting) -> None:
        from scgen_diffusion.train import DIFFUSION_RECIPES, DiffusionPlan

        super().__init__(setting)
        torch.manual_seed(0)
        self.cells = Cells.draw(setting)
        self.model = self._model()
        self.condition = torch.from_numpy(self.model.conditions.encode(self._obs(), None)).to(setting.device)
        self.module = self.model.module
        recipe = DIFFUSION_RECIPES[self.model_class][self.size]
        self.steps = PlannedSteps(DiffusionPlan(self.module, recipe, seed=0), setting)
        self.extrapolation = Extrapolation(setting.n_steps or self._sampler.default_n_steps)
        if setting.compile:
            self.module.network.compile()
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
        """Say how the stage was computed; `generate` computes in float32 whatever the training does."""
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
            self.extrapolation.choose(lambda: self._sample(1), self.setting.device)

    def _sample(self, n_steps: int) -> None:
        with warnings.catch_warnings(action="ignore"):  # an untrained network's cells are far from any
            self.model.generate(self.n_cells("generate"), n_steps=n_steps, seed=0, show_progress=False)

    @property
    def _sampler(self) -> Any:
        from scgen_diffusion.diffusion import samplers_for

        sampler = self.model.default_sampler
        return samplers_for(self.module.path)[sampler] if isinstance(sampler, str) else sampler

    def _model(self) -> SCRDIT:
        """Build the model and train it for one step, which also takes all that it takes from the cells."""
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
    """Return how many cells one call of a stage handles: sampling takes whole blocks, whatever the training's batch."""
    return N_SAMPLED[torch.device(setting.device).type] if stage.startswith("generate") else setting.batch_size


class PackageScrditPublishedSize(PackageScrdit):
    """SCRDIT at the published size."""

    size = "published"


class PackageWbdit(PackageScrdit):
    """WBDIT."""

    yardstick = "published-wbdit"
    model_class = "WBDIT"


class PackageWbditPublishedSize(PackageWbdit):
    """WBDIT at the published size."""

    size = "published"
