"""Networks of the gene-space models, and the statistics of training cells that they start from.

A backbone with a head that turns its outputs into a prediction: the target of noisy profiles, or the genes of masked
molecules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from scgen_diffusion.diffusion import PATHS, TARGETS, Masking, diffusion_loss, expand_time, spike_and_slab_mean
from scgen_diffusion.nn import GeneDiT, GeneMLP, GeneUNet, Number, total_counts

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from scgen_diffusion.diffusion import Path, Target
    from scgen_diffusion.nn import ConditionSpec

    from ._architecture import GeneSpaceArchitecture

LARGEST_WEIGHT = 20.0
FEATURE_SUM = 1000.0  # total counts of the profile that the backbone sees
UNSEEN = 20.0  # molecules added to the seen ones, so that the first molecules do not look like the whole cell
TIME_SCALE = 1000.0  # the backbones' time embedding is made for timesteps from 0 to 999
INITIAL_LOG_THETA = 1.5
LOG_THETA_RANGE = (-4.0, 8.0)


@dataclass(frozen=True)
class ProfileSummary:
    """Frequency and level of expression of each gene.

    Parameters
    ----------
    frequency
        Share of cells that express the gene, ``(genes,)``.
    expressed_mean, expressed_std
        Mean and standard deviation of its value in these cells, ``(genes,)``; for genes without such cells, the mean
        over all genes and 0.
    smallest, largest
        Extremes of all values above zero.
    fewest_zeros
        Smallest share of zeros of a cell.
    """

    frequency: Tensor
    expressed_mean: Tensor
    expressed_std: Tensor
    smallest: Tensor
    largest: Tensor
    fewest_zeros: Tensor

    @classmethod
    def of(cls, batches: Iterable[Tensor], device: torch.device | str = "cpu") -> ProfileSummary:
        """Summarise batches of profiles ``(cells, genes)``, read once, for a module on ``device``."""
        n_cells, sums = 0, torch.zeros(1)
        smallest, largest, fewest_zeros = torch.tensor(torch.inf), torch.tensor(0.0), torch.tensor(1.0)
        for profile in batches:
            x = profile.cpu().double()
            sums = sums + torch.stack([(x > 0).sum(0), x.sum(0), x.square().sum(0)])
            n_cells += len(x)
            smallest = torch.minimum(smallest, x.where(x > 0, torch.inf).min())
            largest = torch.maximum(largest, x.max())
            fewest_zeros = torch.minimum(fewest_zeros, (x == 0).double().mean(1).min())
        n_expressed, total, squares = sums
        mean = (total / n_expressed).where(n_expressed > 0, total.sum() / n_expressed.sum())
        variance = (squares / n_expressed - mean.square()).where(n_expressed > 0, 0.0)
        parts = (n_expressed / n_cells, mean, variance.clamp(min=0).sqrt(), smallest, largest, fewest_zeros)
        return cls(*(part.float().to(device) for part in parts))

    def moments(self, zero: float) -> tuple[Tensor, Tensor]:
        """Return each gene's mean and standard deviation over all cells, with zeros replaced by ``zero``."""
        p, distance = self.frequency, self.expressed_mean - zero
        variance = p * self.expressed_std.square() + p * (1 - p) * distance.square()
        return zero + p * distance, variance.sqrt()


