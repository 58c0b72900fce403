"""Condition effects: learned beside the autoencoder, and in generated cells only."""

from __future__ import annotations

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
    torch.nn.init.normal_(module.condition_effects.loadings.weight)

    def loss_and_gradients(**loss_kwargs):
        module.zero_grad()
        loss = module(batch, loss_kwargs=loss_kwargs)[2].loss
        loss.backward()
        parts = (module.encoder, module.decoder)
        return [loss, *(p.grad.clone() for part in parts for p in part.parameters() if p.grad is not None)]

    alone, beside = loss_and_gradients(), loss_and_gradients(condition=module.condition_of(batch))
    assert all(torch.equal(a, b) for a, b in zip(alone, beside, strict=True))
    assert module.condition_effects.loadings.weight.grad.abs().sum() > 0


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
