"""The guidance study: what is asked of models, measured, resumed and written."""

from functools import partialmethod
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from scgen_diffusion.diffusion import CONDITION_STRATEGIES
from scgen_diffusion.generation import GuidanceOptions

study = pytest.importorskip("guidance")

OPTION = {"guidance_scale": "scale", "guidance_interval": "interval", "guidance_rescale": "rescale"}


def labelled_cells(n_cells=400, n_genes=60):
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(rng.choice(["a", "b"], n_cells)),
            "condition": pd.Categorical(rng.choice(["control", "stimulated"], n_cells)),
        },
        index=[f"cell-{i}" for i in range(n_cells)],
    )
    programme = rng.gamma(1.0, 3.0, (4, n_genes))
    group = obs["cell_type"].cat.codes.to_numpy() + 2 * obs["condition"].cat.codes.to_numpy()
    counts = sp.csr_matrix(rng.poisson(programme[group] + 0.1).astype(np.float32))
    return ad.AnnData(counts, obs=obs, layers={"counts": counts})


@pytest.fixture
def trainings(monkeypatch):
    """Train nothing, note what would be trained, and let every model return training cells of the conditions asked for."""
    trained = []

    def trained_by(self, training):
        trained.append(training)
        labels = self.split.train_labels

        def generate(condition, seed, **_):
            asked = study.Split(self.split.train, ad.AnnData(obs=condition.rename(str)), self.split.condition_keys)
            rows = [
                np.flatnonzero(labels == label)[i % (labels == label).sum()]
                for i, label in enumerate(asked.held_out_labels)
            ]
            return SimpleNamespace(X=self.split.train.X[rows])

        return SimpleNamespace(generate=generate)

    monkeypatch.setattr(study.Models, "trained_by", trained_by)
    monkeypatch.setattr(study, "load", lambda dataset: labelled_cells())
    return trained


@pytest.mark.parametrize("dataset", study.DATASETS)
def test_every_way_has_a_name_of_its_own_and_can_be_asked_of_its_model(dataset):
    ways = study.ways_of(dataset)
    assert len({(way.training, way.name) for way in ways}) == len(ways)
    for way in ways:
        options = GuidanceOptions(**{OPTION.get(name, name): value for name, value in way.how.items()})
        options.resolve(CONDITION_STRATEGIES[way.training], study.CONDITION_KEYS[dataset])


def test_what_is_stored_is_not_measured_again_and_other_settings_are_refused(trainings, tmp_path, monkeypatch):
    path, ways = tmp_path / "guidance.csv", study.ways_of("kang_ifnb")
    additive = [way for way in ways if way.training == "additive"]
    some = [additive[0], ways[0], additive[1]]
    monkeypatch.setattr(study, "ways_of", lambda dataset: some)
    study.run(path, ["kang_ifnb"], [0], 50)
    first = path.read_text()
    study.run(path, ["kang_ifnb"], [0], 50)
    assert path.read_text() == first
    assert trainings == ["additive", "additive", "joint"]  # so that each prior is trained once
    table = pd.read_csv(path)
    assert set(table["guidance"]) == {"floor", *(way.name for way in some)}
    changed = [study.Guided(way.training, way.name, {"guidance_scale": 9.0}) for way in some]
    with pytest.raises(ValueError, match="is stored with the settings"):
        study.pending(path, "kang_ifnb", 0, changed)


def test_copies_of_training_cells_score_as_the_floor_and_shuffled_conditions_are_seen(trainings):
    seen = study.Study(None, "kang_ifnb", 0, 50)
    split, figures = seen.split, seen.figures
    asked = split.train.obs[list(split.condition_keys)].iloc[: split.held_out.n_obs]
    counts = split.train.X[: split.held_out.n_obs].toarray()
    copies, floor = figures.measure(counts, asked), figures.floor()
    assert copies["precision"] == pytest.approx(floor["precision"], abs=0.1)
    assert copies["spread"] == pytest.approx(1, abs=0.15)
    assert copies["f1 of condition"] > 0.95
    swapped = asked.assign(condition=asked["condition"].to_numpy()[::-1])
    swapped_figures = figures.measure(counts, swapped)
    assert swapped_figures["f1 of condition"] < 0.7
    assert swapped_figures["f1 of cell_type"] == copies["f1 of cell_type"]


def test_variance_within_labels_does_not_count_what_lies_between_them():
    conditions = pd.DataFrame({"cell_type": pd.Categorical(["a", "a", "b", "b"])})
    values = np.array([[0.0, 1.0], [2.0, 1.0], [100.0, 5.0], [102.0, 5.0]])
    assert study.within_label_variance(values, conditions) == 1.0


def test_the_summary_has_a_line_per_way_and_the_means_over_seeds():
    rows = [
        {"dataset": "d", "seed": seed, "training": "joint", "guidance": name, "metric": "recall", "value": value + seed}
        for seed in (0, 1)
        for name, value in [("floor", 0.5), ("scale 2", 0.25)]
    ]
    text = study.summarise(pd.DataFrame(rows).assign(machine="m"))
    assert "**d**, seeds 0, 1" in text
    assert "| joint | scale 2 | 0.750 |" in text


def test_each_prior_starts_anew_on_the_same_autoencoder_and_knows_its_strategy(monkeypatch):
    split = study.split_cells(labelled_cells(), ("cell_type", "condition"), seed=0, n_genes=50)
    monkeypatch.setattr(study.SCLDM, "train_autoencoder", partialmethod(study.SCLDM.train_autoencoder, 1))
    monkeypatch.setattr(study.SCLDM, "train_prior", partialmethod(study.SCLDM.train_prior, 1))
    models = study.Models(split, 0)
    first = {name: value.clone() for name, value in models.trained_by("joint").module.state_dict().items()}
    other = models.trained_by("additive")
    assert other.module.strategy.name == "additive"
    differing = {name for name, value in other.module.state_dict().items() if not torch.equal(value, first[name])}
    assert differing
    assert not any(name.startswith(("encoder", "decoder")) for name in differing)
    again = models.trained_by("joint").module.state_dict()
    assert [name for name, value in again.items() if not torch.equal(value, first[name])] == []
