"""Axes of latents along which cells differ as much as their expected expression."""

from types import SimpleNamespace

import pytest
import torch

from scgen_diffusion.train._perturbation_stage import axes_of_expression

EFFECTS = torch.tensor([[3.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 2.0, 0.0]])  # of 3 latents on 4 genes


def decoder(effects=EFFECTS):
    """Return a module whose expected log expression is linear in the latents."""
    return SimpleNamespace(
        latent_shape=(1, len(effects)),
        unstandardise=lambda states: states,
        expected_profiles=lambda z: z.flatten(1).float() @ effects + 0.5,
    )


@pytest.fixture(scope="module")
def controls():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(200, 3, generator=generator) + place for place in (0.0, 2.0, -1.0)]


def test_distances_are_those_of_expected_expression_in_units_of_cells_of_one_kind(controls):
    axes = axes_of_expression(decoder(), controls)

    z, x = torch.cat(controls).double()[::40], torch.cat(controls)[::40] @ EFFECTS
    within = torch.cat([cells - cells.mean(0) for cells in controls]) @ EFFECTS
    unit = (within.square().sum(1).mean() / axes.shape[1]).sqrt()
    torch.testing.assert_close(torch.cdist(z @ axes, z @ axes).float(), torch.cdist(x, x) / unit, atol=0.1, rtol=0.02)


def test_what_changes_no_gene_hardly_counts_and_axes_are_finite(controls):
    lengths = axes_of_expression(decoder(), controls).norm(dim=1)

    assert lengths[1] < 0.1 * lengths[[0, 2]].min()
    assert axes_of_expression(decoder(torch.zeros(3, 4)), controls).isfinite().all()
