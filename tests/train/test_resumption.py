"""A training that is interrupted resumes from its last checkpoint, and ends as if nothing had happened."""

import shutil
import signal
import time
from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
import torch
from builders import At, seeded

from scgen_diffusion.model import SCRDIT, WBDIT
from scgen_diffusion.train import _stage_data as cells_module

STAGES = ["autoencoder", "prior", "perturbation_flow"]
N_EPOCHS = dict.fromkeys(STAGES, 2)  # of 3 steps
MIDDLE = 5  # a step of the second epoch
EVERY_EPOCH = {"checkpoint_minutes": 0.0}
ONE_EPOCH = dict.fromkeys(STAGES, 1)
OPTIONS = {"batch_size": 32, "accelerator": "cpu", "enable_progress_bar": False}


def signal_at(number, stage, step):
    return {"callbacks": [At(stage, step, number)]}


@pytest.fixture(scope="module")
def train(make_model, make_cells):
    """Train all stages of a small model, the same way every time."""

    def run(folder, max_epochs=N_EPOCHS, *, n_cells=96, seed=0, **options):
        torch.manual_seed(0)
        model = make_model(make_cells(n_cells=n_cells), setup={"control_values": {"dose": 1}})
        with seeded(seed):
            model.train(max_epochs, checkpoint_dir=folder, **{**OPTIONS, **options})
        return model

    return run


@pytest.fixture(scope="module")
def whole(train):
    """Train without an interruption."""
    started = time.process_time()
    model = train(None)
    return model, time.process_time() - started


def read(path):
    return torch.load(path, weights_only=True)


def assert_same_model(one, other):
    for name, frame in one.history_.items():
        pd.testing.assert_frame_equal(other.history_[name], frame)
    for (name, tensor), found in zip(one.module.state_dict().items(), other.module.state_dict().values(), strict=True):
        assert torch.equal(tensor, found), name


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_stage_resumes_to_identical_weights(train, whole, tmp_path, stage, run_together):
    work = signal_at(signal.SIGKILL, stage, MIDDLE)

    assert run_together(lambda _: train(tmp_path, **EVERY_EPOCH, **work), 1) == [-signal.SIGKILL]
    assert read(tmp_path / f"{stage}.ckpt")["n_epochs_done"] == 1

    assert_same_model(whole[0], train(tmp_path))


def test_a_killed_gene_space_model_resumes_to_identical_weights(make_model, tmp_path, run_together):
    def run(folder, **options):
        torch.manual_seed(0)
        model = make_model(cls=WBDIT, head="spike_and_slab")
        with seeded(None):  # the checkpoint has the one that was drawn
            model.train(3, checkpoint_dir=folder, **OPTIONS, **options)
        return model

    uninterrupted = run(None)
    work = signal_at(signal.SIGKILL, "diffusion", MIDDLE)
    assert run_together(lambda _: run(tmp_path, **EVERY_EPOCH, **work), 1) == [-signal.SIGKILL]
    torch.rand(1)
    assert_same_model(uninterrupted, run(tmp_path))


def test_kills_at_random_moments_leave_no_trace(train, whole, tmp_path, run_together):
    """Again and again, after drawn times, wherever that may be: between stages, while a checkpoint is written."""
    whole, duration = whole

    def train_and_be_killed(seconds):
        signal.setitimer(signal.ITIMER_PROF, seconds)  # of work; nobody listens to the signal
        train(tmp_path, **EVERY_EPOCH)

    delays = np.random.default_rng().uniform(0.05, 0.6, 4) * duration
    ends = [run_together(lambda _, delay=delay: train_and_be_killed(delay), 1) for delay in delays]

    assert [-signal.SIGPROF] in ends, delays
    assert_same_model(whole, train(tmp_path))


def test_sigterm_ends_the_process_with_the_code_of_a_terminated_one(train, whole, tmp_path):
    with pytest.raises(SystemExit) as end:
        train(tmp_path, **EVERY_EPOCH, **signal_at(signal.SIGTERM, "autoencoder", MIDDLE))

    assert end.value.code == 143
    assert read(tmp_path / "autoencoder.ckpt")["n_epochs_done"] == 1
    assert not (tmp_path / "prior.ckpt").exists()
    assert_same_model(whole[0], train(tmp_path))


@pytest.mark.parametrize(
    ("stage", "step", "n_whole"),
    [("autoencoder", 2, 0), ("autoencoder", 6, 1), ("perturbation_flow", MIDDLE, 1)],
)
def test_ctrl_c_keeps_the_weights_and_the_same_call_ends_as_if_it_had_not_been(
    train, whole, tmp_path, stage, step, n_whole
):
    handler = signal.getsignal(signal.SIGINT)
    stopped = train(tmp_path, **EVERY_EPOCH, **signal_at(signal.SIGINT, stage, step))

    assert signal.getsignal(signal.SIGINT) is handler
    assert stopped.trainer.global_step == step
    assert len(stopped.history_.get(f"{stage}_loss_train", [])) == n_whole  # a partial epoch does not count
    assert all(p.requires_grad for p in stopped.module.encoder.parameters())
    assert_same_model(whole[0], train(tmp_path))


