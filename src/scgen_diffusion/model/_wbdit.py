"""WBDIT: the white-box diffusion transformer of single cells."""

from __future__ import annotations

from scgen_diffusion.train import DIFFUSION_RECIPES

from ._gene_space import GeneSpaceModel


class WBDIT(GeneSpaceModel):
    """White-box diffusion model of single cells in gene space.

    The transformer of :class:`SCRDIT` with CRATE blocks, whose halves each take one step towards compact and sparse
    representations of the tokens. Whether they do can be seen: :mod:`scgen_diffusion.interpret` opens the box, and :mod:`scgen_diffusion.pl` draws
    what it finds.

    Parameters
    ----------
    adata
        Cells registered with :meth:`setup_anndata`.
    registry
        Registry of such cells, to construct the model without them.
    size
        ``"default"``: the architecture that generates best for its time, see the user guide. ``"published"``: that of the
        paper.
    **architecture
        Single parts and sizes, see :class:`~scgen_diffusion.module.GeneSpaceArchitecture`.

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
    >>> synthetic = model.generate(1_000, condition={"cell_type": "CD19+ B"})  # doctest: +SKIP
    """

    _family = "WBDIT"
    _recipes = DIFFUSION_RECIPES["WBDIT"]
