"""Plots: real beside synthetic cells, how a model was trained and how good it is, and the inside of the white box.

Plots of cells take two AnnData objects with the same genes, from whatever tool, and leave them as they are. Plots of figures take
the tables that :mod:`~scgen_diffusion.metrics` return. Plots of the white box take the tables that
:mod:`~scgen_diffusion.interpret` returns, or the AnnData that :func:`~scgen_diffusion.interpret.write` wrote them
into. As in scanpy, ``show=False`` returns the axes, ``save`` names a file, and colours of labels come from ``uns``.
"""

from ._correlations import gene_correlation, modality_correlation
from ._genes import library_size, marker_dotplot, mean_variance, zero_fraction
from ._perturbations import mean_change, perturbation_scores
from ._sampling_path import animate_sampling_path, sampling_path
from ._scores import quality_curve, scores
from ._training import training_history
from ._umap import umap
from ._white_box import (
    coding_rate,
    head_loadings,
    layer_statistics,
    patch_attention,
)

__all__ = [
    "animate_sampling_path",
    "coding_rate",
    "gene_correlation",
    "head_loadings",
    "layer_statistics",
    "library_size",
    "marker_dotplot",
    "mean_change",
    "mean_variance",
    "modality_correlation",
    "patch_attention",
    "perturbation_scores",
    "quality_curve",
    "sampling_path",
    "scores",
    "training_history",
    "umap",
    "zero_fraction",
]
