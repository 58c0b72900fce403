"""How good are synthetic cells? Functions of two sets of cells, one table of all of them, and a verdict in words.

Cells are compared on one scale, `log1p` of values that sum to 10 000 per cell, and mostly in principal components of real training
cells (:class:`ComparisonSpace`), so that figures of different models can stand side by side.
"""

from ._expression import Expression, expression_of, log_normalise
from ._space import ComparisonSpace

__all__ = ["ComparisonSpace", "Expression", "expression_of", "log_normalise"]
