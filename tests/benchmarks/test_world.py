"""The world of the learning curves: its cells are those that it promises, and its fit finds what a world has."""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

world = pytest.importorskip("benchmarks.studies.world")
pages = pytest.importorskip("benchmarks.studies.pages")
curves = pytest.importorskip("benchmarks.studies.learning_curves")

N_GENES, SIZE = 60, 300.0


@pytest.fixture(scope="module")
def small():
    """Two types, 9 to 1; the first has a programme of ten genes."""
    profiles = np.random.default_rng(0).gamma(3.0, size=(1, 2, N_GENES))
    profiles = np.repeat(profiles / profiles.sum(axis=2, keepdims=True), world.N_DONORS, axis=0)
    programme = np.zeros((N_GENES, 1))
    programme[:10] = 0.8
    return world.World(
        genes=np.array([f"gene {number}" for number in range(N_GENES)]),
        types=np.array(["A", "B"]),
        shares=np.array([0.9, 0.1]),
        profiles=profiles,
        inverse_dispersion=np.full(N_GENES, 2.0),
        programmes=[programme, programme[:, :0]],
        log_size=np.array([[np.log(SIZE), 0.0]] * 2),
        seed=0,
    )


def test_fewer_cells_are_the_first_of_more_and_streams_differ(small):
    few, more = small.draw(300, world.TRAIN), small.draw(world.BLOCK + 300, world.TRAIN)
    assert more.n_obs == world.BLOCK + 300
    assert (more[:300].X != few.X).nnz == 0
    assert more.obs_names.is_unique
    assert (small.draw(300, world.HELD_OUT).X != few.X).nnz > 0


def test_types_have_their_shares_and_genes_their_means_and_variances(small):
    cells = small.draw(4_000, world.TRAIN)
    assert (cells.obs["cell_type"] == "B").mean() == pytest.approx(0.1, abs=0.02)
    counts = cells[cells.obs["cell_type"] == "A"].X.toarray().astype(float)
    mean = SIZE * small.profiles[0, 0]
    np.testing.assert_allclose(counts.mean(axis=0), mean, rtol=0.07)  # 4 standard errors
    assert np.median(counts.var(axis=0) / (mean + mean**2 / 2)) == pytest.approx(1, abs=0.05)


def test_genes_of_a_programme_go_together_in_its_type_alone(small):
    upper = np.triu_indices(10, 1)
    found = {
        name: np.corrcoef(small.draw(1_000, world.TRAIN, name).X.toarray().T[:10])[upper].mean() for name in ("A", "B")
    }
    assert found["A"] > 0.4
    assert abs(found["B"]) < 0.03


def test_requested_types_come_in_their_order(small):
    wanted = ["B", "A", "A", "B", "A"]
    cells = small.draw_like(wanted, world.FLOOR)
    assert cells.obs["cell_type"].tolist() == wanted
    assert cells.obs_names.is_unique


def test_the_fit_finds_the_programmes_that_cells_were_drawn_with(small):
    counts = small.draw(2_000, world.TRAIN, "A").X.toarray().astype(float)
    expected = np.broadcast_to(SIZE * small.profiles[0, 0], counts.shape)
    found = world.find_programmes(counts, expected, small.inverse_dispersion)
    assert found.shape == (N_GENES, 1)
    np.testing.assert_allclose(np.abs(found[:10, 0]), 0.8, atol=0.08)
    assert np.abs(found[10:, 0]).max() < 0.15
    assert world.find_programmes(counts[:50], expected[:50], small.inverse_dispersion).shape == (N_GENES, 0)


@pytest.fixture
def real(monkeypatch):
    """A real set of two frequent and two rare types: genes of a negative binomial."""
    rng = np.random.default_rng(0)
    counts = rng.negative_binomial(2, 0.3, (400, N_GENES)).astype(np.float32)
    obs = pd.DataFrame(
        {"cell_type": np.repeat(["A", "B", *world.RARE], [200, 160, 20, 20])}, [str(n) for n in range(400)]
    )
    cells = ad.AnnData(counts, obs=obs, layers={"counts": sp.csr_matrix(counts)})
    monkeypatch.setattr(world, "load", lambda source: cells)
    return cells


