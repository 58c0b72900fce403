"""``generate``: what comes out, and what it does and does not depend on."""

import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from builders import same_cells

from scgen_diffusion.diffusion import FLOW_SAMPLERS, DDIMSampler, FixedStepSampler
from scgen_diffusion.model import SCLDM, SCMDM, SCRDIT, WBDIT


@pytest.mark.parametrize("counts", [True, None])
def test_cells_come_back_sparse_and_named(trained_any, counts):
    cells = trained_any.generate(60, seed=0, counts=counts)
    of_counts = counts or type(trained_any) in (SCLDM, SCMDM)

    assert cells.shape == (60, 12)
    assert cells.X.format == "csr"
    assert cells.X.dtype == np.float32
    assert (cells.X.data > 0).all()
    assert (cells.X.data == cells.X.data.round()).all() == of_counts
    assert cells.obs_names.is_unique
    assert cells.obs_names.str.startswith(f"{type(trained_any).__name__}-").all()
    assert ("log1p" not in cells.uns) == of_counts


def test_without_a_request_labels_follow_the_training_cells(trained):
    generated = trained.generate(2000, seed=0, sampler="euler", n_steps=1).obs
    expected = trained.adata.obs.value_counts(["cell_type", "dose"], normalize=True)

    found = generated.value_counts(["cell_type", "dose"], normalize=True)

    assert found.index.difference(expected.index).empty  # no combination that never occurred
    difference = found.reindex(expected.index, fill_value=0) - expected
    assert difference.abs().max() < 5 * np.sqrt(0.25 / 2000)  # five standard errors


def test_a_request_is_answered(trained):
    assert set(trained.generate(4, {"cell_type": "rare"}, seed=0).obs["cell_type"]) == {"rare"}
    assert trained.generate(condition={"dose": [100, 1]}, seed=0).obs["dose"].tolist() == [100, 1]
    assert trained.generate(5, {"cell_type": ["NK", "B cell"]}, seed=0).obs["cell_type"].tolist() == (
        ["NK"] * 3 + ["B cell"] * 2
    )
    table = trained.adata.obs.sample(9, random_state=0)[["dose", "cell_type"]]
    made = trained.generate(condition=table, seed=0).obs
    assert made[["dose", "cell_type"]].astype(str).to_numpy().tolist() == table.astype(str).to_numpy().tolist()


DIFFUSION_SAMPLERS = ["dpm_solver_3m", "dpm_solver", "ddim", "ddpm", DDIMSampler(eta=1.0)]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("cls", "sampler"),
    [
        *((SCLDM, sampler) for sampler in FLOW_SAMPLERS),
        *((cls, sampler) for cls in (SCRDIT, WBDIT) for sampler in DIFFUSION_SAMPLERS),
        (SCMDM, None),
    ],
    ids=str,
)
def test_cells_do_not_depend_on_batch_size_or_number_of_cells(trained_once, cls, sampler):
    def cells(n_cells=40, **options):
        return trained_once(cls).generate(n_cells, seed=5, sampler=sampler, n_steps=3, **options)

    whole = cells()
    for batch_size in (1, 17, 10_000):
        assert same_cells(whole, cells(batch_size=batch_size)), batch_size
    for n_cells in (1, 17):
        assert same_cells(whole[:n_cells], cells(n_cells)), n_cells
        assert cells(n_cells).obs_names.equals(whole.obs_names[:n_cells])


def test_cells_of_a_table_do_not_depend_on_other_rows(gaussian):
    table = gaussian.adata.obs[["cell_type", "dose"]].sample(200, replace=True, random_state=0)

    whole, few = (gaussian.generate(condition=rows, seed=5, guidance_scale=3.0) for rows in (table, table[:10]))

    np.testing.assert_array_equal(whole.X[:10], few.X)


def test_cells_do_not_depend_on_the_number_of_threads(gaussian):
    made = []
    for n_threads in (3, 1):
        torch.set_num_threads(n_threads)
        made.append(gaussian.generate(300, seed=5).X)
        assert torch.get_num_threads() == n_threads

    np.testing.assert_array_equal(*made)


@pytest.fixture(scope="module")
def gaussian(make_trained):
    """Train a model whose cells are real numbers, so that the smallest difference shows."""
    return make_trained(likelihood="gaussian")


