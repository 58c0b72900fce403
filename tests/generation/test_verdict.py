"""Verdicts on the effects of perturbations: every rule, its numbers and its warning."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from scgen_diffusion.data import OPEN, Conditions
from scgen_diffusion.data._conditions import CategoricalKey, SetKey
from scgen_diffusion.generation._verdict import (
    NUMBERS,
    LackingChanges,
    PerturbedGroups,
    Verdict,
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
    assert verdict_on(**request_).code == code


def test_the_numbers_behind_a_verdict():
    found = verdict_on(KNOWN, misfit=0.2, error=0.15)

    assert found.misfit == pytest.approx(0.05)
    assert 0.5 < found.explained < 1
    assert (found.n_contexts, found.decoded) == (6, pytest.approx(1, abs=0.1))


@pytest.mark.parametrize(("shown", "code"), [(0.6, "supported"), (0.4, "extrapolated")])
def test_a_decoder_that_hardly_shows_the_shift_of_such_cells_is_not_trusted(shown, code):
    groups_are_shown = lambda states: states.flatten(1) * (1.0 if len(states) > 1 else shown)

    found = verdict_on(KNOWN, profiles_of=groups_are_shown)

    assert found.code == code
    assert found.decoded == pytest.approx(shown, abs=0.01)


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


@pytest.mark.parametrize("seen", [["MAPK1", "CBL", "CBL+CNN1"], ["MAPK1", "CBL", "CNN1"]])
def test_a_new_set_of_known_parts_is_extrapolated(seen):
    assert pair_of_genes("CNN1+MAPK1", seen).code == "extrapolated"


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
    assert new_gene_by_embedding([1.0, 1.1, -1.0, -1.1]).code == "extrapolated"


def test_a_gene_never_perturbed_is_unknown_if_embeddings_mislead():
    assert new_gene_by_embedding([1.0, -1.1, -1.0, 1.1]).code == "unknown"


def test_a_gene_never_perturbed_is_unknown_if_no_embedding_is_near():
    assert new_gene_by_embedding([1.0, 1.1, -1.0, -1.1], wanted=90.0).code == "unknown"


def test_no_prediction_is_surer_than_those_of_left_out_groups():
    shift = module_with().transport.shift

    assert verdict_on(SEEN).variance == pytest.approx(float(shift.left_out[:, 0].mean()), rel=1e-5)
    assert verdict_on(KNOWN, FAR).variance > 2 * float(shift.left_out[:, 0].mean())


def test_an_interval_has_the_noise_of_these_and_of_as_many_measured_cells(monkeypatch):
    groups = PerturbedGroups.__new__(PerturbedGroups)
    error = SimpleNamespace(changes=torch.zeros(1, 3), half_width=lambda variance, change, departure, noise, _: noise)
    groups.module = SimpleNamespace(transport=SimpleNamespace(error=error))
    verdict = Verdict("", 0, 0, 0, 0, 0, torch.ones(1).double(), None)
    y = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)).double()
    n, total, squares = torch.full((3,), 50.0).double(), y.sum(0), y.square().sum(0)

    (found,) = groups.changes(torch.stack([n, 0 * n, total, squares, squares])[None].numpy(), [verdict])

    np.testing.assert_allclose(found.upper - found.change, 2 * _variance(n, total, squares) / n)


def test_changes_that_the_decoder_lacks_go_to_the_cells_of_their_combination():
    none, some, other = (
        Verdict("", 0, 0, 0, 0, 0, torch.ones(1), one) for one in (None, torch.ones(2), 2 * torch.ones(2))
    )
    codes = np.array([[0, 1], [1, OPEN], [2, 1]])

    found = LackingChanges.of_verdicts(codes, [none, some, other]).of(
        np.array([[1, 5], [0, 1], [2, 1], [2, 0], [1, OPEN]])
    )

    assert found[:, 0].tolist() == [1, 0, 2, 0, 1]
    assert LackingChanges.of_verdicts(codes[:1], [none]) is None


def test_the_most_doubtful_combination_is_the_one_of_the_warning():
    verdicts = [verdict_on(KNOWN), verdict_on(KNOWN, FAR), verdict_on(NEW)]

    with pytest.warns(UserWarning, match="drug='new' is unknown"):
        table = verdict_columns(CONDITIONS, np.array([KNOWN, KNOWN, NEW], float), np.array([1, 2, 3]), verdicts)

    assert table["verdict"] == ["supported", "extrapolated", "unknown"]
    assert list(table["drug"]) == ["known", "known", "new"]


@pytest.mark.filterwarnings("error")
def test_supported_effects_give_no_warning():
    table = verdict_columns(CONDITIONS, np.array([[OPEN, 1]]), np.array([1]), [verdict_on(KNOWN)])

    assert list(table) == ["combination", "drug", "n_cells", "verdict", *NUMBERS]  # no type was given
    assert table["combination"] == ["drug='known'"]
