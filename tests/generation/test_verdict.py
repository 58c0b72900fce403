"""Verdicts on the effects of perturbations: every rule, with its reason and its warning."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scgen_diffusion.data import Conditions
from scgen_diffusion.data._condition_keys import CategoricalKey
from scgen_diffusion.generation._verdict import describe_verdicts, judge
from scgen_diffusion.module._transport import LatentTransport

SIZE, N_TYPES = 4, 9
CONDITIONS = Conditions.from_codes(
    [
        CategoricalKey("cell_type", [f"type {n}" for n in range(N_TYPES)]),
        CategoricalKey("drug", ["none", "known", "new"]),
    ],
    np.zeros((1, 2)),
)
NEAR, FAR = torch.zeros(1, SIZE), torch.full((1, SIZE), 50.0)
KNOWN, NEW, SEEN = [8, 1], [8, 2], [0, 1]


def module_with(n_groups=6, *, error=None):
    """Cells of some types, near zero, whose effects of a drug are known and alike."""
    torch.manual_seed(0)
    transport = LatentTransport((1, SIZE), (N_TYPES, 3), width=8)
    transport.start_from(torch.tensor([-torch.inf, 0.0]))
    centres, shifts = torch.randn(n_groups, SIZE), 1 + 0.1 * torch.randn(n_groups, SIZE)
    perturbations = torch.stack([torch.arange(n_groups), torch.ones(n_groups)], 1).float()
    cells, variances = [centre[None] for centre in centres], torch.full((n_groups,), 1e-2)
    given = transport.control, transport.perturbs
    transport.add_shift(n_groups).fit(cells, centres, shifts, variances, torch.ones(SIZE), perturbations, *given)
    if error is not None:
        transport.add_error(n_groups, 5).misfit.fill_(error)
    return SimpleNamespace(transport=transport, condition_tensor=lambda codes: torch.from_numpy(codes).float())


def verdict_on(codes, cells=NEAR, misfit=0.0, **options):
    return judge(module_with(**options), CONDITIONS, [cells], np.array([codes], dtype=float), [misfit])[0]


@pytest.mark.parametrize(
    ("request_", "label", "reason"),
    [
        ({"codes": KNOWN}, "supported", "in 6 other contexts"),
        ({"codes": SEEN}, "supported", "in such cells"),
        ({"codes": KNOWN, "cells": FAR}, "extrapolated", "less like the cells seen perturbed"),
        ({"codes": KNOWN, "misfit": 0.2}, "extrapolated", r"error of 0\.20 nats per molecule, and that of training"),
        ({"codes": KNOWN, "misfit": 0.2, "error": 0.15}, "supported", "in 6 other contexts"),
        ({"codes": KNOWN, "misfit": 0.7}, "unknown", "unlike all training cells"),
        ({"codes": NEW}, "unknown", "unlike those seen in training"),
        ({"codes": KNOWN, "n_groups": 1}, "unknown", r"one context only \(cell_type='type 0'\)"),
        ({"codes": SEEN, "n_groups": 1}, "extrapolated", "could not be checked"),
    ],
)
def test_every_rule(request_, label, reason):
    found = verdict_on(**request_)

    assert found.label == label
    assert re.search(reason, found.reason)
    assert bool(found.advice) == (label != "supported")


def test_no_prediction_is_surer_than_those_of_left_out_groups():
    shift = module_with().transport.shift

    assert verdict_on(SEEN).variance == pytest.approx(float(shift.left_out[:, 0].mean()), rel=1e-5)
    assert verdict_on(KNOWN, FAR).variance > 2 * float(shift.left_out[:, 0].mean())


def test_a_model_of_an_earlier_version_is_not_measured():
    module = module_with()
    module.transport.shift.variances.fill_(torch.inf)

    found = judge(module, CONDITIONS, [NEAR], np.array([KNOWN], dtype=float))[0]

    assert found.label == "unknown"
    assert "train_transport()" in found.advice


def test_the_most_doubtful_combination_is_the_one_of_the_warning():
    verdicts = [verdict_on(KNOWN), verdict_on(KNOWN, FAR), verdict_on(NEW)]

    with pytest.warns(
        UserWarning, match=r"effect on C is unknown: the perturbation, .* Train with cells .* 1 more combination"
    ):
        table = describe_verdicts(["A", "B", "C"], verdicts)

    assert table["verdict"] == ["supported", "extrapolated", "unknown"]


@pytest.mark.filterwarnings("error")
def test_supported_effects_give_no_warning():
    assert describe_verdicts(["A"], [verdict_on(KNOWN)])["combination"] == ["A"]
