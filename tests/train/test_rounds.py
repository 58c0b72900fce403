"""The autoencoder trains in rounds until one of them no longer lowers the validation loss."""

from __future__ import annotations

import math
import signal

import pytest
import torch
from builders import At, seeded
from lightning.pytorch.callbacks import Callback, EarlyStopping

from scgen_diffusion.train import _plans as plans
from scgen_diffusion.train import _runner as runner

PER_ROUND = 2  # epochs, of 3 steps
ALWAYS, NEVER = -math.inf, math.inf  # least gain for another round


@pytest.fixture
def train(make_model, make_cells, monkeypatch):
    """Train the autoencoder of a small model, the same way every time."""

    def run(least_gain=ALWAYS, *, max_epochs=None, recipe=None, **options):
        monkeypatch.setattr(plans, "LEAST_GAIN", least_gain)
        torch.manual_seed(0)
        model = make_model(make_cells(n_cells=96))
        options = {"batch_size": 32, "accelerator": "cpu", "enable_progress_bar": False, **options}
        with seeded(0):
            model.train_autoencoder(max_epochs, plan_kwargs={"n_epochs": PER_ROUND, **(recipe or {})}, **options)
        return model

    return run


@pytest.fixture
def train_once(train, known={}):  # noqa: B006 - kept for all tests
    """Return a model that was trained so, once for all tests; they must not change it."""

    def run(least_gain=ALWAYS, **recipe):
        key = least_gain, *recipe.items()
        return known[key] if key in known else known.setdefault(key, train(least_gain, recipe=recipe))

    return run


def train_on(model, **options):
    quick = {"batch_size": 16, "accelerator": "cpu", "enable_progress_bar": False, **options}
    model.train_autoencoder(plan_kwargs={"n_epochs": PER_ROUND, **quick.pop("recipe", {})}, **quick)


def losses(model):
    return model.history["autoencoder_loss_validation"].iloc[:, 0]


def assert_same_weights(one, other):
    for (name, value), found in zip(one.module.state_dict().items(), other.module.state_dict().values(), strict=True):
        assert torch.equal(value, found), name


def kill(plan):
    msg = "killed"
    raise RuntimeError(msg)


def end(plan):
    """End training with Lightning's own flag."""
    plan.trainer.should_stop = True


def spoil(plan):
    next(iter(plan.module.encoder.parameters())).data.fill_(math.nan)


def test_without_a_gain_training_ends_and_returns_to_the_first_round(train_once):
    model = train_once(NEVER)

    assert len(losses(model)) == 2 * PER_ROUND
    assert_same_weights(train_once(max_rounds=1), model)


def test_every_gain_brings_another_round_until_there_were_enough(train, train_once):
    model = train_once(ALWAYS)

    assert len(losses(model)) == 3 * PER_ROUND
    assert_same_weights(train(ALWAYS, recipe={"max_rounds": 3}), model)
    assert len(losses(train(ALWAYS, recipe={"max_rounds": 4}))) == 4 * PER_ROUND


def test_the_gain_is_that_of_the_best_round(train, train_once):
    of_rounds = losses(train_once(ALWAYS))[PER_ROUND - 1 :: PER_ROUND].tolist()
    gain = (of_rounds[0] - of_rounds[1]) / of_rounds[0]
    assert gain > 0

    assert len(losses(train(0.99 * gain))) == 3 * PER_ROUND
    assert len(losses(train(1.01 * gain))) == 2 * PER_ROUND


def test_rounds_without_a_finite_validation_loss_end_and_return_to_the_first(train, train_once, monkeypatch):
    judge = plans.StagePlan._end_round

    def without_loss(plan, **options):
        plan.losses[plan.key_loss("validation")][plan.current_epoch] = math.nan
        judge(plan, **options)

    monkeypatch.setattr(plans.StagePlan, "_end_round", without_loss)
    model = train(ALWAYS, callbacks=None)

    assert len(losses(model)) == 2 * PER_ROUND
    assert_same_weights(train_once(max_rounds=1), model)


