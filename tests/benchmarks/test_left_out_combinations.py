"""The study of left-out combinations: which ones it leaves out, and what its tables say."""

from itertools import product

import numpy as np
import pandas as pd
import pytest

study = pytest.importorskip("benchmarks.studies.left_out_combinations")
known_world = pytest.importorskip("benchmarks.studies.known_world")

LABELS = ("cell_type", "donor")


@pytest.fixture(scope="module")
def split():
    """Types of eight donors: three with many cells, one with few, and one of a single donor."""
    sizes = dict.fromkeys(product("ABC", map(str, range(8))), 40) | dict.fromkeys(product("D", "01"), 39)
    sizes |= {("E", "0"): 60}
    world, rng = known_world.World.draw(60, 0, labels=LABELS, combinations=sizes), np.random.default_rng(1)
    return study.Split(*(world.cells(np.array([*sizes.values()]) // share, rng) for share in (1, 4)), LABELS)


@pytest.mark.parametrize("seed", range(5))
def test_few_combinations_are_left_out_and_every_value_keeps_training_cells(split, seed):
    found = study.leave_out(split, seed)
    left_out = found.held_out.obs.groupby(list(LABELS), observed=True).size()
    assert (left_out == 40 + 10).all()  # those of the held-out part, too
    assert left_out.groupby("cell_type", observed=True).size().max() == 2
    assert left_out.groupby("donor", observed=True).size().max() == 1
    assert not set(found.train_labels) & set(found.held_out_labels)
    assert found.train.n_obs == split.train.n_obs - 40 * len(left_out)
    for key in LABELS:
        assert set(found.train.obs[key]) == set(split.train.obs[key])


def test_a_model_is_judged_with_and_without_effects_beside_real_cells(split, tmp_path, monkeypatch):
    quick = {"class": "SCLDM", "train": {"max_epochs": 1, "enable_progress_bar": False}}
    monkeypatch.setitem(study.VARIANTS, "SCLDM", quick)
    monkeypatch.setattr(study, "load_split", lambda *_: split)
    monkeypatch.setattr(study, "N_DRAWN", 20)
    command = ["left_out_combinations", "--datasets", "kang_control_8donors", "--results", str(tmp_path)]
    monkeypatch.setattr("sys.argv", command)
    study.main()
    table = pd.read_csv(tmp_path / "left_out_combinations.csv")
    n_left_out = len(set(study.leave_out(split, 0).held_out_labels))
    assert (table.groupby("cells").size() == n_left_out).all()
    means = table.groupby("cells")["energy_distance"].mean()
    assert set(means.index) == {
        *("SCLDM", "SCLDM, guidance 1.5", "SCLDM, without", "SCLDM, without, guidance 1.5"),
        *("real cells of others", "real cells (floor)"),
    }
    assert means["real cells (floor)"] < means["SCLDM"] < means["real cells of others"]
    assert means["SCLDM"] != means["SCLDM, without"]
    text = (tmp_path / "left_out_combinations.md").read_text()
    assert f"combinations: {n_left_out} of seed 0" in text
    assert f"| SCLDM, without | {means['SCLDM, without']:.3f} |" in text
    assert f"| real cells of others | {means['real cells of others']:.3f} | 1.000 |" in text
