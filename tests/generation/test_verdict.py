"""Verdicts on the effects of perturbations: every rule, with its reason and its warning."""

import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from scgen_diffusion.data import OPEN, Conditions
from scgen_diffusion.data._condition_keys import CategoricalKey, SetKey
from scgen_diffusion.generation._verdict import (
    LackingChanges,
    PerturbedGroups,
    Verdict,
    _Known,
    _Request,
    _rule,
    _variance,
    judge,
    verdict_columns,
)
from scgen_diffusion.module._transport import LatentTransport
from scgen_diffusion.nn import Classes, Members

SIZE, N_TYPES = 4, 9
CONDITIONS = Conditions.from_codes(
    [
        CategoricalKey("cell_type", [f"type {n}" for n in range(N_TYPES)]),
        CategoricalKey("drug", ["none", "known", "new"]),
    ],
    np.zeros((1, 2)),
)
NEAR, FAR = torch.zeros(5, SIZE), torch.full((5, SIZE), 50.0)
KNOWN, NEW, SEEN = [8, 1], [8, 2], [0, 1]


def module_of(transport, profiles_of=lambda states: states.flatten(1)):
    """A module with a transport, whose decoder shows every shift of the latents, or as little as asked for."""
    as_tensor = lambda codes: torch.from_numpy(codes).float()
    return SimpleNamespace(
        transport=transport, condition_tensor=as_tensor, latent_shape=(1, SIZE), profiles_of=profiles_of
    )


def module_with(n_groups=6, *, error=0.0, variance=1e-2, **decoder):
    """Cells of some types, near zero, whose effects of a drug are known and alike."""
    torch.manual_seed(0)
    transport = LatentTransport((1, SIZE), (N_TYPES, 3), width=8)
    transport.start_from(torch.tensor([-torch.inf, 0.0]))
    centres, shifts = torch.randn(n_groups, SIZE), 1 + 0.1 * torch.randn(n_groups, SIZE)
    perturbations = torch.stack([torch.arange(n_groups), torch.ones(n_groups)], 1).float()
    cells, variances = [centre[None] for centre in centres], torch.full((n_groups,), variance)
    transport.add_shift(n_groups).fit(cells, centres, shifts, variances, torch.eye(SIZE), perturbations)
    transport.add_error(n_groups, 5).misfit.fill_(error)
    return module_of(transport, **decoder)


def verdict_on(codes, cells=NEAR, misfit=0.0, **options):
    return judge(module_with(**options), CONDITIONS, [cells], np.array([codes], dtype=float), [misfit])[0]


@pytest.mark.parametrize(
    ("request_", "label", "reason"),
    [
        ({"codes": KNOWN}, "supported", "in 6 other contexts"),
        ({"codes": SEEN}, "supported", "in such cells"),
        ({"codes": KNOWN, "cells": FAR}, "extrapolated", "less like the cells seen perturbed"),
        ({"codes": KNOWN, "misfit": 0.2}, "extrapolated", r"error of their mean expression: 0\.20 nats"),
        ({"codes": KNOWN, "misfit": 0.2, "error": 0.15}, "supported", "in 6 other contexts"),
        ({"codes": KNOWN, "misfit": 0.7}, "unknown", "5 control cells, and the model does not explain them well"),
        ({"codes": KNOWN, "cells": NEAR[:1]}, "unknown", "a single control cell has no interval"),
        ({"codes": NEW}, "unknown", "unlike those seen in training"),
        ({"codes": SEEN, "variance": 1e3}, "unknown", "too few cells with the perturbation"),
        ({"codes": KNOWN, "n_groups": 1}, "unknown", r"one context only \(cell_type='type 0'\)"),
        ({"codes": SEEN, "n_groups": 1}, "extrapolated", "could not be checked"),
    ],
)
def test_every_rule(request_, label, reason):
    found = verdict_on(**request_)

    assert found.label == label
    assert re.search(reason, found.reason)
    assert bool(found.advice) == (label != "supported")


@pytest.mark.parametrize(
    ("was_seen", "in_own_context", "reason"),
    [
        (False, True, "the perturbation was not seen in training"),
        (True, True, "the control cells are less like"),
        (False, False, "the control cells are less like"),
    ],
)
def test_a_new_set_of_known_parts_is_not_blamed_on_the_control_cells(was_seen, in_own_context, reason):
    known = _Known(usual_misfit=0.0, explained=[0.1, 0.2], from_embeddings=0.0, has_numbers=False)
    request = _Request(9, 0.0, 0.3, 1.0, was_seen, False, 2, "type='B'", in_own_context, "", "", 0, "", 1.0)

    found, because, _ = _rule(request, known)

    assert (found, because.startswith(reason)) == ("extrapolated", True)


