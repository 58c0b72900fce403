"""SCMDM: masked diffusion of a cell's molecules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scgen_diffusion.module import SCMDM_ARCHITECTURES, MoleculeModule
from scgen_diffusion.train import DIFFUSION_RECIPES

from ._gene_space import GeneSpaceModel

if TYPE_CHECKING:
    from scgen_diffusion.module import MoleculeArchitecture
    from scgen_diffusion.nn import InputValues
    from scgen_diffusion.train import Recipe


class SCMDM(GeneSpaceModel):
    """Masked diffusion model of single cells: molecules of which the genes are unmasked a few at a time.

    The network sees the genes of some of a cell's molecules and the number of the others, and learns to tell the genes
    of these, under any number of conditions. A new cell starts with all molecules masked. Cells are counts.

    Parameters
    ----------
    adata
        Cells registered with :meth:`setup_anndata`.
    registry
        Registry of such cells, to build the model without them.
    size
        Only ``"default"``: the recommended architecture, see the user guide.
    **architecture
        Options that change single parts and sizes, see :class:`~scgen_diffusion.module.MoleculeArchitecture`.

    Raises
    ------
    TypeError
        For an unknown option.
    ValueError
        For a value that is not allowed.

    References
    ----------
    Sahoo et al. (2024), *Simple and effective masked diffusion language models*. Chen and Zhou (2023), *Learning to
    jump: thinning and thickening latent counts for generative modeling*. The user guide has the formulas.

    Examples
    --------
    >>> import scgen_diffusion as scgd
    >>> adata = scgd.datasets.pbmc68k_reduced()
    >>> scgd.model.SCMDM.setup_anndata(adata, layer="counts", condition_keys=["cell_type"])
    >>> model = scgd.model.SCMDM(adata)
    >>> model.train()  # doctest: +SKIP
    >>> synthetic = model.generate(
    ...     1_000, condition={"cell_type": "CD19+ B"}
    ... )  # doctest: +SKIP
    """

    module: MoleculeModule
    architecture: MoleculeArchitecture
    _architectures = SCMDM_ARCHITECTURES
    default_sampler = "unmasking"

    def _build_module(self) -> MoleculeModule:
        if self._input_values != "counts":
            msg = f"{type(self).__name__} needs counts, but `values` of the registered cells is {self._input_values!r}."
            raise ValueError(msg)
        return MoleculeModule(self.summary_stats.n_vars, self._condition_encodings, architecture=self.architecture)

    def _recipe(self, stage: str) -> Recipe:
        return DIFFUSION_RECIPES["SCMDM"]["default"].for_cells(len(self.train_indices_))

    @property
    def _outputs(self) -> tuple[InputValues, ...]:
        return ("counts",)
