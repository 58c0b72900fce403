"""SCLDM's module: every architecture learns, effects of conditions beside it, bounded memory."""

import pytest
import torch
from builders import TINY
from scvi import REGISTRY_KEYS

from scgen_diffusion.diffusion import FLOW_SAMPLERS, Generators, Guidance, Joint
from scgen_diffusion.module import CONDITIONS, Posterior, SCLDMArchitecture, SCLDMModule
from scgen_diffusion.nn import Classes, Members, Number


@pytest.fixture(scope="module")
def counts():
    """Return counts with a cell that expresses a single gene, and a gene that no cell expresses."""
    x = torch.poisson(torch.full((6, 9), 2.0), generator=torch.Generator().manual_seed(0))
    x[0] = 0
    x[0, 4] = 3
    x[:, 7] = 0
    return x


def build(conditions=(), n_genes=9, **changes):
    torch.manual_seed(0)
    return SCLDMModule(n_genes, conditions, architecture=SCLDMArchitecture(**{**TINY, **changes}))


@pytest.mark.parametrize("latent", ["variational", "deterministic"])
@pytest.mark.parametrize("pooling", ["attention", "factors", "both"])
@pytest.mark.parametrize("decoder", ["gene_queries", "factors"])
@pytest.mark.parametrize("dispersion", ["gene", "gene-cell"])
@pytest.mark.parametrize("head", [{"outliers": False}, {"outliers": True}, {"likelihood": "gaussian"}], ids=str)
def test_every_autoencoder_has_a_finite_loss_and_gradients(counts, latent, pooling, decoder, dispersion, head):
    module = build(latent=latent, pooling=pooling, decoder=decoder, dispersion=dispersion, **head)
    noise = torch.randn(6, *module.latent_shape)

    _, outputs, losses = module({REGISTRY_KEYS.X_KEY: counts}, inference_kwargs={"noise": noise})
    losses.loss.backward()

    assert outputs["outputs"].shape[:2] == counts.shape
    assert losses.loss.isfinite()
    for name, parameter in module.named_parameters():
        if name.startswith(("encoder", "decoder", "likelihood")):
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_the_divergence_is_that_of_two_normals():
    mean, std = torch.randn(5, 2, 3), torch.rand(5, 2, 3) + 0.1
    posterior = torch.distributions.Normal(mean, std)
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum((1, 2))

    torch.testing.assert_close(Posterior(mean, std).kl_divergence(), expected)
    point = Posterior(mean, torch.zeros(5, 2, 3))
    assert point.kl_divergence().tolist() == [0.0] * 5
    assert torch.equal(point.draw(torch.randn(5, 2, 3)), mean)


def test_the_decoder_starts_at_the_mean_cell():
    module = build(decoder="factors", latent="variational", outliers=False, n_genes=5)
    mean_counts = torch.tensor([8.0, 4.0, 2.0, 1.0, 1.0])

    module.start_from_means(mean_counts, mean_counts.sqrt())

    bias = module.decoder.factors.loadings.bias.view(5, -1)[:, 0]
    torch.testing.assert_close(bias.softmax(0), mean_counts / 16, atol=0.01, rtol=0)  # a little is added to rare genes


def test_the_encoder_sees_a_share_of_the_counts_from_the_least_to_all():
    keep = build().draw_keep(torch.ones(2000, 9), 0.3, torch.Generator().manual_seed(0))

    assert [keep.min().item(), keep.mean().item(), keep.max().item()] == pytest.approx([0.3, 0.65, 1], abs=0.02)


def test_latents_are_sampled_on_their_own_scale(monkeypatch):
    module = build()
    monkeypatch.setattr(module, "decode", lambda z, *_: z)
    monkeypatch.setattr(module, "draw_cells", lambda z, *_, **__: z)
    module.latent_mean.fill_(5.0)
    module.latent_std.fill_(0.1)

    condition, generators = torch.zeros(64, 0).long(), Generators(0, range(64))
    denoiser = module.denoiser(condition, Guidance(Joint().terms([])))
    states = FLOW_SAMPLERS["euler"](denoiser, module.draw_noise(generators), n_steps=2)
    z = module.cells_of(states, lambda z: torch.full((64,), 100.0), generators, condition, "counts")

    assert z.mean().item() == pytest.approx(5, abs=0.3)  # an untrained prior moves noise little
    assert z.std().item() == pytest.approx(0.1, rel=0.3)


