"""Support of the effects of perturbations: one number, its words, its warning, and what is corrected."""

import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from scgen_diffusion.data import OPEN, Conditions
from scgen_diffusion.data._condition_keys import CategoricalKey, SetKey
from scgen_diffusion.generation._support import NUMBERS, Corrections, Support, judge, support_columns
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


def module_of(flow, codes, centres, shifts, *, n_cells=1000, of_training=0.0):
    """Fit shifts of latents, which are the genes as well."""
    n, perturbations = len(codes), torch.as_tensor(codes).float()
    own_controls = torch.zeros(n), torch.arange(n)
    flow.add_shift(n).fit(centres, shifts, torch.full((n,), 1 / n_cells), torch.eye(SIZE), perturbations, *own_controls)
    changes = flow.add_changes(n, SIZE, 1)
    changes.groups.copy_(torch.arange(n))
    changes.misfit.fill_(of_training)
    noise, shifts = torch.eye(n).double() * 2 / n_cells, shifts.double()
    changes.fit(shifts, torch.ones(SIZE), noise, flow.shift.kernels(changes.groups))
    return SimpleNamespace(
        perturbation_flow=flow,
        condition_tensor=lambda codes: torch.from_numpy(codes).float(),
        latent_shape=(1, SIZE),
    )


def module_with(n_groups=6, spread=0.1, **options):
    """Cells of some types, near zero, whose effects of a drug are known and alike."""
    torch.manual_seed(0)
    flow = PerturbationFlow((1, SIZE), (Classes(N_TYPES), Classes(3)), width=8)
    flow.start_from(torch.tensor([-torch.inf, 0.0]))
    centres, shifts = torch.randn(n_groups, SIZE), 1 + spread * torch.randn(n_groups, SIZE)
    return module_of(flow, [[group, 1] for group in range(n_groups)], centres, shifts, **options)


def support_on(codes, cells=NEAR, misfit=0.0, **options):
    return judge(module_with(**options), CONDITIONS, [cells], np.array([codes], dtype=float), [misfit])[0]


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({"codes": KNOWN}, "supported"),
        ({"codes": SEEN}, "supported"),
        ({"codes": KNOWN, "cells": FAR, "spread": 1.0}, "unknown"),  # types differ much
        ({"codes": KNOWN, "misfit": 0.3}, "extrapolated"),
        ({"codes": KNOWN, "misfit": 0.3, "of_training": 0.25}, "supported"),
        ({"codes": KNOWN, "misfit": 0.8}, "unknown"),
        ({"codes": NEW}, "unknown"),
        ({"codes": SEEN, "n_cells": 0.1}, "unknown"),
        ({"codes": KNOWN, "cells": FAR, "n_groups": 1}, "unknown"),  # one context tells nothing of others
    ],
)
def test_support_is_the_share_that_is_explained_and_falls_with_the_misfit(request_, code):
    support = support_on(**request_)
    assert support.code == code
    beyond = request_.get("misfit", 0.0) - request_.get("of_training", 0.0)  # that of training cells
    assert support.misfit == pytest.approx(beyond)


def code_of(seen, wanted, key, encoding, shifts):
    flow = PerturbationFlow((1, SIZE), (encoding,), width=8)
    flow.start_from(torch.from_numpy(key.encode(["none"])[0]).float())
    module = module_of(flow, key.encode(seen), torch.zeros(len(seen), SIZE), shifts)
    conditions = Conditions.from_codes([key], key.encode(["none"]))
    return judge(module, conditions, [NEAR], key.encode([wanted]))[0].code


@pytest.mark.parametrize(
    ("seen", "code"),
    [(["MAPK1", "CBL", "CNN1"], "supported"), (["MAPK1", "CBL", "CBL+CNN1"], "extrapolated"), (["CBL"], "unknown")],
)
def test_a_new_set_is_known_as_far_as_its_parts_are(seen, code):
    wanted = "CNN1+MAPK1"
    key = SetKey.of("genes", pd.Series(["none", wanted, "CBL", *seen]), "+", "none", None)
    shifts = torch.randn(len(seen), SIZE, generator=torch.Generator().manual_seed(0))

    assert code_of(seen, wanted, key, Members(key.n_values, key.largest), shifts) == code


@pytest.mark.parametrize(
    ("signs", "wanted", "code"),
    [
        ([1.0, 1.1, -1.0, -1.1], 0.05, "extrapolated"),
        ([1.0, -1.1, -1.0, 1.1], 0.05, "unknown"),  # embeddings mislead
        ([1.0, 1.1, -1.0, -1.1], 90.0, "unknown"),  # none is near
    ],
)
def test_a_gene_never_perturbed_is_extrapolated_if_embeddings_predict_those_that_were(signs, wanted, code):
    places = (0.0, 0.1, 3.0, 3.1)
    names = ["none", *(f"g{i}" for i in range(len(places))), "new"]
    key = CategoricalKey("gene", names)
    vectors = torch.tensor([-9.0, *places, wanted])[:, None]
    shifts = torch.tensor(signs)[:, None] * torch.tensor([1.0, -1.0, 2.0, -2.0])

    assert code_of(names[1:-1], "new", key, Classes(len(names), vectors), shifts) == code


def test_changes_that_the_decoder_lacks_go_to_the_cells_of_their_combination():
    lacking = (None, torch.ones(2), 2 * torch.ones(2))
    supports = [Support(1.0, 0.0, 1.0, 2, None, one) for one in lacking]
    codes, cells = np.array([[0, 1], [1, OPEN], [2, 1]]), np.array([[1, 5], [0, 1], [2, 1], [2, 0], [1, OPEN]])

    assert Corrections.of_supports(codes, supports).of(cells)[:, 0].tolist() == [1, 0, 2, 0, 1]
    assert Corrections.of_supports(codes[:1], supports[:1]) is None


def test_the_most_doubtful_combination_is_the_one_of_the_warning():
    supports = [support_on(KNOWN), support_on(KNOWN, misfit=0.3), support_on(NEW)]

    with pytest.warns(UserWarning, match="drug='new' is unknown"):
        table = support_columns(CONDITIONS, np.array([KNOWN, KNOWN, NEW], float), np.array([1, 2, 3]), supports)

    assert table["support"] == ["supported", "extrapolated", "unknown"]
    assert list(table["drug"]) == ["known", "known", "new"]
    with warnings.catch_warnings(action="error"):  # supported effects give none
        table = support_columns(CONDITIONS, np.array([[OPEN, 1]]), np.array([1]), supports[:1])
    assert list(table) == ["combination", "drug", "n_cells", "support", *NUMBERS]  # no type was given
    assert table["combination"] == ["drug='known'"]
