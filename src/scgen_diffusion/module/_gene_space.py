"""Module of the gene-space models: tensors in, losses and profiles out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from scvi import REGISTRY_KEYS
from scvi.module.base import LossOutput, auto_move_data
from torch import Tensor

from scgen_diffusion.diffusion import (
    TARGETS,
    DDIMSampler,
    DDPMSampler,
    Denoiser,
    Generators,
    Guidance,
    GuidedField,
    Kinds,
    NoiseInversion,
    Path,
    Sampler,
    Target,
)
from scgen_diffusion.nn import GeneDiT, GeneMLP, InputValues, log_profile, total_counts

from ._conditioned import ConditionedModule, TensorMap
from ._ema import averaged_copy
from ._gene_space_networks import ProfileSummary, build_network
from ._library_size import LibrarySizeModel

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch.optim.swa_utils import AveragedModel

    from scgen_diffusion.diffusion import Inversion
    from scgen_diffusion.nn import ConditionSpec

    from ._architecture import GeneSpaceArchitecture
    from ._gene_space_networks import RegressionNetwork

LARGEST_PROFILE = 20.0  # limit of a gene's value; diverged cells have larger ones, whose exponential overflows
SMALLEST_SCALE = 0.05  # of a gene; genes that hardly vary are not scaled up further


class GeneSpaceModule(ConditionedModule):
    """Diffusion of log-normalised profiles.

    A cell's profile is ``log1p(1e4 x / sum(x))``. The network sees it scaled, with exact zeros replaced by
    ``architecture.zero_value`` if that is set.

    Parameters
    ----------
    n_input
        Number of genes.
    conditions
        Kind of each condition key, see :class:`~scgen_diffusion.nn.ConditionEmbedding`.
    input_values
        ``"counts"``, or ``"log1p"`` for log-normalised values.
    architecture
        Sizes and parts.

    References
    ----------
    scRDiT: arXiv 2404.06153. White-Box Diffusion Transformer: arXiv 2411.06785.
    """

    shift: Tensor
    scale: Tensor
    training_zeros: Tensor
    smallest_value: Tensor
    largest_value: Tensor

    def __init__(
        self,
        n_input: int,
        conditions: Sequence[ConditionSpec] = (),
        *,
        input_values: InputValues = "counts",
        architecture: GeneSpaceArchitecture,
    ) -> None:
        super().__init__()
        a = self.architecture = architecture
        self.n_input = n_input
        self.input_values = input_values
        self.network = build_network(n_input, conditions, a)
        self.averaged_network = averaged_copy(self.network)
        self.library_size = LibrarySizeModel(conditions, 2 * n_input if self.predicts_totals else 1)
        self._register_conditions(conditions)
        self.register_buffer("shift", torch.zeros(n_input))
        self.register_buffer("scale", torch.ones(n_input))
        self.register_buffer("training_zeros", torch.tensor(float("nan")))
        self.register_buffer("smallest_value", torch.tensor(0.0))
        self.register_buffer("largest_value", torch.tensor(float("nan")))

    @property
    def predicts_totals(self) -> bool:
        """Whether total counts are predicted from profiles, after these are generated."""
        return self.input_values == "counts" and self.architecture.path != "masking"

    @property
    def network_and_average(self) -> tuple[RegressionNetwork, AveragedModel]:
        """The network, and the average of its weights."""
        return self.network, self.averaged_network

    @property
    def path(self) -> Path:
        """How data becomes noise."""
        return self.network.path

    @property
    def target(self) -> Target | Kinds:
        """What the network predicts."""
        return TARGETS.get(self.architecture.target, Kinds())

    # --- from profiles to the network's values and back ---------------------------------------------------------------

    def encode(self, profile: Tensor) -> Tensor:
        """Turn profiles ``(cells, genes)`` into diffusion data: negate zeros and scale values."""
        if (zero := self.architecture.zero_value) is not None:
            profile = torch.where(profile == 0, zero, profile)
        return (profile - self.shift) / self.scale

    def expected_profiles(self, values: Tensor) -> Tensor:
        """Turn estimated values ``(cells, genes)`` into profiles, without cutting zeros."""
        return values * self.scale + self.shift

    def cut_zeros(self, profile: Tensor, given: Tensor | None = None) -> Tensor:
        """Make small values of profiles ``(cells, genes)`` exact zeros.

        With zero negation, these are values below 0. Without it, they are below half of the smallest training value, or
        of the smallest value of the ``given`` cells' own profiles, as single counts of deep cells are smaller.
        """
        smallest = self.smallest_value
        if given is not None:
            smallest = torch.minimum(smallest, given.masked_fill(given <= 0, torch.inf).amin(1, keepdim=True))
        cut = smallest / 2 if self.architecture.zero_value is None else 0.0
        return torch.where(profile <= cut, 0.0, profile)  # NaN stays, to be detected later

    def _summarise(self, batches: Iterable[Tensor]) -> ProfileSummary:
        return ProfileSummary.of((log_profile(x, self.input_values) for x in batches), self.shift.device)

    def start_from(self, batches: Iterable[Tensor]) -> None:
        """Set scale, limits of values and the distribution of each gene from training cells.

        They are batches of expression ``(cells, genes)``, which are read once.
        """
        summary, zero = self._summarise(batches), self.architecture.zero_value or 0.0
        if self.architecture.scaling == "gene":
            mean, std = summary.moments(zero)
            self.shift.copy_(mean)
            self.scale.copy_(std.clamp(min=SMALLEST_SCALE))
        self.training_zeros.copy_(summary.fewest_zeros)
        self.smallest_value.copy_(summary.smallest)
        self.largest_value.copy_(summary.largest)
        for network in self._both_networks:
            network.start_from(
                spike=(zero - self.shift) / self.scale,
                frequency=summary.frequency,
                mean=(summary.expressed_mean - self.shift) / self.scale,
                std=summary.expressed_std / self.scale,
            )

    def widen_limits(self, batches: Iterable[Tensor], *, cut: bool) -> None:
        """Let the limits of values include those of further training cells; with ``cut``, also that of zeros."""
        summary = self._summarise(batches)
        self.training_zeros.clamp_(max=summary.fewest_zeros)
        self.largest_value.clamp_(min=summary.largest)
        if cut:
            self.smallest_value.clamp_(max=summary.smallest)

    def start_reading(self, directions: Tensor) -> None:
        """Initialise what reads all genes as coordinates along ``directions (k, genes)``."""
        for network in self._both_networks:
            network.backbone.start_reading(directions)

    def gene_loadings(self) -> list[Tensor]:
        """List the weight matrices with one row or column per gene."""
        backbone = self.network.backbone
        return backbone.gene_weights if isinstance(backbone, GeneDiT | GeneMLP) else []

    @property
    def _both_networks(self) -> tuple[RegressionNetwork, RegressionNetwork]:
        return self.network, self.averaged_network.module

    # --- training, as scvi-tools calls it -----------------------------------------------------------------------------

    def _get_generative_input(
        self, tensors: Mapping[str, Tensor], inference_outputs: Mapping[str, Tensor], **_: Any
    ) -> dict[str, Tensor]:
        return {"data": inference_outputs["data"]}

    @auto_move_data
    def inference(self, x: Tensor) -> dict[str, Tensor]:
        """Return the profiles of expression ``(cells, genes)``, and the data that diffuse."""
        profile = log_profile(x, self.input_values)
        return {"profile": profile, "data": self.encode(profile)}

    @auto_move_data
    def generative(
        self, data: Tensor, t: Tensor, condition: Tensor, *, averaged: bool = False, **drawn: Tensor
    ) -> dict[str, Tensor]:
        """Return each cell's error ``(cells,)`` in predicting the target from noised data.

        Parameters
        ----------
        data
            Data that diffuse, ``(cells, genes)``.
        t
            Times, ``(cells,)``.
        condition
            ``(cells, columns)``.
        averaged
            Whether to use the averaged weights.
        **drawn
            What else :meth:`draw_for_training` returns.
        """
        network = self.averaged_network.module if averaged else self.network
        return {"error": network.loss(data, t=t, condition=condition, **drawn)}

    def loss(
        self,
        tensors: Mapping[str, Tensor],
        inference_outputs: Mapping[str, Tensor],
        generative_outputs: Mapping[str, Tensor],
    ) -> LossOutput:
        """Return the mean error of the target plus the loss of the library size predicted from the profile."""
        error = generative_outputs["error"]
        losses = {"denoising_loss": error.mean()}
        if self.predicts_totals:
            log_totals = total_counts(tensors[REGISTRY_KEYS.X_KEY])[:, 0].log()
            losses["library_size_loss"] = self.library_size.loss(
                library_features(inference_outputs["profile"]), log_totals
            ).mean()
        return LossOutput(loss=sum(losses.values()), extra_metrics=losses, n_obs_minibatch=len(error))

    # --- generation ---------------------------------------------------------------------------------------------------

    def draw_noise(self, generators: Generators) -> Tensor:
        """Draw the noise that generation starts from, ``(cells, genes)``."""
        return generators.normal(self.n_input)

    def draw_for_training(self, x: Tensor, generator: torch.Generator, *, training: bool) -> dict[str, Tensor]:
        """Draw noise and times for cells ``x``: arguments of :meth:`generative`."""
        noise = torch.randn(x.shape, generator=generator, device=x.device)
        return {"noise": noise, "t": self.path.draw_times(len(x), generator, x.device)}

    def denoiser(self, condition: Tensor, guidance: Guidance) -> Denoiser:
        """Return the denoiser for ``condition (cells, columns)`` and guidance."""
        field = GuidedField(self.averaged_network, condition, self.condition_columns, guidance)
        return Denoiser(field, self.path, self.target)

    def cells_of(
        self, states: Tensor, draw_totals: TensorMap, wanted: Generators, shown: Tensor, output: InputValues, **_: Any
    ) -> Tensor:
        """Turn generated values into profiles or counts ``(block, genes)``."""
        return self._profiles_or_counts(states, draw_totals, output)

    def inversion_by(self, sampler: Sampler) -> Inversion:
        """Return the inversion that finds the noise that a sampler would have drawn."""
        if not isinstance(sampler, DDIMSampler | DDPMSampler):
            msg = f"`sampler` {sampler!r} cannot be inverted; choose one of ['ddpm', 'ddim']."
            raise ValueError(msg)
        eta = sampler.eta if isinstance(sampler, DDIMSampler) else 1.0
        return NoiseInversion(eta, sampler.default_n_steps)

    def predict_cells(
        self, x: Tensor, move: TensorMap, draw_totals: TensorMap, generators: Generators, output: InputValues, **_: Any
    ) -> Tensor:
        """Predict the profiles or counts of cells ``x (block, genes)`` under new conditions, ``(block, genes)``."""
        given = self.inference(x)
        return self._profiles_or_counts(move(given["data"]), draw_totals, output, given.get("profile"))

    def _profiles_or_counts(
        self, states: Tensor, draw_totals: TensorMap, output: InputValues, given: Tensor | None = None
    ) -> Tensor:
        profile = self.cut_zeros(self.expected_profiles(states), given)
        return profile if output == "log1p" else to_counts(profile, draw_totals(library_features(profile)))

    def has_zeros(self, output: InputValues) -> bool:
        """Return whether generated cells have enough zeros to be stored sparse: always."""
        return True


def to_counts(profile: Tensor, totals: Tensor) -> Tensor:
    """Turn profiles ``(cells, genes)`` into integer counts that add up to the rounded ``totals (cells,)``.

    A profile without expressed genes gives a cell without counts, whatever its total.

    A generated profile imitates observed cells, including their counting noise. Drawing counts from it would add that
    noise again, so counts are rounded instead; the largest fractions are rounded up until the total fits. For a real
    cell this returns its own counts.
    """
    shares = profile.clamp(0, LARGEST_PROFILE).expm1()
    shares = shares / shares.sum(1, keepdim=True).clamp(min=1e-8)
    expected = shares * totals[:, None]
    counts = expected.floor()
    n_up = (totals - counts.sum(1)).round()
    rank = (expected - counts).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return counts + ((rank < n_up[:, None]) & (expected > counts))


def library_features(profile: Tensor) -> Tensor:
    """Return features that predict a cell's total: its profile ``(cells, genes)`` beside a mask of expressed genes."""
    return torch.cat([profile, (profile > 0).to(profile)], dim=1)