LARGE_STEP = """
import resource, sys, torch
from scgen_diffusion.module import SCLDMArchitecture, SCLDMModule
from scvi import REGISTRY_KEYS
n_genes, n_cells = 20_000, 32
module = SCLDMModule(n_genes, architecture=SCLDMArchitecture(pooling="attention", decoder="gene_queries"))
x = torch.zeros(n_cells, n_genes)
x[:, torch.randperm(n_genes)[:2_000]] = 1 + torch.poisson(torch.ones(n_cells, 2_000))
baseline = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
_, _, losses = module({REGISTRY_KEYS.X_KEY: x}, inference_kwargs={"noise": torch.randn(n_cells, *module.latent_shape)})
losses.loss.backward()
assert losses.loss.isfinite()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - baseline) / 2**20)
"""


@pytest.mark.slow
def test_a_step_on_20_000_genes_fits_into_memory(run_apart):
    gibibytes = float(run_apart(LARGE_STEP)[0])

    assert gibibytes < 3.5


@torch.no_grad()
def test_cells_without_a_count_are_drawn_until_they_have_one():
    """As draws of which empty ones are left out: the distribution given a count, whatever the other cells."""
    module, n = build(outliers=False), 4000
    z, totals = torch.zeros(n, *module.latent_shape), torch.full((n, 1), 1.5)
    parameters = module.likelihood.parameters_per_cell(**module.generative(z, totals))
    once = module.likelihood.sample(parameters, Generators(0, range(n)))
    had = once.sum(1) > 0

    drawn = module.draw_cells(module.generative(z, totals), Generators(0, range(n)))

    assert (drawn.sum(1) > 0).all()
    assert torch.equal(drawn[had], once[had])
    assert 0.15 < (~had).float().mean() < 0.4
    again, first = drawn[~had].sum(1), drawn[had].sum(1)
    error = (again.var() / len(again) + first.var() / len(first)).sqrt()
    assert abs(again.mean() - first.mean()) < 4 * error
    assert torch.equal(
        module.draw_cells(module.generative(z[:100], totals[:100]), Generators(0, range(100))), drawn[:100]
    )


def draw(module, condition):
    z = torch.randn(4, *module.latent_shape, generator=torch.Generator().manual_seed(1))
    return module.draw_cells(module.decode(z, torch.full((4, 1), 500.0), condition), Generators(0, range(4)))


def test_later_effects_are_those_of_the_classes_and_members_that_a_cell_has():
    effects = build((Classes(3), Members(5, 2))).condition_effects
    torch.nn.init.normal_(effects.loadings.weight)
    later = effects.add_later(2)
    later.keys.copy_(torch.tensor([0, 1]))
    later.codes.copy_(torch.tensor([1, 4]))
    condition = torch.tensor([[1, 0, 4], [1, 4, 5], [0, 1, 5], [3, 6, 5]])  # 3: no class, 5: no member, 6: no set
    before = effects(condition)

    with torch.no_grad():
        later.effects[:] = torch.tensor([[1.0], [10.0]])

    assert torch.equal(effects(condition)[2:], before[2:])
    torch.testing.assert_close(effects(condition)[:2] - before[:2], torch.full((2, 9, 2), 11.0))


def test_effects_change_neither_the_loss_nor_what_the_autoencoder_learns():
    x = torch.poisson(torch.full((40, 9), 5.0), generator=torch.Generator().manual_seed(0))
    module, batch = build((Classes(2),)), {REGISTRY_KEYS.X_KEY: x, CONDITIONS: torch.arange(40)[:, None] % 2}
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
    [
        ((), {}),
        ((Number(), Number(2)), {}),
        ((Classes(2),), {"condition_effects": False}),
        ((Classes(2),), {"likelihood": "gaussian"}),
    ],
    ids=["no conditions", "numbers", "switched off", "gaussian"],
)
def test_without_classes_or_counts_there_are_no_effects(conditions, changes):
    module = build(conditions, **changes)
    assert module.condition_effects is None
    columns = len(module.null_condition)
    torch.testing.assert_close(draw(module, torch.zeros(4, columns)), draw(module, None))