@pytest.mark.parametrize(("shown", "label"), [(0.6, "supported"), (0.4, "extrapolated")])
def test_a_decoder_that_hardly_shows_the_shift_of_such_cells_is_not_trusted(shown, label):
    groups_are_shown = lambda states: states.flatten(1) * (1.0 if len(states) > 1 else shown)

    found = verdict_on(KNOWN, profiles_of=groups_are_shown)

    assert found.label == label
    assert ("shows only 40% of the change" in found.reason) == (label == "extrapolated")


def pair_of_genes(pair, seen):
    """Return the verdict on a pair of genes after training with the ``seen`` sets, whose effects differ."""
    key = SetKey.of("genes", pd.Series(["none", pair, *seen]), "+", "none", None)
    conditions = Conditions.from_codes([key], key.encode(["none"]))
    transport = LatentTransport((1, SIZE), (Members(key.n_values, key.largest),), width=8)
    transport.start_from(torch.from_numpy(key.encode(["none"])[0]).float())
    perturbations = torch.from_numpy(key.encode(seen)).float()
    n = len(seen)
    cells, shifts = [torch.zeros(1, SIZE)] * n, torch.linspace(1, 2, n)[:, None].expand(n, SIZE)
    fitted = torch.zeros(n, SIZE), shifts, torch.full((n,), 1e-3), torch.eye(SIZE), perturbations
    transport.add_shift(n).fit(cells, *fitted)
    transport.shift.left_out[:2] = torch.tensor([1e-9, 1.0])  # two groups that the others explain well
    transport.add_error(n, 5)
    return judge(module_of(transport), conditions, [NEAR], key.encode([pair]))[0]


def test_a_new_set_names_its_part_that_was_never_seen_alone():
    not_alone = pair_of_genes("CNN1+MAPK1", ["MAPK1", "CBL", "CBL+CNN1"])
    alone = pair_of_genes("CNN1+MAPK1", ["MAPK1", "CBL", "CNN1"])

    assert (not_alone.label, alone.label) == ("extrapolated", "extrapolated")
    assert not_alone.reason.endswith("from similar ones; 'CNN1' was seen only within 'CBL+CNN1'")
    assert not_alone.advice == "Train with cells of each part alone."
    assert alone.reason.endswith("from similar ones")


def test_one_dose_per_cell_is_told_to_give_several_cells_the_same():
    request = _Request(1, 0.0, 0.0, 1.0, True, False, 6, "", True, "", "", 0, "", 1.0)
    advice = [_rule(request, _Known(0, [], 0, has_numbers))[2] for has_numbers in (True, False)]

    assert ["several the same dose" in one for one in advice] == [True, False]


def test_small_numbers_of_unlikely_cells_are_named_before_genes_and_species():
    few, many = Conditions.from_codes(CONDITIONS.by_key, np.array([[8.0, 0.0]] * 6)), CONDITIONS
    found = [
        judge(module_with(), conditions, [torch.zeros(n, SIZE)], np.array([KNOWN], dtype=float), [4.0])[0]
        for n, conditions in ((6, few), (30, few), (30, many))
    ]

    assert {one.label for one in found} == {"unknown"}
    of_training = "training had only 6 cells of cell_type='type 8'"
    assert found[0].reason.startswith(
        f"there are only 6 control cells and {of_training}, and the model does not explain"
    )
    assert found[1].reason.startswith(f"{of_training}, and")
    assert found[2].reason.startswith("the control cells are unlike those that the model learned (error of their mean")
    assert [one.advice.startswith("Train with more such cells") for one in found] == [True, True, False]
    assert all("genes, counts and species" in one.advice.replace("Check", "check") for one in found)


def test_few_cells_of_an_unlikely_kind_are_not_judged_by_their_mean_expression():
    few, many = (verdict_on(KNOWN, torch.zeros(n, SIZE), misfit=8.0) for n in (3, 30))

    assert few.label == many.label == "unknown"
    assert few.reason.startswith("3 control cells are too few")
    assert "unlike those" in many.reason


def test_a_gene_counts_as_if_one_more_cell_expressed_it():
    """Otherwise genes without molecules among few cells would have no sampling noise."""
    n, n_expressing, value = torch.full((3,), 10.0), torch.tensor([0.0, 1.0, 5.0]), 2.0

    found = _variance(n, n_expressing * value, n_expressing * value**2)

    share = (n_expressing + 1) / 11
    torch.testing.assert_close(found, value**2 * share * (1 - share) * 10 / 9)
    assert _variance(torch.ones(3), n_expressing, n_expressing).isnan().all()


