"""Learn what classes and sets do to genes: at the start, after training, when they are new, and where no cell has them.

The effects of conditions of SCLDM are learned by gradients, too. What is here comes from sums of counts.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from torch import Tensor
from torch.nn.functional import one_hot

from scgen_diffusion.data import evenly
from scgen_diffusion.diffusion import Generators
from scgen_diffusion.module import AbsentEffects, ridge
from scgen_diffusion.nn import TARGET_SUM, classes_are_given

from ._stage_data import ENCODED_AT_A_TIME, ROWS_AT_A_TIME, read_expression

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scgen_diffusion.diffusion import Sampler
    from scgen_diffusion.module import SCLDMModule

    from ._perturbation_stage import Bar
    from ._stage_data import TrainingCells

MOST_COMBINATIONS = 1000  # of conditions whose mean profiles the effects start from, or that training lacks
MOST_CHECKED = 1000  # cells of a combination


def _combinations(module: SCLDMModule, cells: TrainingCells, indices: np.ndarray) -> tuple[Tensor, np.ndarray, Tensor]:
    """Return the distinct classes and sets ``(n, columns)`` of the cells, which each cell has, and numbers of cells."""
    discrete = module.condition_effects.without_numbers(module.condition_tensor(cells.codes[indices]))
    codes, which, sizes = np.unique(discrete.cpu().numpy(), axis=0, return_inverse=True, return_counts=True)
    return module.condition_tensor(codes), which.ravel(), torch.from_numpy(sizes).to(module.device)


def _sum_counts(cells: TrainingCells, indices: np.ndarray, which: np.ndarray, n: int) -> Tensor:
    """Sum the counts of the cells ``indices`` of each of ``n`` combinations, ``(n, genes)``."""
    counts, n_read = torch.zeros(n, len(cells.var), dtype=torch.double), 0
    for batch in cells.loader(indices, ROWS_AT_A_TIME):
        x = batch[REGISTRY_KEYS.X_KEY].double()
        counts.index_add_(0, torch.from_numpy(which[n_read : n_read + len(x)]), x)
        n_read += len(x)
    return counts


# --- the start --------------------------------------------------------------------------------------------------------

PSEUDO_COUNTS = 0.5  # of a gene in all cells of a combination


def start_effects(module: SCLDMModule, cells: TrainingCells, indices: np.ndarray) -> None:
    """Initialise the condition effects at the log ratios of each combination's mean profile to the overall one.

    Genes that only a rare type has would else take too many steps to learn. ``PSEUDO_COUNTS`` shrink the ratios.
    Cells without a label count in the overall profile only: what is not given has no effect.
    """
    if module.condition_effects is None:
        return
    condition, which, n_cells = _combinations(module, cells, indices)
    if len(condition) > MOST_COMBINATIONS:
        return
    counts = _sum_counts(cells, indices, which, len(condition)).to(module.device)
    expected = counts.sum(1, keepdim=True) * counts.sum(0) / counts.sum()
    log_ratios = ((counts + PSEUDO_COUNTS) / (expected + PSEUDO_COUNTS)).log()
    effects = torch.stack([log_ratios, torch.zeros_like(log_ratios)], dim=-1)
    given = classes_are_given(condition, module.conditions)
    module.condition_effects.add(condition[given], effects[given], n_cells[given])


# --- rare combinations, after training --------------------------------------------------------------------------------

FEW_CELLS = 200  # of a combination, which tell only about surprising genes
RARE_SHARE = 0.01  # of all cells, below which a combination is rare; up to `FEW_CELLS` always are
SURPRISING = 4.0  # standard deviations
SHRINKING_ROUNDS = 20
MOST_THETA = 50.0  # beyond it, few cells cannot tell


@torch.no_grad()
def correct_effects(module: SCLDMModule, cells: TrainingCells, indices: np.ndarray) -> None:
    """Correct the condition effects on genes that rare combinations have far more or less often than expected.

    Counts that only few cells have can pass for outliers in training, so that the gene's effect learns nothing. Other
    combinations have learned them, and cells without a label are no combination.
    """
    if module.condition_effects is None:
        return
    condition, which, n_cells = _combinations(module, cells, indices)
    if len(condition) > MOST_COMBINATIONS:
        return
    is_rare = (n_cells <= FEW_CELLS) | (n_cells <= RARE_SHARE * len(indices))
    rare = (classes_are_given(condition, module.conditions) & is_rare).nonzero()[:, 0].cpu().numpy()
    checked = [indices[evenly(np.flatnonzero(which == number), MOST_CHECKED)] for number in rare]
    parts = np.cumsum([len(rows) for rows in checked]) // ENCODED_AT_A_TIME
    lacking = torch.zeros_like(module.condition_effects(condition))
    for part in np.unique(parts):
        numbers, rows = rare[parts == part], [checked[i] for i in np.flatnonzero(parts == part)]
        sizes = [len(own) for own in rows]
        x = read_expression(module, cells, np.concatenate(rows))
        repeated = condition[numbers].repeat_interleave(torch.tensor(sizes, device=module.device), 0)
        predicted = [values.split(sizes) for values in _predict(module, x, sizes, repeated)]
        lacking[numbers] = torch.stack([_lacking(*values) for values in zip(x.split(sizes), *predicted, strict=True)])
    module.condition_effects.add(condition, lacking, n_cells)


def _predict(module: SCLDMModule, x: Tensor, sizes: Sequence[int], condition: Tensor) -> tuple[Tensor, ...]:
    """Encode and decode groups of cells; return what :func:`_lacking` compares them with."""
    noise = [torch.randn(n, *module.latent_shape, generator=torch.Generator().manual_seed(0)) for n in sizes]
    z = module.inference(x, noise=torch.cat(noise).to(x.device))["z"]
    decoded, likelihood = module.decode(z, module.totals(x), condition), module.likelihood
    mu, log_theta = likelihood.log_mean(**decoded).exp(), likelihood.log_dispersion(decoded["outputs"])
    return mu, log_theta, likelihood.probability_of_zero(**decoded), likelihood.mean(**decoded)


def _lacking(x: Tensor, mu: Tensor, log_theta: Tensor, zero: Tensor, mean: Tensor) -> Tensor:
    """Compare cells of one condition with their predicted means, dispersions and zeros; return ``(genes, 2)``.

    ``mu`` and ``log_theta`` leave outliers out, ``zero`` and ``mean`` do not.

    Of few cells, only surprising genes are corrected, as others would learn noise. Of many, means of all genes are, as
    far as they differ from their predictions by more than noise: hardly, if the model has learned them.
    """
    return _surprising(x, mu, log_theta, zero) if len(x) <= FEW_CELLS else _differing_means(x, mean, log_theta)


def _differing_means(x: Tensor, mean: Tensor, log_theta: Tensor) -> Tensor:
    mean = mean.clamp(min=1e-12)
    log_ratio = ((x.sum(0) + 0.05) / (mean.sum(0) + 0.05)).log()
    # the noise of genes that only these cells express is that of their counts
    likely = mean * ((x.sum(0) + 0.05) / mean.sum(0)).clamp(min=1.0)
    noise = (likely + likely.square() / log_theta.exp()).sum(0) / (likely.sum(0) + 0.05).square()  # of the log ratio
    shares = None
    for _ in range(SHRINKING_ROUNDS):
        shrunk, shares = _shrink(log_ratio, noise, shares)
    return torch.stack([shrunk, torch.zeros_like(shrunk)], dim=1)


def _surprising(x: Tensor, mu: Tensor, log_theta: Tensor, zero: Tensor) -> Tensor:
    surprise = ((x > 0).float() - (1 - zero)).sum(0) / ((zero * (1 - zero)).sum(0) + 0.5).sqrt()
    log_ratio = ((x.sum(0) + 0.05) / (mu.sum(0) + 0.05)).log()  # finite, and hardly shrunk
    mu = mu * log_ratio.exp()
    squares, excess = mu.square().sum(0), ((x - mu).square() - mu).sum(0)
    new_log_theta = (squares / excess.clamp(min=squares / MOST_THETA)).log()
    sharper = (new_log_theta - log_theta.mean(0)).clamp(min=0)  # counts that vary more are outliers indeed
    lacking = torch.stack([log_ratio, sharper], dim=1)
    return torch.where(surprise.abs()[:, None] > SURPRISING, lacking, 0.0)


# --- classes and members that fine-tuning adds ------------------------------------------------------------------------

N_PASSES = 2  # over new cells; how far a gene's counts are noise is only known when some are expected


@torch.no_grad()
def learn_later_effects(
    module: SCLDMModule, cells: TrainingCells, indices: np.ndarray, new: Sequence[Tensor], bar: Bar
) -> None:
    """Learn condition effects of new classes and members from the cells that have them and no label missing.

    Parameters
    ----------
    module
        Module with a trained autoencoder, which keeps its weights.
    cells
        Training cells.
    indices
        Which of them to learn from.
    new
        Mask of the new classes or members of each key, ``(values,)`` each.
    bar
        Shows the progress.
    """
    effects = module.condition_effects
    if effects is None or effects.later is None:
        return
    later = effects.later
    condition, which, _ = _combinations(module, cells, indices)
    values = zip(later.keys.tolist(), later.codes.tolist(), strict=True)
    is_new = torch.tensor([bool(new[key][code]) for key, code in values], device=module.device)
    given = later.are_given(condition) & classes_are_given(condition, module.conditions)[:, None] & is_new
    groups, group_of = given.unique(dim=0, return_inverse=True)
    group_of_cell = group_of.cpu().numpy()[which]
    later.effects[is_new] = 0.0
    learned = groups.any(1).nonzero()[:, 0].tolist()
    if not learned:
        return
    rows = [np.flatnonzero(group_of_cell == group) for group in learned]
    n_cells = torch.tensor([len(own) for own in rows], device=module.device)
    module.eval()
    for _ in range(N_PASSES):
        lacking = []
        for own in bar(rows, "Learning new effects"):
            some = indices[evenly(own, MOST_CHECKED)]
            x, condition = read_expression(module, cells, some), module.condition_tensor(cells.codes[some])
            _, log_theta, _, mean = _predict(module, x, [len(x)], condition)
            lacking.append(_differing_means(x, mean, log_theta))
        later.effects += ridge(groups[learned], torch.stack(lacking), n_cells)


# --- combinations without training cells ------------------------------------------------------------------------------

MOST_COMPARED = 64  # combinations with training cells that show what those without seem to lack
N_TO_COMPARE, AT_ONCE = 16, 16  # generated cells of a combination, and combinations
SURPRISING_LACK = 2.0  # standard deviations between combinations that have training cells
LEAST_EFFECT = 0.3  # natural logarithm; smaller ones, the prior may know better
MOST_EFFECT = 3.0
LEAST_LOG_SHARE = -11.5  # of a cell's counts, 1e-5; effects on rarer genes do not show


@torch.no_grad()
def add_absent_effects(
    module: SCLDMModule, cells: TrainingCells, indices: np.ndarray, sampler: Sampler, bar: Bar
) -> None:
    """Give a trained module the effects that generated cells of combinations without training cells lack.

    It has none yet. It gets none for more than ``MOST_COMBINATIONS`` combinations, or unless several keys all have
    classes.
    """
    are_classes = all(one.n_columns == 1 and not one.is_numeric for one in module.conditions)
    if module.condition_effects is None or not are_classes or len(module.conditions) < 2:
        return
    condition, which, n_cells = _combinations(module, cells, indices)
    given = classes_are_given(condition, module.conditions).cpu()
    seen, sizes = condition.cpu()[given], n_cells.cpu()[given]
    classes = [column.unique() for column in seen.T]
    n_possible = np.prod([len(own) for own in classes], dtype=float)
    if len(condition) > MOST_COMBINATIONS or not 0 < n_possible - len(seen) <= MOST_COMBINATIONS:
        return
    absent = torch.tensor(sorted({*map(tuple, torch.cartesian_prod(*classes).tolist())} - {*map(tuple, seen.tolist())}))
    compared = seen[evenly(np.argsort(sizes.numpy()), MOST_COMPARED)]
    counts = _sum_counts(cells, indices, which, len(condition))[given]
    log_shares = expected_log_shares(counts, sizes, seen, torch.cat([absent, compared])).to(module.device)
    split = log_shares.split([len(absent), len(compared)])
    module.eval()
    pairs = zip([absent.to(module.device), compared.to(module.device)], split, strict=True)
    module.absent_effects = fit_absent_effects(module, *pairs, sampler, partial(bar, desc="Comparing new combinations"))


def fit_absent_effects(
    module: SCLDMModule, absent: tuple[Tensor, Tensor], seen: tuple[Tensor, Tensor], sampler: Sampler, bar: Bar
) -> AbsentEffects:
    """Return the effects that generated cells of combinations without training cells lack.

    The latents of such cells are extrapolated by the prior, and so hold only a part of what the classes do elsewhere.
    Combinations with cells lack nothing. What theirs seem to lack on average is due to few cells, which have the same
    noise in all combinations, and to large cells, which count more in sums. How much it differs between them shows how
    far their effects add up.

    Parameters
    ----------
    module
        A trained module without such effects.
    absent
        Combinations of classes ``(m, columns)``, and their expected mean profiles, logarithms of shares ``(m, genes)``.
    seen
        Some combinations that have training cells, likewise.
    sampler
        Sampler of the cells to compare, without guidance.
    bar
        Shows the progress of a loop over the combinations without training cells.
    """
    codes, expected = absent
    of_seen = _lacking_shares(module, *seen, sampler, iter)
    usual, least = of_seen.mean(0), (SURPRISING_LACK * of_seen.std(0)).clamp(min=LEAST_EFFECT)
    effects = (_lacking_shares(module, *absent, sampler, bar) - usual).clamp(-MOST_EFFECT, MOST_EFFECT)
    matter = (effects.abs() > least) & (torch.maximum(expected, expected - effects) > LEAST_LOG_SHARE)
    combinations, genes = matter.nonzero().T
    learned = AbsentEffects(*codes.shape, len(genes))
    learned.load_state_dict({"codes": codes, "combinations": combinations, "genes": genes, "effects": effects[matter]})
    return learned.to(codes.device)


def _lacking_shares(module: SCLDMModule, condition: Tensor, log_shares: Tensor, sampler: Sampler, bar: Bar) -> Tensor:
    """Return the log ratios of expected shares to those of a few generated cells, ``(m, genes)``."""
    found = []
    for codes, expected in bar([*zip(condition.split(AT_ONCE), log_shares.split(AT_ONCE), strict=True)]):
        given = codes.repeat_interleave(N_TO_COMPARE, 0)
        generators = Generators(0, [*range(N_TO_COMPARE)] * len(codes), module.device)  # the same noise for each
        states = sampler(module.denoiser(given, module.unguided), module.draw_noise(generators), generators=generators)
        totals = torch.full((len(given), 1), TARGET_SUM, device=module.device)
        means = module.likelihood.mean(**module.decode(module.unstandardise(states), totals, given))
        of_each = means.unflatten(0, (len(codes), N_TO_COMPARE)).mean(1)
        found.append(expected - (of_each / of_each.sum(1, keepdim=True)).log())
    return torch.cat(found)


# --- expected profiles, by effects that add up ------------------------------------------------------------------------

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
    shares: list[Tensor | None] = [None] * len(members)
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
                effect, shares[key] = _shrink(effect, 1 / information, shares[key])
            effects[key] = effect
    return effects


def _shrink(effects: Tensor, errors: Tensor, shares: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return expected effects and new shares, in one round of expectation maximisation.

    Most effects are small, and some are large: they come from a mixture of normal distributions around zero.

    Parameters
    ----------
    effects
        Measured effects, of any shape.
    errors
        Their sampling variances, of the same shape.
    shares
        Shares of the mixture's variances so far, ``(variances, ...)``; None: equal ones.

    References
    ----------
    Stephens (2017), *False discovery rates: a new deal*, Biostatistics.
    """
    spreads = effects.new_tensor(SPREADS).view(-1, *[1] * effects.ndim)
    shares = torch.full_like(spreads, 1 / len(SPREADS)) if shares is None else shares
    variance = spreads + errors
    posterior = (shares.log() - (effects.square() / variance + variance.log()) / 2).softmax(0)
    if (tells := errors < TELLING).any():
        shares = posterior[:, tells].mean(1).view_as(shares).clamp(min=SMALLEST)
    return (posterior * spreads / variance).sum(0) * effects, shares
