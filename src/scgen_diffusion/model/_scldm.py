"""SCLDM: the latent diffusion model of single cells."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import numpy as np
import pandas as pd
import torch
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import CategoricalJointObsField, LayerField
from torch import Tensor

from scgen_diffusion.data import ConditionRequest, Conditions, check_conditions, check_expression, known_names
from scgen_diffusion.module import LIBRARY_SIZE_KINDS, LibrarySizeKind, SCLDMModule, build_architecture

from ._generation import GenerationMixin, SamplingOptions
from ._latents import LatentMixin
from ._reference import load_reference
from ._saving import SavingMixin
from ._training import TwoStageTrainingMixin

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

    from scgen_diffusion.diffusion import SampleGenerators


class SCLDM(SavingMixin, TwoStageTrainingMixin, LatentMixin, GenerationMixin):
    """Latent diffusion model of single cells.

    A permutation-invariant autoencoder turns the set of a cell's expressed genes into a few latent tokens and back into the
    parameters of a count distribution. A diffusion transformer learns the distribution of the latents under any number of
    conditions by flow matching. New cells are noise, carried to a latent by the transformer and decoded.

    Parameters
    ----------
    adata
        Cells registered with :meth:`setup_anndata`.
    registry
        Registry of such cells, to construct the model without them.
    size
        ``"default"``: the architecture that generates best, see the user guide. ``"published"``: that of the paper.
    **architecture
        Single parts and sizes, see :class:`~scgen_diffusion.module.SCLDMArchitecture`.

    Raises
    ------
    TypeError
        For an unknown option.
    ValueError
        For a value that is not allowed.

    References
    ----------
    scLDM: arXiv 2511.02986. What differs from it is told in the user guide.

    Examples
    --------
    >>> import scgen_diffusion as sgd
    >>> adata = sgd.datasets.pbmc68k_reduced()
    >>> sgd.model.SCLDM.setup_anndata(adata, layer="counts", condition_keys=["cell_type"])
    >>> model = sgd.model.SCLDM(adata)
    >>> model.train()  # doctest: +SKIP
    >>> synthetic = model.generate(1_000, condition={"cell_type": "CD19+ B"})  # doctest: +SKIP
    """

    _module_cls = SCLDMModule

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict[str, Any] | None = None,
        *,
        size: Literal["default", "published"] = "default",
        **architecture: Any,
    ) -> None:
        super().__init__(adata, registry)
        self.architecture = build_architecture(size, **architecture)
        values = self.registry_["setup_args"]["values"]
        if values == "log1p" and self.architecture.likelihood != "gaussian":
            msg = "Log-normalised values (`values='log1p'`) need `likelihood='gaussian'`; counts are needed for any other."
            raise ValueError(msg)
        self.module = self._module_cls(
            self.summary_stats.n_vars,
            [len(categories) for categories in self._categories.values()],
            input_values=values,
            architecture=self.architecture,
        )
        self.var_ = _plain_columns(adata.var) if adata is not None else pd.DataFrame(index=self._registered_genes)
        self._count_combinations(self._registered_codes)
        self.autoencoder_is_trained_ = False
        self.prior_is_trained_ = False
        self.library_head_is_trained_ = False
        self._model_summary_string = f"SCLDM with {self.architecture}"
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        *,
        layer: str | None = None,
        condition_keys: Sequence[str] = (),
        values: Literal["counts", "log1p"] = "counts",
        **kwargs: Any,
    ) -> None:
        """Register cells: where their counts are, and which columns of ``obs`` are conditions.

        Parameters
        ----------
        adata
            Cells by genes.
        layer
            Layer that holds the values; default ``adata.X``.
        condition_keys
            Categorical columns of ``obs`` to generate by, such as cell type or perturbation. Any number; none for an
            unconditional model.
        values
            What the layer holds: raw ``"counts"``, or ``"log1p"`` for log-normalised values, which only the Gaussian head
            can take.
        **kwargs
            For scvi-tools.

        Raises
        ------
        KeyError
            For an unknown layer or column.
        ValueError
            For values that are no counts, cells without counts, cells without labels, duplicate genes.
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        if values not in ("counts", "log1p"):
            msg = f"`values` must be 'counts' or 'log1p', but found {values!r}."
            raise ValueError(msg)
        check_expression(adata, layer, values)
        check_conditions(adata.obs, condition_keys)
        setup_method_args["setup_args"]["condition_keys"] = list(condition_keys)
        fields = [
            LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=values == "counts"),
            CategoricalJointObsField(REGISTRY_KEYS.CAT_COVS_KEY, list(condition_keys)),
        ]
        manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    def generate(
        self,
        n_cells: int | None = None,
        condition: ConditionRequest = None,
        *,
        guidance_scale: float | Mapping[str, float] = 1.0,
        sampler: str | None = None,
        n_steps: int | None = None,
        library_size: LibrarySizeKind | float | Sequence[float] | None = None,
        batch_size: int | None = None,
        seed: int | None = None,
        show_progress: bool = False,
    ) -> AnnData:
        """Generate cells.

        Parameters
        ----------
        n_cells
            Number of cells; may be left out when ``condition`` gives one row or value per cell.
        condition
            What the cells shall be.

            - None: conditions are drawn from their joint distribution in the training cells.
            - A mapping from key to a value for all cells, or to a list: one value per cell, or fewer, of which each is then
              given to an equal share of consecutive cells. Keys left out are drawn given the others.
            - A table with one row per cell and keys as columns.

            A combination that never occurred in training can be asked for when every key is given.
        guidance_scale
            1: conditional; 0: unconditional; larger: more typical of the condition and less diverse. One number, or one
            per key.
        sampler
            ``"euler"``, ``"midpoint"``, ``"heun"`` or ``"dopri5"``.
        n_steps
            Steps of the sampler (not of ``"dopri5"``, which is adaptive).
        library_size
            Total counts of the cells: ``"empirical"``, ``"normal"`` or ``"latent"`` distribution (default: as the model was
            constructed), one number, or one number per cell.
        batch_size
            Cells held densely at a time, rounded up to whole blocks. Does not change the cells.
        seed
            Same seed, same cells; default ``scvi.settings.seed``, or else a random one. It is kept in ``uns``.
        show_progress
            Whether to show a progress bar.

        Returns
        -------
        AnnData
            Counts (CSR) in ``X``, conditions in ``obs``, ``var`` as in training, and how the cells were made in
            ``uns["scgen_diffusion"]``. With a Gaussian head, log-normalised values in place of counts.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            For unknown keys, values, samplers and sizes, and lengths that do not fit.
        """
        return self._generate(
            n_cells,
            condition,
            guidance_scale=guidance_scale,
            sampler=sampler,
            n_steps=n_steps,
            library_size=library_size,
            batch_size=batch_size,
            seed=seed,
            show_progress=show_progress,
        )

    @classmethod
    def from_reference_checkpoint(
        cls,
        path: str | os.PathLike[str],
        *,
        var_names: Sequence[str],
        categories: Mapping[str, Sequence[str]],
        library_size: pd.DataFrame | None = None,
        condition_strategy: Literal["joint", "mutually_exclusive"] = "joint",
        n_heads: int = 8,
        n_heads_cross: int = 4,
        prior_n_heads: int = 8,
        ema: bool = False,
        padded_length: int | None = None,
    ) -> Self:
        """Build a model from weights of the published scLDM code. Nothing in the file is executed.

        Parameters
        ----------
        path
            A Lightning ``.ckpt``, or ``.safetensors``.
        var_names
            Genes in the order of the weights.
        categories
            Classes of each condition key, in the order of the weights.
        library_size
            Statistics of log total counts: one row per group of cells, with the columns ``mean`` and ``std`` and one column
            per condition key (a missing value stands for any class). Without it, ``generate`` needs ``library_size``.
        condition_strategy
            The strategy that the weights were trained with.
        n_heads, n_heads_cross, prior_n_heads
            Attention heads, which weights do not tell.
        ema
            Whether to generate with the averaged weights, if the file has them.
        padded_length
            Number of gene tokens that the weights were trained with. The published encoder lets padding take part in the
            attention, so a cell's latent depends on it. Default: as many as the longest cell of a batch needs.

        Raises
        ------
        ValueError
            If the file is damaged or would execute code, or weights and genes or categories do not fit.
        """
        return load_reference(
            cls,
            path,
            var_names=var_names,
            categories=categories,
            library_size=library_size,
            condition_strategy=condition_strategy,
            n_heads=n_heads,
            n_heads_cross=n_heads_cross,
            prior_n_heads=prior_n_heads,
            ema=ema,
            padded_length=padded_length,
        )

    @property
    def conditions(self) -> Conditions:
        """Condition keys, their classes, and how many training cells each combination has."""
        return Conditions(self._categories, self.combinations_, self.combination_sizes_)

    @property
    def _categories(self) -> dict[str, list[Any]]:
        state = self.registry_["field_registries"][REGISTRY_KEYS.CAT_COVS_KEY]["state_registry"]
        return {key: list(values) for key, values in state.get("mappings", {}).items()}

    @property
    def _registered_codes(self) -> np.ndarray:
        """Condition codes of the model's cells, ``(cells, keys)``; of none, if it has none."""
        if self.adata_manager is None or not self._categories:
            return np.zeros((0, len(self._categories)), dtype=int)
        return np.asarray(self.adata_manager.get_from_registry(REGISTRY_KEYS.CAT_COVS_KEY))

    @property
    def _registered_genes(self) -> pd.Index:
        state = self.registry_["field_registries"][REGISTRY_KEYS.X_KEY]["state_registry"]
        return pd.Index([str(name) for name in state["column_names"]])

    @property
    def _generates_log1p(self) -> bool:
        return self.architecture.likelihood == "gaussian"

    def _check_ready_to_generate(self) -> None:
        if not self.autoencoder_is_trained_ or not self.prior_is_trained_:
            missing = "train()" if not self.autoencoder_is_trained_ else "train_prior()"
            msg = f"The model cannot generate yet; call {missing} first."
            raise RuntimeError(msg)

    def _check_request(self, codes: np.ndarray) -> None:
        conditions = self.conditions
        unseen = [row for row in np.unique(codes, axis=0) if not conditions.occurs(row)]
        if unseen:
            msg = (
                f"{len(unseen)} requested combinations do not occur in the training cells, for example "
                f"{conditions.describe(unseen[0])}. Their library sizes are extrapolated from single conditions, and "
                "conditions that were not given are drawn regardless of those that were."
            )
            warnings.warn(msg, UserWarning, stacklevel=4)

    def _checked_library_size(self, library_size: Any, n_cells: int) -> LibrarySizeKind | np.ndarray:
        if self._generates_log1p:
            if library_size is not None:
                msg = "`library_size` was given, but log-normalised values have none; leave it out."
                raise ValueError(msg)
            return np.ones(n_cells, dtype=np.float32)
        if library_size is None or isinstance(library_size, str):
            return self._checked_library_kind(library_size or self.architecture.library_size)
        totals = np.asarray(library_size, dtype=np.float32)
        if totals.ndim > 1 or (totals.ndim == 1 and len(totals) != n_cells):
            msg = f"`library_size` must be one number or one per cell ({n_cells}), but found shape {totals.shape}."
            raise ValueError(msg)
        if not np.isfinite(totals).all() or (totals < 1).any():
            msg = f"`library_size` must be at least 1 and finite, but found {totals.min()}."
            raise ValueError(msg)
        return np.broadcast_to(totals, n_cells)

    def _checked_library_kind(self, kind: str) -> LibrarySizeKind:
        if kind not in LIBRARY_SIZE_KINDS:
            msg = f"`library_size` {kind!r} is not known. {known_names(kind, LIBRARY_SIZE_KINDS)}"
            raise ValueError(msg)
        if not self.module.library_size.is_fitted:
            msg = "The model has no library-size statistics; give `library_size` as one number or one per cell."
            raise ValueError(msg)
        if kind == "latent" and not self.library_head_is_trained_:
            msg = "`library_size='latent'` needs a model that was trained here; published weights have no such head."
            raise ValueError(msg)
        return cast("LibrarySizeKind", kind)

    def _generate_block(
        self,
        codes: Tensor,
        generators: SampleGenerators,
        options: SamplingOptions,
        library_size: LibrarySizeKind | np.ndarray,
        n_wanted: int,
    ) -> Tensor:
        module = self.module
        z = module.sample_latents(
            generators.normal(*module.latent_shape),
            codes,
            guidance_scales=options.guidance_scales,
            sampler=options.sampler,
            n_steps=options.n_steps,
        )
        totals = self._draw_totals(library_size, codes, z, generators)
        return module.draw_cells(z, totals, generators.first(n_wanted))

    def _draw_totals(
        self, library_size: LibrarySizeKind | np.ndarray, codes: Tensor, z: Tensor, generators: SampleGenerators
    ) -> Tensor:
        uniform = generators.uniform()
        if isinstance(library_size, np.ndarray):
            return torch.tensor(library_size, device=z.device)
        return self.module.library_size.draw(library_size, codes, z, uniform)


def _plain_columns(var: pd.DataFrame) -> pd.DataFrame:
    """Keep the columns that can be saved as plain values: text, numbers and truth values."""
    plain = var.select_dtypes(include=["number", "bool", "object", "category", "string"]).copy()
    for name in plain.select_dtypes(include=["category", "string"]):
        plain[name] = plain[name].astype(object)
    plain = plain[[name for name in plain if plain[name].map(lambda v: isinstance(v, str | int | float | bool)).all()]]
    plain.index = plain.index.astype(str)
    return plain
