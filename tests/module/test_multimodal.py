"""The module of cells with several modalities: who says what about the latent, and about library sizes."""

import pytest
import torch

from scgen_diffusion.diffusion import Generators
from scgen_diffusion.module import MultimodalModule, SCLDMArchitecture
from scgen_diffusion.module._library_size import MultimodalLibrarySize
from scgen_diffusion.nn import Classes

PANELS = [(6, "negative_binomial"), (4, "bernoulli"), (3, "negative_binomial")]


@pytest.fixture
def module(tiny):
    torch.manual_seed(0)
    return MultimodalModule(PANELS, [Classes(3)], architecture=SCLDMArchitecture(**tiny)).eval()


def make_cells(n_cells=8):
    generator = torch.Generator().manual_seed(0)
    rna = torch.poisson(torch.full((n_cells, 6), 3.0), generator=generator) + 1
    atac = (torch.rand(n_cells, 4, generator=generator) < 0.5).float()
    atac[:, 0] = 1
    protein = torch.poisson(torch.full((n_cells, 3), 20.0), generator=generator)
    return torch.cat([rna, atac, protein], dim=1)


def only(x, *modalities):
    """Take all but some modalities away."""
    kept = torch.zeros_like(x)
    for number, columns in enumerate(torch.arange(13).split([6, 4, 3])):
        if number in modalities:
            kept[:, columns] = x[:, columns]
    return kept


def test_modalities_together_are_the_product_and_surer_than_each(module):
    x = make_cells()
    together = module.inference(x)["posterior"]
    alone = [module.inference(only(x, number))["posterior"] for number in range(3)]
    prior = module.inference(torch.zeros(2, 13))["posterior"]
    assert (prior.mean == 0).all()
    assert (prior.std == 1).all()
    precision = sum(1 / p.std**2 for p in alone) - 2  # each holds the prior, which counts once
    mean = sum(p.mean / p.std**2 for p in alone) / precision

    torch.testing.assert_close(1 / together.std**2, precision, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together.mean, mean, rtol=1e-4, atol=1e-4)
    assert all((together.std <= p.std).all() for p in alone)


def test_a_missing_modality_has_no_gradient(module):
    x = only(make_cells(), 0, 1)
    module.loss({"X": x}, out := module.inference(x), module.generative(out["z"], module.totals(x))).loss.backward()

    for part, used in zip(module.decoder.parts, (True, True, False), strict=True):
        assert (part.factors.loadings.weight.grad.abs().sum() > 0) == used
    assert all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)


def test_training_shows_every_choice_of_modalities_and_never_none(module):
    x = only(make_cells(1), 0, 1).repeat(400, 1)

    keep = module.draw_keep(x, 1.0, torch.Generator().manual_seed(0))

    thinned = module.draw_keep(make_cells(200), 0.3, torch.Generator().manual_seed(0)).unique()
    assert thinned[1] >= 0.3  # after 0: thinning and dropping go together
    assert len(thinned) > 100
    shown = [keep[:, 0].bool(), keep[:, 6].bool()]
    assert set(keep.unique().tolist()) == {0.0, 1.0}
    assert (shown[0] | shown[1]).all()
    # half of the cells show all, the rest one of two: a quarter each, give or take four standard errors
    assert abs((shown[0] & shown[1]).float().mean() - 0.5) < 0.1
    assert abs((shown[0] & ~shown[1]).float().mean() - 0.25) < 0.09


def test_genes_hidden_from_the_encoder_do_not_count_against_the_latent(module):
    x = make_cells()
    keep = torch.ones_like(x)
    keep[:, 6:10] = 0
    out = module.inference(x, keep=keep)
    decoded = module.generative(out["z"], module.totals(x))

    loss = module.loss({"X": x}, out, decoded).reconstruction_loss_sum

    torch.testing.assert_close(loss, -module.likelihood(only(x, 0, 2), **decoded).sum())


