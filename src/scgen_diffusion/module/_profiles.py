"""Module of models that remove noise from log-normalised profiles, and its networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from scvi.module.base import auto_move_data
from torch import Tensor, nn

from scgen_diffusion.diffusion import (
    TARGETS,
    Denoiser,
    GuidedField,
    VariancePreserving,
    diffusion_loss,
    expand_time,
    spike_and_slab_mean,
)
from scgen_diffusion.nn import log_profile

from ._gene_space import GeneSpaceModule, build_backbone

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from scgen_diffusion.diffusion import Generators, Guidance, Target
    from scgen_diffusion.nn import ConditionEncoding, InputValues

    from ._architecture import ProfileArchitecture
    from ._conditioned import TensorMap

LARGEST_PROFILE = 20.0  # limit of a gene's value; diverged cells have larger ones, whose exponential overflows
SMALLEST_SCALE = 0.05  # of a gene; genes that hardly vary are not scaled up further
LARGEST_WEIGHT = 20.0

# --- networks ---------------------------------------------------------------------------------------------------------


def summarise_profiles(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return each gene's share of cells that express it, of batches of profiles ``(cells, genes)`` that are read once.

    After it come mean and standard deviation of its value in these cells, each ``(genes,)``; for genes without such
    cells, the mean over all genes and 0. Last comes the smallest value above zero.
    """
    n_cells, sums, smallest = 0, torch.zeros(1), torch.tensor(torch.inf)
    for profile in batches:
        x = profile.cpu().double()
        sums = sums + torch.stack([(x > 0).sum(0), x.sum(0), x.square().sum(0)])
        n_cells += len(x)
        smallest = torch.minimum(smallest, x.where(x > 0, torch.inf).min())
    n_expressed, total, squares = sums
    mean = (total / n_expressed).where(n_expressed > 0, total.sum() / n_expressed.sum())
    variance = (squares / n_expressed - mean.square()).where(n_expressed > 0, 0.0)
    return (n_expressed / n_cells).float(), mean.float(), variance.clamp(min=0).sqrt().float(), smallest.float()


