"""Rivals: what they learn of a split, and that their cells reach the judge. The rivals here resample training cells."""

import json
from functools import partial
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest

rivals = pytest.importorskip("benchmarks.rivals.__main__")
worker = pytest.importorskip("benchmarks.rivals.worker")
quality = pytest.importorskip("benchmarks.quality.__main__")
splits = pytest.importorskip("benchmarks.quality.splits")
tables = pytest.importorskip("benchmarks.tables")


@pytest.fixture
def split(make_cells, monkeypatch):
    """The split of made-up cells with four labels, which the commands read too."""
    adata = make_cells(400, 30)
    adata.layers["counts"] = adata.X
    adata.obs = pd.DataFrame({"cell_type": ["b", "a"] * 200, "condition": ["x"] * 320 + ["y"] * 80}, adata.obs_names)
    monkeypatch.setattr(splits, "load", lambda _: adata)
    return splits.load_split("kang_ifnb", 0)


def resample(task):
    """Return a random training cell for each requested label."""
    labels, rng = task.train.obs["label"].to_numpy(), np.random.default_rng(task.seed)
    rows = [rng.choice(np.flatnonzero(labels == label)) for label in task.requested["label"]]
    return worker.Drawn(splits.to_dense(task.train.X)[rows], 0.0, "counts", {"epochs": 3})


@pytest.fixture
def command(monkeypatch, tmp_path, split):
    """Run the command with a rival in this process; return its cells and the task that it was given."""

    def command(draw, *options, rival="CFGen"):
        tasks = []

        def remember(task):
            tasks.append(task)
            return draw(task)

        def work_here(command, **_):
            monkeypatch.setattr("sys.argv", command[2:])
            worker.work(remember)

        monkeypatch.setattr("benchmarks.rivals.exchange.subprocess", SimpleNamespace(run=work_here))
        where = ["--python", "python", "--datasets", "kang_ifnb", "--cells", str(tmp_path)]
        where += ["--repository", str(tmp_path)] if rival != "scDesigner" else []
        monkeypatch.setattr("sys.argv", ["rivals", rival, *where, *options])
        rivals.main()
        [path] = tmp_path.glob(f"kang_ifnb-0-{rival}*.h5ad")
        return ad.read_h5ad(path), tasks

    return command


def test_a_rival_sees_training_cells_and_only_the_labels_of_held_out_ones(command, split):
    _, [task] = command(resample, "--minutes", "2", "--length", "0.5")
    assert list(task.train.obs_names) == list(split.train.obs_names)
    np.testing.assert_array_equal(splits.to_dense(task.train.X), splits.to_dense(split.train.X))
    assert list(task.train.obs.columns) == ["label"]
    assert list(task.train.obs["label"]) == list(split.train_labels)
    assert list(task.requested["label"]) == list(split.held_out_labels)
    totals = splits.to_dense(split.train.X).sum(axis=1)
    for label, of_label in task.requested.groupby("label", observed=True):
        assert set(of_label["total"]) <= set(totals[split.train_labels == label])
    assert (task.minutes, task.length, task.seed) == (2.0, 0.5, 0)


def test_cells_of_a_rival_are_judged_with_their_costs(command, split, tmp_path, monkeypatch):
    cells, _ = command(resample, "--suffix", "long")
    assert list(cells.obs["label"]) == list(split.held_out_labels)
    assert list(cells.obs["condition"]) == list(split.held_out.obs["condition"])
    assert cells.var_names.equals(split.train.var_names)

    quick = partial(splits.judge, metrics=["w2", "gene_zero_error"], n_floor=1, n_bootstrap=5)
    monkeypatch.setattr(quality, "judge", quick)
    where = ["--datasets", "kang_ifnb", "--seeds", "0", "--cells", str(tmp_path), "--results", str(tmp_path)]
    monkeypatch.setattr(
        "sys.argv", ["quality", *where, "--methods", "CFGen-long", "scDiffusion"]
    )  # the latter has no cells
    quality.main()
    rows = tables.read_table(tmp_path / "compare.csv")
    assert set(rows["method"]) == {"CFGen-long"}
    assert '"epochs": 3' in rows["settings"].iloc[0]
    assert (rows.set_index("metric").loc[["cpu_minutes", "peak_memory_gib"], "value"] > 0).all()
    assert rows.set_index("metric").loc["gene_zero_error", "value"] < 0.1  # cells of the same genes


