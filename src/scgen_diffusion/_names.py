"""The nearest of the names that there are, for errors; light, since the command line needs it before all else."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def known_names(name: object, known: Sequence[object]) -> str:
    """Say which names there are, closest to ``name`` first."""
    by_text = {str(k): k for k in known}
    closest = get_close_matches(str(name), list(by_text), n=max(len(by_text), 1), cutoff=0)
    return (
        f"Known, closest first: {', '.join(repr(by_text[k]) for k in closest[:20])}." if closest else "There are none."
    )
