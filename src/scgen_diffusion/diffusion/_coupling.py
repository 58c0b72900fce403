"""Couplings for flows between two data sets: which end belongs to which start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from scipy.optimize import linear_sum_assignment

if TYPE_CHECKING:
    from torch import Tensor


@torch.no_grad()
def optimal_pairs(start: Tensor, end: Tensor) -> Tensor:
    r"""Pair samples of two sets of equal size so that the sum of squared distances is smallest (optimal transport).

    .. math:: \pi^* = \arg\min_\pi \sum_i \lVert x_i - y_{\pi(i)} \rVert^2

    Pairing each batch this way before training makes the paths of a flow straighter, and keeps similar samples similar.

    Parameters
    ----------
    start, end
        Samples, both ``(n, ...)``.

    Returns
    -------
    Tensor
        Index of the end that belongs to each start, ``(n,)``.

    References
    ----------
    Tong et al. (2024), *Improving and generalizing flow-based generative models with minibatch optimal transport*.

    Examples
    --------
    >>> optimal_pairs(torch.tensor([[0.0], [5.0]]), torch.tensor([[6.0], [1.0]]))
    tensor([1, 0])
    """
    cost = torch.cdist(start.flatten(1), end.flatten(1)).square().cpu().numpy()
    return torch.from_numpy(linear_sum_assignment(cost)[1]).to(start.device)
