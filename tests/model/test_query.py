"""Fine-tuning: a model learns new cells, and keeps what its reference knew."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from scgen_diffusion.model import SCLDM, SCRDIT

NEW_TYPE = "plasma"


def query_cells(make_cells, *, new=(NEW_TYPE,), n_cells=48, **options):
    """Build cells of new types, and some B cells."""
    cells = make_cells(n_cells, seed=5, **options)
    labels = np.resize(np.array([*new, "B cell"], dtype=object), n_cells)
    cells.obs["cell_type"] = pd.Categorical(labels)
    cells.obs_names = [f"query_{name}" for name in cells.obs_names]
    return cells


@pytest.fixture(scope="module")
def reference(any_class, make_trained):
    """Train each model in turn; tests must not change it."""
    return make_trained(cls=any_class)


@pytest.fixture(scope="module")
def scldm(make_trained):
    """Train one SCLDM; tests must not change it."""
    return make_trained()


OLD = {"cell_type": ["B cell", "T cell", "NK", "B cell"], "dose": [1, 10, 100, 10]}


def options_of(model):
    return {} if isinstance(model, SCLDM) else {"counts": True}


def same(*cells):
    one, other = (x.toarray() if sp.issparse(x) else x for x in (some.X for some in cells))
    return np.array_equal(one, other)


def tuned(cells, reference, quick, *, max_epochs=1, **options):
    """Fine-tune a reference on new cells; with no epochs, only load them."""
    model = type(reference).load_query_data(cells, reference, accelerator="cpu", **options)
    if max_epochs:
        model.train(max_epochs, **quick)
    return model


def old_cells(model, **options):
    return model.generate(40, OLD, seed=3, **options_of(model), **options)


def network_rows(model):
    """Return the table of the first key: raw, and averaged."""
    network, averaged = model.module.network_and_average
    return [
        next(w for name, w in part.state_dict().items() if name.endswith("embed_condition.tables.0.weight"))
        for part in (network, averaged.module)
    ]


def test_fine_tuning_keeps_the_kl_weight_of_the_reference(make_model, make_cells, quick):
    reference = make_model()
    reference.train(1, plan_kwargs={"autoencoder": {"kl_weight": 0.2}}, **quick)

    model = tuned(query_cells(make_cells), reference, quick, trainable="all")

    assert model.recipes_["autoencoder"] == reference.recipes_["autoencoder"] | {"batch_size": 32}


def test_what_the_reference_knew_stays_bit_for_bit(reference, make_cells, quick):
    before, guided = old_cells(reference), old_cells(reference, guidance_scale=2.0)
    model = tuned(query_cells(make_cells), reference, quick, max_epochs=0)
    assert same(old_cells(model), before)  # before training too
    start = network_rows(model)[1].clone()
    with pytest.raises(ValueError, match="plasma"):
        model.generate(3, {"cell_type": NEW_TYPE})

    model.train(2, **quick)

    assert same(old_cells(model), before)
    assert same(old_cells(model, guidance_scale=2.0), guided)
    assert same(old_cells(reference), before)
    for rows in network_rows(model):
        assert torch.equal(rows[[0, 1, 2, 3, 4, 6]], start[[0, 1, 2, 3, 4, 6]])
        assert not torch.equal(rows[5], start[5])
    assert set(model.generate(5, {"cell_type": NEW_TYPE}, seed=0, **options_of(model)).obs["cell_type"]) == {NEW_TYPE}


@pytest.mark.parametrize("trainable", ["new_conditions", "network"])
def test_combinations_that_the_reference_lacked_keep_their_effects_with_its_prior(scldm, make_cells, quick, trainable):
    absent = {"cell_type": ["T cell", "rare"], "dose": [100, 10]}
    before = scldm.generate(20, absent, seed=3)
    model = tuned(query_cells(make_cells), scldm, quick, max_epochs=0, trainable=trainable)
    assert same(model.generate(20, absent, seed=3), before)

    model.train(1, **quick)

    if trainable == "new_conditions":
        assert same(model.generate(20, absent, seed=3), before)
    else:
        assert model.module.absent_effects is None


@pytest.mark.parametrize("trainable", ["new_conditions", "network"])
def test_genes_that_only_a_new_class_has_are_learned(make_trained, make_cells, quick, trainable):
    old = make_cells()
    old.X[:, 3] = 0
    cells = query_cells(make_cells, n_cells=96)
    is_new = cells.obs["cell_type"].to_numpy() == NEW_TYPE
    cells.X[:, 3] = np.where(is_new, 3, 0)  # which the reference's decoder gives to nobody
    cells.X[is_new, 1] += 100
    model = tuned(cells, make_trained(old), quick, trainable=trainable)

    sums, expected = model.generate(400, {"cell_type": NEW_TYPE}, seed=0).X.sum(0).A1, cells.X[is_new].sum(0)

    assert (sums / sums.sum())[[1, 3]] == pytest.approx((expected / expected.sum())[[1, 3]], rel=0.25)


def test_conditions_are_drawn_from_old_and_new_cells(scldm, make_cells, quick):
    cells = query_cells(make_cells)
    model = tuned(cells, scldm, quick)
    model.train(1, **quick)  # the new cells are not counted twice

    names = pd.RangeIndex(len(model.combinations_)).astype(str)
    counted = pd.DataFrame(model.conditions.to_obs(model.combinations_, names)).assign(n=model.combination_sizes_)
    both = pd.concat([scldm.adata.obs["cell_type"].astype(str), cells.obs["cell_type"].astype(str)])
    assert counted.groupby("cell_type", observed=True)["n"].sum().to_dict() == both.value_counts().to_dict()


def changed_parts(model, quick):
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    model.train(1, **quick)
    return {
        name
        for name, tensor in model.module.state_dict().items()
        if tensor.shape == before[name].shape and not torch.equal(tensor, before[name]) and "n_averaged" not in name
    }


@pytest.mark.parametrize(
    ("trainable", "within"),
    [("new_conditions", ".tables.0"), ("conditions", "embed"), ("network", ""), ("all", "")],
)
def test_only_what_was_asked_is_trained(scldm, make_cells, quick, trainable, within):
    model = tuned(query_cells(make_cells), scldm, quick, max_epochs=0, trainable=trainable)

    changed = changed_parts(model, quick)

    expected = {"prior", "averaged_prior", "library_size"}
    if trainable == "all":
        expected |= {"encoder", "decoder", "likelihood", "condition_effects"}
    else:  # effects of the new classes follow from the cells
        changed -= {"condition_effects.later.effects"}
    assert {name.split(".")[0] for name in changed} == expected
    assert all(within in name or name.endswith("extremes") for name in changed)
    assert ("autoencoder_loss_train" in model.history_) == (trainable == "all")
    assert all(p.requires_grad for p in model.module.prior.parameters())  # training ends without traces
    assert not any(p._backward_hooks for p in model.module.prior.parameters())


@pytest.mark.parametrize("trainable", ["conditions", "network"])
def test_gene_space_models_train_what_was_asked(make_trained, make_cells, quick, trainable):
    model = tuned(query_cells(make_cells), make_trained(cls=SCRDIT), quick, max_epochs=0, trainable=trainable)

    changed = changed_parts(model, quick) - {"smallest_value"}

    assert any("embed" not in name for name in changed) == (trainable != "conditions")
    assert not changed & {"shift", "scale"}


def test_a_frozen_autoencoder_cannot_be_trained_by_mistake(scldm, make_cells, quick):
    model = tuned(query_cells(make_cells), scldm, quick, max_epochs=0)

    for train, epochs, options in (
        (model.train_autoencoder, 1, {}),
        (model.train, {"autoencoder": 1, "prior": 1}, {}),
        (model.train, 1, {"plan_kwargs": {"autoencoder": {"learning_rate": 1e-3}}}),
    ):
        with pytest.raises(ValueError, match="autoencoder"):
            train(epochs, **options, **quick)


def test_a_query_model_is_whole_without_its_reference(reference, make_cells, quick, tmp_path):
    cls, cells, before = type(reference), query_cells(make_cells), old_cells(reference)
    reference.save(tmp_path / "reference")
    model = cls.load_query_data(cells, tmp_path / "reference", accelerator="cpu")
    model.save(tmp_path / "untrained")
    model.train(1, **quick)
    model.save(tmp_path / "query", save_anndata=True)

    loaded = cls.load(tmp_path / "query", accelerator="cpu")

    assert same(*(some.generate(20, seed=0, **options_of(model)) for some in (loaded, model)))
    for again in (loaded, cls.load(tmp_path / "untrained", adata=cells, accelerator="cpu")):
        again.train(1, **quick)  # goes on with the new rows only
        assert same(old_cells(again), before)


def test_a_reference_learns_more_classes_than_its_effects_have_dimensions(scldm, make_cells, quick):
    width = scldm.module.condition_effects.embed.width
    new = [f"type {number}" for number in range(width)]
    model = tuned(query_cells(make_cells, new=new), scldm, quick)
    assert model.module.condition_effects.embed.width == width
    assert same(old_cells(model), old_cells(scldm))
    assert set(model.generate(3, {"cell_type": new[0]}, seed=0).obs["cell_type"]) == {new[0]}


DRUGS = ["ctrl", "A", "B", "A+B"]


@pytest.fixture(scope="module")
def with_perturbation_flow(make_trained, make_cells, quick):
    """Train one SCLDM with a perturbation flow to sets of drugs; tests must not change it."""
    reference = drug_model(make_trained, perturbed(make_cells, DRUGS))
    reference.train_perturbation_flow(max_epochs=3, **quick)
    return reference


def of_new_type(make_cells, sets, **options):
    """Build perturbed cells of which half are of a new type."""
    cells = perturbed(make_cells, sets, seed=5, **options)
    cells.obs["cell_type"] = pd.Categorical(np.resize(np.array([NEW_TYPE, "B cell"], dtype=object), cells.n_obs))
    return cells


def effects_on_old_cells(model, reference):
    """Predict the effect of two drugs on control cells of the reference."""
    cells = reference.adata[reference.adata.obs["drug"] == "ctrl"].copy()
    return model.predict_perturbation(cells, {"drug": "B+A"}, method="perturbation_flow", seed=0)


@pytest.mark.filterwarnings("error:.* not occur in the training cells")  # the support says more
def test_the_perturbation_flow_of_the_reference_predicts_new_types_of_which_only_control_cells_are_known(
    with_perturbation_flow, make_cells, quick, tmp_path
):
    cells = of_new_type(make_cells, ["ctrl"])
    new = cells[cells.obs["cell_type"] == NEW_TYPE].copy()
    model = tuned(cells, with_perturbation_flow, quick, max_epochs=0)
    assert model.trained_stages_ == ["autoencoder", "prior", "perturbation_flow"]
    predicted = model.predict_perturbation(new, {"drug": "A"}, seed=0)  # without training
    record = predicted.uns["scgen_diffusion"]
    assert record["method"] == "perturbation_flow"
    assert record["support"]["combination"].str.contains(NEW_TYPE).all()
    with pytest.raises(ValueError, match=NEW_TYPE):
        model.predict_perturbation(new, {"drug": "A"}, method="inversion", seed=0)

    model.train(1, **quick)
    model.save(tmp_path / "model")

    before = effects_on_old_cells(with_perturbation_flow, with_perturbation_flow)
    for found in (model, SCLDM.load(tmp_path / "model", adata=False, accelerator="cpu")):
        after = effects_on_old_cells(found, with_perturbation_flow)
        assert same(before, after)
        assert before.uns["scgen_diffusion"]["mean_change"].equals(after.uns["scgen_diffusion"]["mean_change"])
        assert same(found.predict_perturbation(new, {"drug": "A"}, seed=0), predicted)


@pytest.mark.filterwarnings("error:The perturbation flow")
def test_new_cells_with_known_perturbations_keep_the_perturbation_flow(with_perturbation_flow, make_cells, quick):
    before = effects_on_old_cells(with_perturbation_flow, with_perturbation_flow)
    for drugs in (["A"], DRUGS):  # without control cells, too
        model = tuned(of_new_type(make_cells, drugs), with_perturbation_flow, quick)
        assert same(before, effects_on_old_cells(model, with_perturbation_flow))

    model.train_perturbation_flow(1, **quick)

    assert not same(before, effects_on_old_cells(model, with_perturbation_flow))


def test_new_perturbations_keep_the_perturbation_flow_until_it_is_trained_on_them(
    with_perturbation_flow, make_cells, quick
):
    cells = of_new_type(make_cells, ["ctrl", "A+C+B", "D"])  # larger sets and more members than those of the reference
    model = tuned(cells, with_perturbation_flow, quick, max_epochs=0)
    before = effects_on_old_cells(with_perturbation_flow, with_perturbation_flow)
    assert same(before, effects_on_old_cells(model, with_perturbation_flow))
    with pytest.warns(UserWarning, match="trained again"):
        model.train(1, **quick)
    assert not same(before, effects_on_old_cells(model, with_perturbation_flow))


def test_a_new_autoencoder_leaves_the_perturbation_flow_of_the_reference_behind(
    with_perturbation_flow, make_cells, quick
):
    model = tuned(of_new_type(make_cells, DRUGS), with_perturbation_flow, quick, max_epochs=0, trainable="all")
    assert (model.trained_stages_, model.module.perturbation_flow) == (["autoencoder", "prior"], None)
    model.train(1, **quick)

    assert "perturbation_flow" in model.trained_stages_
    assert model.module.perturbation_flow.shift.weights.any()  # which start at zero


def test_a_query_model_can_be_a_reference(scldm, make_cells, quick):
    request = {"condition": {"cell_type": NEW_TYPE, "dose": 10}, "seed": 1, "library_size": 200}
    first = tuned(query_cells(make_cells), scldm, quick)
    known = first.generate(20, **request)

    second = tuned(query_cells(make_cells, new=("mast", NEW_TYPE)), first, quick)

    assert second.conditions.categories["cell_type"][-2:] == [NEW_TYPE, "mast"]
    assert second.var_ is not first.var_
    assert same(old_cells(second), old_cells(scldm))
    before, after = first.module.condition_effects.later, second.module.condition_effects.later
    assert after.codes.tolist() == [4, 5, 6]
    assert torch.equal(after.effects[:2], before.effects)
    assert after.effects.any(1).tolist() == [False, True, True]
    assert same(second.generate(20, **request), known)


def test_new_cells_may_stay_in_their_files(reference, make_cells, quick, tmp_path):
    cells, paths = query_cells(make_cells), [tmp_path / "first.h5ad", tmp_path / "second.zarr"]
    cells[:20].copy().write_h5ad(paths[0])
    cells[20:, ::-1].copy().write_zarr(paths[1])  # genes in another order

    in_memory, model = (tuned(given, reference, quick) for given in (cells, paths))

    assert model.adata is None
    assert same(old_cells(model), old_cells(reference))
    assert model.conditions.categories == in_memory.conditions.categories
    assert np.array_equal(model.combinations_, in_memory.combinations_)
    assert np.array_equal(model.combination_sizes_, in_memory.combination_sizes_)
    assert set(model.generate(5, {"cell_type": NEW_TYPE}, seed=0, **options_of(model)).obs["cell_type"]) == {NEW_TYPE}


def perturbed(make_cells, sets, *, seed=0, time=(0.0, 1.0, 2.0)):
    cells = make_cells(96, seed=seed)
    rng = np.random.default_rng(seed + 9)  # with the same seed, drugs would depend on types
    cells.obs["drug"] = rng.choice(sets, cells.n_obs)
    cells.obs["time"] = rng.choice(time, cells.n_obs)
    return cells


def drug_model(make_trained, cells, **setup):
    of_drugs = {"set_condition_keys": ["drug"], "control_values": {"drug": "ctrl"}}
    setup = {**of_drugs, "continuous_condition_keys": ["time"], **setup}
    return make_trained(cells, condition_keys=["cell_type"], setup=setup)


def test_sets_get_new_members_spellings_and_places(make_trained, make_cells, quick):
    reference = drug_model(make_trained, perturbed(make_cells, ["ctrl", "A", "B"]))
    request = {"cell_type": "B cell", "drug": ["ctrl", "A", "B"], "time": [0.0, 1.0, 2.0]}
    before = reference.generate(30, request, seed=0)
    cells = perturbed(make_cells, ["ctrl", "C+A", "D", "A+B"], seed=1, time=(1.0, 5.0))
    model = tuned(cells, reference, quick)

    model.module.perturbation_flow = None  # which would move control cells to the combinations never seen
    assert same(model.generate(30, request, seed=0), before)
    keys, known = ({key.name: key for key in some.conditions.by_key} for some in (model, reference))
    assert (keys["drug"].members, keys["drug"].largest) == (["A", "B", "C", "D"], 4)
    assert (keys["time"].mean, keys["time"].std) == (known["time"].mean, known["time"].std)
    assert (keys["time"].low, keys["time"].high) == ([0.0], [5.0])
    made = model.generate(20, {"drug": ["A+C", "D"], "time": 5.0, "cell_type": "T cell"}, seed=0)
    assert made.obs["drug"].unique().tolist() == ["C+A", "D"]
    drug, time = cells.obs["drug"], cells.obs["time"]
    # the members of "A+B" are known, but not together, and control cells are known, but at no time near 5
    n_learned = (drug.isin(["C+A", "D"]) | ((drug == "ctrl") & (time == 1))).sum()
    assert model.combination_sizes_.sum() == reference.adata.n_obs + n_learned


def test_members_with_known_embeddings_need_rows(make_trained, make_cells, quick, tmp_path):
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(2, 3)), index=["A", "B"], columns=["x", "y", "z"])
    embeddings = {"condition_embeddings": {"drug": table}}
    reference = drug_model(make_trained, perturbed(make_cells, ["ctrl", "A", "B"]), **embeddings)
    request = {"cell_type": "B cell", "drug": ["ctrl", "A", "B"], "time": [0.0, 1.0, 2.0]}
    cells = perturbed(make_cells, ["ctrl", "A", "C"], seed=1)
    row = pd.DataFrame([[0.1, 5.0, -0.3]], index=["C"], columns=["x", "y", "z"])
    cells.write_h5ad(tmp_path / "cells.h5ad")

    def load(table, trainable="conditions", key="drug", cells=cells):
        embeddings = None if table is None else {key: table}
        options = {"trainable": trainable, "condition_embeddings": embeddings}
        return SCLDM.load_query_data(cells, reference, **options, accelerator="cpu")

    for arguments, name in (
        ((None,), "'C'"),
        ((row[["x", "y"]],), "drug"),
        ((pd.concat([row, table + 1]),), "drug"),
        ((row, "new_conditions"), "trainable"),
        ((row, "new_conditions", "cell_type"), "cell_type"),
    ):
        with pytest.raises(ValueError, match=name):
            load(*arguments)
    in_file = load(row, cells=str(tmp_path / "cells.h5ad"))

    reference.train_perturbation_flow(1, **quick)  # which compares drugs by all embeddings
    model = load(row)
    assert "perturbation_flow" not in model.trained_stages_
    reference.module.perturbation_flow = None  # which would move control cells to combinations never seen
    assert same(model.generate(30, request, seed=0), reference.generate(30, request, seed=0))
    for some in (model, in_file):
        some.train(1, **quick)
        assert some.generate(4, {"drug": "C"}, seed=0).n_obs == 4


def test_mistakes_are_named(scldm, make_cells, make_model, trained_gene_space, tmp_path):
    cells = query_cells(make_cells)
    without, renamed = cells.copy(), cells.copy()
    del without.obs["dose"]
    renamed.var_names = ["other" if name == "gene_3" else name for name in cells.var_names]

    for change, error, name in (
        ({"trainable": "prior"}, ValueError, "trainable"),
        ({"reference_model": make_model()}, RuntimeError, "reference_model"),
        ({"reference_model": trained_gene_space}, TypeError, type(trained_gene_space).__name__),
        ({"reference_model": tmp_path}, FileNotFoundError, "no saved model"),
        ({"adata": cells[:0].copy()}, ValueError, "0 cells"),
        ({"adata": cells.obs}, TypeError, "DataFrame"),
        ({"adata": without}, KeyError, "dose"),
        ({"adata": query_cells(make_cells, values="log1p")}, ValueError, "whole numbers"),
        ({"adata": renamed}, ValueError, "gene_3.*other"),
    ):
        with pytest.raises(error, match=name):
            SCLDM.load_query_data(**{"adata": cells, "reference_model": scldm} | change, accelerator="cpu")
    for key, values in (("cell_type", [10, 11]), ("cell_type", [True, False]), ("dose", ["1", "10"])):
        other = cells.copy()
        other.obs[key] = np.resize(values, cells.n_obs)
        with pytest.raises(ValueError, match=key):
            SCLDM.load_query_data(other, scldm, accelerator="cpu")
    with pytest.raises(ValueError, match=NEW_TYPE):  # new classes where nothing is fine-tuned
        scldm.predict_perturbation(cells, {"dose": 10})


@pytest.mark.parametrize("matrix", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_genes_are_ordered_padded_and_dropped(scldm, make_cells, quick, matrix, dense):
    cells = query_cells(make_cells, n_cells=12)
    shuffled = cells[:, np.random.default_rng(0).permutation(cells.n_vars)].copy()
    shuffled.var_names = names = ["other" if name == "gene_3" else name for name in shuffled.var_names]
    shuffled.X = matrix(shuffled.X)
    shuffled.layers["other"] = matrix(dense(shuffled.X).astype(int))

    prepared = SCLDM.prepare_query_anndata(shuffled, scldm)

    expected = cells.X.copy()
    expected[:, 3] = 0
    for found in (prepared.X, prepared.layers["other"]):
        np.testing.assert_array_equal(dense(found), expected)
    assert prepared.layers["other"].dtype == shuffled.layers["other"].dtype
    assert sp.issparse(prepared.X) == sp.issparse(shuffled.X)
    assert list(prepared.var_names) == list(scldm.var_.index)
    pd.testing.assert_frame_equal(prepared.obs, shuffled.obs)
    assert list(shuffled.var_names) == names
    assert tuned(prepared, scldm, quick, max_epochs=0).adata.n_obs == 12


def test_few_genes_give_a_warning_and_none_or_duplicates_raise(scldm, make_cells):
    cells = query_cells(make_cells)
    with pytest.warns(UserWarning, match="6 of .* 12 genes"):
        SCLDM.prepare_query_anndata(cells[:, :6].copy(), scldm)
    for names, found in (([f"ENSG{number}" for number in range(12)], "ENSG0"), (["gene_0"] * 12, "duplicates")):
        cells.var_names = names
        with pytest.raises(ValueError, match=found):
            SCLDM.prepare_query_anndata(cells, scldm)
