"""Registering cells and constructing models: bad input is refused before training starts."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from builders import SIZES

from scgen_diffusion.model import SCLDM, SCRDIT


def test_a_model_can_be_built_from_a_registry_alone_and_takes_weights(trained_any):
    model = type(trained_any)(registry=trained_any.registry_, **SIZES[type(trained_any)])

    assert model.adata is None
    assert model.conditions.categories == trained_any.conditions.categories
    assert model.get_var_names().tolist() == trained_any.get_var_names().tolist()
    model.module.load_state_dict(trained_any.module.state_dict())
    with pytest.raises(ValueError, match="no cells to train on"):
        model.train()


@pytest.mark.parametrize("argument", ["batch_key", "labels_key"])
def test_arguments_of_scvi_are_answered_by_ours(make_cells, argument):
    with pytest.raises(TypeError, match=f"`{argument}`.*`condition_keys`"):
        SCLDM.setup_anndata(make_cells(), **{argument: "cell_type"})


def doubled(adata, table):
    setattr(adata, table, pd.concat([getattr(adata, table)] * 2, axis=1))


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (lambda a: a.X.__setitem__((3, 1), 0.5), ValueError, "not whole numbers"),
        (lambda a: a.X.__setitem__(3, 0), ValueError, "cell_3"),
        (lambda a: a.obs.__setitem__("dose", [np.nan] + [1.0] * 95), ValueError, "dose"),
        (lambda a: setattr(a, "var_names", ["g"] * 12), ValueError, "duplicates"),
        (lambda a: a.obs.__delitem__("dose"), KeyError, "dose"),
        (lambda a: doubled(a, "obs"), ValueError, "obs"),
        (lambda a: a[:50], ValueError, "adata"),
    ],
)
def test_bad_cells_are_refused_at_registration(make_cells, spoil, error, words):
    adata = make_cells()
    adata = spoil(adata) or adata

    with pytest.raises(error, match=words):
        SCLDM.setup_anndata(adata, condition_keys=["cell_type", "dose"])


def test_values_that_do_not_fit_the_model_and_cells_without_a_setup_are_refused(make_cells, tiny):
    with pytest.raises(ValueError, match="values"):
        SCLDM.setup_anndata(make_cells(), values="raw")
    with pytest.raises(ValueError, match="setup_anndata"):
        SCRDIT(make_cells())
    SCLDM.setup_anndata(adata := make_cells(values="log1p"), values="log1p")
    with pytest.raises(ValueError, match="likelihood"):
        SCLDM(adata, **tiny)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.linspace(0, 1, 400), "continuous_condition_keys"),
        ([f"barcode_{number}" for number in range(400)], "400 classes in 400 cells"),
        (["B", "nan"] * 200, "nan"),
    ],
)
def test_columns_that_look_like_amounts_barcodes_or_gaps_give_a_warning(make_cells, values, words):
    adata = make_cells(400)
    adata.obs["key"] = values

    with pytest.warns(UserWarning, match=words) as caught:
        SCLDM.setup_anndata(adata, condition_keys=["key"])
    assert caught[0].filename == __file__


@pytest.mark.parametrize("kind", [sp.csr_array, sp.csc_matrix])
def test_counts_may_be_in_any_sparse_form(make_cells, make_model, quick, kind):
    model = make_model(make_cells(matrix=kind))

    model.train(1, **quick)
    assert model.generate(2, seed=0).n_obs == 2


def test_the_same_cells_can_be_set_up_for_a_second_model(make_cells, make_model, quick):
    """Otherwise the first model would train on the conditions of the second."""
    adata, before = make_cells(), make_cells().obs
    first = make_model(adata, condition_keys=("cell_type",))
    second = make_model(adata, condition_keys=np.array(["treated"]))
    pd.testing.assert_frame_equal(adata.obs[list(before)], before)  # the user's columns stay

    for model in (first, second):
        model.train(1, **quick)
        key = model.conditions.keys[0]
        n_cells = model.conditions.n_cells
        assert sorted(n_cells) == sorted(adata.obs[key].value_counts().loc[lambda n: n > 0])


def test_cells_whose_conditions_were_changed_are_refused(make_cells, make_model, quick):
    adata = make_cells()
    model = make_model(adata, condition_keys=["dose"])
    dose = adata.obs.pop("dose")
    with pytest.raises(KeyError, match="dose"):
        model.train(1, **quick)

    adata.obs["dose"] = dose.to_numpy()[::-1]
    with pytest.raises(ValueError, match="conditions"):
        model.train(1, **quick)


@pytest.mark.parametrize("registry", [{}, {"model_name": "SCVI", "field_registries": {"X": {}}}, "path", 5])
def test_registries_of_other_models_are_refused(registry, tiny):
    with pytest.raises(ValueError, match="registry"):
        SCLDM(registry=registry, **tiny)