def test_the_same_seed_gives_the_same_cells_and_other_seeds_or_steps_give_others(trained_any):
    one, same, other = (trained_any.generate(500, seed=seed, n_steps=2) for seed in (1, 1, 2))

    assert same_cells(one, same)
    assert (one.X != other.X).nnz > 0
    few, many = (trained_any.generate(500, seed=1, n_steps=n, library_size=20_000, counts=True) for n in (2, 7))
    assert (few.X != many.X).nnz > 0


def test_generating_leaves_the_global_random_state_alone_and_does_not_depend_on_it(trained_any):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = trained_any.generate(5, seed=3, counts=True)

    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    np.random.seed(2)
    assert same_cells(one, trained_any.generate(5, seed=3, counts=True))


def test_a_fresh_seed_is_recorded_and_reproduces_the_cells(trained, monkeypatch):
    monkeypatch.setattr(scvi.settings, "_seed", None)
    one, other = trained.generate(5), trained.generate(5)
    seed = one.uns["scgen_diffusion"]["seed"]

    assert seed != other.uns["scgen_diffusion"]["seed"]
    assert same_cells(one, trained.generate(5, seed=seed))


REQUESTS = [
    {"n_cells": 3},
    {"n_cells": 3, "condition": {"cell_type": "NK", "dose": 10}},
    {"n_cells": 3, "condition": {"dose": np.int64(10)}},
    {"condition": {"cell_type": ["NK", "B cell"], "dose": [1, 10]}},
    {"condition": pd.DataFrame({"dose": [1, 10]})},
    {"n_cells": 3, "guidance_scale": {"cell_type": 2.0}},
    {"n_cells": 3, "library_size": 100},
    {"n_cells": 3, "library_size": [50, 60, 70]},
    {"n_cells": 3, "n_steps": 3},
    {"n_cells": 3, "sampler": "euler"},
    {"n_cells": 3, "sampler": lambda field, x, **_: x},
    {"n_cells": 3, "seed": np.int64(4)},
]


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_every_provenance_can_be_written_and_other_requests_have_other_names(trained, tmp_path, suffix):
    cells, names = trained.generate(3, seed=9), set()
    for number, request_ in enumerate(REQUESTS):
        made = trained.generate(**{"seed": 3, **request_})
        assert not names & set(made.obs_names), request_
        names |= set(made.obs_names)
        cells.uns[str(number)] = asked = made.uns["scgen_diffusion"]
        assert {"version", "sampler", "n_steps", "guidance_scale", "library_size", "condition"} <= set(asked)
        assert (asked["model"], asked["seed"]) == ("SCLDM", request_.get("seed", 3))
    getattr(cells, f"write_{suffix}")(tmp_path / "cells")

    back = getattr(anndata, f"read_{suffix}")(tmp_path / "cells")
    assert same_cells(back, cells)
    for name in map(str, range(len(REQUESTS))):
        assert set(back.uns[name]) == set(cells.uns[name])
        assert back.uns[name]["sampler"] == cells.uns[name]["sampler"]


CONDITIONS = [
    {"dose": np.array([10, 1]), "cell_type": ["NK", "B cell"]},
    {"treated": [True, False, True]},
    {"treated": True, "age": 40.5},
    {"age": pd.array([40, 41], dtype="Int64")},
    {"age": [40.5, 41], "spatial": np.array([[0.1, 0.2], [0.3, 0.4]])},
]


def test_conditions_in_provenance_can_be_asked_for_again(make_trained, make_cells, tmp_path):
    cells, rng = make_cells(), np.random.default_rng(0)
    cells.obs["age"], cells.obsm["spatial"] = rng.normal(40, 5, 96), rng.normal(size=(96, 2))
    setup = {"continuous_condition_keys": ["age", "spatial"]}
    model = make_trained(cells, condition_keys=["cell_type", "dose", "treated"], setup=setup)
    made = {str(condition): model.generate(4, condition, seed=3, n_steps=1) for condition in CONDITIONS}
    written = anndata.AnnData(uns={name: cells.uns["scgen_diffusion"]["condition"] for name, cells in made.items()})

    for suffix in ("h5ad", "zarr"):
        getattr(written, f"write_{suffix}")(tmp_path / suffix)
        back = getattr(anndata, f"read_{suffix}")(tmp_path / suffix)
        for name, cells in made.items():
            again = model.generate(4, back.uns[name], seed=3, n_steps=1)
            assert again.obs_names.equals(cells.obs_names), name
            assert same_cells(again, cells), name


