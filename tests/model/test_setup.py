"""Registering cells and constructing models: bad input is refused before training starts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scgen_diffusion.model import SCLDM


def test_a_model_can_be_built_from_a_registry_alone(make_model, tiny):
    adata_model = make_model()

    model = SCLDM(registry=adata_model.registry_, **tiny)

    assert model.adata is None
    assert model.conditions.categories == adata_model.conditions.categories
    assert model.get_var_names().tolist() == adata_model.get_var_names().tolist()
    with pytest.raises(ValueError, match="no cells to train on"):
        model.train()


def test_weights_fit_into_a_model_from_a_registry_alone(trained, tiny):
    model = SCLDM(registry=trained.registry_, **tiny)

    model.module.load_state_dict(trained.module.state_dict())


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (lambda a: a.X.__setitem__((3, 1), 0.5), ValueError, "not whole numbers"),
        (lambda a: a.X.__setitem__((3, 1), -1), ValueError, "negative"),
        (lambda a: a.X.__setitem__((3, 1), np.nan), ValueError, "NaN"),
        (lambda a: a.X.__setitem__(3, 0), ValueError, "without any count.*cell_3"),
        (lambda a: a.obs.__setitem__("dose", [np.nan] + [1.0] * 95), ValueError, "'dose'.*no label for 1 of 96"),
        (lambda a: setattr(a, "var_names", ["g"] * 12), ValueError, "duplicates"),
        (lambda a: a.obs.__delitem__("dose"), KeyError, "'dose' is not a column"),
    ],
    ids=["fraction", "negative", "NaN", "empty cell", "no label", "duplicate genes", "no column"],
)
def test_bad_cells_are_refused_at_registration(make_cells, spoil, error, words):
    adata = make_cells()
    spoil(adata)

    with pytest.raises(error, match=words):
        SCLDM.setup_anndata(adata, condition_keys=["cell_type", "dose"])


def test_an_unknown_kind_of_values_is_refused(make_cells):
    with pytest.raises(ValueError, match="`values` must be 'counts' or 'log1p'.*'raw'"):
        SCLDM.setup_anndata(make_cells(), values="raw")


def test_a_string_as_keys_is_refused(make_cells):
    with pytest.raises(TypeError, match=r"Did you mean \['cell_type'\]"):
        SCLDM.setup_anndata(make_cells(), condition_keys="cell_type")


def test_log_values_need_the_gaussian_head(make_cells, tiny):
    adata = make_cells(values="log1p")
    SCLDM.setup_anndata(adata, values="log1p")

    with pytest.raises(ValueError, match="need `likelihood='gaussian'`"):
        SCLDM(adata, **tiny)


def test_unregistered_cells_are_refused(make_cells, tiny):
    with pytest.raises(ValueError, match="setup_anndata"):
        SCLDM(make_cells(), **tiny)


def test_an_unknown_option_names_the_closest_first(make_model):
    with pytest.raises(TypeError, match="no option 'n_latents'.*closest first: n_latent"):
        make_model(n_latents=3)


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


def test_the_printed_model_names_its_class(trained, capsys):
    assert "SCLDM" in repr(trained) + capsys.readouterr().out
