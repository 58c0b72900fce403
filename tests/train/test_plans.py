"""Plans train the right parameters, and keep their random numbers in checkpoints."""

from __future__ import annotations

from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch

from scgen_diffusion.module import SCLDMArchitecture, SCLDMModule
from scgen_diffusion.train import AutoencoderPlan, AutoencoderRecipe, PriorPlan, PriorRecipe


@pytest.fixture
def module(tiny):
    return SCLDMModule(9, (3,), architecture=SCLDMArchitecture(**tiny))


@pytest.fixture(params=[(AutoencoderPlan, AutoencoderRecipe), (PriorPlan, PriorRecipe)], ids=["autoencoder", "prior"])
def make_plan(request, module):
    plan, recipe = request.param
    return lambda seed=0: attached(plan(module, recipe(), seed=seed))


def attached(plan):
    """Attach a plan to a trainer, which it asks for its length."""
    plan.trainer = pl.Trainer(max_epochs=1, logger=False, accelerator="cpu", enable_checkpointing=False)
    return plan


def test_the_generator_goes_on_where_the_checkpoint_left_off(make_plan):
    plan = make_plan()
    torch.rand(5, generator=plan.generator)
    checkpoint = {}
    plan.on_save_checkpoint(checkpoint)
    expected = torch.rand(5, generator=plan.generator)

    resumed = make_plan(seed=99)
    resumed.on_load_checkpoint(checkpoint)

    assert torch.equal(torch.rand(5, generator=resumed.generator), expected)


def test_the_same_seed_gives_the_same_random_numbers(make_plan):
    one, other, third = (torch.rand(3, generator=make_plan(seed).generator) for seed in (1, 1, 2))

    assert torch.equal(one, other)
    assert not torch.equal(one, third)


def trained_names(plan, module):
    ids = [id(p) for group in plan.parameter_groups() for p in group["params"]]
    assert len(ids) == len(set(ids)), "a parameter is in two groups"
    return {name.split(".")[0] for name, p in module.named_parameters() if id(p) in ids}


def test_the_autoencoder_stage_trains_all_of_the_autoencoder_and_nothing_else(module):
    plan = AutoencoderPlan(module, AutoencoderRecipe(), seed=0)
    ids = {id(p) for group in plan.parameter_groups() for p in group["params"]}

    assert trained_names(plan, module) == {"encoder", "decoder", "likelihood"}
    for name, parameter in module.named_parameters():
        assert (id(parameter) in ids) == name.startswith(("encoder", "decoder", "likelihood")), name


def test_the_prior_stage_trains_the_prior_and_the_library_head(module):
    assert trained_names(PriorPlan(module, PriorRecipe(), seed=0), module) == {"prior", "library_size"}


def test_dispersions_learn_at_their_own_rate_without_weight_decay(module):
    plan = AutoencoderPlan(module, AutoencoderRecipe(learning_rate=1e-3, dispersion_learning_rate_factor=5.0), seed=0)

    [group] = [g for g in plan.parameter_groups() if any(p is module.likelihood.log_theta for p in g["params"])]

    assert group["lr"] == pytest.approx(5e-3)
    assert group["weight_decay"] == 0


def test_the_averaged_weights_move_after_every_step_of_the_prior(module):
    plan = PriorPlan(module, PriorRecipe(), seed=0)
    for value in (1.0, 2.0):
        torch.nn.init.constant_(module.prior.project_in.weight, value)
        plan.on_train_batch_end()

    averaged = module.averaged_prior.module.project_in.weight
    assert (averaged > 1).all()
    assert (averaged < 2.001).all()


@pytest.mark.parametrize(("step", "expected"), [(0, 0.0), (5, 0.25), (10, 0.5), (20, 0.5), (100, 0.5)])
def test_the_divergence_weight_rises_over_the_warm_up(module, monkeypatch, step, expected):
    plan = AutoencoderPlan(module, AutoencoderRecipe(kl_weight=0.5, kl_warm_up=0.1), seed=0)
    plan._trainer = SimpleNamespace(estimated_stepping_batches=100, global_step=step)
    monkeypatch.setattr(AutoencoderPlan, "trainer", property(lambda self: self._trainer))

    assert plan._kl_weight(training=True) == pytest.approx(expected)
    assert plan._kl_weight(training=False) == 0.5


def test_validation_sees_whole_cells_and_the_same_random_numbers_each_time(module, monkeypatch):
    plan = AutoencoderPlan(module, AutoencoderRecipe(keep_at_least=0.1), seed=0)
    logged = []
    monkeypatch.setattr(plan, "_log", lambda losses, batch, subset: logged.append(losses["loss"].item()))
    batch = {"X": torch.poisson(torch.full((4, 9), 3.0))}

    plan.validation_step(batch, 0)
    plan.validation_step(batch, 0)
    plan.validation_step(batch, 1)

    assert logged[0] == logged[1] != logged[2]
