"""The known world: what its classifier confirms, and what the tables say of it."""

import numpy as np
import pandas as pd
import pytest

known_world = pytest.importorskip("benchmarks.studies.known_world")

COMBINATIONS = list(known_world.N_TRAIN)
EACH = np.full(len(COMBINATIONS), known_world.N_JUDGED)


@pytest.fixture(scope="module")
def world():
    return known_world.World.draw(100, seed=0)


@pytest.fixture(scope="module")
def cells(world):
    return world.cells(EACH, np.random.default_rng(1))


def test_a_condition_multiplies_20_genes_by_e(world):
    ratio = world.means[COMBINATIONS.index(("A", "treated"))] / world.means[COMBINATIONS.index(("A", "control"))]
    assert sorted(ratio.round(6)) == [1.0] * 80 + [round(np.e, 6)] * 20


def test_counts_have_the_known_means_and_the_variance_of_a_negative_binomial(world, cells):
    counts = cells.X.toarray()[: known_world.N_JUDGED].astype(float)
    size = np.exp(known_world.SIZE_SPREAD**2 / 2)
    np.testing.assert_allclose(counts.mean(axis=0) / (size * world.means[0]), 1, atol=0.3)  # 5 standard errors
    mean, squared = size * world.means[0], np.exp(2 * known_world.SIZE_SPREAD**2) * world.means[0] ** 2
    variance = mean + squared * (1 + 1 / known_world.INVERSE_DISPERSION) - mean**2
    assert np.median(counts.var(axis=0) / variance) == pytest.approx(1, abs=0.1)


def test_nearly_all_real_cells_are_confirmed_whatever_their_size(world, cells):
    table = world.judge(cells.X, EACH)
    assert table["confirmed"].min() > 0.9
    assert list(zip(table["type"], table["condition"], strict=True)) == COMBINATIONS
    assert world.judge(cells.X * 2, EACH)["right_type"].min() > 0.9


def test_cells_of_another_condition_or_type_are_not_confirmed(world, cells):
    order = {name: n for n, name in enumerate(COMBINATIONS)}
    wrong = [("A", "control") if name == ("A", "treated") else name for name in COMBINATIONS]
    rows = np.concatenate([np.arange(known_world.N_JUDGED) + order[name] * known_world.N_JUDGED for name in wrong])
    row = world.judge(cells.X[rows], EACH).iloc[order["A", "treated"]]
    assert row["confirmed"] < 0.05
    assert row["right_condition"] < 0.05
    assert row["right_type"] > 0.9


def test_a_baseline_is_judged_beside_real_cells_and_stored(tmp_path, monkeypatch):
    command = ["known_world", "--models", "independent-NB", "--results", str(tmp_path)]
    for _ in range(2):  # the second time, nothing is missing
        monkeypatch.setattr("sys.argv", command)
        known_world.main()
    table = pd.read_csv(tmp_path / "known_world.csv")
    assert len(table) == 2 * len(COMBINATIONS)
    shares = table.pivot_table(index="n_train", columns="cells", values="confirmed")
    assert shares.loc[500, "generated"] > 0.95 * shares.loc[500, "real cells"]
    text = (tmp_path / "known_world.md").read_text()
    assert "| real cells | independent-NB, generated |" in text
    assert "| A treated | 73 |" in text


def test_models_have_a_row_of_their_autoencoder(monkeypatch):
    variant = {"class": "SCLDM", "train": {"max_epochs": 1, "enable_progress_bar": False}}
    monkeypatch.setattr(known_world, "N_JUDGED", 5)
    table = known_world.study("quick", variant, 0, 60)
    assert set(table["cells"]) == {known_world.REAL, known_world.AUTOENCODER, known_world.GENERATED}
    assert table["confirmed"].between(0, 1).all()
