"""Registering cells and constructing models: bad input is refused before training starts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from builders import SIZES

from scgen_diffusion.model import MULTISCLDM, SCLDM, SCRDIT


def test_a_model_can_be_built_from_a_registry_alone_and_takes_weights(trained_any):
    model = type(trained_any)(registry=trained_any.registry_, **SIZES[type(trained_any)])

    assert model.adata is None
    assert model.conditions.categories == trained_any.conditions.categories
    assert model.get_var_names().tolist() == trained_any.get_var_names().tolist()
    model.module.load_state_dict(trained_any.module.state_dict())
    with pytest.raises(ValueError, match="no cells to train on"):
        model.train()


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (lambda a: a.X.__setitem__((3, 1), 0.5), ValueError, "not whole numbers"),
        (lambda a: a.X.__setitem__((3, 1), -1), ValueError, "negative"),
        (lambda a: a.X.__setitem__((3, 1), np.nan), ValueError, "NaN"),
        (lambda a: a.X.__setitem__(3, 0), ValueError, "without any count.*cell_3"),
        (lambda a: a.obs.__setitem__("dose", [np.nan] + [1.0] * 95), ValueError, "dose"),
        (lambda a: setattr(a, "var_names", ["g"] * 12), ValueError, "duplicates"),
        (lambda a: a.obs.__delitem__("dose"), KeyError, "dose"),
    ],
    ids=["fraction", "negative", "NaN", "empty cell", "no label", "duplicate genes", "no column"],
)
def test_bad_cells_are_refused_at_registration(make_cells, spoil, error, words):
    adata = make_cells()
    spoil(adata)

    with pytest.raises(error, match=words):
        SCLDM.setup_anndata(adata, condition_keys=["cell_type", "dose"])


def test_an_unknown_kind_of_values_is_refused(make_cells):
    with pytest.raises(ValueError, match="values"):
        SCLDM.setup_anndata(make_cells(), values="raw")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch_key": "donor"}, "condition_keys"),
        ({"labels_key": None, "categorical_covariate_keys": ["a"]}, "labels_key"),
        ({"continuous_covariate_keys": ["dose"]}, "continuous_condition_keys"),
        ({"size_factor_key": "total"}, "size_factor_key"),
        ({"conditions": ["cell_type"]}, "condition_keys"),
        ({"cell_type_key": "cell_type"}, "condition_keys"),
        ({"rna_layer": "counts"}, "closest first: 'layer"),
    ],
)
@pytest.mark.parametrize("method", [SCLDM.setup_anndata, MULTISCLDM.setup_mudata, SCRDIT.setup_anndata])
def test_arguments_of_other_models_are_answered_with_what_to_write(make_cells, method, arguments, words):
    with pytest.raises(TypeError, match=words):
        method(make_cells(), **arguments)


@pytest.mark.parametrize("argument", ["condition_keys", "continuous_condition_keys", "set_condition_keys"])
@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("dose", "dose"),
        (5, "must be a list of names, but found int"),
        (iter(["dose"]), "must be a list of names, but found list_iterator"),
        ({"dose", "age"}, "must be a list of names, but found set"),
        ([1], "must be a list of names, but found 1 of type int in it"),
    ],
)
def test_keys_are_lists_of_names(make_cells, argument, keys, words):
    with pytest.raises(TypeError, match=f"`{argument}`.*{words}"):
        SCLDM.setup_anndata(make_cells(), **{argument: keys})


def test_no_keys_may_be_written_as_none(make_cells, tiny):
    adata = make_cells()
    SCLDM.setup_anndata(adata, condition_keys=None, continuous_condition_keys=None, set_condition_keys=None)

    assert SCLDM(adata, **tiny).conditions.keys == []


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (["a", 1], "mixes numbers and text"),
        ([True, 1.5], "mixes booleans and numbers"),
        ([["a"], "b"], "a"),
        (pd.to_datetime(["2020-01-01", "2020-01-02"]), "text, numbers or booleans only"),
        (pd.Categorical(pd.to_datetime(["2020-01-01", "2020-01-02"])), "of type Timestamp"),
        ([1j, 2j], "of type complex"),
    ],
)
def test_values_that_are_no_classes_are_refused(make_cells, values, words):
    adata = make_cells()
    adata.obs["bad"] = pd.Series(list(values) * 48, index=adata.obs_names, dtype=getattr(values, "dtype", object))

    with pytest.raises(ValueError, match=words):
        SCLDM.setup_anndata(adata, condition_keys=["bad"])


@pytest.mark.parametrize("dtype", ["Int64", "boolean", "string", "category", "Float64"])
def test_nullable_columns_without_gaps_are_conditions(make_cells, tiny, dtype):
    adata = make_cells()
    adata.obs["treated"] = adata.obs["treated"].astype("Int64").astype(dtype)
    SCLDM.setup_anndata(adata, condition_keys=["treated"])

    assert len(SCLDM(adata, **tiny).conditions.categories["treated"]) == 2


@pytest.mark.parametrize("table", ["obs", "var"])
def test_columns_of_one_name_are_refused(make_cells, table):
    adata = make_cells()
    doubled = getattr(adata, table)
    setattr(adata, table, pd.concat([doubled, doubled], axis=1))

    with pytest.raises(ValueError, match=f"adata.{table} has several columns of the name"):
        SCLDM.setup_anndata(adata, condition_keys=["cell_type"])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.arange(400) % 300, "continuous_condition_keys"),
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


@pytest.mark.parametrize("kind", [sp.csr_array, sp.csc_array, sp.csc_matrix])
def test_counts_may_be_in_any_sparse_form(make_cells, make_model, quick, kind):
    model = make_model(make_cells(matrix=kind))

    model.train(1, **quick)
    assert model.generate(2, seed=0).n_obs == 2


def test_counts_by_columns_give_a_warning(make_cells):
    """scvi-tools gives one for a sparse matrix."""
    with pytest.warns(UserWarning, match=r"stored by columns.*adata.X.tocsr\(\)"):
        SCLDM.setup_anndata(make_cells(matrix=sp.csc_array))


def test_a_view_is_refused_with_the_way_out(make_cells):
    with pytest.raises(ValueError, match=r"is a view.*copy\(\)"):
        SCLDM.setup_anndata(make_cells()[:50])


def test_the_same_cells_can_be_set_up_for_a_second_model(make_cells, make_model, quick):
    """Otherwise the first model would train on the conditions of the second."""
    adata = make_cells()
    first = make_model(adata, condition_keys=["cell_type"])
    second = make_model(adata, condition_keys=["treated"])

    for model in (first, second):
        model.train(1, **quick)
        key = model.conditions.keys[0]
        n_cells = model.conditions.n_cells
        assert sorted(n_cells) == sorted(adata.obs[key].value_counts().loc[lambda n: n > 0])


def test_a_model_knows_its_cells_after_they_were_set_up_for_another(make_cells, make_model, tiny):
    adata = make_cells()
    first = make_model(adata, condition_keys=["cell_type", "treated"])
    before = str(first)
    SCLDM.setup_anndata(adata, condition_keys=["dose"])
    assert str(first) == before
    SCRDIT.setup_anndata(adata, condition_keys=["treated"])
    other = SCLDM(adata, **tiny)
    assert sorted(other.conditions.n_cells) == sorted(adata.obs["dose"].value_counts())


def test_a_look_at_a_model_whose_cells_changed_leaves_the_model_as_it_was(make_trained, make_cells, tmp_path):
    adata = make_cells()
    model = make_trained(adata, condition_keys=["cell_type"])
    before = str(model)
    adata.obs = adata.obs.rename(columns={"cell_type": "type"})
    SCLDM.setup_anndata(adata, condition_keys=["type"])
    assert str(model) == before
    with pytest.raises(KeyError, match="cell_type"):
        model._registered_codes  # noqa: B018
    assert model.generate(3, {"cell_type": "NK"}, seed=0).n_obs == 3
    model.save(tmp_path / "model")


def test_cells_given_to_a_method_stay_as_they_are(trained, make_cells):
    cells = make_cells(seed=1)
    before = cells.copy()

    trained.predict_perturbation(cells, {"dose": 10}, seed=0)
    trained.get_latent_representation(cells)

    assert (list(cells.uns), list(cells.obsm)) == (list(before.uns), list(before.obsm))
    assert trained.get_anndata_manager(cells) is None


def test_cells_whose_conditions_were_changed_are_refused(make_cells, make_model, quick):
    adata = make_cells()
    model = make_model(adata, condition_keys=["dose"])
    dose = adata.obs.pop("dose")
    with pytest.raises(KeyError, match="dose"):
        model.train(1, **quick)

    adata.obs["dose"] = dose.to_numpy()[::-1]
    with pytest.raises(ValueError, match="conditions"):
        model.train(1, **quick)

    SCLDM.setup_anndata(adata)
    adata.obs["dose"] = 7
    with pytest.raises(ValueError, match="dose"):
        model.train(1, **quick)


@pytest.mark.parametrize("registry", [{}, {"model_name": "SCVI", "field_registries": {"X": {}}}, "path", 5])
def test_registries_of_other_models_are_refused(registry, tiny):
    with pytest.raises(ValueError, match="registry"):
        SCLDM(registry=registry, **tiny)


SHOW = """
import numpy as np, anndata, pandas as pd
from scgen_diffusion.model import SCLDM
obs = pd.DataFrame({"orig.ident": ["a", "b"] * 3}, index=list("uvwxyz"))
adata = anndata.AnnData(np.ones((6, 4), np.float32), obs=obs)
SCLDM.setup_anndata(adata, condition_keys=["orig.ident"])
sizes = dict(n_latent=4, width=8, n_layers=1, prior_width=8, prior_n_layers=1)
model = SCLDM(adata, **sizes, prior_n_heads=2, n_heads=2, n_heads_cross=2)
model.view_anndata_setup()
"""


def test_the_setup_is_shown(run_apart):
    """In a fresh process: where anything imports rich.pretty, nothing shows that scvi-tools does not."""
    shown, _ = run_apart(SHOW)

    assert "n_conditions" in shown
    assert "orig.ident" in shown


def test_log_values_need_the_gaussian_head(make_cells, tiny):
    adata = make_cells(values="log1p")
    SCLDM.setup_anndata(adata, values="log1p")

    with pytest.raises(ValueError, match="likelihood"):
        SCLDM(adata, **tiny)


def test_unregistered_cells_are_refused(make_cells, either_class):
    with pytest.raises(ValueError, match="setup_anndata"):
        either_class(make_cells(), **SIZES[either_class])


@pytest.mark.parametrize("keys", [["cell_type"], ("cell_type", "dose"), np.array(["dose"]), pd.Index(["treated"])])
def test_keys_may_be_any_sequence(make_cells, tiny, keys):
    adata = make_cells()
    SCLDM.setup_anndata(adata, condition_keys=keys)

    assert SCLDM(adata, **tiny).conditions.keys == list(keys)


def test_registration_does_not_change_the_users_labels(make_cells):
    adata = make_cells()
    before = adata.obs.copy()

    SCLDM.setup_anndata(adata, condition_keys=["cell_type", "dose"])

    pd.testing.assert_frame_equal(adata.obs[list(before)], before)


def test_counts_may_come_from_a_layer(make_trained, make_cells):
    adata = make_cells()
    adata.layers["raw"] = adata.X.copy()
    adata.X = adata.X / 7

    model = make_trained(adata, condition_keys=[], setup={"layer": "raw"})

    assert model.generate(3, seed=0).shape == (3, 12)


def test_the_printed_model_names_its_class(trained_any):
    assert type(trained_any).__name__ in repr(trained_any)
