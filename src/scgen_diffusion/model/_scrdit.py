"""SCRDIT: a diffusion transformer on log-normalised profiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from scgen_diffusion.diffusion import DDIMSampler
from scgen_diffusion.module import SCRDIT_ARCHITECTURES, ProfileModule
from scgen_diffusion.train import DIFFUSION_RECIPES, include_cells

from ._gene_space import GeneSpaceModel

if TYPE_CHECKING:
    from scgen_diffusion.diffusion import Sampler
    from scgen_diffusion.module import ProfileArchitecture
    from scgen_diffusion.nn import InputValues
    from scgen_diffusion.train import Recipe


class SCRDIT(GeneSpaceModel):
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
    _backbones: ClassVar[tuple[str, ...]] = ("dit", "unet")
    module: ProfileModule
    architecture: ProfileArchitecture

    def _build_module(self) -> ProfileModule:
        if self.architecture.backbone not in self._backbones:
            msg = f"`backbone` must be one of {list(self._backbones)}, but found {self.architecture.backbone!r}."
            raise ValueError(msg)
        # noise predictions need shorter steps
        self.default_sampler = "dpm_solver_3m" if self.architecture.head == "spike_and_slab" else "dpm_solver"
        n_genes, encodings, values = self.summary_stats.n_vars, self._condition_encodings, self._input_values
        return ProfileModule(n_genes, encodings, input_values=values, architecture=self.architecture)

    def _start_training(self) -> None:
        super()._start_training()
        keeps_cells = self.reference_ is not None and self.reference_["trainable"] not in ("network", "all")
        if self.is_trained_ and not keeps_cells:
            include_cells(self.module, self._cells, self.train_indices_)

    def _recipe(self, stage: str) -> Recipe:
        return DIFFUSION_RECIPES[type(self).__name__][self._recipe_name]

    @property
    def _outputs(self) -> tuple[InputValues, ...]:
        return ("log1p", "counts")

    def _prediction_sampler(self, sampler: str | Sampler | None) -> str | Sampler:
        if sampler not in (None, "ddpm", "ddim"):
            return sampler
        return DDIMSampler(eta=0.0 if sampler == "ddim" else 1.0, default_n_steps=50)
