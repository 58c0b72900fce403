"""Signs that a gene-space model failed: when they show, what they say, and where they point."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from scgen_diffusion.data import ValueSummary
from scgen_diffusion.model import SCRDIT
from scgen_diffusion.model._diagnostics import warn_of_odd_values
from scgen_diffusion.nn import log_profile


@pytest.fixture
def plant(trained_gene_space, monkeypatch):
    """Make the shared model generate given profiles."""

    def plant_(profile):
        profiles = torch.as_tensor(profile, dtype=torch.float32).expand(128, 12)
        monkeypatch.setattr(trained_gene_space.module, "expected_profiles", lambda *_, **__: profiles.clone())
        return trained_gene_space

    return plant_


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_network_that_is_no_number_any_more_is_an_error(trained_gene_space, monkeypatch, value, counts):
    class Planted(torch.nn.Module):
        def forward(self, x_t, t, condition):
            return torch.full_like(x_t, value)

    monkeypatch.setitem(trained_gene_space.module._modules, "averaged_network", Planted())
    with pytest.raises(FloatingPointError):
        trained_gene_space.generate(5, seed=0, counts=counts)


def test_a_single_value_that_is_no_number_is_an_error(plant):
    profile = np.ones(12)
    profile[3] = np.nan

    with pytest.raises(FloatingPointError):
        plant(profile).generate(5, seed=0)


def test_values_far_above_training_give_a_warning_at_the_users_line(plant, trained_gene_space):
    largest = trained_gene_space.module.largest_value.item()
    profile = np.zeros(12)
    profile[3] = 2 * largest

    with pytest.warns(UserWarning, match=f"{2 * largest:.3g}.*{largest:.3g}") as caught:
        cells = plant(profile).generate(5, seed=0)

    assert [warning.filename for warning in caught] == [__file__]
    assert cells.X.max() == pytest.approx(2 * largest)


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({}, "`zero_value`"),
        ({"zero_value": -5.0}, "train longer"),
        ({"head": "spike_and_slab", "target": "data"}, "train longer"),
    ],
)
def test_missing_zeros_give_a_warning_at_the_users_line(make_cells, make_trained, monkeypatch, options, advice):
    cells = make_cells()
    cells.X[:, 8:] = 0
    model = make_trained(cells, cls=SCRDIT, **options)
    monkeypatch.setattr(model.module, "expected_profiles", lambda *_, **__: torch.full((128, 12), 5.0))

    with pytest.warns(UserWarning, match=f"^0%.*33%.*{advice}") as caught:
        model.generate(5, seed=0)

    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.filterwarnings("error")
def test_the_training_cells_themselves_show_no_signs(plant, trained_gene_space):
    profiles = log_profile(torch.from_numpy(trained_gene_space.adata.X), "counts").repeat(2, 1)[:128]

    cells = plant(profiles).generate(96, seed=0)

    np.testing.assert_array_equal(cells.X.toarray(), profiles[:96])


@pytest.mark.parametrize("kind", [np.asarray, sp.csr_matrix])
@pytest.mark.parametrize(("n_zeros", "warns"), [(0, True), (3, True), (4, False), (12, False)])
def test_half_of_the_fewest_zeros_of_a_training_cell_are_enough(trained_gene_space, monkeypatch, kind, n_zeros, warns):
    monkeypatch.setitem(trained_gene_space.module._buffers, "training_zeros", torch.tensor(0.6))
    x = np.ones(12, dtype=np.float32)
    x[:n_zeros] = 0

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_odd_values(trained_gene_space.module, ValueSummary.of(kind(x.reshape(3, 4))), "log1p")

    assert bool(caught) == warns
