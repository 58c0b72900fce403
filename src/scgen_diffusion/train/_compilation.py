"""Compile networks for the full batches of training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import nn


def compile_for_training(network: nn.Module, **options: Any) -> None:
    """Compile the forward pass for batches of the first size that come with gradients, in place; others run as before.

    Smaller last batches, validation and generation would each be compiled anew, which takes longer than it saves.

    Parameters
    ----------
    network
        The network.
    **options
        Passed to :func:`torch.compile`.
    """
    plain, compiled = network.forward, torch.compile(network.forward, dynamic=False, **options)
    size: int | None = None

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal size
        if not torch.is_grad_enabled():
            return plain(*args, **kwargs)
        n = next(len(value) for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
        size = n if size is None else size
        return (compiled if n == size else plain)(*args, **kwargs)

    network.forward = forward