def new_gene_by_embedding(effects, genes=(0.0, 0.1, 3.0, 3.1), wanted=0.05):
    """Return the verdict on a gene never perturbed, whose embedding lies between those of the first two."""
    n, vectors = len(genes), torch.tensor([-9.0, *genes, wanted])[:, None]
    conditions = Conditions.from_codes([CategoricalKey("gene", [f"g{i}" for i in range(n + 2)])], np.zeros((1, 1)))
    transport = LatentTransport((1, SIZE), (Classes(n + 2, vectors),), width=8)
    transport.start_from(torch.tensor([0.0]))
    centres, perturbations = torch.zeros(n, SIZE), torch.arange(1, n + 1).float()[:, None]
    shifts = torch.tensor(effects)[:, None].expand(n, SIZE)
    cells = [centre[None] for centre in centres]
    transport.add_shift(n).fit(cells, centres, shifts, torch.full((n,), 1e-3), torch.eye(SIZE), perturbations)
    transport.add_error(n, 5)
    return judge(module_of(transport), conditions, [NEAR], np.array([[n + 1.0]]))[0]


def test_a_gene_never_perturbed_is_extrapolated_if_embeddings_predict_those_that_were():
    found = new_gene_by_embedding([1.0, 1.1, -1.0, -1.1])

    assert found.label == "extrapolated"
    assert re.search(r"never seen.* predict (9\d|100)%", found.reason)


def test_a_gene_never_perturbed_is_unknown_if_embeddings_mislead():
    found = new_gene_by_embedding([1.0, -1.1, -1.0, 1.1])

    assert found.label == "unknown"
    assert re.search("embeddings say too little.* predict 0%", found.reason)
    assert "condition_embeddings" in found.advice


def test_a_gene_never_perturbed_is_unknown_if_no_embedding_is_near():
    assert "unlike those seen" in new_gene_by_embedding([1.0, 1.1, -1.0, -1.1], wanted=90.0).reason


def test_no_prediction_is_surer_than_those_of_left_out_groups():
    shift = module_with().transport.shift

    assert verdict_on(SEEN).variance == pytest.approx(float(shift.left_out[:, 0].mean()), rel=1e-5)
    assert verdict_on(KNOWN, FAR).variance > 2 * float(shift.left_out[:, 0].mean())


def test_an_interval_has_the_noise_of_these_and_of_as_many_measured_cells(monkeypatch):
    groups = PerturbedGroups.__new__(PerturbedGroups)
    error = SimpleNamespace(changes=torch.zeros(1, 3), half_width=lambda variance, change, departure, noise, _: noise)
    groups.module = SimpleNamespace(transport=SimpleNamespace(error=error))
    verdict = Verdict("", "", "", 0, torch.ones(1).double(), None)
    y = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)).double()
    n, total, squares = torch.full((3,), 50.0).double(), y.sum(0), y.square().sum(0)

    (found,) = groups.changes(torch.stack([n, 0 * n, total, squares, squares])[None].numpy(), [verdict])

    np.testing.assert_allclose(found.upper - found.change, 2 * _variance(n, total, squares) / n)


def test_changes_that_the_decoder_lacks_go_to_the_cells_of_their_combination():
    none, some, other = (Verdict("", "", "", 0, torch.ones(1), one) for one in (None, torch.ones(2), 2 * torch.ones(2)))
    codes = np.array([[0, 1], [1, OPEN], [2, 1]])

    found = LackingChanges.of_verdicts(codes, [none, some, other]).of(
        np.array([[1, 5], [0, 1], [2, 1], [2, 0], [1, OPEN]])
    )

    assert found[:, 0].tolist() == [1, 0, 2, 0, 1]
    assert LackingChanges.of_verdicts(codes[:1], [none]) is None


def test_the_most_doubtful_combination_is_the_one_of_the_warning():
    verdicts = [verdict_on(KNOWN), verdict_on(KNOWN, FAR), verdict_on(NEW)]

    with pytest.warns(
        UserWarning,
        match=r"effect on .*drug='new' is unknown: the perturbation, .* Train with .* Another combination is not",
    ):
        table = verdict_columns(CONDITIONS, np.array([KNOWN, KNOWN, NEW], float), np.array([1, 2, 3]), verdicts)

    assert table["verdict"] == ["supported", "extrapolated", "unknown"]
    assert list(table["drug"]) == ["known", "known", "new"]


@pytest.mark.filterwarnings("error")
def test_supported_effects_give_no_warning():
    table = verdict_columns(CONDITIONS, np.array([[OPEN, 1]]), np.array([1]), [verdict_on(KNOWN)])

    assert list(table) == ["combination", "drug", "n_cells", "verdict", "reason"]  # no type was given
    assert table["combination"] == ["drug='known'"]
