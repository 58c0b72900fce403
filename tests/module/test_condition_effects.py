"""Condition effects: started at mean profiles, learned beside the autoencoder, and in generated cells only."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from builders import TINY
from scvi import REGISTRY_KEYS

from scgen_diffusion.diffusion import Generators
from scgen_diffusion.module import CONDITIONS, SCLDMArchitecture, SCLDMModule
from scgen_diffusion.nn import Members, Number

N_GENES = 9


def build(conditions=(2,), **changes):
    torch.manual_seed(0)
    return SCLDMModule(N_GENES, conditions, architecture=SCLDMArchitecture(**{**TINY, **changes})).eval()


def draw(module, condition):
    z = torch.randn(4, *module.latent_shape, generator=torch.Generator().manual_seed(1))
    return module.draw_cells(module.decode(z, torch.full((4, 1), 500.0), condition), Generators(0, range(4)))


def shares_of(module, condition, before=None):
    """Shares of genes with the effects of a condition; before: ``(genes,)``, by default equal."""
    before = torch.ones(N_GENES) if before is None else before
    outputs = module.add_condition_effects(condition, before.log()[None, :, None], torch.ones(1, 1))["outputs"]
    return outputs[0, :, 0].detach().softmax(0)


@pytest.mark.parametrize("n_rare", [5, 5000])
def test_effects_start_at_the_mean_profile_of_each_combination(n_rare):
    module = build((2, 2))
    condition = torch.tensor([[0, 0], [0, 1], [1, 0]])
    common = torch.full((N_GENES,), 5.0)
    rare, shifted = common.clone(), common.clone()
    rare[0], shifted[1] = 50, 20
    n_cells = torch.tensor([10_000, 10_000, n_rare])
    counts = torch.stack([common, shifted, rare]) * n_cells[:, None]
    module.start_effects(condition, counts, n_cells)

    mean = counts.sum(0) / counts.sum()
    tolerance = 0.25 if n_rare == 5 else 0.02  # few cells: the effects shrink
    torch.testing.assert_close(
        shares_of(module, condition[2:], mean)[0], (rare / rare.sum())[0], atol=0, rtol=tolerance
    )
    torch.testing.assert_close(shares_of(module, module.null_condition[None], mean), mean, atol=0, rtol=0.02)
    both = shares_of(module, torch.tensor([[1, 1]]), mean)  # never seen: the effects of its keys add up
    assert both[:2].min() > 1.4 * both[2:].max()


def test_later_effects_are_those_of_the_classes_and_members_that_a_cell_has():
    effects = build((3, Members(5, 2))).condition_effects
    torch.nn.init.normal_(effects.loadings.weight)
    later = effects.add_later(2)
    later.keys.copy_(torch.tensor([0, 1]))
    later.codes.copy_(torch.tensor([1, 4]))
    condition = torch.tensor([[1, 0, 4], [1, 4, 5], [0, 1, 5], [3, 6, 5]])  # 3: no class, 5: no member, 6: no set
    before = effects(condition)

    with torch.no_grad():
        later.effects[:] = torch.tensor([[1.0], [10.0]])

    assert torch.equal(effects(condition)[2:], before[2:])
    torch.testing.assert_close(effects(condition)[:2] - before[:2], torch.full((2, N_GENES, 2), 11.0))


def test_effects_change_neither_the_loss_nor_what_the_autoencoder_learns():
    x = torch.poisson(torch.full((40, N_GENES), 5.0), generator=torch.Generator().manual_seed(0))
    module, batch = build(), {REGISTRY_KEYS.X_KEY: x, CONDITIONS: torch.arange(40)[:, None] % 2}
    module.start_effects(torch.tensor([[0], [1]]), torch.ones(2, N_GENES).cumsum(1), torch.tensor([4000, 4000]))

    def loss_and_gradients(**loss_kwargs):
        module.zero_grad()
        loss = module(batch, loss_kwargs=loss_kwargs)[2].loss
        loss.backward()
        parts = (module.encoder, module.decoder)
        return [loss, *(p.grad.clone() for part in parts for p in part.parameters() if p.grad is not None)]

    alone, beside = loss_and_gradients(), loss_and_gradients(condition=module.condition_of(batch))
    assert all(torch.equal(a, b) for a, b in zip(alone, beside, strict=True))
    assert module.condition_effects.loadings.weight.grad.abs().sum() > 0


def test_effects_that_training_missed_are_corrected():
    """Ten cells of the second class have a gene that the model gives to nobody, as if their counts were outliers."""
    module, rng = build(), np.random.default_rng(0)
    means = torch.full((N_GENES,), 60.0)
    module.start_from_means(means.scatter(0, torch.tensor([0]), 1e-4), torch.zeros(N_GENES))
    with torch.no_grad():
        module.likelihood.log_theta[:] = torch.tensor([-3.0] + (N_GENES - 1) * [3.0])  # no counts: any dispersion fits
    expected = means.repeat(10, 1)
    expected[:, 0] = 30
    theta = np.exp(module.likelihood.log_theta.detach().numpy())
    theta[0] = 5.0
    rare = torch.tensor(
        rng.poisson(expected.numpy() * rng.gamma(theta, 1 / theta, expected.shape)), dtype=torch.float32
    )

    lacking = module.lacking_effects([rare], torch.tensor([[1]]))
    lacking = torch.cat([torch.zeros_like(lacking), lacking])
    module.condition_effects.add(torch.tensor([[0], [1]]), lacking, torch.tensor([1000, 10]))
    effects = module.condition_effects(torch.tensor([[0], [1], [2]])).detach()  # 2: no condition
    assert effects[1, 1:].abs().max() < 0.05  # the other genes were right
    assert effects[[0, 2]].abs().max() < 0.05  # and so were the other cells
    decoded = module.decode(
        torch.zeros(400, *module.latent_shape), torch.full((400, 1), 500.0), torch.ones(400, 1).long()
    )
    drawn = module.likelihood.sample(module.likelihood.parameters_per_cell(**decoded), Generators(0, range(400)))
    ours, real = drawn[:, 0] / drawn.sum(1), rare[:, 0] / rare.sum(1)
    torch.testing.assert_close(ours.mean(), real.mean(), atol=0, rtol=0.15)
    torch.testing.assert_close(ours.std(), real.std(), atol=0, rtol=0.3)


@pytest.mark.parametrize(
    ("conditions", "changes"),
    [((), {}), ((Number(), Number(2)), {}), ((2,), {"condition_effects": False}), ((2,), {"likelihood": "gaussian"})],
    ids=["no conditions", "numbers", "switched off", "gaussian"],
)
def test_without_classes_or_counts_there_are_no_effects(conditions, changes):
    module = build(conditions, **changes)
    assert module.condition_effects is None
    columns = len(module.null_condition)
    torch.testing.assert_close(draw(module, torch.zeros(4, columns)), draw(module, None))
