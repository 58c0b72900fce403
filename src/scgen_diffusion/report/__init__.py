"""What figures say: :func:`verdict` in words, and :func:`write` as one self-contained page with plots."""

from ._verdict import Finding, Verdict, verdict
from ._write import write

__all__ = ["Finding", "Verdict", "verdict", "write"]