def test_more_types_are_subtypes_of_the_frequent_ones(real):
    whole, split = world.World.fit(n_genes=N_GENES), world.World.fit(n_genes=N_GENES, n_types=9)
    assert split.types.tolist() == ["A 1", "A 2", "A 3", "A 4", "B 1", "B 2", "B 3", "CD16 Mono", "DC"]
    shares, of_split = (dict(zip(one.types, one.shares, strict=True)) for one in (whole, split))
    assert {name: of_split[name] for name in world.RARE} == pytest.approx(world.RARE)
    of_a = [of_split[f"A {number}"] for number in range(1, 5)]
    assert (sum(of_a), sum(of_split.values())) == (pytest.approx(shares["A"]), pytest.approx(1))
    assert of_a[3] / of_a[0] == pytest.approx(world.SUBTYPE_SHARES)
    changes = np.log(split.profiles / whole.profiles[:, [0] * 4 + [1] * 3 + [2, 3]]).mean(axis=0).std(axis=1)
    donors = 2**0.5 * world.DONOR_TYPE_SPREAD / world.N_DONORS**0.5  # donors change each type anew
    np.testing.assert_allclose(changes[:7], np.hypot(world.SUBTYPE_SPREAD, donors), rtol=0.3)  # 3 standard errors
    np.testing.assert_allclose(changes[7:], donors, rtol=0.3)
    assert set(split.draw(100, world.TRAIN, "B 2").obs["cell_type"]) == {"B 2"}


def test_as_many_types_as_the_source_has_are_its_types(real):
    cells = [world.World.fit(n_genes=N_GENES, n_types=n_types).draw(200, world.TRAIN) for n_types in (None, 4)]
    assert (cells[0].X != cells[1].X).nnz == 0
    pd.testing.assert_frame_equal(cells[0].obs, cells[1].obs)


def test_a_world_refuses_more_genes_or_fewer_types_than_the_source_has(real):
    with pytest.raises(ValueError, match=f"has {N_GENES} genes"):
        world.World.fit(n_genes=N_GENES + 1)
    with pytest.raises(ValueError, match="has 4 types"):
        world.World.fit(n_genes=N_GENES, n_types=3)


def test_files_have_the_drawn_cells_in_their_order(small, tmp_path):
    from scgen_diffusion.data import CellFiles

    paths = small.write(tmp_path, 2_500, part=1_000)
    assert len(paths) == 3
    cells = CellFiles(paths, condition_keys=["cell_type"])
    assert cells.n_cells == 2_500
    read = cells.read([0, 2_499])
    np.testing.assert_array_equal(read.X.toarray(), small.draw(2_500, world.TRAIN).X[[0, 2_499]].toarray())


def test_other_lengths_multiply_the_epochs_of_their_stages():
    epochs = {
        steps: curves.variant_of("SCLDM", 8_000, steps)["train"]["max_epochs"] for steps in list(curves.STEPS)[1:]
    }
    twice = epochs["twice the steps"]
    assert twice == epochs["twice the autoencoder's steps"] | epochs["twice the prior's steps"]
    one_round = epochs["one round of the autoencoder"]["autoencoder"]
    assert twice["autoencoder"] / one_round == pytest.approx(2, abs=0.1)  # whole epochs
    assert set(curves.variant_of("SCRDIT", 8_000, "twice the steps")["train"]["max_epochs"]) == {"diffusion"}
    assert curves.variant_of("SCRDIT", 8_000, "twice the autoencoder's steps") == {"class": "SCRDIT"}
    assert curves.variant_of("SCLDM", 8_000, "default") == {"class": "SCLDM"}
    assert curves.variant_of("scVI", 8_000, "default") is None


def test_a_draw_that_was_killed_resumes_its_checkpoints_and_has_no_costs(tmp_path, monkeypatch):
    def draw(_split, _seed, _method, variant):
        Path(variant["train"]["checkpoint_dir"]).mkdir(exist_ok=True)
        return ad.AnnData(np.ones((2, 3)), uns={curves.COSTS_KEY: {"train_minutes": 1.0}})

    monkeypatch.setattr(curves, "read_split", lambda *_: None)
    monkeypatch.setattr(curves, "draw", draw)
    monkeypatch.setattr(curves.torch, "set_num_threads", lambda _: None)
    drawn = tmp_path / "drawn.h5ad"

    curves.draw_apart(tmp_path, "SCLDM", 2_000, curves.DEFAULT, drawn)
    assert ad.read_h5ad(drawn).uns[curves.COSTS_KEY] == {"train_minutes": 1.0}
    assert list(tmp_path.iterdir()) == [drawn]

    drawn.with_suffix(".checkpoints").mkdir()
    curves.draw_apart(tmp_path, "SCLDM", 2_000, curves.DEFAULT, drawn)
    assert curves.COSTS_KEY not in ad.read_h5ad(drawn).uns


