"""Models whose training diverged: an error that says so, and no cells that look like some."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from scgen_diffusion.diffusion import _count_draws
from scgen_diffusion.generation import check_finite

NOT_FINITE = [float("nan"), float("inf")]


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


def test_no_call_of_a_diverged_model_returns_cells(diverged, tmp_path, monkeypatch):
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
    # on other devices the draws do not wait to look, and mark counts without a distribution as NaN
    monkeypatch.setattr(_count_draws, "finite_mask", lambda **values: torch.stack([*values.values()]).isfinite().all(0))
    with pytest.raises(FloatingPointError, match="diverged"):
        calls[0]()


@pytest.mark.parametrize(
    ("named", "parameter", "value"),
    [("theta", "log_theta", float("nan")), ("mu", "outliers.log_scale", 200.0)],
)
def test_distributions_that_are_no_numbers_are_an_error(make_trained, named, parameter, value):
    model = make_trained()
    spoil([model.module.likelihood.get_parameter(parameter)], value)

    with pytest.raises(FloatingPointError, match=named):
        model.generate(3, seed=0, n_steps=1, library_size=20_000)


@pytest.mark.parametrize("value", NOT_FINITE)
def test_dense_and_sparse_cells_are_looked_at(value):
    for kind in (np.asarray, sp.csr_matrix):
        check_finite(kind([[0.0, 1.0]]))
        with pytest.raises(FloatingPointError, match="not finite"):
            check_finite(kind([[0.0, value]]))
