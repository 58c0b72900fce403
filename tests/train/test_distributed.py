"""Several processes train one model: each takes its share of an epoch, and all end with the same weights."""

import os
import signal

import numpy as np
import pytest
import torch
from builders import At, seeded
from lightning.pytorch.callbacks import LambdaCallback

from scgen_diffusion.model import SCRDIT

TOGETHER = {"devices": 2, "strategy": "ddp", "accelerator": "cpu", "enable_progress_bar": False}


@pytest.fixture(autouse=True)
def _seed():
    with seeded(None):  # the first process's holds for all
        yield


@pytest.fixture
def train_scldm(make_model, make_cells):
    def train(max_epochs, **options):
        model = make_model(make_cells(n_cells=97), setup={"control_values": {"dose": 1}})
        model.train(max_epochs, batch_size=16, **{**TOGETHER, **options})
        return model

    return train


def described(model):
    """Reduce a model to what travels between processes."""
    history = {name: frame[name].to_numpy(float) for name, frame in model.history_.items()}
    weights = {name: tensor.detach().numpy() for name, tensor in model.module.state_dict().items()}
    return history, weights, model.trainer.world_size


def assert_same(one, other):
    for first, second in zip(one[:2], other[:2], strict=True):
        assert first.keys() == second.keys()
        for name, values in first.items():
            np.testing.assert_array_equal(second[name], values, err_msg=name)


def test_two_processes_train_all_stages_of_scldm(train_scldm, run_together):
    def work(rank):
        torch.manual_seed(rank)
        model = train_scldm({"autoencoder": 4, "prior": 4, "perturbation_flow": 2})
        return *described(model), model.trainer.global_step, model.generate(4, seed=0).n_obs

    first, second = run_together(work)

    assert_same(first, second)
    history, _, n_processes, n_steps, n_cells = first
    assert (n_processes, n_steps, n_cells) == (2, 6, 4)
    assert {"autoencoder_loss_train", "prior_loss_train", "perturbation_flow_loss_train"} <= set(history)
    assert history["autoencoder_loss_train"][-1] < history["autoencoder_loss_train"][0]
    assert np.isfinite(history["prior_loss_validation"]).all()


def test_two_processes_train_a_gene_space_model_on_a_share_of_the_cells_each(
    make_model, make_cells, run_together, gene_space_class
):
    def work(rank):
        torch.manual_seed(rank)
        seen = []
        note = LambdaCallback(on_train_batch_start=lambda trainer, plan, batch, _: seen.append(batch["X"].tolist()))
        model = make_model(make_cells(n_cells=97), cls=gene_space_class)
        model.train(1, batch_size=16, callbacks=[note], **TOGETHER)
        return *described(model), seen

    first, second = run_together(work)

    assert_same(first, second)
    seen = [tuple(row) for part in (first, second) for batch in part[3] for row in batch]
    assert [len(batch) for batch in first[3]] == [len(batch) for batch in second[3]] == [8, 8, 8, 8, 8, 4]
    assert len(seen) == 88  # the 87 training cells, one of them twice


def test_early_stopping_stops_all_processes_after_the_same_epoch(train_scldm, run_together):
    options = {"early_stopping": True, "plan_kwargs": {"prior": {"learning_rate": 1e-12, "patience": 1}}}

    first, second = run_together(
        lambda rank: described(train_scldm({"autoencoder": 1, "prior": 40, "perturbation_flow": 1}, **options))
    )

    assert 3 <= len(first[0]["prior_loss_validation"]) < 40
    assert_same(first, second)


def test_a_killed_process_ends_the_other_and_the_same_call_resumes(train_scldm, run_together, tmp_path):
    epochs = {"autoencoder": 2, "prior": 3, "perturbation_flow": 1}
    options = {"checkpoint_dir": tmp_path, "checkpoint_minutes": 0.0}
    die = At("prior", 8, signal.SIGKILL)  # in the second epoch

    def work(rank):
        train_scldm(epochs, callbacks=[die] if rank else [], **options)

    assert run_together(work) == [1, -signal.SIGKILL]
    assert torch.load(tmp_path / "prior.ckpt", weights_only=True)["n_epochs_done"] == 1

    first, second = run_together(lambda rank: described(train_scldm(epochs, **options)))
    assert_same(first, second)
    assert len(first[0]["prior_loss_train"]) == 3


@pytest.mark.parametrize("ranks", [[0], [1], [0, 1]], ids=["the first", "the second", "both"])
def test_sigterm_to_any_process_ends_all(make_model, run_together, tmp_path, ranks):
    options = {"checkpoint_dir": tmp_path, "checkpoint_minutes": 0.0, "batch_size": 32, **TOGETHER}

    def terminate(trainer, *_):  # in an epoch, where the other processes wait for its gradients
        if trainer.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def work(rank):
        callbacks = [LambdaCallback(on_before_backward=terminate)] if rank in ranks else []
        make_model(cls=SCRDIT).train(2, callbacks=callbacks, **options)

    assert run_together(work, timeout=60) == [143 if rank in ranks else 1 for rank in (0, 1)]
    assert torch.load(tmp_path / "diffusion.ckpt", weights_only=True)["n_epochs_done"] == 1
