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

from scgen_diffusion.model import SCRDIT

STAGES = ["autoencoder", "prior", "transport"]


@pytest.fixture(autouse=True)
def _seed():
    before, scvi.settings._seed = scvi.settings.seed, 0
    yield
    scvi.settings._seed = before


class DieAt(Callback):
    """Kill this process without a warning, at a step of a stage."""

    def __init__(self, stage, step):
        self.stage, self.step = stage, step

    def on_train_batch_end(self, trainer, plan, *_):
        if (plan.name, trainer.global_step) == (self.stage, self.step):
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def train(make_model, make_cells):
    """Train all stages of a small model, the same way every time."""

    def run(folder, **options):
        torch.manual_seed(0)
        model = make_model(make_cells(), setup={"control_values": {"dose": 1}})
        options = {"batch_size": 16, "accelerator": "cpu", "enable_progress_bar": False, **options}
        model.train({"autoencoder": 4, "prior": 4, "transport": 4}, checkpoint_dir=folder, **options)
        return model

    return run


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
    for (name, tensor), found in zip(
        one.module.state_dict().items(), other.module.state_dict().values(), strict=True
    ):
        assert torch.equal(tensor, found), name


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_stage_ends_bit_for_bit_as_if_it_had_not_been(train, tmp_path, stage):
    """With a checkpoint at every step, it goes on in the middle of an epoch."""
    whole = train(None)
    options = {"checkpoint_minutes": 0.0, "callbacks": [DieAt(stage, 9)]}

    assert run_until_killed(lambda: train(tmp_path, **options)) == signal.SIGKILL
    checkpoint = torch.load(tmp_path / f"{stage}.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 8

    assert_same_model(whole, train(tmp_path, checkpoint_minutes=0.0))


def test_a_killed_gene_space_model_ends_bit_for_bit_as_if_it_had_not_been(train_gene_space, tmp_path):
    whole = train_gene_space(None)
    options = {"checkpoint_minutes": 0.0, "callbacks": [DieAt("diffusion", 9)]}

    assert run_until_killed(lambda: train_gene_space(tmp_path, **options)) == signal.SIGKILL

    assert_same_model(whole, train_gene_space(tmp_path))


def test_kills_at_random_moments_leave_no_trace(train, tmp_path):
    """Again and again, after times that are drawn, wherever that may be: between stages, while a checkpoint is written."""
    started = time.monotonic()
    whole = train(None)
    duration = time.monotonic() - started
    rng = np.random.default_rng()

    def train_and_be_killed(delay):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        pid = os.getpid()
        if os.fork() == 0:
            time.sleep(delay)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os._exit(0)
        train(tmp_path, checkpoint_minutes=0.0)

    delays = rng.uniform(0.05, 0.8, 5) * duration
    ends = [run_until_killed(lambda delay=delay: train_and_be_killed(delay)) for delay in delays]

    assert signal.SIGKILL in ends, delays
    assert_same_model(whole, train(tmp_path))
