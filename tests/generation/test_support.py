"""Verdicts on the effects of perturbations: every rule, its numbers and its warning."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from scgen_diffusion.data import OPEN, Conditions
from scgen_diffusion.data._condition_keys import CategoricalKey, SetKey
from scgen_diffusion.generation._support import (
    NUMBERS,
    LackingChanges,
    Support,
    judge,
    support_columns,
)
from scgen_diffusion.nn import Classes, Members
from scgen_diffusion.perturbation import PerturbationFlow

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


def module_of(flow, codes, centres, shifts, *, variance=1e-3, left_out=None, error=0.0, profiles_of=None):
    """Fit the shifts of groups; the decoder shows every shift of the latents, or as little as asked for."""
    n, cells = len(codes), [centre[None] for centre in centres]
    perturbations, variances = torch.as_tensor(codes).float(), torch.full((n,), variance)
    flow.add_shift(n).fit(cells, centres, shifts, variances, torch.eye(SIZE), perturbations)
    if left_out is not None:
        flow.shift.left_out[: len(left_out)] = torch.tensor(left_out)
    flow.add_error(n, 5).misfit.fill_(error)
    return SimpleNamespace(
        perturbation_flow=flow,
        condition_tensor=lambda codes: torch.from_numpy(codes).float(),
        latent_shape=(1, SIZE),
        profiles_of=profiles_of or (lambda states: states.flatten(1)),
    )


def module_with(n_groups=6, *, variance=1e-2, **options):
    """Cells of some types, near zero, whose effects of a drug are known and alike."""
    torch.manual_seed(0)
    flow = PerturbationFlow((1, SIZE), (N_TYPES, 3), width=8)
    flow.start_from(torch.tensor([-torch.inf, 0.0]))
    centres, shifts = torch.randn(n_groups, SIZE), 1 + 0.1 * torch.randn(n_groups, SIZE)
    codes = [[group, 1] for group in range(n_groups)]
    return module_of(flow, codes, centres, shifts, variance=variance, **options)


def support_on(codes, cells=NEAR, misfit=0.0, **options):
    return judge(module_with(**options), CONDITIONS, [cells], np.array([codes], dtype=float), [misfit])[0]


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({"codes": KNOWN}, "supported"),
        ({"codes": SEEN}, "supported"),
        ({"codes": KNOWN, "cells": FAR}, "extrapolated"),
        ({"codes": KNOWN, "misfit": 0.2}, "extrapolated"),
        ({"codes": KNOWN, "misfit": 0.2, "error": 0.15}, "supported"),
        ({"codes": KNOWN, "misfit": 0.7}, "unknown"),
        ({"codes": KNOWN, "misfit": 0.2, "cells": NEAR[:3]}, "unknown"),  # too few to be judged by their mean
        ({"codes": KNOWN, "cells": NEAR[:1]}, "unknown"),
        ({"codes": NEW}, "unknown"),
        ({"codes": SEEN, "variance": 1e3}, "unknown"),
        ({"codes": KNOWN, "n_groups": 1}, "unknown"),
        ({"codes": SEEN, "n_groups": 1}, "extrapolated"),
    ],
)
def test_every_rule(request_, code):
    assert support_on(**request_).code == code


@pytest.mark.parametrize(("shown", "code"), [(1.0, "supported"), (0.6, "supported"), (0.4, "extrapolated")])
def test_a_decoder_that_hardly_shows_the_shift_of_such_cells_is_not_trusted(shown, code):
    found = support_on(KNOWN, profiles_of=lambda states: states.flatten(1) * (1.0 if len(states) > 1 else shown))

    assert found.code == code
    assert found.decoded == pytest.approx(shown, abs=0.01)
    assert 0.5 < found.explained < 1
    assert found.n_contexts == 6
    assert support_on(KNOWN, misfit=0.2, error=0.15).misfit == pytest.approx(0.05)


@pytest.mark.parametrize("seen", [["MAPK1", "CBL", "CBL+CNN1"], ["MAPK1", "CBL", "CNN1"]])
def test_a_new_set_of_known_parts_is_extrapolated(seen):
    pair, n = "CNN1+MAPK1", len(seen)
    key = SetKey.of("genes", pd.Series(["none", pair, *seen]), "+", "none", None)
    conditions = Conditions.from_codes([key], key.encode(["none"]))
    flow = PerturbationFlow((1, SIZE), (Members(key.n_values, key.largest),), width=8)
    flow.start_from(torch.from_numpy(key.encode(["none"])[0]).float())
    shifts = torch.linspace(1, 2, n)[:, None].expand(n, SIZE)
    explained_well = [1e-9, 1.0]  # two groups, by the others
    module = module_of(flow, key.encode(seen), torch.zeros(n, SIZE), shifts, left_out=explained_well)

    assert judge(module, conditions, [NEAR], key.encode([pair]))[0].code == "extrapolated"


@pytest.mark.parametrize(
    ("effects", "wanted", "code"),
    [
        ([1.0, 1.1, -1.0, -1.1], 0.05, "extrapolated"),
        ([1.0, -1.1, -1.0, 1.1], 0.05, "unknown"),  # embeddings mislead
        ([1.0, 1.1, -1.0, -1.1], 90.0, "unknown"),  # none is near
    ],
)
def test_a_gene_never_perturbed_is_extrapolated_if_embeddings_predict_those_that_were(effects, wanted, code):
    genes = (0.0, 0.1, 3.0, 3.1)
    n, vectors = len(genes), torch.tensor([-9.0, *genes, wanted])[:, None]
    conditions = Conditions.from_codes([CategoricalKey("gene", [f"g{i}" for i in range(n + 2)])], np.zeros((1, 1)))
    flow = PerturbationFlow((1, SIZE), (Classes(n + 2, vectors),), width=8)
    flow.start_from(torch.tensor([0.0]))
    shifts = torch.tensor(effects)[:, None].expand(n, SIZE)
    module = module_of(flow, np.arange(1, n + 1)[:, None], torch.zeros(n, SIZE), shifts)

    assert judge(module, conditions, [NEAR], np.array([[n + 1.0]]))[0].code == code


def test_no_prediction_is_surer_than_those_of_left_out_groups():
    shift = module_with().perturbation_flow.shift

    assert support_on(SEEN).variance == pytest.approx(float(shift.left_out[:, 0].mean()), rel=1e-5)
    assert support_on(KNOWN, FAR).variance > 2 * float(shift.left_out[:, 0].mean())


def test_changes_that_the_decoder_lacks_go_to_the_cells_of_their_combination():
    lacking = (None, torch.ones(2), 2 * torch.ones(2))
    supports = [Support("", 0, 0, 0, 0, 0, torch.ones(1), one) for one in lacking]
    codes, cells = np.array([[0, 1], [1, OPEN], [2, 1]]), np.array([[1, 5], [0, 1], [2, 1], [2, 0], [1, OPEN]])

    assert LackingChanges.of_supports(codes, supports).of(cells)[:, 0].tolist() == [1, 0, 2, 0, 1]
    assert LackingChanges.of_supports(codes[:1], supports[:1]) is None


def test_the_most_doubtful_combination_is_the_one_of_the_warning():
    supports = [support_on(KNOWN), support_on(KNOWN, FAR), support_on(NEW)]

    with pytest.warns(UserWarning, match="drug='new' is unknown"):
        table = support_columns(CONDITIONS, np.array([KNOWN, KNOWN, NEW], float), np.array([1, 2, 3]), supports)

    assert table["support"] == ["supported", "extrapolated", "unknown"]
    assert list(table["drug"]) == ["known", "known", "new"]


@pytest.mark.filterwarnings("error")
def test_supported_effects_give_no_warning():
    table = support_columns(CONDITIONS, np.array([[OPEN, 1]]), np.array([1]), [support_on(KNOWN)])

    assert list(table) == ["combination", "drug", "n_cells", "support", *NUMBERS]  # no type was given
    assert table["combination"] == ["drug='known'"]
