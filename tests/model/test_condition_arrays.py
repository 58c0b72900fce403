"""Arrays of ``obsm`` as conditions: positions and the like, from registration to files of generated cells."""

import anndata
import numpy as np
import pandas as pd
import pytest
from builders import read_cells, same_cells

from scgen_diffusion.data import CellFiles
from scgen_diffusion.model import SCLDM, SCRDIT

ARRAYS = ["spatial", "fate"]
CORNERS = np.array([[0, 0], [600, 0], [0, 200], [600, 200]])  # of the types, 100 apart from each other at least


@pytest.fixture(scope="module")
def cells(make_cells):
    """Return cells whose type says in which corner they are, and with fates of no meaning."""
    adata, rng = make_cells(), np.random.default_rng(0)
    types = adata.obs["cell_type"].cat.codes.to_numpy()
    adata.obsm["spatial"] = CORNERS[types] + rng.uniform(0, 100, (adata.n_obs, 2))
    share = rng.random(adata.n_obs)
    adata.obsm["fate"] = np.c_[share, 1 - share]
    return adata


@pytest.fixture(scope="module")
def model(cells, make_trained):
    return make_trained(cells.copy(), condition_keys=["cell_type"], setup={"continuous_condition_keys": ARRAYS})


def corner_of(positions):
    """Return the number of the corner of each position; -1 between them."""
    inside = (positions[:, None] >= CORNERS) & (positions[:, None] <= CORNERS + 100)
    return np.where(inside.all(2).any(1), inside.all(2).argmax(1), -1)


def assert_same(one, other):
    """Two results hold the same cells under the same conditions."""
    for name in ARRAYS:
        np.testing.assert_array_equal(one.obsm[name], other.obsm[name])
    assert same_cells(one, other)


def test_positions_are_kept_in_obsm_in_the_order_they_were_asked_for_and_change_the_cells(model):
    asked = np.array([[30.0, 60.0], [650.5, 20.0], [12.0, 290.0]])

    made = model.generate(condition={"spatial": asked, "fate": [0.25, 0.75]}, seed=0, n_steps=2)

    np.testing.assert_array_equal(made.obsm["spatial"], asked)
    assert made.obsm["fate"].tolist() == [[0.25, 0.75]] * 3
    assert list(made.obs) == ["cell_type", "synthetic"]
    twice = model.generate(6, {"spatial": asked}, seed=0, n_steps=1)
    assert twice.obsm["spatial"].tolist() == asked.repeat(2, 0).tolist()
    here, there, guided = (
        model.generate(64, {"cell_type": "NK", "fate": [0.5, 0.5], "spatial": spot}, seed=0, guidance_scale=scale).X
        for spot, scale in (([30, 250], 1.0), ([80, 250], 1.0), ([30, 250], {"spatial": 3.0}))
    )
    assert (here != there).nnz
    assert (here != guided).nnz


def test_types_left_out_are_those_of_cells_near_the_position(model):
    spots = CORNERS[:3].repeat(40, 0) + 50

    made = model.generate(condition={"spatial": spots}, seed=0, n_steps=1)

    assert made.obs["cell_type"].cat.codes.tolist() == np.repeat([0, 1, 2], 40).tolist()
    assert len(np.unique(made.obsm["fate"], axis=0)) > 20  # they come from several neighbours


def test_positions_left_out_are_those_of_cells_of_the_type(model, cells):
    made = model.generate(60, {"cell_type": ["NK", "B cell"]}, seed=0, n_steps=1)

    assert corner_of(made.obsm["spatial"]).tolist() == [2] * 30 + [0] * 30
    pairs = [*map(tuple, np.c_[cells.obsm["spatial"], cells.obsm["fate"]].round(9))]
    assert {*map(tuple, np.c_[made.obsm["spatial"], made.obsm["fate"]].round(9))} <= set(pairs)
    free = model.generate(400, seed=0, n_steps=1)
    assert (corner_of(free.obsm["spatial"]) == free.obs["cell_type"].cat.codes).all()
    assert len(np.unique(free.obsm["spatial"], axis=0)) > 80  # of 96


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_a_model_without_cells_generates_the_same_also_in_files(model, tmp_path, suffix):
    model.save(tmp_path / "model")
    loaded, asked = SCLDM.load(tmp_path / "model", adata=False), {"spatial": CORNERS.repeat(75, 0) + 50.0}
    expected = model.generate(condition=asked, seed=0, n_steps=1)

    path = loaded.generate_to(tmp_path / f"cells{suffix}", None, asked, seed=0, n_steps=1, shard_size=128)

    assert_same(loaded.generate(condition=asked, seed=0, n_steps=1), expected)
    assert_same(read_cells(path), expected)


