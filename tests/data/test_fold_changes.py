"""Planted fold changes: groups differ as asked and by nothing else, and only molecules that were there are left."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from mudata import MuData

from scgen_diffusion.data import plant_fold_changes

GENES = ["up", "down", "far", "same"]
MEAN, THETA = 8.0, 2.0  # of the negative binomial counts
TRUTH = pd.DataFrame({"a": [1.0, -2.0, 0.0], "b": [0.0, 0.0, 3.0]}, index=GENES[:3])


@pytest.fixture(scope="module")
def cells():
    """Return 30,000 cells of three groups, whose genes have the same distribution in all of them."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(MEAN * rng.gamma(THETA, 1 / THETA, (30_000, len(GENES)))).astype(np.float32)
    counts[:, -1] += 1  # no cell is empty
    obs = pd.DataFrame({"group": rng.choice(["a", "b", "c"], len(counts))}, index=[f"{i}" for i in range(len(counts))])
    return anndata.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=GENES))


def of_group(adata, group, gene):
    return adata[adata.obs["group"] == group, gene].X.toarray().ravel()


def test_means_differ_by_the_fold_changes_and_dispersions_stay(cells):
    planted = plant_fold_changes(cells, TRUTH, "group", seed=0)

    for gene, group in (("up", "a"), ("down", "a"), ("far", "b")):
        changed, other = of_group(planted, group, gene), of_group(planted, "c", gene)
        error = np.hypot(changed.std() / changed.mean(), other.std() / other.mean()) / np.sqrt(len(other))
        assert np.log(changed.mean() / other.mean()) == pytest.approx(TRUTH.loc[gene, group] * np.log(2), abs=4 * error)
    for gene, group, mean in (("down", "a", MEAN / 4), ("up", "c", MEAN / 2), ("far", "a", MEAN / 8)):
        counts = of_group(planted, group, gene)
        zeros = (THETA / (THETA + mean)) ** THETA
        assert counts.var() == pytest.approx(mean + mean**2 / THETA, rel=0.1)
        assert (counts == 0).mean() == pytest.approx(zeros, abs=4 * np.sqrt(zeros * (1 - zeros) / len(counts)))
    for gene, groups in {"up": "a", "down": "bc", "far": "b", "same": "abc"}.items():  # the largest change, and others
        for group in groups:
            np.testing.assert_array_equal(of_group(planted, group, gene), of_group(cells, group, gene))
    assert (planted.X > cells.X).nnz == 0


@pytest.mark.usefixtures("seed_0")
def test_a_seed_gives_the_same_counts_however_they_are_stored(cells, tmp_path):
    some = cells[:200].copy()
    first, dense = plant_fold_changes(some, TRUTH, "group", seed=0), some.X.toarray()

    assert (plant_fold_changes(some, TRUTH, "group").X != first.X).nnz == 0  # by default, that of scvi-tools
    assert (plant_fold_changes(some, TRUTH, "group", seed=4).X != first.X).nnz
    for matrix in (sp.csc_matrix(some.X), dense, dense.astype("i4"), dense.astype("f2"), dense.astype(">i4")):
        again = plant_fold_changes(anndata.AnnData(matrix, some.obs, some.var), TRUTH, "group", seed=0)
        np.testing.assert_array_equal(again.X.toarray(), first.X.toarray())
    some.write_h5ad(tmp_path / "cells.h5ad")
    in_file = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    np.testing.assert_array_equal(plant_fold_changes(in_file, TRUTH, "group", seed=0).X.toarray(), first.X.toarray())


def test_the_cells_can_be_written_and_say_what_was_planted(cells, tmp_path):
    given = anndata.AnnData(np.log1p(cells.X[:50].toarray()), cells.obs[:50], cells.var, layers={"raw": cells.X[:50]})
    given.uns = {"log1p": {}, "neighbors": {}, "scgen_diffusion": {"seed": 1}}
    given.obsm["X_pca"] = np.zeros((50, 2))
    planted = plant_fold_changes(given, TRUTH, "group", layer="raw", seed=0)
    planted.write_h5ad(tmp_path / "planted.h5ad")
    read = anndata.read_h5ad(tmp_path / "planted.h5ad")

    expected = TRUTH.reindex(GENES, fill_value=0.0)
    pd.testing.assert_frame_equal(read.varm["log2_fold_changes_group"], expected, check_names=False)
    pd.testing.assert_frame_equal(read.obs.astype(str), given.obs)
    assert read.uns["scgen_diffusion"] == {"seed": 1, "planted": {"group": 0}}
    assert list(read.uns) == ["scgen_diffusion"]
    assert not read.layers
    assert not read.obsm
    assert given.uns["scgen_diffusion"] == {"seed": 1}
    assert "log1p" in given.uns
    np.testing.assert_array_equal(given.layers["raw"].toarray(), cells.X[:50].toarray())


