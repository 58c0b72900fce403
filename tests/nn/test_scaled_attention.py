"""Attention to multiples of rows, against its definition written out."""

from __future__ import annotations

import pytest
import torch

from scgen_diffusion.nn import _scaled_attention as scaled_attention
from scgen_diffusion.nn._scaled_attention import attend_to_scaled_rows

N_CELLS, N_HEADS, N_QUERIES, N_ROWS, WIDTH = 5, 2, 3, 7, 4


def draw_case(dtype=torch.double, *, size=1.0):
    generator = torch.Generator().manual_seed(0)
    scales = torch.rand(N_CELLS, N_ROWS, generator=generator, dtype=dtype) * size
    scales = scales * (torch.rand(N_CELLS, N_ROWS, generator=generator) < 0.6)
    scales[0] = 0  # a cell without rows
    scores = torch.randn(N_HEADS, N_QUERIES, N_ROWS, generator=generator, dtype=dtype)
    return scales, scores, torch.randn(N_HEADS, N_ROWS, WIDTH, generator=generator, dtype=dtype)


def written_out(scales, scores, values):
    has_row = scales != 0
    logits = torch.einsum("cg,hqg->chqg", scales, scores).masked_fill(~has_row[:, None, None], -torch.inf)
    weights = logits.softmax(-1).nan_to_num(0)
    return torch.einsum("chqg,cg,hgp->chqp", weights, scales, values)


def test_the_definition_holds():
    case = draw_case(torch.float)

    torch.testing.assert_close(attend_to_scaled_rows(*case), written_out(*case), rtol=1e-5, atol=1e-6)


def test_a_cell_without_rows_gets_zero():
    assert torch.equal(attend_to_scaled_rows(*draw_case(torch.float))[0], torch.zeros(N_HEADS, N_QUERIES, WIDTH))


def test_the_gradient_is_that_of_finite_differences():
    scales, scores, values = draw_case()

    assert torch.autograd.gradcheck(
        lambda *x: attend_to_scaled_rows(scales, *x), (scores.requires_grad_(), values.requires_grad_())
    )


@pytest.mark.parametrize("n_elements", [1, 100, 10**6])
def test_chunks_do_not_matter(monkeypatch, n_elements):
    scales, *learned = draw_case(torch.float)
    learned = [x.requires_grad_() for x in learned]
    expected = torch.autograd.grad(written_out(scales, *learned).square().sum(), learned)

    monkeypatch.setitem(scaled_attention.CHUNK_ELEMENTS, "cpu", n_elements)
    found = torch.autograd.grad(attend_to_scaled_rows(scales, *learned).square().sum(), learned)

    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_large_scores_neither_overflow_nor_vanish():
    case = draw_case(torch.float, size=1000.0)

    torch.testing.assert_close(attend_to_scaled_rows(*case), written_out(*case), rtol=1e-4, atol=1e-3)


def test_autocast_does_not_round_scores():
    case = draw_case(torch.float)

    with torch.autocast("cpu", torch.bfloat16):
        found = attend_to_scaled_rows(*case)

    assert torch.equal(found, attend_to_scaled_rows(*case))
