"""Interpret a white-box model: what the layers and heads of a trained :class:`~scgen_diffusion.model.WBDIT` do.

Results are tables, which :mod:`scgen_diffusion.pl` plots.
"""

from ._heads import head_effects, head_loadings, head_specificity, shuffle_weights
from ._layers import head_coding_rates, layer_statistics

__all__ = [
    "head_coding_rates",
    "head_effects",
    "head_loadings",
    "head_specificity",
    "layer_statistics",
    "shuffle_weights",
]
