"""Whether several processes train together."""

from __future__ import annotations

from torch import distributed


def is_distributed() -> bool:
    """Tell whether this process is one of several that train one model."""
    return distributed.is_available() and distributed.is_initialized()
