"""The autoencoder trains in rounds until one of them no longer lowers the validation loss."""

from __future__ import annotations

import math
import os
import signal

import pytest
import scvi
import torch
from lightning.pytorch.callbacks import Callback

from scgen_diffusion.train import _plans as plans
from scgen_diffusion.train import learning_rate_factor

PER_ROUND = 2  # epochs
ALWAYS, NEVER = -math.inf, math.inf  # least gain for another round


@pytest.fixture
def train(make_model, make_cells, monkeypatch):
    """Train the autoencoder of a small model, the same way every time."""

    def run(least_gain=ALWAYS, *, max_epochs=None, recipe=None, **options):
        monkeypatch.setattr(plans, "LEAST_GAIN", least_gain)
        torch.manual_seed(0)
        model = make_model(make_cells(n_cells=96))
        options = {"batch_size": 16, "accelerator": "cpu", "enable_progress_bar": False, **options}
        before, scvi.settings._seed = scvi.settings.seed, 0
        try:
            model.train_autoencoder(max_epochs, plan_kwargs={"n_epochs": PER_ROUND, **(recipe or {})}, **options)
        finally:
            scvi.settings._seed = before
        return model

    return run


def losses(model):
    return model.history["autoencoder_loss_validation"].iloc[:, 0]


def assert_same_weights(one, other):
    for (name, value), found in zip(one.module.state_dict().items(), other.module.state_dict().values(), strict=True):
        assert torch.equal(value, found), name


class Press(Callback):
    """Press Ctrl-C in a step, or end as if the process were killed."""

    def __init__(self, step, error=None):
        self.step, self.error = step, error

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            if self.error is not None:
                raise self.error
            os.kill(os.getpid(), signal.SIGINT)


def test_without_a_gain_training_ends_and_returns_to_the_first_round(train):
    model = train(NEVER)

    assert len(losses(model)) == 2 * PER_ROUND
    assert_same_weights(train(recipe={"max_rounds": 1}), model)


def test_every_gain_brings_another_round_until_there_were_enough(train):
    model = train(ALWAYS)

    assert len(losses(model)) == 3 * PER_ROUND
    assert_same_weights(train(ALWAYS, recipe={"max_rounds": 3}), model)
    assert len(losses(train(ALWAYS, recipe={"max_rounds": 4}))) == 4 * PER_ROUND


def test_the_gain_is_that_of_the_best_round(train):
    of_rounds = losses(train(ALWAYS))[PER_ROUND - 1 :: PER_ROUND].tolist()
    gain = (of_rounds[0] - of_rounds[1]) / of_rounds[0]
    assert gain > 0

    assert len(losses(train(0.99 * gain))) == 3 * PER_ROUND
    assert len(losses(train(1.01 * gain))) == 2 * PER_ROUND


@pytest.mark.parametrize(
    "options",
    [{"max_epochs": PER_ROUND}, {"early_stopping": True}, {"train_size": 1.0}, {"max_steps": 10}],
    ids=lambda options: next(iter(options)),
)
def test_a_length_another_rule_or_no_validation_cells_mean_one_round(train, options):
    model = train(**options)

    assert model.recipes_["autoencoder"]["max_rounds"] == 1
    assert len(model.history["autoencoder_loss_train"]) == PER_ROUND


def test_rounds_can_have_a_chosen_length(train):
    assert len(losses(train(max_epochs=1, recipe={"max_rounds": 2}))) == 2


def test_without_validation_there_is_nothing_to_wait_for(train):
    assert len(train(limit_val_batches=0).history["autoencoder_loss_train"]) == PER_ROUND


@pytest.mark.parametrize(("least_gain", "step"), [(ALWAYS, 13), (ALWAYS, 25), (NEVER, 20)])  # a round has 12 steps
def test_an_interrupted_run_resumes_to_identical_weights(train, tmp_path, least_gain, step):
    killed = {"callbacks": [Press(step, RuntimeError("killed"))], "checkpoint_minutes": 0.0}
    with pytest.raises(RuntimeError, match="killed"):
        train(least_gain, checkpoint_dir=tmp_path, **killed)

    resumed = train(least_gain, checkpoint_dir=tmp_path)

    whole = train(least_gain)
    assert_same_weights(whole, resumed)
    assert losses(resumed).tolist() == losses(whole).tolist()


def test_a_run_killed_before_its_last_mark_does_not_train_on(train, tmp_path):
    whole, path = train(NEVER, checkpoint_dir=tmp_path), tmp_path / "autoencoder.ckpt"
    torch.save({**torch.load(path, weights_only=True), "is_finished": False}, path)

    resumed = train(NEVER, checkpoint_dir=tmp_path)

    assert len(losses(resumed)) == 2 * PER_ROUND
    assert_same_weights(whole, resumed)
    assert torch.load(path, weights_only=True)["is_finished"]


def test_ctrl_c_in_a_later_round_keeps_the_weights_of_the_best_one(train):
    stopped = train(callbacks=[Press(15)])

    assert stopped.cut_short_ == {"autoencoder": "stopped"}
    assert_same_weights(train(recipe={"max_rounds": 1}), stopped)


def test_each_round_has_its_line_and_the_last_sentence_speaks_of_no_early_end(train, capsys):
    train(NEVER, enable_progress_bar=True)

    first, second, last = capsys.readouterr().err.splitlines()
    assert first.startswith("Autoencoder (compresses cells): 100%, epoch 2 of 2, validation loss ")
    assert second.startswith("Autoencoder (compresses cells), round 2: 100%, epoch 2 of 2, validation loss ")
    assert last.startswith("Training is done, and the validation loss has settled.")


def test_each_round_repeats_the_schedule_at_half_of_the_rate():
    once = learning_rate_factor("cosine", n_steps=100, warm_up=0.1)
    thrice = learning_rate_factor("cosine", n_steps=100, warm_up=0.1, max_rounds=3)

    steps = range(100)
    assert [thrice(step) for step in steps] == [once(step) for step in steps]
    assert [thrice(step + 200) for step in steps] == pytest.approx([once(step) / 4 for step in steps])
    assert thrice(300) == thrice(1000) == pytest.approx(once(100) / 4)


def test_the_kl_weight_rises_in_the_first_round_alone(train):
    seen = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, plan, *_):
            seen.append((plan.round, plan.progress))

    train(callbacks=[Watch()])

    assert [number for number, _ in seen] == [0] * 12 + [1] * 12 + [2] * 12
    assert [share for _, share in seen] == pytest.approx([step / 12 for step in range(12)] * 3)
