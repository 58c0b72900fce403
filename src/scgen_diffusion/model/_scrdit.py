"""SCRDIT: the gene-space diffusion model of single cells."""

from __future__ import annotations

from scgen_diffusion.train import DIFFUSION_RECIPES

from ._gene_space import GeneSpaceModel


class SCRDIT(GeneSpaceModel):
    """Gene-space diffusion model of single cells.

    A transformer over patches of genes learns to denoise log-normalised profiles, under any number of conditions. New cells
    are noise that it denoises step by step.

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
    scRDiT: arXiv 2404.06153. What differs from it is told in the user guide.

    Examples
    --------
    >>> import scgen_diffusion as scgd
    >>> adata = scgd.datasets.pbmc68k_reduced()
    >>> scgd.model.SCRDIT.setup_anndata(adata, layer="counts", condition_keys=["cell_type"])
    >>> model = scgd.model.SCRDIT(adata)
    >>> model.train()  # doctest: +SKIP
    >>> synthetic = model.generate(1_000, condition={"cell_type": "CD19+ B"})  # doctest: +SKIP
    """

    _family = "SCRDIT"
    _recipes = DIFFUSION_RECIPES["SCRDIT"]
