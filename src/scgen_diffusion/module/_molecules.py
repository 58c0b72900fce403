"""Module of models that unmask a cell's molecules, and its network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from scvi.module.base import auto_move_data
from torch import Tensor, nn

from scgen_diffusion.diffusion import Denoiser, GuidedField, Masking, keep_molecules, with_masked
from scgen_diffusion.nn import Number, total_counts

from ._gene_space import GeneSpaceModule, build_backbone

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np

    from scgen_diffusion.diffusion import Generators, Guidance
    from scgen_diffusion.nn import ConditionEncoding

    from ._architecture import MoleculeArchitecture
    from ._conditioned import TensorMap

FEATURE_SUM = 1000.0  # total counts of the profile that the backbone sees
UNSEEN = 20.0  # molecules added to the seen ones, so that the first molecules do not look like the whole cell
TIME_SCALE = 1000.0  # the backbones' time embedding is made for timesteps from 0 to 999
INITIAL_LOG_THETA = 1.5
LOG_THETA_RANGE = (-4.0, 8.0)
USUAL = (0.01, 0.99)  # levels of the totals that the network has seen under a condition
HIDDEN_GENES = 0.1  # share of genes whose molecules the backbone does not see in training: it overfits less
TOTAL_NOISE = 0.3  # added to standardised log totals in training: an exact one would tell which training cell it is

# --- network ----------------------------------------------------------------------------------------------------------


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
    with this mean and shape, it has one of shape :math:`\theta + x` after :math:`x` molecules of it are seen, and the
    mean

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

    def forward(
        self,
        x_t: Tensor,
        network_time: Tensor,
        condition: Tensor,
        *,
        shown: Tensor | None = None,
        total_noise: Tensor | float = 0.0,
    ) -> Tensor:
        """Return logarithms of the genes' shares and inverse dispersions among masked molecules, ``(cells, 2, genes)``.

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
        total_noise
            Added to the standardised log totals that the backbone sees, ``(cells, 1)``, for training.
        """
        seen, features = x_t[:, :-1], self.features(x_t[:, :-1])
        if shown is not None:
            features = features * shown / shown.to(features.dtype).mean().clamp(min=0.1)
        log_total = (x_t.sum(1, keepdim=True).clamp(min=1).log() - self.log_total_mean) / self.log_total_std
        condition = torch.cat([condition.to(log_total.dtype), log_total + total_noise], dim=1)
        outputs = self.backbone(features, TIME_SCALE * network_time, condition).float()
        log_share = (outputs[:, 0] + self.log_share).log_softmax(1)
        theta = (outputs[:, 1] + self.log_theta).clamp(*LOG_THETA_RANGE).exp()
        shape, expected = theta + seen, seen.sum(1, keepdim=True) * log_share.exp()
        log_p = (log_share + torch.log(shape / (theta + expected))).log_softmax(1)
        return torch.stack([log_p, shape.log()], dim=1)

    def features(self, seen: Tensor) -> Tensor:
        """Return what the backbone sees of the molecules seen, both ``(cells, genes)``."""
        return (seen * (FEATURE_SUM / (seen.sum(1, keepdim=True) + UNSEEN))).log1p() - self.centre

    def loss(self, data: Tensor, x_t: Tensor, t: Tensor, condition: Tensor, **for_training: Tensor) -> Tensor:
        r"""Return each cell's weighted cross-entropy per masked molecule, ``(cells,)``.

        ``data`` and their states ``x_t`` at times ``t (cells,)`` are ``(cells, genes + 1)``; other arguments as in
        :meth:`forward`.

        The evidence lower bound would weight it by :math:`\dot\alpha_t`. The square root of that learns the first
        molecules better, which decide what kind of cell it becomes.
        """
        masked = data[:, :-1] - x_t[:, :-1]
        log_p = self(x_t, t, condition, **for_training)[:, 0]
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


# --- module -----------------------------------------------------------------------------------------------------------


class MoleculeModule(GeneSpaceModule):
    """Masked diffusion of counts: a cell is a bag of molecules, whose genes are unmasked a few at a time.

    States are ``(cells, genes + 1)``: the molecules seen of each gene, and in the last column the number of masked
    ones. The total is drawn before the molecules.

    Parameters
    ----------
    n_input
        Number of genes.
    conditions
        Encoding of each condition key, see :class:`~scgen_diffusion.nn.ConditionEmbedding`.
    architecture
        Sizes and parts.

    References
    ----------
    See :class:`~scgen_diffusion.diffusion.UnmaskingSampler`.
    """

    architecture: MoleculeArchitecture
    keeps_totals = True
    loss_judges_cells = False

    def __init__(
        self, n_input: int, conditions: Sequence[ConditionEncoding] = (), *, architecture: MoleculeArchitecture
    ) -> None:
        backbone = build_backbone(n_input, [*conditions, Number()], architecture, MoleculeNetwork.n_outputs)
        super().__init__(n_input, conditions, MoleculeNetwork(backbone, n_input), architecture, n_features=0)

    def start_from(self, batches: Iterable[Tensor]) -> None:
        """Set shares of genes and totals from training cells, batches of counts ``(cells, genes)``, read once."""
        statistics = summarise_molecules(batches)
        for network in self.both_networks:
            network.start_from(*statistics)

    def whole_cells(self, x: Tensor) -> Tensor:
        """Return what the backbone sees of counts ``x (cells, genes)`` without masked molecules."""
        return self.network.features(x)

    # --- training -----------------------------------------------------------------------------------------------------

    @auto_move_data
    def inference(self, x: Tensor) -> dict[str, Tensor]:
        """Return the data that diffuse: the states of counts ``(cells, genes)`` with all molecules seen.

        Totals follow from no features.
        """
        return {"data": with_masked(x, x.sum(1)), "features": x[:, :0]}

    def draw_for_training(self, x: Tensor, generator: torch.Generator, *, training: bool) -> dict[str, Tensor]:
        """Draw times and masked states of cells ``x``; in training also which genes, and totals, the backbone sees."""
        t = self.path.draw_times(len(x), generator, x.device)
        seen = keep_molecules(x, self.path.alpha(t)[:, None], generator)
        drawn = {"t": t, "x_t": with_masked(seen, x.sum(1))}
        if training:
            drawn["shown"] = torch.rand(x.shape, generator=generator, device=x.device) >= HIDDEN_GENES
            drawn["total_noise"] = TOTAL_NOISE * torch.randn((len(x), 1), generator=generator, device=x.device)
        return drawn

    # --- generation ---------------------------------------------------------------------------------------------------

    def denoiser(self, condition: Tensor, guidance: Guidance) -> Denoiser:
        """Return the denoiser for ``condition (cells, columns)`` and guidance.

        Totals that hardly any training cell of the condition has look to the network like its low or high ones.
        Otherwise it would believe the total, and make cells of another condition.
        """
        guided = GuidedField(self.averaged_network, condition, self.condition_columns, guidance)
        known = self.condition_columns.keep(condition, guidance.keys)
        levels = torch.tensor(USUAL, device=known.device)[:, None].expand(-1, len(known))
        low, high = (self.library_size.draw(known, known[:, :0], level) for level in levels)

        def field(x_t: Tensor, t: Tensor) -> Tensor:
            total = x_t.sum(1)
            shown = total.clamp(low, high)
            masked = x_t[:, -1] + shown - total  # may be negative: the network reads only the sum
            log_p, log_theta = guided(torch.cat([x_t[:, :-1], masked[:, None]], dim=1), t).unbind(1)
            return torch.stack([log_p, log_theta.clamp(min=LOG_THETA_RANGE[0])], dim=1)  # guidance may leave the range

        return Denoiser(field, self.path)

    def initial_states(self, condition: Tensor, generators: Generators, library_size: np.ndarray | None) -> Tensor:
        """Return cells with all molecules masked, ``(cells, genes + 1)``."""
        totals = self.draw_totals(library_size, generators, condition, condition[:, :0]).round()
        return with_masked(totals.new_zeros(len(totals), self.n_input), totals)

    def cells_of(self, states: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return the counts ``(block, genes)`` of finished states."""
        return states[:, :-1]

    def predict_cells(self, x: Tensor, move: TensorMap, *_: Any, **__: Any) -> Tensor:
        """Predict the counts of cells ``x (block, genes)`` under new conditions, ``(block, genes)``."""
        return move(self.inference(x)["data"])[:, :-1]
