"""Plots: real and synthetic cells, training curves, metrics, and the inside of the white-box model.

Plots of cells take two AnnData objects with the same genes, from any tool, and do not change them. Plots of figures
take the tables from :mod:`~scgen_diffusion.metrics`. Plots of the white-box model take the tables from
:mod:`~scgen_diffusion.interpret`. As in scanpy, ``show=False`` returns the axes, and label colours come from
``uns``. ``axes[0].figure.savefig(path, bbox_inches="tight")`` writes a file.
"""

from ._embeddings import umap
from ._gene_plots import gene_correlation, library_size, marker_dotplot, mean_variance, zero_fraction
from ._perturbations import mean_change, perturbation_scores
from ._scores import scores
from ._training_history import training_history
from ._white_box_plots import coding_rate, head_loadings, layer_statistics

__all__ = [
    "coding_rate",
    "gene_correlation",
    "head_loadings",
    "layer_statistics",
    "library_size",
    "marker_dotplot",
    "mean_change",
    "mean_variance",
    "perturbation_scores",
    "scores",
    "training_history",
    "umap",
    "zero_fraction",
]