def test_costs_are_those_of_each_number_of_cells():
    rows = [("SCLDM", 25_000, "train_minutes", 4.0), ("SCLDM", 2_000, "train_minutes", 3.0)]
    rows += [(method, 2_000, "peak_memory_gib", 0.5) for method in (curves.REAL, "SCLDM")]
    table = pd.DataFrame(rows, columns=["method", "cells", "metric", "value"]).assign(group="all", steps=curves.DEFAULT)
    table = table.assign(genes=curves.N_GENES, types=curves.N_TYPES)
    text = pages.learning_curves(table)[pages.HOW_MANY_CELLS, "learning_curves: costs"]
    assert "| 25,000 | 4 |" in text
    assert "| 2,000 | 3 | 0.5 |" in text


def test_other_worlds_have_a_table_of_their_own():
    rows = [
        (method, genes, types, metric, value + genes / 4_000)
        for method in (curves.REAL, "SCLDM")
        for genes, types in ((curves.N_GENES, curves.N_TYPES), (4_000, curves.N_TYPES), (curves.N_GENES, 30))
        for metric, value in (("recall", 0), ("train_minutes", 8), ("peak_memory_gib", 1))
    ]
    table = pd.DataFrame(rows, columns=["method", "genes", "types", "metric", "value"])
    table = table.assign(group="all", cells=8_000, steps=curves.DEFAULT, machine="this", versions="that", date="today")
    blocks = {mark: text for (_, mark), text in pages.learning_curves(table).items()}
    assert "| SCLDM, 8,000 | 0.50 |\n" in blocks["learning_curves: quality"] + "\n"
    assert "4,000 genes" not in blocks["learning_curves: quality"]
    assert blocks["learning_curves: costs"].count("\n") == 2
    assert [line.split(" | ")[:2] for line in blocks["learning_curves: genes and types"].splitlines()[2:]] == [
        [f"| {method}, {world}", recall]
        for world, recall in (
            ("2,000 genes, 7 types", "0.50"),
            ("2,000 genes, 30 types", "0.50"),
            ("4,000 genes, 7 types", "1.00"),
        )
        for method in (curves.REAL, "SCLDM")
    ]
    text = curves.summarise(table)
    for name in ("SCLDM, 8,000 cells", "SCLDM, 8,000 cells, 4,000 genes", "SCLDM, 8,000 cells, 30 types"):
        assert f"| {name} |" in text


def test_the_floor_is_judged_beside_a_baseline_in_a_small_world(small, tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "RARE", {"B": 0.1})
    monkeypatch.setattr(curves, "FIGURES", {"auc_boosting": "AUC, PCs", "nearest_train_ratio": "distance"})
    monkeypatch.setattr(curves.World, "fit", classmethod(lambda cls, **_: small))
    for name, value in {"PART": world.BLOCK, "N_JUDGED": 100, "N_RARE": 60, "N_SPACE": 200}.items():
        monkeypatch.setattr(curves, name, value)
    folder = tmp_path / "world"
    curves.write_world(folder, 2 * world.BLOCK)
    split = curves.read_split(folder, 2 * world.BLOCK)
    assert (split.train.n_obs, split.held_out.n_obs) == (2 * world.BLOCK, 160)
    floor = curves.with_layer(folder / "floor.h5ad")
    space = curves.with_layer(folder / "space.h5ad")
    values, swapped = {}, floor.copy()
    swapped.X = floor.X[:, ::-1]
    for name, drawn in {"real cells": floor, "swapped genes": swapped}.items():
        table = curves.figures(split, space, drawn)
        values[name] = table.set_index(["group", "metric"])["value"]
    assert set(table["group"]) == {"all", "B"}
    for group in ("all", "B"):
        assert values["real cells"][group, "auc_boosting"] < 0.65 < values["swapped genes"][group, "auc_boosting"]
    few, without_others = space[:, :40].copy(), floor.copy()
    without_others.X = floor.X.multiply(np.arange(N_GENES) < 40).tocsr()
    pd.testing.assert_frame_equal(*(curves.figures(split, few, drawn) for drawn in (floor, without_others)))
    rows = pd.concat(
        [
            table.assign(method=name, cells=2_000, steps=curves.DEFAULT, genes=2_000, types=7)
            for name in ("real cells", "SCLDM")
        ]
    )
    text = curves.summarise(rows.assign(machine="this", versions="that", date="today"))
    assert "| real cells, 2,000 cells |" in text
    curves.draw_picture(rows, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").exists()