@pytest.mark.parametrize("library_size", [100, None])
def test_guidance_of_zero_is_unconditional_and_of_one_is_not(trained_any, library_size):
    request = {"n_cells": 20, "seed": 0, "counts": True, "library_size": library_size}
    conditions = [{"cell_type": "NK", "dose": 10}, {"cell_type": "B cell", "dose": 1}]

    free, other = (trained_any.generate(condition=c, guidance_scale=0, **request).X for c in conditions)
    bound, other_bound = (trained_any.generate(condition=c, guidance_scale=1, **request).X for c in conditions)

    assert (free != other).nnz == 0
    assert (bound != other_bound).nnz > 0
    assert (bound != free).nnz > 0
    partly, wholly = (  # keys without a scale have the scale one
        trained_any.generate(condition=conditions[0], guidance_scale=scale, **request)
        for scale in ({"dose": 3.0}, {"dose": 3.0, "cell_type": 1.0})
    )
    assert same_cells(partly, wholly)


@pytest.mark.parametrize(
    ("keys", "strategy"),
    [
        ([], "joint"),
        (["treated"], "joint"),
        *((["cell_type", "dose", "treated"], strategy) for strategy in ("joint", "mutually_exclusive", "additive")),
    ],
)
def test_any_number_of_keys_works(make_trained, either_class, keys, strategy):
    model = make_trained(cls=either_class, condition_keys=keys, condition_strategy=strategy)

    cells = model.generate(5, seed=0, n_steps=4, guidance_scale=2.0 if keys else 1.0, counts=True)

    assert list(cells.obs) == [*keys, "synthetic"]
    assert cells.X.sum() > 0
    if not keys:
        with pytest.raises(ValueError, match="condition"):
            model.generate(5, guidance_scale=2.0)


def test_an_unseen_combination_warns_once_and_works(trained):
    with pytest.warns(UserWarning, match="cell_type='T cell', dose=100") as caught:
        cells = trained.generate(300, {"cell_type": "T cell", "dose": 100}, seed=0)

    assert len([w for w in caught if "combination" in str(w.message)]) == 1
    assert caught[0].filename == __file__  # the warning points at the user's line
    assert set(cells.obs["dose"]) == {100}


def test_totals_resemble_those_of_training(trained_any):
    real = trained_any.adata.X.sum(1)

    cells = trained_any.generate(500, seed=0, n_steps=2, counts=True)

    found = cells.X.sum(1).A1
    assert cells.uns["scgen_diffusion"]["library_size"] == "drawn"
    assert np.median(found) == pytest.approx(np.median(real), rel=0.3)
    assert np.quantile(found, 0.9) / np.quantile(found, 0.1) > 1.5  # and they differ between cells


def test_totals_can_be_given(trained):
    many, few = (trained.generate(400, seed=0, library_size=size).X.sum() for size in (200, 20))
    per_cell = trained.generate(400, seed=0, library_size=np.repeat([20, 200], 200)).X.sum(1)

    assert many / few == pytest.approx(10, rel=0.1)  # 12 dispersed genes: totals scatter
    assert per_cell[200:].sum() / per_cell[:200].sum() == pytest.approx(10, rel=0.15)


def test_totals_below_all_training_cells_thin_the_least_of_them(trained, dense):
    least = trained.adata.X.sum(1).min()

    usual, shallow = (dense(trained.generate(200, seed=0, library_size=size).X) for size in (least, least / 4))

    are_thinned = (shallow <= usual).all(1)
    assert are_thinned.mean() > 0.85  # the others would be empty, and are drawn again
    assert shallow[are_thinned].sum() / usual.sum() == pytest.approx(0.25, rel=0.05)


