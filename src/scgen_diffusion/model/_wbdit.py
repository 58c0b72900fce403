"""WBDIT: a white-box diffusion transformer on log-normalised profiles."""

from __future__ import annotations

from scgen_diffusion.module import WBDIT_ARCHITECTURES

from ._scrdit import SCRDIT


class WBDIT(SCRDIT):
    """White-box diffusion transformer of single cells: a DDPM on log-normalised profiles with CRATE blocks.

    The same model as :class:`SCRDIT` with another transformer. One half of each block compresses the representation of
    the tokens, the other makes it sparse. :mod:`scgen_diffusion.interpret` measures whether they do, and
    :mod:`scgen_diffusion.pl` plots the results.

    Parameters
    ----------
    adata
        Cells registered with :meth:`setup_anndata`.
    registry
        Registry of such cells, to build the model without them.
    size
        ``"default"``: the recommended architecture, see the user guide. ``"published"``: that of the paper.
    **architecture
        Options that change single parts and sizes, see :class:`~scgen_diffusion.module.ProfileArchitecture`.

    Raises
    ------
    TypeError
        For an unknown option.
    ValueError
        For a value that is not allowed.

    References
    ----------
    White-Box Diffusion Transformer: arXiv 2411.06785. CRATE: arXiv 2306.01129.

    Examples
    --------
    >>> import scgen_diffusion as scgd
    >>> adata = scgd.datasets.pbmc68k_reduced()
    >>> scgd.model.WBDIT.setup_anndata(adata, layer="counts", condition_keys=["cell_type"])
    >>> model = scgd.model.WBDIT(adata)
    >>> model.train()  # doctest: +SKIP
    >>> synthetic = model.generate(
    ...     1_000, condition={"cell_type": "CD19+ B"}
    ... )  # doctest: +SKIP
    """

    _architectures = WBDIT_ARCHITECTURES
    _backbones = ("white_box",)
