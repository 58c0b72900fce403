"""Signs that a gene-space model failed: when they show, what they say, and where they point."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scgen_diffusion.model import SCRDIT
from scgen_diffusion.nn import log_profile


@pytest.fixture
def plant(trained_gene_space, monkeypatch):
    """Make the shared model generate given profiles."""

    def plant_(profile):
        profiles = torch.as_tensor(profile, dtype=torch.float32).expand(128, 12)
        monkeypatch.setattr(trained_gene_space.module, "expected_profiles", lambda *_, **__: profiles.clone())
        return trained_gene_space

    return plant_


def test_a_single_value_that_is_no_number_is_an_error(plant):
    profile = np.ones(12)
    profile[3] = np.nan

    for counts in (False, True):
        with pytest.raises(FloatingPointError):
            plant(profile).generate(5, seed=0, counts=counts)


def test_values_far_above_training_give_a_warning_at_the_users_line(plant, trained_gene_space):
    largest = trained_gene_space.module.largest_value.item()
    profile = np.zeros(12)
    profile[3] = 2 * largest

    with pytest.warns(UserWarning, match=f"{2 * largest:.3g}") as caught:
        cells = plant(profile).generate(5, seed=0)

    assert [warning.filename for warning in caught] == [__file__]
    assert cells.X.max() == pytest.approx(2 * largest)


@pytest.mark.parametrize(
    ("options", "advice"), [({}, "zero_value"), ({"head": "spike_and_slab", "target": "data"}, "train longer")]
)
def test_missing_zeros_give_a_warning_at_the_users_line(make_cells, make_trained, monkeypatch, options, advice):
    cells = make_cells()
    cells.X[:, 8:] = 0
    model = make_trained(cells, cls=SCRDIT, **options)
    monkeypatch.setattr(model.module, "expected_profiles", lambda *_, **__: torch.full((128, 12), 5.0))

    with pytest.warns(UserWarning, match=advice) as caught:
        model.generate(5, seed=0)

    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.filterwarnings("error")
def test_the_training_cells_themselves_show_no_signs(plant, trained_gene_space):
    profiles = log_profile(torch.from_numpy(trained_gene_space.adata.X), "counts").repeat(2, 1)[:128]

    cells = plant(profiles).generate(96, seed=0)

    np.testing.assert_array_equal(cells.X.toarray(), profiles[:96])
