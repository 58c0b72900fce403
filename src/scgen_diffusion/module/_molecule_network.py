"""The network that tells the genes of masked molecules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from scgen_diffusion.diffusion import Masking
from scgen_diffusion.nn import total_counts

if TYPE_CHECKING:
    from collections.abc import Iterable

FEATURE_SUM = 1000.0  # total counts of the profile that the backbone sees
UNSEEN = 20.0  # molecules added to the seen ones, so that the first molecules do not look like the whole cell
TIME_SCALE = 1000.0  # the backbones' time embedding is made for timesteps from 0 to 999
INITIAL_LOG_THETA = 1.5
LOG_THETA_RANGE = (-4.0, 8.0)


@dataclass(frozen=True)
class MoleculeSummary:
    """Statistics of the training cells from which the network is initialised.

    Parameters
    ----------
    share
        Each gene's share of all molecules, ``(genes,)``.
    log_total_mean, log_total_std
        Mean and standard deviation of the cells' log total counts.
    """

    share: Tensor
    log_total_mean: Tensor
    log_total_std: Tensor

    @classmethod
    def of(cls, batches: Iterable[Tensor]) -> MoleculeSummary:
        """Summarise batches of counts ``(cells, genes)``, read once."""
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
        return cls(share.float(), mean.float(), std.float())


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
    def start_from(self, summary: MoleculeSummary) -> None:
        """Initialise from statistics of the training cells."""
        self.log_share.copy_(summary.share.log())
        self.centre.copy_((FEATURE_SUM * summary.share).log1p())
        self.log_total_mean.copy_(summary.log_total_mean)
        self.log_total_std.copy_(summary.log_total_std.clamp(min=0.05))
        self._follow_depth(summary.log_total_mean)

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