def test_cells_and_tables_may_ask_for_their_conditions(model, cells):
    section = cells[[5, 3, 60, 3]].copy()
    types, arrays = section.obs["cell_type"].tolist(), dict(section.obsm)
    columns = [f"{name}_{number}" for name in ARRAYS for number in range(2)]
    table = pd.DataFrame(np.c_[arrays["spatial"], arrays["fate"]], columns=columns).assign(cell_type=types)
    of_cells, *others = (
        model.generate(condition=asked, seed=0, n_steps=2) for asked in (section, {"cell_type": types, **arrays}, table)
    )

    for other in others:
        assert_same(of_cells, other)
    np.testing.assert_allclose(of_cells.obsm["spatial"], section.obsm["spatial"], rtol=0, atol=1e-10)
    assert "spatial_0, spatial_1" in of_cells.uns["scgen_diffusion"]["condition"]


@pytest.mark.parametrize("cls", [SCLDM, SCRDIT])
def test_cells_in_files_are_registered_as_those_in_memory(model, cells, make_model, quick, tmp_path, cls):
    cells[:50].write_h5ad(tmp_path / "a.h5ad")
    cells[50:].write_h5ad(tmp_path / "b.h5ad")
    keys = {"condition_keys": ["cell_type"], "continuous_condition_keys": ARRAYS}
    files = CellFiles([tmp_path / "a.h5ad", tmp_path / "b.h5ad"], **keys)
    np.testing.assert_allclose(files.codes[:, 1:], model._registered_codes[:, 1:])
    assert [key.state() for key in files.by_key[1:]] == [key.state() for key in model._condition_keys[1:]]
    np.testing.assert_allclose(files.read([70, 2]).obsm["spatial"], cells.obsm["spatial"][[70, 2]], rtol=1e-12)
    assert CellFiles.like(model.registry, tmp_path / "a.h5ad").n_cells == 50

    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    made = make_model(backed, cls=cls, condition_keys=["cell_type"], setup={"continuous_condition_keys": ARRAYS})
    for datamodule in (None, CellFiles.like(made.registry, [tmp_path / "a.h5ad", tmp_path / "b.h5ad"])):
        made.train(1, datamodule=datamodule, **quick)
        assert made.generate(2, {"spatial": [3, 4]}, seed=0, n_steps=1).obsm["spatial"].tolist() == [[3, 4]] * 2


def test_a_reference_learns_a_type_at_new_positions(model, cells, quick):
    new = cells[:40].copy()
    new.obs["cell_type"] = "new"
    new.obsm["spatial"] = new.obsm["spatial"] + [0, 2000]
    query = SCLDM.load_query_data(new, model)
    query.train(1, **quick)

    made = query.generate(20, {"cell_type": "new"}, seed=0, n_steps=1)
    assert (made.obsm["spatial"][:, 1] >= 2000).all()
    assert set(query.generate(20, {"spatial": [50, 2050]}, seed=0, n_steps=1).obs["cell_type"]) == {"new"}


def test_given_cells_can_be_moved(model, cells):
    given, options = model.adata[[7, 9]].copy(), {"seed": 0, "sampler": "euler", "n_steps": 2}
    moved = model.predict_perturbation(given, condition={"spatial": [650, 50]}, **options)
    assert moved.obsm["spatial"].tolist() == [[650, 50]] * 2
    np.testing.assert_allclose(moved.obsm["spatial_of_control"], cells.obsm["spatial"][[7, 9]])
    np.testing.assert_allclose(moved.obsm["fate"], cells.obsm["fate"][[7, 9]])
    assert not any(name.startswith("spatial") for name in moved.obs)
    own = model.predict_perturbation(given, condition=cells[[7, 9]], **options)
    np.testing.assert_array_equal(own.obsm["spatial"], own.obsm["spatial_of_control"])
    with pytest.raises(ValueError, match="order"):
        model.predict_perturbation(given, condition=cells[[9, 7]], **options)


@pytest.mark.parametrize(
    ("named", "asked"),
    [
        *(
            ("spatial", {"spatial": value})
            for value in ([1, 2, 3], [[1, 2], [3]], "here", 5, [1, float("nan")], [1, 1e15], np.zeros((9, 2)))
        ),
        ("spatial", pd.DataFrame({"spatial_0": [1.0]})),
        ("cell_type", anndata.AnnData(obs=pd.DataFrame(index=["a"]))),
    ],
)
def test_wrong_requests_are_refused(model, named, asked):
    with pytest.raises(ValueError, match=named):
        model.generate(5 if isinstance(asked, dict) else None, asked)


def test_places_without_training_cells_give_a_warning(model):
    with pytest.warns(UserWarning, match=r"spatial=\[350.* 2 combinations"):
        made = model.generate(condition={"spatial": [[5000, 50], [50, 50], [350, 150]]}, seed=0, n_steps=1)
    assert made.obs["cell_type"].tolist()[:2] == ["T cell", "B cell"]  # the nearest cells
    with pytest.warns(UserWarning, match=r"cell_type='NK', spatial=\[650.0, 50.0\]"):
        model.generate(3, {"cell_type": "NK", "spatial": [650, 50]}, seed=0, n_steps=1)