def test_totals_far_above_all_training_cells_give_a_warning_and_are_noted(trained_any):
    largest = trained_any.adata.X.sum(1).max()
    asked = {"n_cells": 3, "seed": 0, "counts": True, "n_steps": 2}

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained_any.generate(**asked, library_size=[1, 10, 1.9 * largest])
    with pytest.warns(UserWarning, match="library_size"):
        cells = trained_any.generate(**asked, library_size=[1, 10, 1000])

    assert cells.uns["scgen_diffusion"]["outside_training"] == ["library_size 1000"]


OF_COUNTS = {"library_size": 1, "counts": True}


@pytest.mark.parametrize(
    ("cls", "options"),
    [(SCLDM, OF_COUNTS), (SCRDIT, {}), (SCMDM, {**OF_COUNTS, "n_steps": 8})],
    ids=["SCLDM", "SCRDIT", "SCMDM"],
)
def test_no_generated_cell_is_empty_whatever_the_others(make_trained, cls, options, dense):
    counts = np.random.default_rng(0).multinomial(1, np.full(12, 1 / 12), 96).astype(np.float32)
    sparse = anndata.AnnData(counts, obs=pd.DataFrame({"type": pd.Categorical(["A", "B"] * 48)}))
    model = make_trained(sparse, cls=cls, condition_keys=["type"])

    cells = dense(model.generate(300, seed=0, **options).X)

    assert (cells.sum(1) > 0).all()
    assert np.array_equal(dense(model.generate(140, seed=0, **options).X), cells[:140])
    assert np.array_equal(dense(model.generate(40, seed=0, batch_size=1, **options).X), cells[:40])


@pytest.mark.parametrize(
    ("error", "named", "values"),
    [
        (ValueError, "n_cells", [0, 2**63]),
        (ValueError, "sampler", ["eulers"]),
        (ValueError, "n_steps", [0]),
        (ValueError, "batch_size", [0]),
        (ValueError, "guidance_scale", [np.nan, "2"]),
        (ValueError, "library_size", [[10, 20], np.ones((3, 1)), 0, [10, np.nan, 3], -5.0, 1e300, []]),
        (ValueError, "seed", [2**64, True, -1, 1.5]),
        (TypeError, "condition", ["NK", pd.Series({"cell_type": "NK"}), {"cell_type": {"NK"}}]),
        (TypeError, "sampler", [3, FixedStepSampler]),
        (TypeError, "library_size", [{"rna": 500}, "normal"]),
        (TypeError, "conditions", [{"cell_type": "NK"}]),
    ],
)
def test_a_bad_request_is_refused_by_name(trained, error, named, values):
    for value in values:
        with pytest.raises(error, match=named):
            trained.generate(**{"n_cells": 3, named: value})


def test_log_values_in_are_log_values_out(make_trained, make_cells, tmp_path):
    model = make_trained(make_cells(values="log1p"), likelihood="gaussian", setup={"values": "log1p"})
    request = {"n_cells": 200, "condition": {"cell_type": "NK"}, "seed": 0}
    cells = model.generate(**request)

    assert isinstance(cells.X, np.ndarray)
    assert "log1p" in cells.uns
    assert np.isfinite(cells.X).all()
    assert (cells.X != cells.X.round()).any()  # real numbers
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="library_size"):
        model.generate(5, library_size=1000)
    for again in (model.generate(**request, batch_size=1), SCLDM.load(tmp_path / "model").generate(**request)):
        np.testing.assert_array_equal(again.X, cells.X)


KEYS = ["cell_type", "dose", "treated"]


@pytest.mark.parametrize("library_size", [200, None])
def test_scale_zero_of_a_key_takes_away_its_influence_alone(make_trained, library_size):
    additive = make_trained(condition_keys=KEYS, condition_strategy="additive")

    def cells(treated, dose, scale=0.0):
        condition = {"cell_type": "NK", "dose": dose, "treated": treated}
        request = {"seed": 0, "guidance_scale": {"treated": scale}, "library_size": library_size}
        return additive.generate(12, condition, **request).X.toarray()

    assert np.array_equal(cells(True, 10), cells(False, 10))
    assert not np.array_equal(cells(True, 10, scale=1.0), cells(False, 10, scale=1.0))
    assert not np.array_equal(cells(True, 10), cells(True, 1))