@pytest.mark.parametrize("change", [1.0, -1.0])
def test_groups_may_be_numbers_and_cells_without_a_group_do_not_change(cells, change):
    some = cells[:300].copy()
    some.obs["batch"] = some.obs["group"].map({"a": 1.0, "b": 2.0})  # c: missing
    planted = plant_fold_changes(some, pd.DataFrame({1: [change]}, index=["same"]), "batch", seed=0)

    lost = np.asarray(some.X.sum(axis=1) - planted.X.sum(axis=1)).ravel()
    fewer = 2 if change > 0 else 1
    assert lost[some.obs["batch"] == fewer].sum() > 0
    assert lost[some.obs["batch"] != fewer].sum() == 0


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (TRUTH["a"], TypeError, "log2_fold_changes"),
        (TRUTH.rename(index={"up": "Up"}), KeyError, "Up"),
        (TRUTH.rename(columns={"b": "d"}), KeyError, "'d'"),
        (pd.concat([TRUTH, TRUTH]), ValueError, "up"),
        (pd.concat([TRUTH, TRUTH], axis=1), ValueError, "group"),
        (TRUTH.replace(3.0, np.inf), ValueError, "log2_fold_changes"),
        (TRUTH.replace(3.0, np.nan), ValueError, "log2_fold_changes"),
        (TRUTH.astype(object).where(TRUTH != 3.0, "much"), ValueError, "much"),
    ],
)
def test_wrong_fold_changes_are_named(cells, changes, error, words):
    with pytest.raises(error, match=words):
        plant_fold_changes(cells[:100].copy(), changes, "group")


@pytest.mark.parametrize(
    ("change", "key", "error", "words"),
    [
        (lambda some: some.X, "group", TypeError, "adata"),
        (lambda some: MuData({"rna": some}), "group", TypeError, "MuData"),
        (lambda some: some, "gruop", KeyError, "adata"),
        (lambda some: some[some.obs["group"] == "a"].copy(), "group", ValueError, "group"),
        (lambda some: anndata.AnnData(some.X * 0.5, some.obs, some.var), "group", ValueError, "X"),
        (lambda some: plant_fold_changes(some, TRUTH, "group", seed=0), "group", ValueError, "group"),  # once is enough
    ],
)
def test_wrong_cells_are_refused(cells, change, key, error, words):
    with pytest.raises(error, match=words):
        plant_fold_changes(change(cells[:100].copy()), TRUTH, key)


def test_groups_of_another_column_may_have_fold_changes_of_their_own(cells):
    some = cells.copy()
    some.obs["batch"] = np.random.default_rng(1).choice(["1", "2"], some.n_obs)
    some.uns["scgen_diffusion"] = {"model": "SCLDM"}
    of_batch = pd.DataFrame({"1": [-1.0]}, index=["down"])
    first = plant_fold_changes(some, TRUTH, "group", seed=0)
    both = plant_fold_changes(first, of_batch, "batch", seed=1)

    assert list(first.varm) == ["log2_fold_changes_group"]
    assert both.uns["scgen_diffusion"] == {"model": "SCLDM", "planted": {"group": 0, "batch": 1}}
    pd.testing.assert_frame_equal(both.varm["log2_fold_changes_group"], first.varm["log2_fold_changes_group"])
    assert both.varm["log2_fold_changes_batch"]["1"].tolist() == [0.0, -1.0, 0.0, 0.0]
    means = both[:, "down"].to_df().groupby([both.obs["group"], both.obs["batch"]])["down"].mean()
    # log fold changes of both add up; 5,000 cells of a mean of 1 or more are known to 2 %
    assert np.log2(means["a", "1"] / means["c", "2"]) == pytest.approx(-3.0, abs=0.1)
    assert np.log2(means["a", "2"] / means["c", "2"]) == pytest.approx(-2.0, abs=0.1)
