"""The gene-space study: what is measured, trained once, resumed, shared and drawn."""

import json
from dataclasses import dataclass
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

experiments = pytest.importorskip("gene_space_experiments")
runs = pytest.importorskip("gene_space_runs")
study = pytest.importorskip("gene_space")

OPTIONS = experiments.Options(steps=4, minutes=0.01, n_genes=210, sampler_cells=20, evaluations=(4, 2))


def labelled_cells(n_cells=300, n_genes=220):
    rng = np.random.default_rng(0)
    is_a = np.arange(n_cells) % 2 == 0
    means = rng.gamma(1.0, 2.0, n_genes) * np.where(is_a[:, None], 1.0, rng.gamma(1.0, 1.0, n_genes))
    counts = sp.csr_matrix(rng.poisson(means).astype(np.float32))
    obs = pd.DataFrame(
        {"cell_type": pd.Categorical(np.where(is_a, "a", "b"))}, index=[f"cell-{i}" for i in range(n_cells)]
    )
    return ad.AnnData(counts, obs=obs, layers={"counts": counts})


class FastJudge(study.QuickJudge):
    """Leaves out all that takes time."""

    def _told_apart(self, pair):
        return {}


@dataclass
class Copies:
    """A model that knows nothing better than its training cells."""

    split: study.Split
    costs: dict

    def sample(self, conditions, labels, drawing, seed):
        return self.split.train.layers["counts"].toarray()[: len(labels)]


@pytest.fixture
def trainings(monkeypatch):
    """List what is trained, and train nothing."""
    trained = []

    def train(self, training):
        trained.append(training)
        return Copies(self.split_of[training.n_genes], {"steps": 4.0, "train_seconds": 1.0})

    monkeypatch.setattr(runs.Trainer, "_train", train)
    return trained


def a_study(folder, options=OPTIONS, seed=0):
    splits = study.Splits(labelled_cells(), ("cell_type",), seed)
    return study.Study(folder / "gene_space.csv", "made-up", seed, splits, options.training(), FastJudge)


def stored(folder):
    return pd.read_csv(folder / "gene_space.csv")


def tiny_table():
    names = [c.name for experiment in ("samplers", "targets", "zero_value") for c in members(experiment)]
    rows = [
        {
            "dataset": "d",
            "seed": seed,
            "experiment": experiment,
            "configuration": configuration.name,
            "metric": metric,
            "value": 0.5 + 0.1 * seed,
            "floor": 0.4,
            "judged_on": f"all cells, {configuration.training.n_genes} genes",
            "settings": configuration.describe(),
            "machine": "m",
            "versions": "v",
        }
        for experiment in ("samplers", "targets", "zero_value")
        for configuration in members(experiment)
        for seed in (0, 1)
        for metric in ("auc_pcs", "w2", "recall")
    ]
    return pd.DataFrame(rows), names


def members(experiment, options=OPTIONS):
    return experiments.EXPERIMENTS[experiment](options)


@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_every_configuration_is_one_that_the_package_can_build(name):
    for configuration in members(name, experiments.Options()):
        architecture = runs.resolve(configuration.training.architecture, ["g1", "g2"], seed=0)
        experiments.build_gene_space_architecture("SCRDIT", "default", **architecture)


def test_targets_are_tried_on_every_path_that_has_them():
    names = {configuration.name for configuration in members("targets")}
    assert names >= {"vp_linear, spike and slab", "vp_linear, noise", "vp_cosine, v", "flow_matching, velocity"}
    assert not names & {"vp_linear, velocity", "flow_matching, noise"}


@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_configurations_of_an_experiment_have_different_names(name):
    names = [configuration.name for configuration in members(name)]
    assert len(names) == len(set(names))


def test_what_is_as_in_the_default_architecture_is_left_out_of_the_settings():
    baseline = OPTIONS.training()
    shared = [name for name in experiments.EXPERIMENTS if baseline in [c.training for c in members(name)]]
    assert set(shared) == {
        "targets",
        "gene_order",
        "one_model",
        "samplers",
    }  # the others have other numbers of genes here
    assert json.loads(members("gene_order")[0].describe()).keys() == {"n_genes", "steps", "defaults"}


def test_the_baseline_is_trained_once_for_all_experiments(tmp_path, trainings):
    made_up = a_study(tmp_path)
    for name in ("targets", "gene_order", "samplers"):
        study.run_experiment(made_up, name, members(name))
    assert trainings.count(OPTIONS.training()) == 1
    table = stored(tmp_path)
    assert set(table["experiment"]) == {"targets", "gene_order", "samplers"}
    baselines = table[table["configuration"].isin(["given", "vp_linear, spike and slab"]) & (table["metric"] == "w2")]
    assert baselines["value"].nunique() == 1


def test_what_is_stored_is_not_measured_again(tmp_path, trainings):
    for _ in range(2):
        study.run_experiment(a_study(tmp_path), "gene_order", members("gene_order"))
    assert len(trainings) == 3


def test_an_interrupted_experiment_goes_on_with_what_is_missing(tmp_path, trainings):
    study.run_experiment(a_study(tmp_path), "gene_order", members("gene_order")[:2])
    trainings.clear()
    study.run_experiment(a_study(tmp_path), "gene_order", members("gene_order"))
    assert trainings == [members("gene_order")[2].training]


def test_other_settings_under_a_stored_name_are_refused(tmp_path, trainings):
    study.run_experiment(a_study(tmp_path), "gene_order", members("gene_order"))
    longer = experiments.Options(steps=8, n_genes=210)
    with pytest.raises(ValueError, match="--force"):
        study.run_experiment(a_study(tmp_path, longer), "gene_order", members("gene_order", longer))


