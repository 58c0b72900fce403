"""Attention to the rows of one table, which every cell scales differently."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

CHUNK_ELEMENTS = {"cpu": 1 << 17}  # elements of (heads, cells, queries, rows) at a time: what a core's cache holds
LARGE_CHUNK = 1 << 26  # on other devices: 256 MiB
LOWEST = -3e38  # in place of a maximum over nothing


def attend_to_scaled_rows(scales: Tensor, scores: Tensor, values: Tensor) -> Tensor:
    r"""Attend to the rows of a table, whose keys and values are multiplied by a number per cell.

    .. math:: o_{chq} = \sum_g w_{chqg}\, a_{cg}\, v_{hg}, \qquad
        w_{chqg} = \frac{\exp(a_{cg}\, s_{hqg})}{\sum_{g': a_{cg'} \ne 0} \exp(a_{cg'}\, s_{hqg'})}

    Because :math:`q \cdot (a k) = a\,(q \cdot k)`, queries and keys are multiplied once per step rather than once per
    cell, and no tensor of size ``(cells, rows, width)`` is created. Cells are processed in chunks, whose weights are
    recomputed in the backward pass. Shapes do not depend on the data, so a GPU does not have to wait for it.

    Parameters
    ----------
    scales
        :math:`a`, ``(cells, rows)``; 0 for a row that the cell does not have. It gets no gradient.
    scores
        :math:`s`: queries times keys, ``(heads, queries, rows)``.
    values
        :math:`v`, ``(heads, rows, p)``.

    Returns
    -------
    Tensor
        ``(cells, heads, queries, p)``; zero for a cell without rows.
    """
    with _full_precision(scales.device.type):
        return _ScaledAttention.apply(scales, *(_precise(x) for x in (scores, values)))


def multiply_heads(a: Tensor, b: Tensor) -> Tensor:
    """Multiply ``a (heads, n, rows)`` by ``b (heads, rows, p)`` head by head: a batched product takes a GPU longer."""
    return torch.stack([one @ other for one, other in zip(a, b, strict=True)])


def _full_precision(device_type: str) -> AbstractContextManager[None]:
    """Suspend autocast, which device "meta" does not have: sums over thousands of rows are taken in float32."""
    return nullcontext() if device_type == "meta" else torch.autocast(device_type, enabled=False)


def _precise(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _ScaledAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scales: Tensor, scores: Tensor, values: Tensor) -> Tensor:
        outputs, norms = [], []
        for part in _chunks(scales, scores):
            logits = _logits(part, scores)
            largest = logits.amax(-1, keepdim=True).clamp_(min=LOWEST)
            weights = logits.sub_(largest).exp_()
            total = weights.sum(-1, keepdim=True).clamp_(min=torch.finfo(weights.dtype).tiny)
            attended = multiply_heads(_rows_of_heads(weights.mul_(part[None, :, None])), values)
            outputs.append(attended.view(*total.shape[:-1], -1) / total)
            norms.append(largest + total.log())
        output, norm = torch.cat(outputs, dim=1), torch.cat(norms, dim=1)
        ctx.save_for_backward(scales, scores, values, output, norm)
        return output.transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor]:
        scales, scores, values, output, norm = ctx.saved_tensors
        gradient = gradient.transpose(0, 1).contiguous()
        explained = (gradient * output).sum(-1, keepdim=True)
        for_scores, for_values = torch.zeros_like(scores), torch.zeros_like(values)
        start = 0
        for part in _chunks(scales, scores):
            cells, a = slice(start, start + len(part)), part[None, :, None]
            weighted = _logits(part, scores).sub_(norm[:, cells]).exp_().mul_(a)
            of_output = _rows_of_heads(gradient[:, cells])
            for_values += _rows_of_heads(weighted).mT @ of_output
            for_weights = (of_output @ values.mT).view_as(weighted)
            for_scores += for_weights.mul_(a).sub_(explained[:, cells]).mul_(weighted).sum(1)
            start = cells.stop
        return None, for_scores, for_values


def _chunks(scales: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
    if torch.compiler.is_compiling():  # the number of chunks would depend on the number of cells
        return (scales,)
    n_elements = CHUNK_ELEMENTS.get(scales.device.type, LARGE_CHUNK)
    return scales.split(max(n_elements // scores.numel(), 1))


def _logits(scales: Tensor, scores: Tensor) -> Tensor:
    """Return ``scales * scores (heads, cells, queries, rows)``; minus infinity for rows that a cell lacks."""
    absent = torch.zeros_like(scales).masked_fill_(scales == 0, -torch.inf)
    return torch.addcmul(absent[None, :, None], scales[None, :, None], scores[:, None])


def _rows_of_heads(x: Tensor) -> Tensor:
    """View ``(heads, cells, queries, n)`` as ``(heads, cells * queries, n)``."""
    return x.reshape(len(x), -1, x.shape[-1])
