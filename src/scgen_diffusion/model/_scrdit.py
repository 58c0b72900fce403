"""SCRDIT: a diffusion transformer on log-normalised profiles."""

from __future__ import annotations

from scgen_diffusion.module import SCRDIT_ARCHITECTURES

from ._gene_space import ProfileModel


class SCRDIT(ProfileModel):
    """Diffusion transformer of single cells: a DDPM on log-normalised profiles.

    The profile of a cell becomes noise, gene by gene, and a transformer over patches of genes learns to undo this. It
    learns from counts or from log-normalised values.

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
    scRDiT: arXiv 2404.06153. The user guide lists the differences.

    Examples
    --------
    >>> import scgen_diffusion as scgd
    >>> adata = scgd.datasets.pbmc68k_reduced()
    >>> scgd.model.SCRDIT.setup_anndata(adata, layer="counts", condition_keys=["cell_type"])
    >>> model = scgd.model.SCRDIT(adata)
    >>> model.train()  # doctest: +SKIP
    >>> synthetic = model.generate(
    ...     1_000, condition={"cell_type": "CD19+ B"}
    ... )  # doctest: +SKIP
    """

    _architectures = SCRDIT_ARCHITECTURES
    _backbones = ("dit", "unet")
