"""One self-contained page that shows and judges synthetic cells."""

from ._report import report

__all__ = ["report"]
