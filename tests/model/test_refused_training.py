"""Training that is refused or fails changes nothing, and what it reports is what it did."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from scgen_diffusion.model import SCLDM, _training_pairs


@pytest.fixture
def foreign_checkpoints(make_model, make_cells, quick, tmp_path):
    """Return a folder with the checkpoints of another model."""
    make_model(make_cells(60, seed=9)).train(1, checkpoint_dir=tmp_path / "foreign", **quick)
    return tmp_path / "foreign"


def cells_of(model):
    return model.generate(20, seed=0).X.toarray()


@pytest.fixture
def own(make_trained, make_cells):
    return make_trained(make_cells(100))


@pytest.mark.parametrize("stage", ["train", "train_prior"])
def test_a_checkpoint_of_another_model_costs_nothing(own, make_cells, foreign_checkpoints, quick, stage):
    before, stages = cells_of(own), list(own.trained_stages_)
    if stage == "train_prior":
        richer = make_cells(60, seed=9)  # would have other library sizes and combinations
        richer.X = 20 * richer.X
        own.adata = richer
    with pytest.raises(ValueError, match="checkpoint"):
        getattr(own, stage)(1, checkpoint_dir=foreign_checkpoints, **quick)
    assert own.trained_stages_ == stages
    assert np.array_equal(cells_of(own), before)


def test_a_later_stage_that_is_refused_leaves_the_model_as_the_stage_before_made_it(make_model, quick, tmp_path):
    whole, model = make_model(), make_model()
    whole.train(1, checkpoint_dir=tmp_path, **quick)

    with pytest.raises(ValueError, match="learning_rate"):
        model.train(1, checkpoint_dir=tmp_path, plan_kwargs={"prior": {"learning_rate": 1e-3}}, **quick)

    assert model.trained_stages_ == ["autoencoder"]
    of_whole = whole.module.encoder.state_dict()
    assert all(torch.equal(value, of_whole[name]) for name, value in model.module.encoder.state_dict().items())


@pytest.mark.parametrize("error", [OSError("the disk is full"), KeyboardInterrupt()])
def test_after_an_error_in_the_first_stage_a_trained_model_is_as_before(make_trained, either_class, quick, error):
    class Fail(Callback):
        def on_train_batch_end(self, *_):
            raise error

    model = make_trained(cls=either_class)
    before, shown = cells_of(model), str(model)
    with pytest.raises((type(error), SystemExit)):
        model.train(2, callbacks=[Fail()], **quick)
    assert str(model) == shown
    assert np.array_equal(cells_of(model), before)


def test_a_perturbation_flow_of_too_many_groups_is_refused_before_the_other_stages_are_trained(
    make_model, quick, monkeypatch
):
    monkeypatch.setattr(_training_pairs, "MOST_GROUPS", 2)
    model = make_model(setup={"control_values": {"dose": 1}})
    with pytest.warns(UserWarning, match="groups"):
        model.train(1, **quick)
    assert model.trained_stages_ == ["autoencoder", "prior"]
    with pytest.raises(ValueError, match="groups"):
        model.train_perturbation_flow(1, **quick)


def test_fine_tuning_of_a_better_reference_does_not_resume_that_of_the_old_one(own, make_cells, quick, tmp_path):
    def fine_tune():
        query = SCLDM.load_query_data(make_cells(40, seed=3), own, trainable="network", accelerator="cpu")
        query.train(1, checkpoint_dir=tmp_path / "query", **quick)

    fine_tune()
    fine_tune()  # the same reference: its finished checkpoints
    own.train_prior(1, **quick)
    with pytest.raises(ValueError, match="checkpoint"):
        fine_tune()