def test_a_rival_that_is_a_package_needs_no_clone(command):
    cells, [task] = command(resample, rival="scDesigner")
    assert task.repository is None
    assert "commit" not in json.loads(cells.uns[rivals.COSTS_KEY]["settings"])


def test_cells_are_drawn_once(command):
    before, _ = command(resample)
    after, tasks = command(resample)
    assert not tasks
    assert (before.X != after.X).nnz == 0


def test_log_normalised_values_become_counts_with_the_totals_of_training_cells(command, split):
    def normalised(task):
        return worker.Drawn(splits.log_normalise(resample(task).values), 0.0, "log-normalised")

    cells, [task] = command(normalised)
    counts = splits.to_dense(cells.X)
    np.testing.assert_array_equal(counts.sum(axis=1), task.requested["total"])
    expected = resample(task).values
    scaled = expected * (counts.sum(axis=1) / expected.sum(axis=1))[:, None]
    assert np.abs(counts - scaled).max() <= 1  # rounded, not drawn


@pytest.mark.parametrize(
    "spoil",
    [lambda counts: counts[1:], lambda counts: counts + 0.5, lambda counts: counts - 9, lambda counts: counts * np.nan],
)
def test_what_is_not_one_cell_of_counts_per_request_is_an_error(command, spoil):
    def spoilt(task):
        return worker.Drawn(spoil(resample(task).values), 0.0, "counts")

    with pytest.raises(ValueError, match=r"must return non-negative integers of shape \(100, 30\)"):
        command(spoilt)


def test_control_cells_change_as_what_a_rival_decodes_of_them_does_for_each_request(monkeypatch, make_cells):
    exchange = pytest.importorskip("benchmarks.rivals.exchange")
    train = make_cells(30, 4)
    control = train[:10].copy()

    def ask(_, given, requested, seed, **options):
        assert given is train
        assert (seed, options["python"]) == (3, "python")
        doses = requested["dose"].to_numpy(float)
        assert list(requested["shift"]) == 10 * ["none"] + 20 * ["drug"]
        assert list(requested.index) == 3 * list(control.obs_names)
        values = np.repeat(np.nan_to_num(doses, nan=0.5)[:, None], 4, axis=1)
        return ad.AnnData(values, uns={worker.COSTS: {"train_minutes": 2.0}})

    monkeypatch.setattr(exchange, "ask", ask)
    asked, obs = [{"shift": "drug", "dose": dose} for dose in (1.0, 3.0)], 2 * [control.obs.assign(drug="yes")]
    changed, profiles = exchange.ask_for_predictions("CPA", train, control, asked, obs, 3, python="python")
    before = splits.log_normalise(control.X)
    for cells, decoded, dose in zip(changed, profiles, (1.0, 3.0), strict=True):
        np.testing.assert_allclose(splits.to_dense(cells.X), before + dose - 0.5, rtol=1e-6)
        assert np.unique(splits.to_dense(decoded.X)).tolist() == [dose]
        assert cells.uns[worker.COSTS]["train_minutes"] == 2.0
        assert set(cells.obs["drug"]) == {"yes"}


def test_profiles_become_cells_without_negative_values(make_cells):
    exchange = pytest.importorskip("benchmarks.rivals.exchange")
    cells = make_cells(2, 3)
    found = exchange.as_log_cells(np.array([[-1.0, 0.5, 2.0], [0.0, -3.0, 1.0]]), cells.obs, cells.var)
    np.testing.assert_array_equal(splits.to_dense(found.X), [[0, 0.5, 2], [0, 0, 1]])
    assert "log1p" in found.uns
