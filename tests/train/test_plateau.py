"""The learning rate falls when the validation loss no longer does, and training ends after the third plateau."""

import math

import pytest
import torch
from builders import At, seeded
from lightning.pytorch.callbacks import Callback

from scgen_diffusion.train import _plans as plans

N_EPOCHS = 10  # of 3 steps


@pytest.fixture
def train(make_model, make_cells):
    """Train the autoencoder of a small model, the same way every time."""

    def run(patience, *, callbacks=(), **options):
        torch.manual_seed(0)
        model = make_model(make_cells(n_cells=96))
        options = {"batch_size": 32, "accelerator": "cpu", "enable_progress_bar": False, **options}
        recipe = {"n_epochs": N_EPOCHS, "patience": patience, **options.pop("recipe", {})}
        with seeded(0):
            model.train_autoencoder(plan_kwargs=recipe, callbacks=list(callbacks), **options)
        return model

    return run


class Watch(Callback):
    """Notes the learning rate of each epoch, relative to the schedule."""

    def __init__(self):
        self.factors = []

    def on_train_epoch_end(self, trainer, plan):
        rate = trainer.optimizers[0].param_groups[0]["lr"] / plan.recipe.learning_rate
        self.factors.append(rate)


@pytest.fixture
def rising(monkeypatch):
    """Make every validation loss higher than the one before."""
    judge = plans.StagePlan._lower_rate_on_plateau
    monkeypatch.setattr(
        plans.StagePlan, "_lower_rate_on_plateau", lambda plan, loss: judge(plan, float(plan.current_epoch))
    )


def n_epochs(model):
    return len(model.history["autoencoder_loss_train"])


def kill(plan):
    msg = "killed"
    raise RuntimeError(msg)


def test_the_rate_falls_after_each_plateau_and_the_third_ends_training(train, rising):
    watch = Watch()
    model = train(2, callbacks=[watch], recipe={"schedule": "constant", "warm_up": 0.0})

    # the first epoch has the lowest loss; plateaus of two epochs follow, and a lower rate shows an epoch later
    assert n_epochs(model) == 7
    assert watch.factors == pytest.approx([1, 1, 1, 0.3, 0.3, 0.09, 0.09])


def test_without_a_plateau_validation_cells_or_patience_training_takes_all_epochs(train, rising):
    assert n_epochs(train(2, train_size=1.0)) == N_EPOCHS
    assert n_epochs(train(None)) == N_EPOCHS


def test_a_loss_that_is_not_finite_counts_as_a_plateau(train, monkeypatch):
    judge = plans.StagePlan._lower_rate_on_plateau
    monkeypatch.setattr(plans.StagePlan, "_lower_rate_on_plateau", lambda plan, _: judge(plan, math.nan))

    assert n_epochs(train(2)) == 6


@pytest.mark.parametrize("step", [10, 16, 20])
def test_an_interrupted_run_resumes_to_identical_weights(train, rising, tmp_path, step):
    with pytest.raises(RuntimeError, match="killed"):
        train(2, callbacks=[At("autoencoder", step, kill)], checkpoint_dir=tmp_path, checkpoint_minutes=0.0)

    resumed, whole = train(2, checkpoint_dir=tmp_path), train(2)

    assert n_epochs(resumed) == n_epochs(whole) == 7
    for (name, value), found in zip(
        whole.module.state_dict().items(), resumed.module.state_dict().values(), strict=True
    ):
        assert torch.equal(value, found), name


def test_the_kl_weight_rises_and_then_outliers_begin_to_count(train):
    weights, outlier_weights = [], []

    class Note(Callback):
        def on_train_batch_end(self, trainer, plan, *_):
            weights.append(plan.kl_weight.item() / plan.recipe.kl_weight)
            outlier_weights.append(plan.module.likelihood.outliers.responsibility_weight.item())

    model = train(None, callbacks=[Note()], recipe={"kl_warm_up": 0.1})

    assert weights == pytest.approx([0, 1 / 3, 2 / 3, *[1] * 27])
    assert outlier_weights == [0, 0, 0, *[1] * 27]
    model.train_autoencoder(max_steps=1, batch_size=16, accelerator="cpu", enable_progress_bar=False)
    assert model.module.likelihood.outliers.responsibility_weight == 1


def test_a_trained_model_trains_on_from_its_weights(train):
    model = train(None)
    before = model.history["autoencoder_loss_validation"].iloc[-1, 0]

    model.train_autoencoder(2, batch_size=16, accelerator="cpu", enable_progress_bar=False)

    assert model.history["autoencoder_loss_validation"].iloc[0, 0] < before + 0.1
