"""SCMDM: the user's way from counts to cells, and what is refused."""

import numpy as np
import pytest
import torch

from scgen_diffusion.diffusion import Guidance, GuidedField, Joint, with_masked
from scgen_diffusion.model import SCMDM


@pytest.fixture(scope="module", params=["mlp", "dit", "white_box"])
def model(request, make_trained):
    return make_trained(cls=SCMDM, max_epochs=3, backbone=request.param)


def test_cells_have_whole_counts_near_the_requested_totals(model, dense):
    x = dense(model.generate(200, seed=0, library_size=900).X)

    assert (x == x.round()).all()
    assert (x >= 0).all()
    assert x.sum(1).mean() == pytest.approx(900, rel=0.01)
    assert x.sum(1).std() < 30
    totals = dense(model.generate(300, seed=0).X).sum(1)
    assert np.log(totals).mean() == pytest.approx(np.log(model.adata.X.sum(1)).mean(), abs=0.1)


def test_totals_that_a_condition_never_has_look_like_its_usual_ones(make_cells, make_trained):
    adata = make_cells()
    adata.X[(adata.obs["cell_type"] == "NK").to_numpy()] *= 10  # so that a total tells the type
    module = make_trained(adata, cls=SCMDM, max_epochs=3).module
    condition = module.condition_tensor(np.zeros((6, 2), int))
    low, high = (
        module.library_size.draw(condition, condition[:, :0], torch.full((6,), level)) for level in (0.01, 0.99)
    )
    guidance = Guidance(Joint().terms([1.0, 1.0]))
    predict = module.denoiser(condition, guidance)
    plain = GuidedField(module.averaged_network, condition, module.condition_columns, guidance)

    def masked(totals):
        return with_masked(torch.zeros(6, module.n_input), totals)

    t = torch.tensor(0.1)
    for known in (low, high):
        assert torch.equal(predict(masked(known), t), plain(masked(known), t))
    for unusual, usual in [(high * 3, high), ((low / 3).round(), low)]:
        torch.testing.assert_close(predict(masked(unusual), t), plain(masked(usual), t))
        assert not torch.allclose(predict(masked(unusual), t), plain(masked(unusual), t))


def test_only_under_another_condition_a_cell_changes_but_keeps_its_total(model, dense):
    request = {"condition": {"dose": 10}, "seed": 0, "n_steps": 16}
    given, has_changed = np.asarray(model.adata.X), (model.adata.obs["dose"] != 10).to_numpy()

    same = dense(model.predict_perturbation(seed=0, n_steps=6).X)
    moved = dense(model.predict_perturbation(**request).X)

    np.testing.assert_array_equal(same, given)
    assert (moved != given)[has_changed].any(axis=1).mean() > 0.5
    np.testing.assert_allclose(moved[has_changed].sum(1), given[has_changed].sum(1), rtol=0.35)
    assert moved[has_changed].sum() == pytest.approx(given[has_changed].sum(), rel=0.05)  # each total is drawn


def test_training_learns_what_goes_with_what(make_cells, make_model, quick, dense):
    """Two genes that take turns: the generated ones do so too, though each alone only looks overdispersed."""
    rng = np.random.default_rng(0)
    adata = make_cells()[rng.integers(0, 90, 3000)].copy()  # long epochs, since each takes as long as two steps
    adata.obs_names_make_unique()
    x = rng.poisson(20, adata.shape).astype(np.float32)
    first = rng.random(3000) < 0.5
    x[:, 0], x[:, 1] = rng.poisson(np.where(first, 40, 2)), rng.poisson(np.where(first, 2, 40))
    adata.X = x
    model = make_model(adata, cls=SCMDM, width=16, n_axes=16)
    model.train(20, plan_kwargs={"learning_rate": 5e-3}, **quick | {"batch_size": 128})

    cells = dense(model.generate(300, seed=0).X)

    assert np.corrcoef(cells[:, 0], cells[:, 1])[0, 1] < -0.5
    assert np.abs(np.corrcoef(cells[:, 2:5].T)[np.triu_indices(3, 1)]).max() < 0.3


def test_values_and_requests_that_do_not_fit_are_refused(make_cells, make_model, model):
    with pytest.raises(ValueError, match="values"):
        make_model(make_cells(values="log1p"), cls=SCMDM, setup={"values": "log1p"})
    for request in ({"sampler": "ddim"}, {"counts": False}):
        with pytest.raises(ValueError, match=next(iter(request))):
            model.generate(3, **request)
    for named, request in (("sampler", {"sampler": "ddpm"}), ("library_size", {"library_size": 5000})):
        with pytest.raises(ValueError, match=named):
            model.predict_perturbation(condition={"dose": 10}, **request)
