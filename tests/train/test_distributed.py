"""Several processes train one model as one process with batches as large as all of theirs together."""

from __future__ import annotations

import numpy as np
import pytest
import scvi
import torch

from scgen_diffusion.model import SCRDIT, WBDIT

N_CELLS = 97  # 87 to train on: batches of 32 leave 23, which two processes cannot halve; and 10 to validate on
WHOLE_CELLS = {"keep_at_least": 1.0}  # how many random numbers thinning takes depends on the counts


@pytest.fixture(autouse=True)
def _seed():
    before, scvi.settings._seed = scvi.settings.seed, 0
    yield
    scvi.settings._seed = before


@pytest.fixture
def train_scldm(make_model, make_cells):
    def train(batch_size, max_epochs=3, *, n_cells=N_CELLS, transport=False, **options):
        torch.manual_seed(0)
        model = make_model(make_cells(n_cells=n_cells))
        options = {
            "plan_kwargs": {"autoencoder": WHOLE_CELLS},
            "accelerator": "cpu",
            "enable_progress_bar": False,
            **options,
        }
        model.train(max_epochs, batch_size=batch_size, **options)
        if transport:
            del options["plan_kwargs"]
            model.train_transport(2, control_values={"dose": 1}, batch_size=8 * batch_size, **options)
        return model

    return train


@pytest.fixture
def train_gene_space(make_gene_space, make_cells):
    def train(cls, batch_size, **options):
        torch.manual_seed(0)
        model = make_gene_space(cls, make_cells(n_cells=N_CELLS))
        model.train(3, batch_size=batch_size, accelerator="cpu", enable_progress_bar=False, **options)
        return model

    return train


def described(model):
    """Reduce a model to what travels between processes."""
    history = {name: frame[name].to_numpy(float) for name, frame in model.history_.items()}
    weights = {name: tensor.detach().numpy() for name, tensor in model.module.state_dict().items()}
    return history, weights


def assert_same(one, other, *, rtol, atol):
    for first, second in zip(one, other, strict=True):
        assert first.keys() == second.keys()
        for name, values in first.items():
            np.testing.assert_allclose(second[name], values, rtol=rtol, atol=atol, err_msg=name)


TOGETHER = {"devices": 2, "strategy": "ddp"}


def test_two_processes_train_all_stages_of_scldm_as_one_does_with_the_doubled_batch(train_scldm, run_together):
    alone = described(train_scldm(32, transport=True))

    first, second = run_together(lambda rank: described(train_scldm(16, transport=True, **TOGETHER)))

    assert {name.split("_")[0] for name in alone[0]} == {"autoencoder", "prior", "transport"}
    assert_same(first, second, rtol=0, atol=0)
    assert_same(alone, first, rtol=1e-3, atol=1e-4)  # sums in another order, in single precision, over tens of steps


@pytest.mark.parametrize("cls", [SCRDIT, WBDIT])
def test_two_processes_train_a_gene_space_model_as_one_does_with_the_doubled_batch(train_gene_space, run_together, cls):
    alone = described(train_gene_space(cls, 32))

    first, second = run_together(lambda rank: described(train_gene_space(cls, 16, **TOGETHER)))

    assert_same(first, second, rtol=0, atol=0)
    assert_same(alone, first, rtol=1e-3, atol=1e-4)


def test_a_last_batch_with_fewer_cells_than_processes_counts_each_once(train_scldm, run_together):
    """Of 36 cells, 32 are trained on and 4 validated on: batches of 31 leave 1, and one process has none."""
    alone = described(train_scldm(33, n_cells=38))

    results = run_together(lambda rank: described(train_scldm(11, n_cells=38, **{**TOGETHER, "devices": 3})), 3)

    assert_same(alone, results[0], rtol=1e-3, atol=1e-4)


def test_without_a_seed_all_processes_take_that_of_the_first(train_scldm, run_together):
    def train(rank):
        scvi.settings._seed = None
        torch.manual_seed(rank)
        model = train_scldm(16, 2, **TOGETHER)
        return described(model)

    first, second = run_together(train)

    assert_same(first, second, rtol=0, atol=0)


def test_thinning_differs_among_processes_and_their_losses_are_those_of_one_on_average(train_scldm, run_together):
    """Which counts are thinned out is drawn by each process for its own cells, so that curves agree on average only."""
    thinned = {"plan_kwargs": {"autoencoder": {"keep_at_least": 0.3, "learning_rate": 1e-9}}}
    alone, _ = described(train_scldm(32, {"autoencoder": 12, "prior": 1}, **thinned))

    (together, _), _ = run_together(
        lambda rank: described(train_scldm(16, {"autoencoder": 12, "prior": 1}, **thinned, **TOGETHER))
    )

    for name in ("autoencoder_reconstruction_loss_train", "autoencoder_kl_train"):
        noise = alone[name].std() / np.sqrt(len(alone[name]))  # weights stand still: epochs differ by noise alone
        assert abs(together[name].mean() - alone[name].mean()) < 6 * noise, name
        assert not np.allclose(together[name], alone[name], rtol=1e-6)


def test_early_stopping_stops_all_processes_after_the_same_epoch(train_scldm, run_together):
    stop = {
        "early_stopping": True,
        "early_stopping_patience": 2,
        "plan_kwargs": {"autoencoder": WHOLE_CELLS, "prior": {"learning_rate": 1e-12}},
    }

    (first, _), (second, _) = run_together(
        lambda rank: described(train_scldm(48, {"autoencoder": 1, "prior": 40}, **stop, **TOGETHER))
    )

    assert 3 <= len(first["prior_loss_validation"]) < 40
    assert len(first["prior_loss_validation"]) == len(second["prior_loss_validation"])
