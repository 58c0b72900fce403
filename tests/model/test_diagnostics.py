"""Models that failed: signs that are warned of, and errors instead of cells that look like some."""

import numpy as np
import pytest
import torch


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


def spoil(parameters, value):
    for parameter in parameters:
        parameter.data.fill_(value)


@pytest.fixture(scope="module")
def diverged(make_trained):
    """Return a model all of whose weights are NaN, as after a step along a gradient that was none."""
    model = make_trained(max_epochs=1)
    spoil(model.module.parameters(), float("nan"))
    return model


DIVERGES = {"learning_rate": 1e300, "gradient_clip": 0}
QUICK = {"batch_size": 32, "accelerator": "cpu", "enable_progress_bar": False}


@pytest.mark.parametrize("max_epochs", [1, 2])  # after its last step, only the weights are no numbers
def test_a_new_model_can_be_trained_after_its_training_diverged(make_model, either_class, max_epochs):
    model = make_model(cls=either_class)

    with pytest.raises(FloatingPointError, match="learning rate"):
        model.train(max_epochs, plan_kwargs=DIVERGES, **{**QUICK, "batch_size": 128 if max_epochs == 1 else 32})
    assert model.trained_stages_ == []

    model.train(1, **QUICK)
    assert model.generate(3, seed=0).n_obs == 3


def test_a_trained_model_whose_training_diverges_is_as_before_this_stage(make_trained):
    model = make_trained()
    before = model.generate(3, seed=0).X.toarray()

    with pytest.raises(FloatingPointError, match="prior"):
        model.train_prior(1, plan_kwargs=DIVERGES, **QUICK)
    assert np.array_equal(model.generate(3, seed=0).X.toarray(), before)

    with pytest.raises(FloatingPointError, match="prior"):
        model.train(1, plan_kwargs={"prior": DIVERGES}, **QUICK)
    assert model.trained_stages_ == ["autoencoder"]
    assert all(weight.isfinite().all() for weight in model.module.parameters())


def test_no_call_of_a_diverged_model_returns_cells(diverged, tmp_path):
    calls = [
        *(lambda name=name: diverged.generate(3, seed=0, sampler=name) for name in ("euler", "midpoint", "heun")),
        lambda: diverged.generate_to(tmp_path / "cells.h5ad", 3, seed=0),
        *(lambda sample=sample: diverged.get_reconstruction(sample=sample) for sample in (True, False)),
        lambda: diverged.predict_perturbation(condition={"dose": 10}),
    ]
    for call in calls:
        with pytest.raises(FloatingPointError, match="diverged"):
            call()
    assert not (tmp_path / "cells.h5ad").exists()
