"""Numbers, sets and known embeddings as conditions, from registration to a model loaded without cells."""

import numpy as np
import pandas as pd
import pytest
from builders import same_cells

from scgen_diffusion.model import SCLDM, WBDIT

TABLE = pd.DataFrame(np.random.default_rng(0).normal(size=(4, 3)), index=["A", "B", "C", "NEW"])


IS_NEW = "not occur in the training cells|The effect on"  # SCLDM's flow gives a support


@pytest.fixture(scope="module")
def cells(make_cells):
    adata = make_cells()
    adata.obs["gene"] = np.random.default_rng(1).choice(["A", "B", "A+B", "C", "ctrl"], adata.n_obs)
    return adata


@pytest.fixture(scope="module", params=[(cls, known) for cls in (SCLDM, WBDIT) for known in (False, True)], ids=str)
def model(request, cells, make_trained, tmp_path_factory):
    """Return a model that was trained for a moment, saved, and loaded without cells."""
    cls, known = request.param
    setup = {
        "continuous_condition_keys": ["dose"],
        "set_condition_keys": ["gene"],
        "control_values": {"gene": "ctrl"},
        "condition_embeddings": {"gene": TABLE} if known else None,
    }
    made = make_trained(cells.copy(), cls=cls, condition_keys=["cell_type"], setup=setup, max_epochs=2)
    folder = tmp_path_factory.mktemp("saved") / "model"
    made.save(folder)
    return cls.load(folder, adata=False)


def generate(model, n=3, **condition):
    return model.generate(n, condition=condition, seed=0, n_steps=4)


def test_obs_has_each_kind_as_it_came(model):
    with pytest.warns(UserWarning, match=IS_NEW):
        obs = generate(model, gene=["C+B", "ctrl", {"A", "B"}], dose=5).obs

    assert obs["gene"].tolist() == ["B+C", "ctrl", "A+B"]
    assert obs["dose"].tolist() == [5.0] * 3
    assert obs["dose"].dtype == float
    assert obs["cell_type"].dtype == "category"


@pytest.mark.filterwarnings("ignore")
def test_every_kind_changes_the_cells_but_not_the_order_of_a_set(model):
    base = {"cell_type": "B cell", "dose": 1, "gene": "A"}
    cells = generate(model, 8, **base)
    for change in ({"dose": 100}, {"gene": "A+B"}, {"gene": "ctrl"}, {"cell_type": "NK"}):
        assert (cells.X != generate(model, 8, **base | change).X).nnz, change
    assert same_cells(generate(model, gene="A+B", dose=1), generate(model, gene="B+A", dose=1))


def test_values_outside_training_give_a_warning_and_are_kept(model, tmp_path):
    with pytest.warns(UserWarning, match="dose=500.0"):
        synthetic = generate(model, gene="A", dose=500)

    (noted,) = synthetic.uns["scgen_diffusion"]["outside_training"]
    assert "dose=500.0" in noted
    synthetic.write_h5ad(tmp_path / "cells.h5ad")


def test_members_never_trained_on_need_known_embeddings(model):
    if model.conditions.by_key[2].has_vectors:
        with pytest.warns(UserWarning, match=IS_NEW):
            assert generate(model, gene="NEW+A").obs["gene"].tolist() == ["A+NEW"] * 3
    else:
        with pytest.raises(ValueError, match="NEW"):
            generate(model, gene="NEW+A")