def test_lacking_totals_are_predicted_once_the_prior_is_trained_and_known_ones_kept(module):
    x = make_cells()
    z = module.inference(x)["z"]
    with pytest.raises(RuntimeError, match="train_prior"):
        module.decoding_totals(only(x, 0), z, None)
    module.library_size.fit(module.log_totals(x))

    totals = module.decoding_totals(only(x, 0), z, None)

    assert (totals[:, 0].round() == x[:, :6].sum(1)).all()
    assert totals.isfinite().all()
    assert (totals >= 1).all()


def test_the_decoder_starts_at_the_mean_cell_of_those_that_have_the_modality(module):
    x = make_cells(64)
    x[:32] = only(x[:32], 0)
    n_cells = module.measured(x).sum(0)
    module.start_from_means(x.sum(0) / n_cells, module.pooled_profile(x).sum(0) / n_cells)
    for part in module.decoder.parts:
        torch.nn.init.zeros_(part.factors.loadings.weight)

    sizes = torch.stack([x[32:, columns].sum(1).mean() for columns in torch.arange(13).split([6, 4, 3])])
    mean = module.likelihood.mean(**module.generative(torch.zeros(1, *module.latent_shape), sizes[None]))

    torch.testing.assert_close(mean[0, 6:], x[32:, 6:].mean(0), rtol=0.05, atol=0.02)
    torch.testing.assert_close(mean[0, :6].sum(), sizes[0])


@pytest.mark.parametrize("changes", [{"latent": "deterministic"}, {"likelihood": "gaussian"}])
def test_architectures_that_do_not_suit_several_modalities_are_refused(tiny, changes):
    with pytest.raises(ValueError, match="MuData"):
        MultimodalModule(PANELS, architecture=SCLDMArchitecture(**tiny, **changes))


def trained_sizes(missing=0, n_cells=2000):
    """Learn log totals of two modalities, the second of which is the first plus 1 (and some noise)."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    first = 5 + torch.randn(n_cells, generator=generator)
    totals = torch.stack([first, first + 1 + 0.1 * torch.randn(n_cells, generator=generator)], dim=1)
    totals[:missing, 1] = torch.nan
    sizes = MultimodalLibrarySize(2, [Classes(1)], 3)
    sizes.fit(totals)
    optimizer = torch.optim.Adam(sizes.parameters(), lr=1e-2)
    condition, z = torch.zeros(n_cells, 1), torch.zeros(n_cells, 3)
    for _ in range(250):
        optimizer.zero_grad()
        sizes.loss(condition, z, totals).mean().backward()
        optimizer.step()
    return sizes


@pytest.mark.parametrize("missing", [0, 1500])
def test_sizes_of_a_cell_go_together(missing):
    sizes = trained_sizes(missing)
    uniform = torch.rand(3000, 2, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        drawn = sizes.draw(torch.zeros(3000, 1), torch.zeros(3000, 3), uniform).log()

    assert torch.corrcoef(drawn.T)[0, 1] > 0.9
    for number, mean in enumerate((5.0, 6.0)):
        assert abs(drawn[:, number].mean() - mean) < 0.15


@torch.no_grad()
def test_every_modality_of_a_drawn_cell_has_a_count_and_the_others_stay(module):
    z = torch.randn(256, *module.latent_shape, generator=torch.Generator().manual_seed(0))
    totals = torch.ones(256, 3)
    once = module.likelihood.sample(
        module.likelihood.parameters_per_cell(**module.generative(z, totals)), Generators(0, range(256))
    )

    drawn = module.draw_cells(module.generative(z, totals), Generators(0, range(256)))

    assert module.has(drawn).all()
    had = module.spread(module.has(once))
    assert torch.equal(drawn[had], once[had])
    assert not had.all()
    some = torch.arange(40, 90)
    assert torch.equal(
        module.draw_cells(module.generative(z[some], totals[some]), Generators(0, some.tolist())), drawn[some]
    )
