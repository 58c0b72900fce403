"""What is expected of combinations of classes that no training cell has, and what their generated cells lack of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

INVERSE_DISPERSION = 2.0  # of counts between cells of one combination
INTERACTION = 0.01  # variance of what a combination does beyond its classes, in natural logarithms
N_ROUNDS = 30
UNSHRUNK_ROUNDS = 8
WEAK = 0.1  # weight of no effect while effects are not shrunk
MOST_STEP = 1.0  # in one round
GENES_AT_A_TIME = 4000
SPREADS = (0.0, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # possible variances of an effect, in natural logarithms
TELLING = 1.0  # sampling variance of an effect that tells something about the mixture
SMALLEST = 1e-9


def expected_log_shares(counts: Tensor, n_cells: Tensor, codes: Tensor, absent: Tensor) -> Tensor:
    r"""Predict the mean profiles of combinations of classes from those of other combinations: effects add up.

    The counts :math:`S` of gene :math:`i` in all cells of combination :math:`c` have the mean and the variance

    .. math::

        \mu_{ci} = S_c \exp\Bigl(m_i + \sum_k b_{k, c_k, i}\Bigr), \qquad
        \mu_{ci} + \mu_{ci}^2 \left(\frac{1}{n_c\, \theta} + \tau\right)

    with the class :math:`c_k` of each key :math:`k`. Most classes change most genes hardly, and some genes much.
    Therefore each :math:`b` comes from a mixture of normal distributions, whose shares are learned for each key from
    its effects on up to 4,000 genes (adaptive shrinkage). In rounds over the keys, it is replaced by its expected
    value.

    Parameters
    ----------
    counts
        Sums of counts of each combination :math:`S`, ``(combinations, genes)``.
    n_cells
        Number of their cells :math:`n`, ``(combinations,)``.
    codes
        Their classes, ``(combinations, keys)``.
    absent
        Classes of the combinations to predict, ``(m, keys)``.

    Returns
    -------
    Tensor
        Logarithms of the genes' shares of all counts, ``(m, genes)``.

    References
    ----------
    Stephens (2017), *False discovery rates: a new deal*, Biostatistics.
    """
    n_classes = (torch.cat([codes, absent]).amax(0) + 1).tolist()
    of_seen, of_absent = (
        [one_hot(some[:, key], n).double() for key, n in enumerate(n_classes)] for some in (codes, absent)
    )
    total, noise = counts.sum(1, keepdim=True).double(), 1 / (INVERSE_DISPERSION * n_cells.double()[:, None])
    predicted = []
    for part in counts.double().tensor_split(max(1, -(-counts.shape[1] // GENES_AT_A_TIME)), dim=1):
        mean = ((part.sum(0) + 0.5) / total.sum()).log()
        effects = _main_effects(part, total * mean.exp(), noise + INTERACTION, of_seen)
        predicted.append(mean + sum(member @ effect for member, effect in zip(of_absent, effects, strict=True)))
    return torch.cat(predicted, dim=1).log_softmax(1).float()


def _main_effects(counts: Tensor, expected: Tensor, noise: Tensor, members: list[Tensor]) -> list[Tensor]:
    """Fit the effects of the classes of each key, ``(classes, genes)``.

    Parameters
    ----------
    counts, expected
        Sums of each combination, and those without effects, ``(combinations, genes)``.
    noise
        Relative variance of the sums beyond that of Poisson counts, ``(combinations, 1)``.
    members
        Which combinations have a class, one matrix ``(combinations, classes)`` per key.
    """
    effects = [expected.new_zeros(member.shape[1], counts.shape[1]) for member in members]
    shares = [even_shares(effect) for effect in effects]
    # in nested designs, such as donors of one state each, the key with fewer classes explains what it can
    order = sorted(range(len(members)), key=lambda key: members[key].shape[1])
    for step in range(N_ROUNDS):
        for key in order:
            member = members[key]
            logs = sum(own @ effect for own, effect in zip(members, effects, strict=True))
            mu = (expected * logs.exp()).clamp(min=SMALLEST)
            weights = 1 / (1 / mu + noise)
            information = (member.T @ weights).clamp(min=SMALLEST)
            change = (member.T @ (weights * (counts - mu) / mu)) / (information + WEAK)
            effect = effects[key] + change.clamp(-MOST_STEP, MOST_STEP)
            if step >= UNSHRUNK_ROUNDS:
                effect, shares[key] = shrink(effect, 1 / information, shares[key])
            effects[key] = effect
    return effects


def even_shares(effects: Tensor) -> Tensor:
    """Return equal shares of all variances for effects ``(...)``, ``(variances, ...)``, to start from."""
    return effects.new_full((len(SPREADS), *[1] * effects.ndim), 1 / len(SPREADS))


def shrink(effects: Tensor, errors: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Return expected effects and new shares, in one round of expectation maximisation.

    Most effects are small, and some are large: they come from a mixture of normal distributions around zero.

    Parameters
    ----------
    effects
        Measured effects, of any shape.
    errors
        Their sampling variances, of the same shape.
    shares
        Shares of the mixture's variances so far, see :func:`even_shares`.

    References
    ----------
    Stephens (2017), *False discovery rates: a new deal*, Biostatistics.
    """
    spreads = torch.tensor(SPREADS, dtype=effects.dtype, device=effects.device).view_as(shares)
    variance = spreads + errors
    posterior = (shares.log() - (effects.square() / variance + variance.log()) / 2).softmax(0)
    if (tells := errors < TELLING).any():
        shares = posterior[:, tells].mean(1).view_as(shares).clamp(min=SMALLEST)
    return (posterior * spreads / variance).sum(0) * effects, shares


class AbsentEffects(nn.Module):
    """Effects on genes' shares that generated cells of combinations without training cells lack.

    Parameters
    ----------
    n_combinations, n_columns
        Number of combinations, and of the columns of their codes.
    n_effects
        Number of effects of a combination on a gene.
    """

    def __init__(self, n_combinations: int, n_columns: int, n_effects: int) -> None:
        super().__init__()
        self.register_buffer("codes", torch.zeros(n_combinations, n_columns, dtype=torch.long))
        self.register_buffer("combinations", torch.zeros(n_effects, dtype=torch.long))
        self.register_buffer("genes", torch.zeros(n_effects, dtype=torch.long))
        self.register_buffer("effects", torch.zeros(n_effects))

    def forward(self, condition: Tensor, start: Tensor, n_genes: int) -> Tensor:
        """Return the effects on genes, ``(cells, n_genes)``; zero for other combinations.

        Parameters
        ----------
        condition
            Conditions of the cells, ``(cells, columns)``.
        start
            Conditions that a flow starts from. Where these have training cells, it makes the new combination.
        n_genes
            Size of the panel.
        """
        has, is_start = ((codes[:, None] == self.codes).all(2) for codes in (condition, start))  # (cells, combinations)
        is_known, asked = has.any(1) & is_start.any(1), has.any(0)
        row = asked.cumsum(0) - 1
        kept = asked[self.combinations]
        effects = self.effects.new_zeros(int(asked.sum()) + 1, n_genes)  # the last row is that of other combinations
        effects[row[self.combinations[kept]], self.genes[kept]] = self.effects[kept]
        return effects[torch.where(is_known, row[has.int().argmax(1)], len(effects) - 1)]
