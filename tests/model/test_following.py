"""Following cells: fates and paths, on toy worlds whose fates are known, and through the model."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scgen_diffusion.model import load
from scgen_diffusion.model._following import follow

N = 60  # cells of a branch at each time
TIMES = np.arange(6.0)
SMALL = 0.05  # spread of a branch


def branches(heights, *, drift=0.0, seed=0):
    """Draw cells of branches: their latents, times and branches.

    A branch has one height per time, or None before it begins.
    """
    rng = np.random.default_rng(seed)
    latents, times, branch = [], [], []
    for number, of_branch in enumerate(heights):
        for t, height in zip(TIMES, of_branch, strict=True):
            if height is not None:
                latents.append(np.array([0, height + drift * t]) + SMALL * rng.normal(size=(N, 2)))
                times.append(np.full(N, t))
                branch.append(np.full(N, number))
    return np.concatenate(latents), np.concatenate(times), np.concatenate(branch)


def fates_of(latents, times, branch, *, n_neighbors=5, n_branches=None):
    """Return the fates of the cells of the first time, and the branches of these cells."""
    early = times == 0
    options = {"until": TIMES[-1], "step": 1.0, "n_neighbors": n_neighbors}
    steps = follow(latents, times, latents[early], times[early], **options)
    n_branches = branch.max() + 1 if n_branches is None else n_branches
    labels = (branch[:, None] == np.arange(n_branches)) & (times == TIMES[-1])[:, None]
    return steps.fates(labels), branch[early]


@pytest.mark.parametrize("drift", [0.0, 0.7, -30.0])
def test_cells_stay_in_their_branch_however_fast_all_cells_change(drift):
    fates, own = fates_of(*branches([[1.0] * 6, [-1.0] * 6], drift=drift))

    np.testing.assert_array_equal(fates, np.eye(2)[own])


def test_cells_before_a_fork_become_either():
    trunk = [0.0, 0.0, 0.0, None, None, None]
    upper, lower = ([None, None, None, *(sign * height for height in (0.1, 0.5, 1.0))] for sign in (1, -1))
    latents, times, branch = branches([trunk, upper, lower])

    fates, _ = fates_of(latents, times, branch)

    assert fates[:, 0].max() == 0
    np.testing.assert_allclose(fates[:, 1:].mean(0), 0.5, atol=0.1)  # 60 cells of which each goes 5 ways
    assert (fates[:, 1:].min(1) > 0).mean() > 0.5


def test_one_cell_between_two_goes_to_both():
    latents = np.array([[0.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    steps = follow(latents, np.array([0.0, 1.0, 1.0]), latents[:1], np.zeros(1), until=1.0, step=0.5, n_neighbors=2)

    np.testing.assert_array_equal(steps.fates(np.array([[0, 0], [1, 0], [0, 1]])), [[0.5, 0.5]])


def test_cells_need_not_become_a_type_whose_ancestors_are_missing():
    newcomers = [None, None, None, 4.0, 4.0, 4.0]
    fates, own = fates_of(*branches([[1.0] * 6, [-1.0] * 6, newcomers]))

    np.testing.assert_allclose(fates, np.eye(3)[own], atol=0.05)  # a third of the cells is new and moves the mean


def test_steps_with_few_cells_are_left_out():
    latents, times, branch = branches([[1.0] * 6, [-1.0] * 6])
    few = np.flatnonzero(times == 3)[10:]
    latents, times, branch = (np.delete(values, few, axis=0) for values in (latents, times, branch))
    early = times == 0

    steps = follow(latents, times, latents[early], times[early], until=5.0, step=1.0, n_neighbors=5)

    assert steps.centres == [5.0, 4.0, 2.0, 1.0]
    np.testing.assert_array_equal(fates_of(latents, times, branch)[0], np.eye(2)[branch[early]])


def test_paths_go_from_step_to_step_as_often_as_the_fates_say():
    trunk = [0.0, 0.0, 0.0, None, None, None]
    upper, lower = ([None, None, None, 0.03, 0.5, 1.0], [None, None, None, -0.05, -0.5, -1.0])
    latents, times, branch = branches([trunk, upper, lower])
    cell = np.zeros((4_000, 2))
    cell_times = np.repeat([0.0, 2.0], 2_000)

    steps = follow(latents, times, cell, cell_times, until=5.0, step=1.0, n_neighbors=5)
    paths = steps.draw_paths(np.random.default_rng(0))

    assert (paths[:2_000] >= 0).all()
    assert (paths[2_000:, :2] == -1).all()  # these join later
    for step, time in enumerate(TIMES[1:]):
        at = paths[:, step]
        assert (times[at[at >= 0]] == time).all()
    fates = steps.fates((branch[:, None] == np.arange(3)) & (times == 5)[:, None])
    for rows in (slice(2_000), slice(2_000, None)):
        ends = np.bincount(branch[paths[rows, -1]], minlength=3) / 2_000
        np.testing.assert_allclose(ends, fates[rows][0], atol=0.05)  # four standard errors of 2 000 draws


@pytest.fixture
def low_dose(trained):
    return np.flatnonzero(trained.adata.obs["dose"] == 1)


def test_fates_are_probabilities_of_the_labels_at_the_end(trained, low_dose):
    fates, paths = trained.follow_cells(None, {"dose": 100}, "cell_type", indices=low_dose, seed=0)

    late = trained.adata[trained.adata.obs["dose"] == 100]
    assert list(fates.columns) == [
        t for t in late.obs["cell_type"].cat.categories if (late.obs["cell_type"] == t).any()
    ]
    assert "T cell" not in fates.columns  # none has this dose
    np.testing.assert_allclose(fates.sum(axis=1), 1)
    assert list(fates.index) == list(paths.index) == list(trained.adata.obs_names[low_dose])
    assert set(paths.iloc[:, -1]) <= set(late.obs_names)
    assert paths.columns[-1] == 100


def test_other_cells_are_followed_like_the_models_own(trained, low_dose):
    own = trained.follow_cells(None, {"dose": 100}, "cell_type", indices=low_dose, seed=0)
    others = trained.adata[low_dose].copy()
    others.obs = others.obs.drop(columns="cell_type").assign(cell_type="B cell")  # what they are does not matter

    found = trained.follow_cells(others, {"dose": 100}, "cell_type", seed=0)

    for one, other in zip(own, found, strict=True):
        pd.testing.assert_frame_equal(one, other)


def test_cells_are_near_each_other_in_the_array_that_the_user_names(trained, low_dose, monkeypatch):
    latents = trained.get_latent_representation()
    monkeypatch.setitem(trained.adata.obsm, "X_same", latents)
    monkeypatch.setitem(trained.adata.obsm, "X_other", np.random.default_rng(0).normal(size=latents.shape))
    default, same, other = (
        trained.follow_cells(None, {"dose": 100}, "cell_type", indices=low_dose, use_rep=key, seed=0)[0]
        for key in (None, "X_same", "X_other")
    )

    pd.testing.assert_frame_equal(default, same)
    assert not default.equals(other)
    with pytest.raises(KeyError, match=r"`model.adata.obsm` has no 'X_pac', which `use_rep` names. Known, closest"):
        trained.follow_cells(None, {"dose": 100}, "cell_type", indices=low_dose, use_rep="X_pac")
    few = trained.adata[low_dose].copy()
    few.obsm["X_same"] = few.obsm["X_same"][:, :1]
    with pytest.raises(ValueError, match=r"has 1 columns in `adata` and 8 in `model.adata`"):
        trained.follow_cells(few, {"dose": 100}, "cell_type", use_rep="X_same")


def test_the_seed_chooses_paths_but_not_fates(trained, low_dose):
    first, second = (
        trained.follow_cells(None, {"dose": 100}, "cell_type", indices=low_dose, seed=seed) for seed in (0, 1)
    )

    pd.testing.assert_frame_equal(first[0], second[0])
    assert not first[1].equals(second[1])


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (({"doze": 100}, "cell_type"), KeyError, "no column 'doze'.*'dose'"),
        (({"dose": 100}, "type"), KeyError, "no column 'type'.*'cell_type'"),
        (({"cell_type": 3}, "cell_type"), ValueError, "must hold finite numbers"),
        (({"dose": "late"}, "cell_type"), ValueError, "must be a finite number, but found 'late'"),
        (("dose", "cell_type"), ValueError, "must map one column"),
        (({"dose": 100, "treated": 1}, "cell_type"), ValueError, "must map one column"),
        (({"dose": 0.5}, "cell_type"), ValueError, "from earlier times to dose = 0.5, but these go up to 1"),
        (({"dose": 60}, "cell_type"), ValueError, "Only 0 of the model's cells.* from 1 to 100"),
    ],
)
def test_what_is_wrong_is_named(trained, low_dose, arguments, error, says):
    with pytest.raises(error, match=says):
        trained.follow_cells(None, *arguments, indices=low_dose)


@pytest.mark.parametrize(("name", "value"), [("step", 0), ("step", "day"), ("n_neighbors", 0)])
def test_steps_and_neighbours_are_checked(trained, low_dose, name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        trained.follow_cells(None, {"dose": 100}, "cell_type", indices=low_dose, **{name: value})


def test_no_cells_to_follow_are_refused(trained):
    with pytest.raises(ValueError, match="`indices` selects no cells"):
        trained.follow_cells(None, {"dose": 100}, "cell_type", indices=[])


def test_cells_of_the_same_name_are_refused_as_paths_consist_of_names(trained, low_dose, monkeypatch):
    twins = trained.adata[low_dose].copy()
    twins.obs_names = ["twin", "twin", *twins.obs_names[2:]]
    with pytest.raises(ValueError, match=r"^adata.obs_names has duplicates: 1 \('twin'\). Call adata.obs_names_make_"):
        trained.follow_cells(twins, {"dose": 100}, "cell_type")
    own = trained.adata.copy()
    own.obs_names = ["twin", "twin", *own.obs_names[2:]]
    monkeypatch.setattr(trained, "_adata", own)
    with pytest.raises(ValueError, match=r"^model.adata.obs_names has duplicates: 1 \('twin'\). Call model.adata"):
        trained.follow_cells(None, {"dose": 100}, "cell_type", indices=low_dose)


def test_a_model_without_cells_says_so(trained, saved_model):
    with pytest.raises(ValueError, match="none in memory; load it with `adata`"):
        load(saved_model).follow_cells(trained.adata, {"dose": 100}, "cell_type")
