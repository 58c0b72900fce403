"""The study of types that a model learns later: what it trains, and what its tables say."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

study = pytest.importorskip("benchmarks.studies.new_types")
Split = pytest.importorskip("benchmarks.quality.splits").Split
known_world = pytest.importorskip("benchmarks.studies.known_world")

LABELS = ("cell_type", "condition")


def test_each_way_of_fine_tuning_is_judged_on_new_and_old_types(tmp_path, monkeypatch):
    sizes = {(kind, "control"): 60 for kind in ("B", "NK", "T", "DC")} | {("rare", "control"): 8}
    world, rng = known_world.World.draw(40, 0, labels=LABELS, combinations=sizes), np.random.default_rng(1)
    n_cells = np.array([*sizes.values()])
    split = Split(world.cells(n_cells, rng), world.cells(n_cells // 2, rng), LABELS)
    monkeypatch.setattr(study, "load_split", lambda *_: split)
    monkeypatch.setattr(study, "N_DRAWN", 30)
    monkeypatch.setitem(study.CPU, "max_epochs", 1)
    monkeypatch.setattr("sys.argv", ["new_types", "--datasets", "pbmc3k", "--results", str(tmp_path)])

    study.main()

    table = pd.read_csv(tmp_path / "new_types.csv")
    assert set(table["cells"]) == {study.REAL, study.WITH_THEM, *study.TRAINABLE, *study.REPLAY}
    assert table.groupby("type")["label"].unique().map(sorted).to_dict() == {
        "new": ["B|control", "NK|control"],
        "old": ["DC|control", "T|control"],  # of the rare type, too few cells are held out
    }
    means = table.groupby(["cells", "type"])["energy_distance"].mean()
    assert means[study.REAL].max() < means["new_conditions"].min()
    text = (tmp_path / "new_types.md").read_text()
    assert f"| new_conditions | {means['new_conditions', 'new']:.2f} |" in text


def test_the_error_of_a_profile_is_that_of_log_ratios():
    one, other = (ad.AnnData(np.array(counts)) for counts in ([[1e6, 1e6]], [[1e6, 3e6]]))

    assert study.profile_error(one, one) == 0
    assert study.profile_error(one, other) == pytest.approx(np.sqrt((np.log(2) ** 2 + np.log(1.5) ** 2) / 2), rel=1e-5)