@pytest.mark.parametrize(
    "options",
    [
        {"max_epochs": PER_ROUND},
        {"train_size": 1.0},
        {"early_stopping": True},
        {"max_steps": 5},
        {"callbacks": [EarlyStopping("autoencoder_loss_validation")]},
    ],
)
def test_a_length_another_rule_or_no_validation_mean_one_round(train, options):
    model = train(**options)

    assert model.recipes_["autoencoder"]["max_rounds"] == 1
    assert len(model.history["autoencoder_loss_train"]) == PER_ROUND
    if "max_epochs" not in options:
        with pytest.raises(ValueError, match="max_rounds"):
            train(recipe={"max_rounds": 2}, **options)


@pytest.mark.parametrize(
    ("n_epochs", "options", "expected"),
    [(6, {"check_val_every_n_epoch": 3}, [2, 5, 8, 11]), (5, {}, [*range(10)]), (6, {}, [2, 5, 8, 11])],
)
def test_each_round_is_judged_after_its_last_epoch(train, monkeypatch, n_epochs, options, expected):
    monkeypatch.setattr(runner, "N_VALIDATIONS", 2)

    assert losses(train(recipe={"n_epochs": n_epochs, "max_rounds": 2}, **options)).index.tolist() == expected
    with pytest.raises(ValueError, match="check_val_every_n_epoch"):
        train(recipe={"n_epochs": 6, "max_rounds": 2}, check_val_every_n_epoch=4)


@pytest.mark.parametrize(("least_gain", "step"), [(ALWAYS, 7), (ALWAYS, 13), (NEVER, 11)])
def test_an_interrupted_run_resumes_to_identical_weights(train, train_once, tmp_path, least_gain, step):
    killed = {"callbacks": [At("autoencoder", step, kill)], "checkpoint_minutes": 0.0}
    with pytest.raises(RuntimeError, match="killed"):
        train(least_gain, checkpoint_dir=tmp_path, **killed)

    resumed = train(least_gain, checkpoint_dir=tmp_path)

    whole = train_once(least_gain)
    assert_same_weights(whole, resumed)
    assert losses(resumed).tolist() == losses(whole).tolist()


def test_whatever_ends_a_later_round_the_weights_are_those_of_the_best_one(train, train_once, tmp_path):
    stopped, ended = (
        train(callbacks=[At("autoencoder", 8, work)], checkpoint_dir=folder)
        for work, folder in ((signal.SIGINT, None), (end, tmp_path))
    )
    spoilt = train(callbacks=[At("autoencoder", 10, spoil)])

    assert stopped.cut_short_ == {"autoencoder": "stopped"}
    assert spoilt.trained_stages_ == ["autoencoder"]
    for model in (stopped, ended, spoilt, train(checkpoint_dir=tmp_path)):
        assert_same_weights(train_once(max_rounds=1), model)


def test_the_kl_weight_rises_and_outliers_begin_to_count_in_the_first_round_alone(train):
    seen, weights, outlier_weights = [], [], []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, plan, *_):
            seen.append((plan.round, plan.progress))

        def on_train_batch_end(self, trainer, plan, *_):
            weights.append(plan.kl_weight.item() / plan.recipe.kl_weight)
            outlier_weights.append(plan.module.likelihood.outliers.responsibility_weight.item())

    model = train(callbacks=[Watch()], recipe={"kl_warm_up": 0.5})

    assert [number for number, _ in seen] == [0] * 6 + [1] * 6 + [2] * 6
    assert [share for _, share in seen] == pytest.approx([step / 6 for step in range(6)] * 3)
    assert weights == pytest.approx([0, 1 / 3, 2 / 3, *[1] * 15])
    assert outlier_weights == [0, 0, 0, *[1] * 15]
    train_on(model, max_steps=1)  # within the start
    assert model.module.likelihood.outliers.responsibility_weight == 1


def test_a_trained_model_trains_on_from_its_weights(train, monkeypatch):
    model = train(recipe={"max_rounds": 1})
    before = losses(model).iloc[-1]
    monkeypatch.setattr(plans, "LEAST_GAIN", 0.0)

    train_on(model)

    assert losses(model).iloc[0] < before + 0.1
    assert losses(model).min() < before
