"""Several modalities: what is in the table, and that modalities which do not belong together are seen."""

import anndata as ad
import hypothesis.strategies as st
import mudata as md
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis.extra.numpy import arrays

from scgen_diffusion.metrics import CATALOGUE, ComparisonSpace, _evaluate, _modalities, evaluate
from scgen_diffusion.metrics._cells import log_normalise, on_scale
from scgen_diffusion.metrics._modalities import choose_scale, log1p_of_counts, tf_idf

QUICK = {"n_repeats": 1, "n_bootstrap": 0}
COLUMNS = ["modality", "metric", "group", "value", "real", "shuffled", "low", "high", "better"]
N_GENES, N_PROTEINS = 30, 5


def cells(seed, n_cells=300, *, linked=True):
    """Build cells whose protein P0, P1, .. follows the transcript of the same number, in the same cell or another."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n_cells)
    programme = 0.5 * rng.normal(size=(n_cells, N_PROTEINS))
    of_genes = np.exp(np.pad(programme, ((0, 0), (0, N_GENES - N_PROTEINS)))) * 20
    of_proteins = np.exp(programme) * 50
    for label in () if linked else (0, 1):
        rows = np.flatnonzero(labels == label)
        of_proteins[rows] = of_proteins[rng.permutation(rows)]
    names = [f"{seed}_{i}" for i in range(n_cells)]
    parts = {
        "rna": (rng.poisson(of_genes), [f"P{g}" if g < 2 else f"g{g}" for g in range(N_GENES)]),
        "prot": (rng.poisson(of_proteins), [f"p{g}" for g in range(N_PROTEINS)]),
    }
    mdata = md.MuData(
        {
            name: ad.AnnData(x.astype(np.float32), obs=pd.DataFrame(index=names), var=pd.DataFrame(index=var))
            for name, (x, var) in parts.items()
        }
    )
    mdata.obs["kind"] = pd.Categorical(np.array(["a", "b"])[labels])
    return mdata


def judge(synthetic, **arguments):
    """Judge synthetic cells against real ones."""
    return evaluate(cells(0, 120), synthetic, **{"train": cells(2, 240), **QUICK, **arguments})


def figure(table, modality, metric):
    return table[(table["modality"] == modality) & (table["metric"] == metric) & (table["group"] == "all")].iloc[0]


@pytest.fixture(scope="module")
def table():
    every = dict(CATALOGUE)
    for name in ("auc_boosting", "auc_genes"):  # boosting takes most of the time, and is chosen as the others are
        del CATALOGUE[name]
    try:
        return judge(cells(1, 120), groupby="kind")
    finally:
        CATALOGUE.clear()
        CATALOGUE.update(every)  # in the same order


def test_there_is_a_table_of_each_modality_one_of_all_together_and_one_across(table):
    assert list(table.columns) == COLUMNS
    assert list(table["modality"].unique()) == ["rna", "prot", "rna+prot"]
    metrics = {name: set(rows["metric"]) for name, rows in table.groupby("modality")}
    of_many_features = {"marker_overlap", "mean_variance_error"}
    of_all = {name for name, metric in CATALOGUE.items() if "all" in metric.scopes}
    assert metrics["rna"] == metrics["prot"] == of_all - of_many_features - {"auc_boosting", "auc_genes"}
    assert {"w2", "auc_neighbours", "cross_correlation_error"} <= metrics["rna+prot"]
    assert not metrics["rna+prot"] & {"gene_mean_error", "library_size_ks", "copied_cells"}
    assert table.attrs["scales"] == {"rna": "log1p", "prot": "log1p"}
    assert set(table.attrs["n_cells"]) == {"rna", "prot", "rna+prot"}


def test_the_table_of_a_modality_is_that_of_evaluate_on_the_common_scale(monkeypatch):
    monkeypatch.setattr(_modalities, "SMALL_PANEL", 0)
    real, synthetic, train = cells(0, 120), cells(1, 120), cells(2, 240)
    metrics = ["w2", "gene_mean_error", "library_size_ks"]
    found = judge(synthetic, metrics=metrics)
    for modality in ("rna", "prot"):
        sets = real[modality], synthetic[modality]
        expected = evaluate(*sets, train=train[modality], metrics=metrics, **QUICK)
        own = found[found["modality"] == modality].drop(columns="modality").reset_index(drop=True)
        pd.testing.assert_frame_equal(own, expected, check_like=False)
    assert set(found.loc[found["modality"] == "rna+prot", "metric"]) == {"w2"}


def test_modalities_that_do_not_belong_together_are_seen_together_only(table):
    metrics = ["auc_neighbours", "cross_correlation_error"]
    wrong = judge(cells(1, 120, linked=False), groupby="kind", metrics=metrics)
    for modality in ("rna", "prot"):
        assert figure(wrong, modality, "auc_neighbours")["value"] < 0.65
    for metric in metrics:
        right, off = (figure(found, "rna+prot", metric) for found in (table, wrong))
        assert off["value"] > right["value"] + 0.03


def test_zeros_of_open_chromatin_are_frequencies():
    rng = np.random.default_rng(0)

    def chromatin(seed, frequency):
        mdata = cells(seed, 120)
        mdata["prot"].X = rng.binomial(1, frequency, mdata["prot"].shape).astype(np.float32)
        return mdata

    found = evaluate(chromatin(0, 0.6), chromatin(1, 0.9), train=chromatin(2, 0.6), metrics="gene_zero_error", **QUICK)
    assert found.attrs["scales"]["prot"] == "tf_idf"
    # the frequency of a peak in 60 cells has a standard error of 0.06
    assert figure(found, "prot", "gene_zero_error")["value"] == pytest.approx(0.3, abs=0.06)


def test_labels_may_be_those_of_one_modality():
    sets = [cells(seed, 180) for seed in (0, 1)]
    for mdata in sets:
        mdata["rna"].obs["own"] = mdata.obs["kind"].to_numpy()
        assert "own" not in mdata.obs
    found = evaluate(*sets, groupby="own", metrics="group_share_difference", **QUICK)
    assert set(found.loc[found["modality"] == "prot", "group"]) == {"all", "a", "b"}


def test_real_cells_without_a_count_in_a_modality_lack_it():
    lacking, padded = [], []
    for whole in (cells(0, 240), cells(2, 400)):
        lacking.append(md.MuData({"rna": whole["rna"], "prot": whole["prot"][::2].copy()}))
        whole["prot"].X[1::2] = 0
        padded.append(whole)
    metrics = ["gene_mean_error", "w2", "cross_correlation_error"]

    expected, found = (
        evaluate(real, cells(1, 120), train=train, metrics=metrics, **QUICK) for real, train in (lacking, padded)
    )

    pd.testing.assert_frame_equal(found, expected)


def test_files_that_stay_on_disk_give_the_same_figures(tmp_path):
    sets, paths = (cells(0, 240), cells(1, 120)), (tmp_path / "real.h5mu", tmp_path / "synthetic.h5mu")
    for mdata, path in zip(sets, paths, strict=True):
        mdata.write(path)
    expected = evaluate(*sets, metrics="w2", **QUICK)
    found = evaluate(*(md.read_h5mu(path, backed=True) for path in paths), metrics="w2", **QUICK)
    pd.testing.assert_frame_equal(found, expected)


@pytest.mark.parametrize(
    ("n_paired", "n_paired_of_train", "message"),
    [
        # what is left after a third fits the space and the rest is halved is too little to compare
        (60, None, "rna and prot needs 150 cells of `real_test` .*60"),
        (100, 55, "rna and prot needs 100 cells of `train` .*55"),
        (49, 100, "rna and prot needs 50 cells of `real_test` .*49"),
    ],
)
def test_with_few_paired_cells_the_rows_of_each_modality_remain(n_paired, n_paired_of_train, message):
    def partly_paired(seed, n_paired):
        whole = cells(seed, 320 - n_paired)
        return md.MuData({"rna": whole["rna"][:160].copy(), "prot": whole["prot"][160 - n_paired :].copy()})

    train = None if n_paired_of_train is None else partly_paired(2, n_paired_of_train)
    metrics = ["w2", "cross_correlation_error"]
    with pytest.warns(UserWarning, match=message):
        found = evaluate(partly_paired(0, n_paired), partly_paired(1, n_paired), train=train, metrics=metrics, **QUICK)
    assert found.loc[found["metric"] == "w2", "modality"].tolist() == ["rna", "prot"]
    assert ("rna+prot" in set(found["modality"])) == (n_paired >= 50)


def test_errors_say_what_is_wrong_with_the_arguments():
    with pytest.raises(TypeError, match="`synthetic` must be a MuData, but is AnnData"):
        judge(cells(1)["rna"])
    with pytest.raises(KeyError, match="`synthetic` has no modality 'prot'"):
        judge(md.MuData({"rna": cells(1)["rna"]}))
    with pytest.raises(ValueError, match="Modality 'prot': `synthetic` has 20 cells"):
        judge(md.MuData({"rna": cells(1)["rna"], "prot": cells(1)["prot"][:20].copy()}))
    with pytest.raises(ValueError, match="unknown name 'w3'"):
        judge(cells(1), metrics="w3")
    real, synthetic = (md.MuData({"rna": cells(seed, 160)["rna"]}) for seed in (0, 1))
    with pytest.raises(ValueError, match="'cross_correlation_error'"):  # of one modality
        evaluate(real, synthetic, metrics=["cross_correlation_error"])
    with pytest.raises(ValueError, match="'de_jaccard', which needs `control`"):
        judge(cells(1), metrics=["w2", "de_jaccard"])
    with pytest.raises(ValueError, match="`control` and `space` need cells of one modality"):
        judge(cells(1), space=ComparisonSpace.fit(cells(1)["rna"]))
    with pytest.raises(KeyError, match="'adt'"):
        judge(cells(1), layer={"adt": "raw"})
    with pytest.raises(KeyError, match="Neither .* nor any modality has a column 'type'"):
        judge(cells(1), groupby="type")


def test_three_modalities_are_compared_in_pairs():
    def with_third(mdata):
        third = mdata["prot"].copy()
        third.var_names = [f"t{n}" for n in range(third.n_vars)]
        return md.MuData({"rna": mdata["rna"], "prot": mdata["prot"], "third": third})

    real, synthetic = (with_third(cells(seed, 200)) for seed in (0, 1))
    found = evaluate(real, synthetic, metrics="cross_correlation_error", n_repeats=1)
    assert found["modality"].tolist() == ["rna+prot", "rna+third", "prot+third"]


def test_a_modality_of_one_feature_is_judged_beside_the_others():
    names = [name for name, metric in CATALOGUE.items() if "all" in metric.scopes and not metric.slow]
    one = lambda own: md.MuData({"rna": own["rna"], "prot": own["prot"][:, :1].copy()})
    sets = [one(cells(seed, 240)) for seed in range(3)]
    for mdata in sets:
        mdata.obs["kind"] = np.resize(["a", "b"], mdata.n_obs)
    found = evaluate(*sets[:2], train=sets[2], groupby="kind", metrics=names, **QUICK)
    values = found[found["group"] == "all"].set_index(["modality", "metric"])["value"]
    assert set(values.index[values.isna()]) <= {
        *(("prot", name) for name in ("within_label_correlation", "within_label_slope", "near_copies")),
        *(("prot", name) for name in ("dcr_ratio", "nearer_than_held_out")),  # equal counts are usual
        ("rna", "within_label_slope"),
    }
    assert np.isfinite(values["prot"][["w2", "gene_mean_error", "library_size_ks"]]).all()


def test_what_is_wrong_with_a_later_modality_is_said_before_the_first_is_judged(monkeypatch):
    monkeypatch.setattr(_evaluate, "compare_cells", lambda *args, **options: pytest.fail("judged before all checks"))
    scaled = cells(1, 120)
    scaled["prot"].X = scaled["prot"].X - 1_000
    with pytest.raises(ValueError, match="Modality 'prot': `synthetic`"):
        judge(scaled)
    logs = {"real_test": cells(0, 120), "synthetic": cells(1, 120), "train": cells(2, 240)}
    for mdata in logs.values():
        mdata["prot"].X, mdata["prot"].uns["log1p"] = np.log1p(mdata["prot"].X), {}
    with pytest.raises(ValueError, match="Modality 'prot': .*'library_size_ks'"):
        evaluate(**logs, metrics=["library_size_ks"], **QUICK)


def test_real_cells_must_have_the_layer_also_where_only_pairs_are_compared():
    arguments = {"metrics": "cross_correlation_error"}
    with pytest.raises(KeyError, match=r"'typo' .*real_test\['rna'\]"):
        judge(cells(1, 120), layer="typo", **arguments)
    sets = [cells(seed, 120) for seed in (0, 1)]
    expected = evaluate(*sets, **arguments, **QUICK)
    for adata in sets[0].mod.values():
        adata.layers["raw"], adata.X = adata.X, adata.X / 3
    pd.testing.assert_frame_equal(evaluate(*sets, layer="raw", **arguments, **QUICK), expected)


def test_training_cells_may_have_their_features_in_another_order():
    sets = [cells(seed, n_cells) for seed, n_cells in ((0, 120), (1, 120), (2, 240))]
    for mdata in sets:
        mdata["rna"].X = (mdata["rna"].X > 20).astype(np.float32)
    *sets, train = sets
    turned = md.MuData({name: train[name][:, ::-1].copy() for name in train.mod})
    arguments = {"metrics": ["gene_mean_error", "w2"], **QUICK}
    same, other = (evaluate(*sets, train=each, **arguments) for each in (train, turned))
    assert same.attrs["scales"]["rna"] == "tf_idf"
    pd.testing.assert_frame_equal(same, other, rtol=1e-4)


def pair_figures(real, synthetic, **options):
    found = evaluate(real, synthetic, metrics="cross_correlation_error", **{"n_repeats": 5, **options})
    return found.set_index("metric").loc["cross_correlation_error"]


def test_linked_modalities_reach_the_real_value_and_unlinked_ones_the_shuffled_cells():
    right = pair_figures(cells(0), cells(1))
    wrong = pair_figures(cells(0), cells(1, linked=False))
    # correlations of 150 cells have a standard error of 0.08 each
    assert right["value"] == pytest.approx(right["real"], abs=0.05)
    assert wrong["value"] == pytest.approx(wrong["shuffled"], abs=0.1)
    assert wrong["value"] > 1.2 * right["value"]


def test_figures_of_a_pair_are_those_of_its_correlations():
    real, synthetic = cells(0), cells(1)
    found = pair_figures(real, synthetic, n_repeats=1, groupby="kind")
    rng = np.random.default_rng(0)
    order, drawn = rng.permutation(real.n_obs)[:150], rng.permutation(synthetic.n_obs)[:150]

    def correlations(own, rows):
        log = [pd.DataFrame(np.log1p(own[name].X[rows])) for name in ("rna", "prot")]
        kinds = own.obs["kind"].astype(str).to_numpy()[rows]
        within = [values - values.groupby(kinds).transform("mean") for values in log]
        return np.corrcoef(*within, rowvar=False)[: within[0].shape[1], within[0].shape[1] :].ravel()

    pair = correlations(real, order), correlations(synthetic, drawn)
    assert found["value"] == pytest.approx(np.abs(pair[0] - pair[1]).mean(), rel=1e-4)
    without_real = pair_figures(real, synthetic, n_repeats=0, groupby="kind")
    assert without_real["value"] == found["value"]
    assert np.isnan(without_real["real"])


def test_cells_are_paired_by_name_and_features_too():
    real, synthetic = cells(0), cells(1)
    turned = md.MuData({"rna": synthetic["rna"][:, ::-1].copy(), "prot": synthetic["prot"][::-1, ::-1].copy()})
    expected, found = (pair_figures(real, other)["value"] for other in (synthetic, turned))
    # another order of names draws other cells; unpaired, they would be unlinked
    assert found == pytest.approx(expected, abs=0.05)


# --- scales -----------------------------------------------------------------------------------------------------------


def test_tf_idf_by_hand():
    reference = sp.csr_matrix([[1, 1, 0], [1, 0, 0]])  # found in 2, 1 and 0 of 2 cells
    values = tf_idf(reference)(sp.csr_matrix([[1, 1, 0], [0, 0, 1], [0, 0, 0]])).toarray()
    expected = np.log1p([[5_000, 10_000, 0], [0, 0, 20_000], [0, 0, 0]])
    np.testing.assert_allclose(values, expected, rtol=1e-6)


@given(arrays(np.int64, (6, 4), elements=st.integers(0, 50)))
def test_every_scale_keeps_zeros_and_the_order_within_a_cell(counts):
    counts = sp.csr_matrix(counts)
    for scale in (log_normalise, log1p_of_counts):
        values = scale(counts).toarray()
        np.testing.assert_array_equal(values == 0, counts.toarray() == 0)
        np.testing.assert_array_equal(
            np.argsort(values, 1, kind="stable"), np.argsort(counts.toarray(), 1, kind="stable")
        )
    np.testing.assert_array_equal(tf_idf(counts)(counts).toarray() == 0, counts.toarray() == 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scales_leave_the_users_counts_as_they_are(dtype):
    unsorted = sp.csr_matrix((np.array([1, 2, 3, 4], dtype), [2, 0, 1, 0], [0, 2, 4]), shape=(2, 3))
    data, indices = unsorted.data.copy(), unsorted.indices.copy()
    for array in (unsorted.data, unsorted.indices):
        array.flags.writeable = False  # as in memory that is shared

    for scale in (log_normalise, log1p_of_counts):
        np.testing.assert_allclose(scale(unsorted).toarray() > 0, [[True, False, True], [True, True, False]])
    np.testing.assert_array_equal(unsorted.data, data)
    np.testing.assert_array_equal(unsorted.indices, indices)


def test_a_rise_of_one_protein_is_no_fall_of_others_on_the_scale_of_proteins():
    low, high = sp.csr_matrix([[10, 20, 30]]), sp.csr_matrix([[1_000, 20, 30]])
    assert (log1p_of_counts(low) != log1p_of_counts(high)).nnz == 1
    assert (log_normalise(low) != log_normalise(high)).nnz == 3


@pytest.mark.parametrize(
    ("counts", "uns", "expected"),
    [
        (np.ones((3, 14)) * 5, {}, "log1p"),
        (np.ones((3, 600)) * 5, {}, "log_normalised"),
        (np.eye(14), {}, "tf_idf"),
        (np.eye(600), {}, "tf_idf"),
        (np.zeros((3, 600)), {}, "log_normalised"),
        (np.eye(600) * 0.5, {"log1p": {}}, "log_normalised"),
    ],
)
def test_the_scale_is_chosen_by_the_values_and_the_number_of_features(counts, uns, expected):
    cells = ad.AnnData(counts.astype(np.float32), uns=uns)
    assert choose_scale({"real_test": cells}, None)[0] == expected


def test_logarithms_stay_as_they_are_on_the_scale_of_proteins():
    values = np.log1p([[1.0, 5.0], [0.0, 3.0]])
    found = on_scale(values, np.e, name="cells", scale=log1p_of_counts)
    np.testing.assert_allclose(found.values.toarray(), values, rtol=1e-6)
    assert found.library_sizes is None
