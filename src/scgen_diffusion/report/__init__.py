"""What the table of an evaluation says: :func:`summary`, and :func:`write` as one self-contained page with plots."""

from ._summary import Summary, summary
from ._write import write

__all__ = ["Summary", "summary", "write"]
