"""A training that is killed goes on where its last checkpoint was, and ends as if nothing had happened."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time

import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from lightning.pytorch.callbacks import Callback
from torch import distributed

from scgen_diffusion.model import SCRDIT
from scgen_diffusion.train._checkpoint import check_seen_by_all

TOGETHER = {"devices": 2, "strategy": "ddp"}
STAGES = ["autoencoder", "prior", "transport"]


class DieAt(Callback):
    """Kill this process without a warning, at a step of a stage."""

    def __init__(self, stage, step):
        self.stage, self.step = stage, step

    def on_train_batch_end(self, trainer, plan, *_):
        if (plan.name, trainer.global_step) == (self.stage, self.step):
            os.kill(os.getpid(), signal.SIGKILL)


class Terminate(DieAt):
    """Tell this process to terminate."""

    def on_train_batch_end(self, trainer, plan, *_):
        if (plan.name, trainer.global_step) == (self.stage, self.step):
            os.kill(os.getpid(), signal.SIGTERM)


class PressCtrlC(DieAt):
    """Ask this process to stop."""

    def on_train_batch_end(self, trainer, plan, *_):
        if (plan.name, trainer.global_step) == (self.stage, self.step):
            os.kill(os.getpid(), signal.SIGINT)


class Diverge(DieAt):
    """Make weights that are no numbers."""

    def on_train_batch_end(self, trainer, plan, *_):
        if (plan.name, trainer.global_step) == (self.stage, self.step):
            next(plan.module.decoder.parameters()).data.fill_(torch.nan)


N_EPOCHS = {"autoencoder": 2, "prior": 2, "transport": 2}  # of 6, 10 and 10 steps
MIDDLE = {"autoencoder": 9, "prior": 13, "transport": 13}  # of the second epoch


@pytest.fixture(scope="module")
def train(make_model, make_cells):
    """Train all stages of a small model, the same way every time."""

    def run(folder, max_epochs=N_EPOCHS, *, n_cells=96, seed=0, **options):
        torch.manual_seed(0)
        model = make_model(make_cells(n_cells=n_cells), setup={"control_values": {"dose": 1}})
        options = {"batch_size": 16, "accelerator": "cpu", "enable_progress_bar": False, **options}
        before, scvi.settings._seed = scvi.settings.seed, seed
        try:
            model.train(max_epochs, checkpoint_dir=folder, **options)
        finally:
            scvi.settings._seed = before
        return model

    return run


@pytest.fixture(scope="module")
def whole(train):
    """Train without an interruption."""
    started = time.process_time()
    model = train(None)
    return model, time.process_time() - started


@pytest.fixture
def train_gene_space(make_gene_space, make_cells):
    def run(folder, **options):
        torch.manual_seed(0)
        model = make_gene_space(SCRDIT, make_cells())
        options = {"batch_size": 16, "accelerator": "cpu", "enable_progress_bar": False, **options}
        model.train(4, checkpoint_dir=folder, **options)
        return model

    return run


def run_until_killed(work):
    """Do something in a fork, and return the signal that ended it."""

    def child():
        torch.set_num_threads(1)
        with contextlib.suppress(BaseException):
            work()
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(120)
    return -process.exitcode


def assert_same_model(one, other):
    for name, frame in one.history_.items():
        pd.testing.assert_frame_equal(other.history_[name], frame)
    for (name, tensor), found in zip(one.module.state_dict().items(), other.module.state_dict().values(), strict=True):
        assert torch.equal(tensor, found), name


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_stage_ends_bit_for_bit_as_if_it_had_not_been(train, whole, tmp_path, stage):
    """With a checkpoint at every step, it goes on in the middle of an epoch."""
    options = {"checkpoint_minutes": 0.0, "callbacks": [DieAt(stage, MIDDLE[stage])]}

    assert run_until_killed(lambda: train(tmp_path, **options)) == signal.SIGKILL
    checkpoint = torch.load(tmp_path / f"{stage}.ckpt", weights_only=True)
    assert checkpoint["global_step"] == MIDDLE[stage] - 1
    assert checkpoint["position"][0] == 1
    assert checkpoint["position"][1] > 0

    assert_same_model(whole[0], train(tmp_path))


def test_a_killed_gene_space_model_ends_bit_for_bit_as_if_it_had_not_been(train_gene_space, tmp_path):
    whole = train_gene_space(None)
    options = {"checkpoint_minutes": 0.0, "callbacks": [DieAt("diffusion", 9)]}

    assert run_until_killed(lambda: train_gene_space(tmp_path, **options)) == signal.SIGKILL

    assert_same_model(whole, train_gene_space(tmp_path))


def test_kills_at_random_moments_leave_no_trace(train, whole, tmp_path):
    """Again and again, after times that are drawn, wherever that may be: between stages, while a checkpoint is written."""
    whole, duration = whole

    def train_and_be_killed(seconds):
        signal.setitimer(
            signal.ITIMER_PROF, seconds
        )  # of work, however busy the machine is; nobody listens to the signal
        train(tmp_path, checkpoint_minutes=0.0)

    delays = np.random.default_rng().uniform(0.05, 0.6, 4) * duration
    ends = [run_until_killed(lambda delay=delay: train_and_be_killed(delay)) for delay in delays]

    assert signal.SIGPROF in ends, delays
    assert_same_model(whole, train(tmp_path))


def test_a_process_that_is_told_to_terminate_writes_where_it_is(train, whole, tmp_path):
    """As a cluster does before it takes the machine away; there is no checkpoint in the middle of an epoch otherwise."""

    def work():
        try:
            train(tmp_path, callbacks=[Terminate("prior", MIDDLE["prior"])])
        except SystemExit as end:
            os._exit(end.code)

    assert run_until_killed(work) == -143  # what a shell reports of a process that SIGTERM ended
    assert torch.load(tmp_path / "prior.ckpt", weights_only=True)["global_step"] == MIDDLE["prior"]
    assert_same_model(whole[0], train(tmp_path))


def test_sigterm_in_the_last_step_of_a_stage_ends_the_process_too(train, whole, tmp_path):
    with pytest.raises(SystemExit) as end:
        train(tmp_path, callbacks=[Terminate("autoencoder", 12)])

    assert end.value.code == 143
    assert torch.load(tmp_path / "autoencoder.ckpt", weights_only=True)["is_finished"]
    assert not (tmp_path / "prior.ckpt").exists()
    assert_same_model(whole[0], train(tmp_path))


def test_sigterm_for_one_process_in_the_last_step_ends_all(train, tmp_path, run_together):
    def work(rank):
        callbacks = [Terminate("autoencoder", 6)] if rank else []
        train(tmp_path, {"autoencoder": 1, "prior": 1, "transport": 1}, batch_size=8, callbacks=callbacks, **TOGETHER)

    assert run_together(work) == [143, 143]


@pytest.mark.parametrize(
    ("stage", "step", "n_whole"),
    [
        ("autoencoder", 2, 0),
        ("autoencoder", 6, 1),
        ("autoencoder", 9, 1),
        ("autoencoder", 12, 2),
        ("prior", 13, 1),
        ("transport", 13, 1),
    ],
)
def test_a_stage_that_ctrl_c_stopped_goes_on_as_if_it_had_not_been(train, whole, tmp_path, stage, step, n_whole):
    """In the middle of an epoch, at its end, and at that of the stage."""
    stopped = train(tmp_path, callbacks=[PressCtrlC(stage, step)])

    assert len(stopped.history_.get(f"{stage}_loss_train", [])) == n_whole  # a part of an epoch is no epoch
    assert all(p.requires_grad for p in stopped.module.encoder.parameters())
    checkpoint = torch.load(tmp_path / f"{stage}.ckpt", weights_only=True)
    assert checkpoint["global_step"] == step
    assert checkpoint["is_finished"] == (n_whole == N_EPOCHS[stage])
    assert_same_model(whole[0], train(tmp_path))


@pytest.mark.parametrize(("minutes", "position"), [(10.0, [1, 0]), (0.0, [1, 2])], ids=["epochs", "steps"])
def test_a_run_that_diverges_leaves_its_last_good_checkpoint(train, tmp_path, minutes, position):
    with pytest.raises(FloatingPointError, match="lower learning rate.*another `checkpoint_dir`"):
        train(tmp_path, callbacks=[Diverge("autoencoder", 9)], checkpoint_minutes=minutes)

    checkpoint = torch.load(tmp_path / "autoencoder.ckpt", weights_only=True)
    assert checkpoint["position"] == position
    assert all(t.isfinite().all() for name, t in checkpoint["state_dict"].items() if "decoder" in name)


def test_another_split_of_the_cells_is_refused(train, tmp_path):
    """Some of the new validation cells were trained on."""
    n_epochs = {"autoencoder": 1, "prior": 1, "transport": 1}
    train(tmp_path, n_epochs)

    with pytest.raises(ValueError, match="checkpoint of the autoencoder is of .*another split"):
        train(tmp_path, n_epochs, train_size=0.5)
    with pytest.raises(ValueError, match="checkpoint of the autoencoder is of .*another split"):
        train(tmp_path, n_epochs, seed=7)


def test_sigterm_for_one_process_has_all_end_before_the_same_step_with_one_checkpoint(train, tmp_path, run_together):
    n_epochs = {"autoencoder": 60, "prior": 1, "transport": 1}
    whole_cells = {"plan_kwargs": {"autoencoder": {"keep_at_least": 1.0}}}

    def work(rank):
        callbacks = [Terminate("autoencoder", 7)] if rank else []
        train(tmp_path, n_epochs, batch_size=8, callbacks=callbacks, **TOGETHER, **whole_cells)

    assert run_together(work) == [143, 143]
    checkpoint = torch.load(tmp_path / "autoencoder.ckpt", weights_only=True)
    assert 7 <= checkpoint["global_step"] <= 7 + 16
    assert checkpoint["means"]["n_cells"] == 16 * checkpoint["position"][1]  # of both


def test_a_killed_process_ends_the_other_and_one_alone_can_go_on(train, tmp_path, run_together):
    """One process with the doubled batch takes the steps that are left as two would have taken them."""
    whole_cells = {"plan_kwargs": {"autoencoder": {"keep_at_least": 1.0}}}
    whole = train(None, {"autoencoder": 3, "prior": 1, "transport": 1}, **whole_cells)

    def work(rank):
        callbacks = [DieAt("autoencoder", 8)] if rank else []
        options = {**TOGETHER, **whole_cells, "batch_size": 8, "callbacks": callbacks, "checkpoint_minutes": 0.0}
        train(tmp_path, {"autoencoder": 3, "prior": 1, "transport": 1}, **options)

    first, second = run_together(work)

    assert (first, second) == (1, -signal.SIGKILL)
    resumed = train(tmp_path, {"autoencoder": 3, "prior": 1, "transport": 1}, **whole_cells)
    for name in ("autoencoder_loss_train", "autoencoder_loss_validation"):
        # sums in another order, in single precision, over tens of steps
        np.testing.assert_allclose(resumed.history_[name], whole.history_[name], rtol=1e-4)


def test_ctrl_c_in_one_process_stops_all_after_the_same_step(train, run_together):
    def work(rank):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        callbacks = [PressCtrlC("autoencoder", 4)] if rank else []
        model = train(None, {"autoencoder": 50, "prior": 1}, batch_size=8, callbacks=callbacks, **TOGETHER)
        return len(model.history_.get("autoencoder_loss_train", [])), "prior_loss_train" in model.history_

    first, second = run_together(work)

    assert first == second
    assert first in [(0, False), (1, False)]  # whole epochs; they ask each other every few steps


def test_a_checkpoint_that_not_all_processes_see_is_refused(tmp_path, run_together):
    (tmp_path / "prior.ckpt").write_bytes(b"seen by one")

    def work(rank):
        distributed.init_process_group("gloo", rank=rank, world_size=2)
        check_seen_by_all(tmp_path / "nobody has it")
        try:
            check_seen_by_all(tmp_path / ("elsewhere" if rank else ".") / "prior.ckpt")
        except FileNotFoundError as error:
            return str(error)

    for message in run_together(work):
        assert "`checkpoint_dir` must be a folder that all processes see" in message


def test_a_finished_stage_that_not_all_processes_see_is_refused(train, tmp_path, run_together):
    """Whoever sees it would not take part in the stage."""
    n_epochs = {"autoencoder": 1, "prior": 1, "transport": 1}
    train(tmp_path / "0", n_epochs)
    (tmp_path / "0" / "autoencoder.ckpt").unlink()

    def work(rank):
        try:
            train(tmp_path / str(rank), n_epochs, batch_size=8, **TOGETHER)
        except FileNotFoundError as error:
            return str(error)

    for message in run_together(work):
        assert "`checkpoint_dir` must be a folder that all processes see" in message
        assert "prior.ckpt" in message


def test_a_recipe_that_is_not_that_of_the_checkpoint_is_refused(train, tmp_path):
    train(tmp_path, {"autoencoder": 1, "prior": 1, "transport": 1})
    longer = {"autoencoder": 2, "prior": 1, "transport": 1}

    with pytest.raises(ValueError, match="`learning_rate` of 0.004, not 0.1.*another `checkpoint_dir`"):
        train(tmp_path, longer, plan_kwargs={"autoencoder": {"learning_rate": 0.1}})
    with pytest.raises(ValueError, match="`batch_size` of 16, not 8;.*cells of all processes together count"):
        train(tmp_path, longer, batch_size=8)
    with pytest.raises(ValueError, match="`learning_rate` of 0.004, not 0.1"):  # of a finished stage, too
        train(tmp_path, {"autoencoder": 1, "prior": 2}, plan_kwargs={"autoencoder": {"learning_rate": 0.1}})


def test_a_checkpoint_that_went_further_than_asked_for_is_refused(train, tmp_path):
    train(tmp_path, {"autoencoder": 3, "prior": 1, "transport": 1})

    with pytest.raises(ValueError, match="has 3 epochs behind it, more than the 2 that are asked for"):
        train(tmp_path, {"autoencoder": 2, "prior": 1, "transport": 1})


def test_a_stage_can_be_made_longer(train, tmp_path):
    model = train(tmp_path, {"autoencoder": 1, "prior": 1, "transport": 1})

    model.train_prior(3, batch_size=16, checkpoint_dir=tmp_path, accelerator="cpu", enable_progress_bar=False)

    assert model.history_["prior_loss_train"].index.tolist() == [0, 1, 2]
