"""Numbers, sets and known embeddings as conditions, from registration to a model loaded without cells."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scgen_diffusion.data import ContinuousKey
from scgen_diffusion.model import SCLDM, WBDIT

SETUP = {
    "condition_keys": ["cell_type"],
    "continuous_condition_keys": ["dose"],
    "set_condition_keys": ["gene"],
    "control_values": {"gene": "ctrl"},
}
TABLE = pd.DataFrame(np.random.default_rng(0).normal(size=(4, 3)), index=["A", "B", "C", "NEW"])
MODELS = [SCLDM, WBDIT]

IS_NEW = "not occur in the training cells|The effect on"  # SCLDM's transport gives a verdict


@pytest.fixture(scope="module")
def cells(make_cells):
    adata = make_cells()
    adata.obs["gene"] = np.random.default_rng(1).choice(["A", "B", "A+B", "C", "ctrl"], adata.n_obs)
    return adata


@pytest.fixture(scope="module", params=[(cls, known) for cls in MODELS for known in (False, True)], ids=str)
def model(request, cells, tiny, tmp_path_factory):
    """Return a model that was trained for a moment, saved, and loaded without cells."""
    cls, known = request.param
    adata = cells.copy()
    cls.setup_anndata(adata, **SETUP, condition_embeddings={"gene": TABLE} if known else None)
    made = cls(adata, **(tiny if cls is SCLDM else {"width": 8, "n_layers": 1, "n_heads": 2}))
    quick = {"plan_kwargs": {"prior": {"smallest_epoch": 1}}} if cls is SCLDM else {}
    made.train(max_epochs=2, enable_progress_bar=False, accelerator="cpu", **quick)
    stir(made)
    folder = tmp_path_factory.mktemp("saved") / "model"
    made.save(folder)
    return cls.load(folder, adata=False)


def stir(model):
    """Let the network heed its conditions, which it hardly does after so few steps."""
    name = "averaged_prior" if isinstance(model, SCLDM) else "averaged_network"
    for module in getattr(model.module, name).modules():
        weight = getattr(module, "weight", None)
        if weight is not None and weight.ndim == 2 and not weight.any():
            weight.data.normal_(std=0.5)


def knows_vectors(model):
    return model.conditions.by_key[2].has_vectors


def generate(model, n=3, **condition):
    return model.generate(n, condition=condition, seed=0, n_steps=4)


def dense(adata):
    return np.asarray(adata.X.todense())


def test_obs_has_each_kind_as_it_came(model):
    with pytest.warns(UserWarning, match=IS_NEW):
        obs = generate(model, gene=["C+B", "ctrl", {"A", "B"}], dose=5).obs

    assert obs["gene"].tolist() == ["B+C", "ctrl", "A+B"]
    assert obs["dose"].tolist() == [5.0] * 3
    assert obs["dose"].dtype == float
    assert obs["cell_type"].dtype == "category"


def test_the_order_of_a_set_does_not_change_the_cells(model):
    np.testing.assert_array_equal(dense(generate(model, gene="A+B")), dense(generate(model, gene="B+A")))


@pytest.mark.filterwarnings("ignore")
def test_every_kind_changes_the_cells(model):
    base = {"cell_type": "B cell", "dose": 1, "gene": "A"}
    for change in ({"dose": 100}, {"gene": "A+B"}, {"gene": "ctrl"}, {"cell_type": "NK"}):
        assert (dense(generate(model, 8, **base)) != dense(generate(model, 8, **base | change))).any(), change


def test_conditions_are_drawn_like_the_training_cells(model, cells):
    obs = model.generate(600, seed=0, n_steps=1).obs

    assert set(obs["dose"]) == {1.0, 10.0, 100.0}
    for name in ("gene", "cell_type"):
        real, drawn = (table[name].value_counts(normalize=True) for table in (cells.obs, obs))
        assert (real.reindex(drawn.index, fill_value=0) - drawn).abs().max() < 0.08


def test_the_ends_of_the_range_are_inside_however_precise_the_training_cells_are():
    numbers = np.array([0.1, 0.3, 0.7], np.float32)
    key = ContinuousKey.of("dose", pd.Series(numbers))

    assert not key.is_outside(key.encode([0.1, 0.7])).any()
    assert key.is_outside(key.encode([0.0999, 0.7001])).all()


def test_the_ends_of_a_narrow_range_of_large_numbers_are_as_precise():
    key = ContinuousKey.of("seconds", pd.Series([1.7e9, 1.7e9 + 1800, 1.7e9 + 3600]))
    just_outside = key.encode([1.7e9 - 1, 1.7e9 + 3601])

    assert key.is_outside(just_outside).all()


def test_values_outside_training_give_a_warning_and_are_kept(model, tmp_path):
    with pytest.warns(UserWarning, match="dose=500.0"):
        synthetic = generate(model, gene="A", dose=500)

    assert synthetic.uns["scgen_diffusion"]["outside_training"] == ["dose=500.0 (no training cell is near)"]
    synthetic.write_h5ad(tmp_path / "cells.h5ad")


def test_members_never_trained_on_need_known_embeddings(model):
    if knows_vectors(model):
        with pytest.warns(UserWarning, match=IS_NEW):
            assert generate(model, gene="NEW+A").obs["gene"].tolist() == ["A+NEW"] * 3
    else:
        with pytest.raises(ValueError, match="unknown member 'NEW'"):
            generate(model, gene="NEW+A")


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ({"gene": "A+"}, "empty member"),
        ({"gene": "Z"}, "unknown member 'Z'"),
        ({"dose": float("nan")}, "a finite number is needed"),
        ({"dose": "high"}, "a finite number is needed"),
        ({"gene": ["A", "B", "C", "A"]}, "4 values for 3 cells"),
    ],
)
def test_bad_requests_are_refused(model, condition, words):
    with pytest.raises(ValueError, match=words):
        generate(model, **condition)


def test_other_cells_can_be_attached(model, cells, tmp_path):
    model.save(tmp_path / "again")
    attached = type(model).load(tmp_path / "again", adata=cells[:20].copy())

    assert attached.adata.n_obs == 20
    strange = cells[:20].copy()
    strange.obs["gene"] = "Z"
    with pytest.raises(ValueError, match="Z"):
        type(model).load(tmp_path / "again", adata=strange)