def test_configurations_with_more_genes_than_there_are_are_left_out(tmp_path, trainings):
    study.run_experiment(a_study(tmp_path), "zero_value", members("zero_value"))
    assert not trainings


def test_every_row_has_the_floor_of_the_cells_it_was_judged_on(tmp_path, trainings):
    study.run_experiment(a_study(tmp_path), "samplers", members("samplers")[:1])
    rows = stored(tmp_path).set_index("metric")
    assert set(rows["judged_on"]) == {"20 cells, 210 genes"}
    assert 0 < rows.loc["share_of_zeros", "floor"] < 1


def test_the_quick_judge_tells_cells_apart_by_principal_components_only():
    cells = study.Splits(labelled_cells(120), ("cell_type",), 0)[210]
    figures = study.Comparison(cells, experiments.Drawing(), 0, study.QuickJudge).floor
    assert "auc_pcs" in figures
    assert "auc_genes" not in figures


def test_cells_that_diverge_are_stored_without_figures(tmp_path, trainings, monkeypatch):
    def diverge(*_):
        raise FloatingPointError("not finite")

    monkeypatch.setattr(Copies, "sample", diverge)
    study.run_experiment(a_study(tmp_path), "gene_order", members("gene_order")[:1])
    values = stored(tmp_path).set_index("metric")["value"]
    assert np.isnan(values["w2"])
    assert values["diverged"] == 1


def test_equal_time_is_turned_into_steps_by_the_time_of_a_few(monkeypatch):
    now = iter(np.cumsum([5.0, *[0.5] * 20]))  # the first step is slow, and so is one with a validation

    def train(max_epochs, *, callbacks, max_steps, **_):
        for _ in range(max_steps):
            callbacks[0].on_train_batch_end()

    monkeypatch.setattr(runs, "build", lambda *_, **__: SimpleNamespace(train=train))
    monkeypatch.setattr(runs, "seconds", lambda: next(now))
    assert runs.steps_within(2.0, None, (), {}) == 240


def test_steps_become_whole_epochs_of_the_training_part():
    assert runs.epochs_for(1_500, 1978) == round(1_500 / 14)  # 1 780 cells in batches of 128


@pytest.mark.parametrize("shared", ["in proportion to cells", "equally"])
def test_models_per_type_share_the_steps_of_one_model(shared):
    labels = np.repeat(["many", "some", "few"], [300, 100, 99])
    shares = runs.shared_steps(labels, experiments.Training(steps=400, shared=shared))
    assert shares == ({"many": 300, "some": 100} if shared != "equally" else {"many": 200, "some": 200})


def test_cells_of_models_per_type_are_in_the_order_of_the_request():
    def of(value):
        return SimpleNamespace(sample=lambda conditions, labels, drawing, seed: np.full((len(labels), 2), value))

    labels = np.array(["b", "a", "b"])
    drawn = runs.ModelPerType({"a": of(1), "b": of(2)}).sample(pd.DataFrame(index=range(3)), labels, None, 0)
    assert drawn[:, 0].tolist() == [2, 1, 2]


def test_a_random_gene_order_is_that_of_the_seed():
    genes = [f"g{i}" for i in range(20)]
    first, same, other = (runs.resolve({"gene_order": "random"}, genes, seed)["gene_order"] for seed in (0, 0, 1))
    assert first == same != other
    assert sorted(first) == sorted(genes)


def test_the_share_of_zeros_of_other_cells_is_the_floor():
    cells = study.Splits(labelled_cells(), ("cell_type",), 0)[210]
    comparison = study.Comparison(cells, experiments.Drawing(), 0, FastJudge)
    zeros = (cells.train.layers["counts"].toarray() == 0).mean()
    assert comparison.floor["share_of_zeros"] == pytest.approx(zeros, abs=0.02)  # ten draws of a third of the cells


def test_a_tiny_study_trains_and_draws_every_kind_of_model(tmp_path):
    kinds = [members("gene_order")[0], members("samplers")[2], members("one_model")[1]]
    study.run_experiment(a_study(tmp_path), "kinds", kinds)
    values = stored(tmp_path).pivot_table(index="metric", columns="configuration", values="value", sort=False)
    assert (values.loc["steps"] >= 4).all()
    assert (
        values.loc[["w2", "train_seconds", "seconds_per_step", "generation_seconds", "n_parameters"]].notna().all(None)
    )


def test_tables_have_means_half_ranges_and_floors():
    from gene_space_report import summarise

    table, names = tiny_table()
    text = summarise(table)
    assert "| *floor: all cells, 3000 genes* | 0.400 |" in text
    assert all(f"| {name} | 0.550 ± 0.050 |" in text for name in names)


def test_plots_are_drawn_from_the_table_alone(tmp_path):
    from gene_space_plots import draw_plots

    files = draw_plots(tiny_table()[0], tmp_path / "plots")
    assert [file.name for file in files] == [f"gene_space_{name}.png" for name in ("samplers", "targets", "zero_value")]
    assert all(5_000 < file.stat().st_size < 150_000 for file in files)


def test_plots_only_measures_nothing(tmp_path, monkeypatch):
    tiny_table()[0].to_csv(tmp_path / "gene_space.csv", index=False)
    arguments = ["--plots-only", "--results", str(tmp_path), "--plots", str(tmp_path)]
    parsed = study.parse_arguments(arguments)
    monkeypatch.setattr(study, "parse_arguments", lambda: parsed)
    monkeypatch.setattr(study, "run", lambda _: pytest.fail("measured"))
    study.main()
    assert (tmp_path / "gene_space.md").exists()
    assert (tmp_path / "gene_space_targets.png").exists()
