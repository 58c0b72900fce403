"""Networks that denoise profiles: a backbone with a head that turns its outputs into a prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from scgen_diffusion.diffusion import PATHS, TARGETS, diffusion_loss, expand_time, spike_and_slab_mean
from scgen_diffusion.nn import GeneDiT, GeneMLP, GeneUNet, Number

from ._molecule_network import MoleculeNetwork

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scgen_diffusion.diffusion import Path, Target
    from scgen_diffusion.nn import ConditionSpec

    from ._gene_space_architecture import GeneSpaceArchitecture

LARGEST_WEIGHT = 20.0


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