class RegressionNetwork(nn.Module):
    """A backbone that predicts the target directly, learned by least squares.

    Parameters
    ----------
    backbone
        ``(x_t, network time, condition) -> (cells, genes)``.
    path
        Path between noise and data.
    target
        What the backbone predicts.
    """

    n_outputs = 1

    def __init__(self, backbone: nn.Module, path: Path, target: Target) -> None:
        super().__init__()
        self.backbone, self.path, self.target = backbone, path, target

    def forward(self, x_t: Tensor, network_time: Tensor, condition: Tensor) -> Tensor:
        """Predict the target from ``x_t (cells, genes)``, times ``(cells,)`` and conditions ``(cells, columns)``."""
        return self.backbone(x_t, network_time, condition)

    def backbone_inputs(self, x_t: Tensor, network_time: Tensor, condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the backbone's inputs: the same."""
        return x_t, network_time, condition

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
    path
        Path between noise and data.
    n_genes
        Number of genes.
    """

    n_outputs = 3
    spike: Tensor

    def __init__(self, backbone: nn.Module, path: Path, n_genes: int) -> None:
        super().__init__(backbone, path, TARGETS["data"])
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


# --- masked molecules -------------------------------------------------------------------------------------------------


def summarise_molecules(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return each gene's share of all molecules of batches ``(cells, genes)``, read once, ``(genes,)``.

    After it come mean and standard deviation of the cells' log total counts.
    """
    molecules, n_cells = torch.zeros(1).double(), 0
    logs, squares = torch.zeros(2).double()  # a list of small tensors would fragment memory
    for batch in batches:
        x = batch.cpu()
        molecules = molecules + x.sum(0, dtype=torch.float64)
        log_totals = total_counts(x)[:, 0].double().log()
        n_cells, logs, squares = n_cells + len(x), logs + log_totals.sum(), squares + log_totals.square().sum()
    mean = logs / n_cells
    std = (squares / n_cells - mean.square()).clamp(min=0).sqrt()
    share = (molecules + 0.5) / (molecules.sum() + 0.5 * len(molecules))  # finite logarithms for unseen genes
    return share.float(), mean.float(), std.float()


class MoleculeNetwork(nn.Module):
    r"""Predict the genes of masked molecules.

    The backbone predicts each gene's share :math:`\mu` and inverse dispersion :math:`\theta` from the :math:`n`
    molecules that are seen, the total number, the time and the condition. If a gene's rate has a Gamma distribution
    with this mean and shape, :math:`x` molecules of it among those seen multiply its share by Bayes' rule:

    .. math:: p \propto \mu\,\frac{\theta + x}{\theta + n \mu}

    So the network does not have to learn how one gene's counts tell about the same gene, only what they tell about
    others. Independent genes of fixed shares and dispersions, for which it learns nothing, are negative binomial.

    Parameters
    ----------
    backbone
        ``(features, time, condition) -> (cells, 2, genes)``. The last column of its condition is the standardised log
        total.
    n_genes
        Number of genes.
    """

    n_outputs = 2
    centre: Tensor
    log_total_mean: Tensor
    log_total_std: Tensor

    def __init__(self, backbone: nn.Module, n_genes: int) -> None:
        super().__init__()
        self.backbone, self.path = backbone, Masking()
        self.log_share = nn.Parameter(torch.zeros(n_genes))
        self.log_theta = nn.Parameter(torch.full((n_genes,), INITIAL_LOG_THETA))
        self.register_buffer("centre", torch.zeros(n_genes))
        self.register_buffer("log_total_mean", torch.tensor(0.0))
        self.register_buffer("log_total_std", torch.tensor(1.0))

    def forward(self, x_t: Tensor, network_time: Tensor, condition: Tensor, *, shown: Tensor | None = None) -> Tensor:
        """Return log probabilities of genes, ``(cells, genes)``.

        Parameters
        ----------
        x_t
            Seen molecules and, in the last column, the number of masked ones, ``(cells, genes + 1)``.
        network_time
            Times, ``(cells,)``.
        condition
            ``(cells, columns)``.
        shown
            Which genes the backbone sees, ``(cells, genes)``, for training; the others look like those of a mean cell.
        """
        features, time, condition = self.backbone_inputs(x_t, network_time, condition)
        if shown is not None:
            features = features * shown / shown.to(features.dtype).mean().clamp(min=0.1)
        outputs = self.backbone(features, time, condition).float()
        seen = x_t[:, :-1]
        log_share = (outputs[:, 0] + self.log_share).log_softmax(1)
        theta = (outputs[:, 1] + self.log_theta).clamp(*LOG_THETA_RANGE).exp()
        expected = seen.sum(1, keepdim=True) * log_share.exp()
        return (log_share + torch.log((theta + seen) / (theta + expected))).log_softmax(1)

    def backbone_inputs(self, x_t: Tensor, network_time: Tensor, condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the backbone's features ``(cells, genes)``, time ``(cells,)``, condition ``(cells, columns + 1)``."""
        log_total = (x_t.sum(1, keepdim=True).clamp(min=1).log() - self.log_total_mean) / self.log_total_std
        condition = torch.cat([condition.to(log_total.dtype), log_total], dim=1)
        return self.features(x_t[:, :-1]), TIME_SCALE * network_time, condition

    def features(self, seen: Tensor) -> Tensor:
        """Return what the backbone sees of the molecules seen, both ``(cells, genes)``."""
        return (seen * (FEATURE_SUM / (seen.sum(1, keepdim=True) + UNSEEN))).log1p() - self.centre

    def loss(self, data: Tensor, x_t: Tensor, t: Tensor, condition: Tensor, *, shown: Tensor | None = None) -> Tensor:
        r"""Return each cell's weighted cross-entropy per masked molecule, ``(cells,)``.

        ``data`` and their states ``x_t`` at times ``t (cells,)`` are ``(cells, genes + 1)``; other arguments as in
        :meth:`forward`.

        The evidence lower bound would weight it by :math:`\dot\alpha_t`. The square root of that learns the first
        molecules better, which decide what kind of cell it becomes.
        """
        masked = data[:, :-1] - x_t[:, :-1]
        log_p = self(x_t, self.path.network_time(t), condition, shown=shown)
        cross_entropy = -(masked * log_p).sum(1) / masked.sum(1).clamp(min=1)
        return self.path.alpha_rate(t).sqrt() * cross_entropy

    @torch.no_grad()
    def start_from(self, share: Tensor, log_total_mean: Tensor, log_total_std: Tensor) -> None:
        """Initialise from what :func:`summarise_molecules` returns for the training cells."""
        self.log_share.copy_(share.log())
        self.centre.copy_((FEATURE_SUM * share).log1p())
        self.log_total_mean.copy_(log_total_mean)
        self.log_total_std.copy_(log_total_std.clamp(min=0.05))
        self._follow_depth(log_total_mean)

    def _follow_depth(self, log_total_mean: Tensor) -> None:
        """Refine the path for deep cells, so that the first of 64 steps unmasks two molecules at most.

        Molecules of one step are independent. If the first of them were many, they would look like a mixture of all
        cells, and most samples would become what is nearest to it.
        """
        self.path = Masking(max(Masking.resolution, float(log_total_mean.exp()) / 10))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if (saved := state_dict.get(f"{prefix}log_total_mean")) is not None:
            self._follow_depth(saved)


# --- the network that an architecture names ---------------------------------------------------------------------------


def build_network(
    n_genes: int, conditions: Sequence[ConditionSpec], a: GeneSpaceArchitecture
) -> RegressionNetwork | MoleculeNetwork:
    """Build the network that an architecture names."""
    if a.head == "gamma_poisson":
        backbone = build_backbone(n_genes, [*conditions, Number()], a, MoleculeNetwork.n_outputs)
        return MoleculeNetwork(backbone, n_genes)
    if a.head == "spike_and_slab":
        backbone = build_backbone(n_genes, conditions, a, SpikeAndSlabNetwork.n_outputs)
        return SpikeAndSlabNetwork(backbone, PATHS[a.path], n_genes)
    backbone = build_backbone(n_genes, conditions, a, RegressionNetwork.n_outputs)
    return RegressionNetwork(backbone, PATHS[a.path], TARGETS[a.target])


def build_backbone(
    n_genes: int, conditions: Sequence[ConditionSpec], a: GeneSpaceArchitecture, n_outputs: int
) -> nn.Module:
    """Build the backbone that an architecture names."""
    if a.backbone == "mlp":
        return GeneMLP(n_genes, conditions, width=a.width, n_layers=a.n_layers, n_outputs=n_outputs, n_axes=a.n_axes)
    if a.backbone == "unet":
        return GeneUNet(n_genes, conditions, width=a.unet_width, n_outputs=n_outputs)
    return GeneDiT(
        n_genes,
        conditions,
        patch_size=a.patch_size,
        width=a.width,
        n_layers=a.n_layers,
        n_heads=a.n_heads,
        block="white_box" if a.backbone == "white_box" else "transformer",
        n_outputs=n_outputs,
        n_global_tokens=a.n_global_tokens,
    )