def test_a_run_that_diverges_leaves_its_last_good_checkpoint(train, tmp_path):
    def spoil(plan):
        next(plan.module.decoder.parameters()).data.fill_(torch.nan)

    with pytest.raises(FloatingPointError, match="learning rate"):  # in the last step of an epoch
        train(tmp_path, 3, callbacks=[At("autoencoder", 6, spoil)], **EVERY_EPOCH)

    checkpoint = read(tmp_path / "autoencoder.ckpt")
    assert checkpoint["n_epochs_done"] == 1
    assert all(t.isfinite().all() for name, t in checkpoint["state_dict"].items() if "decoder" in name)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"train_size": 0.5}, "split"),  # some of the new validation cells were trained on
        ({"seed": 7}, "split"),
        ({"max_epochs": {**N_EPOCHS, "autoencoder": 1}}, "epochs"),
        ({"plan_kwargs": {"autoencoder": {"learning_rate": 0.1}}}, "learning_rate"),
        ({"max_epochs": {**N_EPOCHS, "autoencoder": 3}, "batch_size": 16}, "batch_size"),
    ],
)
def test_another_split_recipe_or_length_is_refused(train, whole, finished, options, named):
    assert_same_model(whole[0], train(finished))  # the same call changes nothing
    with pytest.raises(ValueError, match=named):
        train(finished, **options)


@pytest.fixture(scope="module")
def finished(train, tmp_path_factory):
    """Return the checkpoints of a finished training."""
    folder = tmp_path_factory.mktemp("finished")
    train(folder)
    return folder


def test_a_stage_that_early_stopping_ended_is_refused_with_another_rule_or_recipe(make_model, tmp_path):
    recipe = {"learning_rate": 1e-12, "patience": 1}
    options = {**OPTIONS, "early_stopping": True, "plan_kwargs": recipe, "checkpoint_dir": tmp_path}
    model = make_model(cls=SCRDIT)
    model.train(9, **options)
    assert model.trainer.current_epoch < 9

    make_model(cls=SCRDIT).train(9, **options)
    for named, other in (
        ("patience", {"plan_kwargs": {**recipe, "patience": 2}}),
        ("batch_size", {"batch_size": 8}),
    ):
        with pytest.raises(ValueError, match=named):
            make_model(cls=SCRDIT).train(9, **{**options, **other})


def test_a_stage_on_top_of_another_autoencoder_is_refused(train, tmp_path):
    train(tmp_path, ONE_EPOCH)
    shutil.copy(tmp_path / "prior.ckpt", tmp_path.parent / "kept.ckpt")
    for stage in ("prior", "perturbation_flow"):
        (tmp_path / f"{stage}.ckpt").unlink()
    train(tmp_path, {**ONE_EPOCH, "autoencoder": 2})
    shutil.move(tmp_path.parent / "kept.ckpt", tmp_path / "prior.ckpt")

    with pytest.raises(ValueError, match="prior"):
        train(tmp_path, {**ONE_EPOCH, "autoencoder": 2})


@pytest.mark.parametrize("n_epochs", [1, 3], ids=["finished", "to be made longer"])
def test_a_stage_can_be_made_longer_but_a_checkpoint_never_undoes_later_training(train, tmp_path, n_epochs):
    model = train(tmp_path / "run", ONE_EPOCH)
    longer, copy = deepcopy(model), shutil.copytree(tmp_path / "run", tmp_path / "copy")
    longer.train_prior(n_epochs, checkpoint_dir=copy, **OPTIONS)
    assert longer.history_["prior_loss_train"].index.tolist() == list(range(n_epochs))

    model.train_prior(1, **OPTIONS)
    former = deepcopy(model)
    with pytest.raises(ValueError, match="prior"):
        model.train_prior(n_epochs, checkpoint_dir=tmp_path / "run", **OPTIONS)
    assert_same_model(former, model)


def test_training_on_that_was_killed_resumes_from_the_weights_before(train, tmp_path, run_together):
    def train_on(folder, **options):
        model = train(None, ONE_EPOCH)
        with seeded(0):
            model.train(N_EPOCHS, checkpoint_dir=folder, batch_size=32, enable_progress_bar=False, **options)
        return model

    uninterrupted = train_on(None)
    work = signal_at(signal.SIGKILL, "prior", MIDDLE)
    assert run_together(lambda _: train_on(tmp_path, **EVERY_EPOCH, **work), 1) == [-signal.SIGKILL]
    assert_same_model(uninterrupted, train_on(tmp_path))


def test_a_pass_over_many_cells_is_cut_into_epochs_and_resumes_between_them(train, tmp_path, monkeypatch, run_together):
    monkeypatch.setattr(cells_module, "LONGEST_EPOCH", 2)
    passes = {**ONE_EPOCH, "autoencoder": 2}
    uninterrupted = train(None, passes, batch_size=16)
    work = signal_at(signal.SIGKILL, "autoencoder", 5)  # in the third of three epochs of the first pass

    killed = run_together(lambda _: train(tmp_path, passes, batch_size=16, **EVERY_EPOCH, **work), 1)

    assert killed == [-signal.SIGKILL]
    assert read(tmp_path / "autoencoder.ckpt")["n_epochs_done"] == 2
    assert_same_model(uninterrupted, train(tmp_path, passes, batch_size=16))
    assert len(uninterrupted.history_["autoencoder_loss_train"]) == 6
