"""Plots of what :class:`~scgen_diffusion.model.WBDIT` shows of its inside.

They take the tables that its methods return, or the AnnData that
:meth:`~scgen_diffusion.model.WBDIT.write_white_box` wrote them into. As in scanpy, ``show=False`` returns the axes, and ``save``
names a file.
"""

from ._genes import head_loadings, patch_attention
from ._layers import coding_rate, layer_statistics, sampling_path, sparsity

__all__ = ["coding_rate", "head_loadings", "layer_statistics", "patch_attention", "sampling_path", "sparsity"]
