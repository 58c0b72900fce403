"""Sending a batch's row numbers to the device without waiting for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def sent_to(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host's on a device; to a GPU by way of pinned memory, for from other memory the host waits for the copy."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