class RegressionNetwork(nn.Module):
    """A backbone that predicts the target directly, learned by least squares.

    Parameters
    ----------
    backbone
        ``(x_t, network time, condition) -> (cells, genes)``.
    target
        What the backbone predicts.
    """

    n_outputs = 1
    path = VariancePreserving()

    def __init__(self, backbone: nn.Module, target: Target) -> None:
        super().__init__()
        self.backbone, self.target = backbone, target

    def forward(self, x_t: Tensor, network_time: Tensor, condition: Tensor) -> Tensor:
        """Predict the target from ``x_t (cells, genes)``, times ``(cells,)`` and conditions ``(cells, columns)``."""
        return self.backbone(x_t, network_time, condition)

    def loss(self, data: Tensor, noise: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Return each cell's mean squared error, ``(cells,)``."""
        return diffusion_loss(self, self.path, self.target, data, noise=noise, t=t, condition=condition)

    def start_from(self, *, spike: Tensor, frequency: Tensor, mean: Tensor, std: Tensor) -> None:
        """Initialise from statistics of the genes; this network uses none."""


class SpikeAndSlabNetwork(RegressionNetwork):
    r"""A backbone that predicts the prior of each gene's value: exactly zero, or normally distributed.

    The prediction is the expected data given this prior and the gene's own noisy value
    (:func:`~scgen_diffusion.diffusion.spike_and_slab_mean`). Its squared error is weighted by
    :math:`\min(1 / \sigma_t^2, 20)`: at low noise the prediction is easy and must be exact.

    Parameters
    ----------
    backbone
        ``(x_t, network time, condition) -> (cells, 3, genes)``: log odds of expression, mean and log standard deviation
        of expressed values, relative to those of the gene.
    n_genes
        Number of genes.
    """

    n_outputs = 3
    spike: Tensor

    def __init__(self, backbone: nn.Module, n_genes: int) -> None:
        super().__init__(backbone, TARGETS["data"])
        self.gene_prior = nn.Parameter(torch.zeros(self.n_outputs, n_genes))
        self.register_buffer("spike", torch.zeros(n_genes))

    def forward(self, x_t: Tensor, network_time: Tensor, condition: Tensor) -> Tensor:
        """Predict the data from ``x_t (cells, genes)``, times ``(cells,)`` and conditions ``(cells, columns)``."""
        prior = self.backbone(x_t, network_time, condition) + self.gene_prior
        t = self.path.time(network_time)
        alpha, sigma = expand_time(self.path.alpha(t), x_t), expand_time(self.path.sigma(t), x_t)
        return spike_and_slab_mean(prior, x_t, alpha=alpha, sigma=sigma, spike=self.spike)

    def loss(self, data: Tensor, noise: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Return each cell's weighted mean squared error, ``(cells,)``."""
        return super().loss(data, noise, t, condition) * (1 / self.path.sigma(t).square()).clamp(max=LARGEST_WEIGHT)

    @torch.no_grad()
    def start_from(self, *, spike: Tensor, frequency: Tensor, mean: Tensor, std: Tensor) -> None:
        """Initialise from each gene's frequency, mean and standard deviation of expression, ``(genes,)``."""
        self.spike.copy_(spike)
        self.gene_prior.copy_(torch.stack([frequency.logit(eps=1e-4), mean, std.clamp(min=0.03).log()]))


def build_network(n_genes: int, conditions: Sequence[ConditionEncoding], a: ProfileArchitecture) -> RegressionNetwork:
    """Build the network that an architecture names."""
    if a.head == "spike_and_slab":
        backbone = build_backbone(n_genes, conditions, a, SpikeAndSlabNetwork.n_outputs)
        return SpikeAndSlabNetwork(backbone, n_genes)
    return RegressionNetwork(build_backbone(n_genes, conditions, a, RegressionNetwork.n_outputs), TARGETS[a.target])


# --- module -----------------------------------------------------------------------------------------------------------


class ProfileModule(GeneSpaceModule):
    """Diffusion of log-normalised profiles, as in denoising diffusion probabilistic models (DDPM).

    A cell's profile is ``log1p(1e4 x / sum(x))``. The network sees it scaled, with exact zeros replaced by
    ``architecture.zero_value`` if that is set.

    Parameters
    ----------
    n_input
        Number of genes.
    conditions
        Encoding of each condition key, see :class:`~scgen_diffusion.nn.ConditionEmbedding`.
    input_values
        ``"counts"``, or ``"log1p"`` for log-normalised values.
    architecture
        Sizes and parts.

    References
    ----------
    scRDiT: arXiv 2404.06153. White-Box Diffusion Transformer: arXiv 2411.06785.
    """

    architecture: ProfileArchitecture
    shift: Tensor
    scale: Tensor
    smallest_value: Tensor

    def __init__(
        self,
        n_input: int,
        conditions: Sequence[ConditionEncoding] = (),
        *,
        input_values: InputValues = "counts",
        architecture: ProfileArchitecture,
    ) -> None:
        network = build_network(n_input, conditions, architecture)
        super().__init__(n_input, conditions, network, architecture, n_features=2 * n_input)
        self.input_values = input_values
        self.register_buffer("shift", torch.zeros(n_input))
        self.register_buffer("scale", torch.ones(n_input))
        self.register_buffer("smallest_value", torch.tensor(0.0))

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

    def _summarise(self, batches: Iterable[Tensor]) -> tuple[Tensor, ...]:
        summary = summarise_profiles(log_profile(x, self.input_values) for x in batches)
        return tuple(part.to(self.shift.device) for part in summary)

    def start_from(self, batches: Iterable[Tensor]) -> None:
        """Set scale, smallest value and the distribution of each gene from training cells.

        They are batches of expression ``(cells, genes)``, which are read once.
        """
        (frequency, mean, std, smallest), zero = self._summarise(batches), self.architecture.zero_value or 0.0
        if self.architecture.scaling == "gene":  # to the mean and standard deviation of all values, zeros included
            distance = mean - zero
            variance = frequency * std.square() + frequency * (1 - frequency) * distance.square()
            self.shift.copy_(zero + frequency * distance)
            self.scale.copy_(variance.sqrt().clamp(min=SMALLEST_SCALE))
        self.smallest_value.copy_(smallest)
        for network in self.both_networks:
            network.start_from(
                spike=(zero - self.shift) / self.scale,
                frequency=frequency,
                mean=(mean - self.shift) / self.scale,
                std=std / self.scale,
            )

    def include(self, batches: Iterable[Tensor]) -> None:
        """Let the smallest value be that of further training cells, if they have smaller ones."""
        self.smallest_value.clamp_(max=self._summarise(batches)[-1])

    def whole_cells(self, x: Tensor) -> Tensor:
        """Return the data of cells ``x (cells, genes)``."""
        return self.encode(log_profile(x, self.input_values))

    # --- training, as scvi-tools calls it -----------------------------------------------------------------------------

    @auto_move_data
    def inference(self, x: Tensor) -> dict[str, Tensor]:
        """Return the profiles of expression ``(cells, genes)``, the data that diffuse, and what totals follow from."""
        profile = log_profile(x, self.input_values)
        return {"profile": profile, "data": self.encode(profile), "features": library_features(profile)}

    def draw_for_training(self, x: Tensor, generator: torch.Generator, *, training: bool) -> dict[str, Tensor]:
        """Draw noise and times for cells ``x (cells, genes)``."""
        noise = torch.randn(x.shape, generator=generator, device=x.device)
        return {"noise": noise, "t": self.path.draw_times(len(x), generator, x.device)}

    # --- generation ---------------------------------------------------------------------------------------------------

    def draw_noise(self, generators: Generators) -> Tensor:
        """Draw the noise that generation starts from, ``(cells, genes)``."""
        return generators.normal(self.n_input)

    def denoiser(self, condition: Tensor, guidance: Guidance) -> Denoiser:
        """Return the denoiser for ``condition (cells, columns)`` and guidance."""
        field = GuidedField(self.averaged_network, condition, self.condition_columns, guidance)
        return Denoiser(field, self.path, self.network.target)

    def cells_of(
        self,
        states: Tensor,
        draw_totals: TensorMap,
        generators: Generators,
        shown: Tensor,
        output: InputValues,
        **_: Any,
    ) -> Tensor:
        """Turn generated values into profiles or counts ``(block, genes)``."""
        return self._profiles_or_counts(states, draw_totals, output)

    def predict_cells(
        self, x: Tensor, move: TensorMap, draw_totals: TensorMap, generators: Generators, output: InputValues, **_: Any
    ) -> Tensor:
        """Predict the profiles or counts of cells ``x (block, genes)`` under new conditions, ``(block, genes)``."""
        given = self.inference(x)
        return self._profiles_or_counts(move(given["data"]), draw_totals, output, given["profile"])

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
