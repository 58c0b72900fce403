"""SCLDM: the latent diffusion model of single cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import torch

from scgen_diffusion._arguments import warn_user
from scgen_diffusion.data import ContinuousKey
from scgen_diffusion.module import InputValues, SCLDMModule, build_architecture
from scgen_diffusion.train import (
    RECIPES,
    AutoencoderPlan,
    LatentData,
    PairData,
    PriorPlan,
    TransportPlan,
    describe_predicted_totals,
    encode_cells,
    perturbation_groups,
    standardise_latents,
    start_autoencoder,
)

from ._autoencoder import AutoencoderModel
from ._reference import load_reference
from ._training import Run, digest_of, stage_seed

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence

    import pandas as pd
    from anndata import AnnData

    from scgen_diffusion.module import SCLDMArchitecture
    from scgen_diffusion.train import (
        AutoencoderRecipe,
        LatentCache,
        PriorRecipe,
        Recipe,
        StageResult,
        TrainingCells,
        TransportRecipe,
    )

    from ._counterfactual import ControlCells

LATENTS_IN_MEMORY = 2 << 30  # bytes
LATENTS_IN_MEMORY_WITH_FILES = 64 << 20  # whoever leaves cells in files wants little in memory
AUTOENCODER_STAYS = "The autoencoder stays that of the reference; load_query_data(..., trainable='all') trains it too."
NO_PERTURBATION = (
    "The transport goes from unperturbed cells to perturbed ones, and changes nothing else; but some of these cells are perturbed already, "
    "or shall change in other keys too."
)


class SCLDM(AutoencoderModel):
    """Latent diffusion model of single cells.

    A permutation-invariant autoencoder turns the set of a cell's expressed genes into a few latent tokens and back into the
    parameters of a count distribution. A diffusion transformer learns the distribution of the latents under any number of
    conditions by flow matching. New cells are noise, carried to a latent by the transformer and decoded.

    Parameters
    ----------
    adata
        Cells registered with :meth:`setup_anndata`. For RNA together with further modalities see :class:`MULTISCLDM`.
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
    >>> import scgen_diffusion as scgd
    >>> adata = scgd.datasets.pbmc68k_reduced()
    >>> scgd.model.SCLDM.setup_anndata(adata, layer="counts", condition_keys=["cell_type"])
    >>> model = scgd.model.SCLDM(adata)
    >>> model.train()  # doctest: +SKIP
    >>> synthetic = model.generate(
    ...     1_000, condition={"cell_type": "CD19+ B"}
    ... )  # doctest: +SKIP
    """

    _module_cls: type = SCLDMModule
    _counterfactual_ways: ClassVar = {
        "method": ("transport", "inversion"),
        "residuals": ("own", "new"),
        "sample": (True, False),
    }
    default_sampler = "midpoint"
    architecture: SCLDMArchitecture
    _stages = ("autoencoder", "prior", "transport")
    _stages_to_generate = frozenset({"autoencoder", "prior"})

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
        if self._input_values == "log1p" and self.architecture.likelihood != "gaussian":
            msg = "Log-normalised values (`values='log1p'`) need `likelihood='gaussian'`; counts are needed for any other."
            raise ValueError(msg)
        self.module = self._build_module()
        self._describe_cells(adata)
        self.trained_stages_ = []
        self.library_head_is_trained_ = False
        self.init_params_ = self._get_init_params(locals())

    def train_autoencoder(
        self,
        max_epochs: int | None = None,
        *,
        train_size: float | None = None,
        validation_size: float | None = None,
        batch_size: int | None = None,
        plan_kwargs: Mapping[str, Any] | None = None,
        datamodule: TrainingCells | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        compile: bool = False,
        **trainer_kwargs: Any,
    ) -> None:
        """Train the autoencoder alone; the other stages, which knew other latents, are void then. Parameters as in :meth:`train`."""
        if self._keeps_autoencoder:
            raise ValueError(AUTOENCODER_STAYS)
        self._train(
            "train_autoencoder",
            lambda: ["autoencoder"],
            trainer_kwargs,
            max_epochs=max_epochs,
            train_size=train_size,
            validation_size=validation_size,
            batch_size=batch_size,
            plan_kwargs=plan_kwargs,
            datamodule=datamodule,
            checkpoint_dir=checkpoint_dir,
            compile=compile,
        )

    def train_prior(
        self,
        max_epochs: int | None = None,
        *,
        batch_size: int | None = None,
        plan_kwargs: Mapping[str, Any] | None = None,
        datamodule: TrainingCells | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        compile: bool = False,
        **trainer_kwargs: Any,
    ) -> None:
        """Train the prior alone, on latents computed once, with the split of the autoencoder. Parameters as in :meth:`train`."""
        self._check_can_read_cells()
        self._train(
            "train_prior",
            lambda: ["prior"],
            trainer_kwargs,
            keep_split=True,
            max_epochs=max_epochs,
            batch_size=batch_size,
            plan_kwargs=plan_kwargs,
            datamodule=datamodule,
            checkpoint_dir=checkpoint_dir,
            compile=compile,
        )

    def train_transport(
        self,
        max_epochs: int | None = None,
        *,
        control_values: Mapping[str, Any] | None = None,
        batch_size: int | None = None,
        plan_kwargs: Mapping[str, Any] | None = None,
        datamodule: TrainingCells | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train what carries control cells to perturbed ones, see :meth:`predict_perturbation`; the autoencoder must be trained.

        Control and perturbed cells are paired by optimal transport of their latents, within groups of cells that have the same classes and
        sets in all other keys. A flow learns to go from one to the other, where the prior goes there from noise. See the user guide,
        "Perturbations".

        Parameters
        ----------
        max_epochs
            Default: from the number of cells.
        control_values
            What unperturbed cells have, a value for each key that perturbs: ``{"condition": "control"}``, or
            ``{"drug": "none", "dose": 0.0}``. Default: the ``control_values`` of ``setup_anndata``.
        batch_size, datamodule, checkpoint_dir, **trainer_kwargs
            As in :meth:`train`.
        plan_kwargs
            Options of the :class:`~scgen_diffusion.train.TransportRecipe`.

        Raises
        ------
        RuntimeError
            If the autoencoder is not trained.
        ValueError
            Without values of unperturbed cells, for unknown ones, or without a group that has both control and perturbed cells.
        """
        self._check_can_read_cells()
        self._train(
            "train_transport",
            lambda: ["transport"],
            trainer_kwargs,
            keep_split=True,
            max_epochs=max_epochs,
            batch_size=batch_size,
            plan_kwargs=plan_kwargs,
            datamodule=datamodule,
            checkpoint_dir=checkpoint_dir,
            control_values=control_values,
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

    def _train_autoencoder(self, recipe: AutoencoderRecipe, run: Run, *, compile: bool) -> StageResult:
        if "autoencoder" not in self.trained_stages_:
            start_autoencoder(self.module, self._cells, self.train_indices_)
        if compile:
            self.module.encoder.compile()
            self.module.decoder.compile()
        self._note_trained(*{"autoencoder"} & {*self.trained_stages_})  # the latents that the others knew are gone
        result = run(AutoencoderPlan(self.module, recipe, seed=stage_seed()), self._cell_data(recipe))
        self._note_trained("autoencoder")
        return result

    def _train_prior(self, recipe: PriorRecipe, run: Run, *, compile: bool) -> StageResult:
        with self._encode_cells() as cache:
            self._describe_cells_of(cache)
            if compile:
                self.module.prior.compile()
            split = self.train_indices_, self.validation_indices_
            data = LatentData(cache, *split, recipe.batch_size, recipe.smallest_epoch)
            result = run(PriorPlan(self.module, recipe, seed=stage_seed() + 1), data, self._autoencoder_digest)
            describe_predicted_totals(self.module, cache)
        self._note_trained(*self.trained_stages_, "prior")
        self.library_head_is_trained_ = True
        return result

    def _train_transport(
        self,
        recipe: TransportRecipe,
        run: Run,
        *,
        control_values: Mapping[str, Any] | None = None,
        compile: bool = False,  # the transport is too small for it
    ) -> StageResult:
        control = dict(self.registry_["setup_args"]["control_values"] if control_values is None else control_values)
        if not control:
            msg = "What is unperturbed? Give `control_values`, here or to setup_anndata, such as {'condition': 'control'}."
            raise ValueError(msg)
        code = self.conditions.encode(control, 1)
        groups = self._perturbation_groups(control)
        if not groups:
            msg = f"No perturbed training cells have control cells, {control}, with the same values of the other keys."
            raise ValueError(msg)
        n_perturbed = int((~self._are_control(control)).sum())
        n_paired = sum(len(group.perturbed) for group in groups)
        if n_paired < n_perturbed:
            msg = (
                f"{n_perturbed - n_paired} of {n_perturbed} perturbed cells have no control cells with the same values of the other keys, "
                "and teach the transport nothing. If keys such as the donor go with the perturbation, leave them out of the conditions."
            )
            warn_user(msg)
        seed = stage_seed() + 2
        with self._encode_cells() as cache:
            if "prior" not in self.trained_stages_:
                self._describe_cells_of(cache)
            with torch.random.fork_rng(devices=[]):  # a resumed run has drawn less from the global state by now
                torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
                transport = self.module.add_transport()
            transport.start_from(torch.from_numpy(code[0]).to(self.device))
            data = PairData(cache, groups, recipe, recipe.steps_per_epoch(len(self.train_indices_)))
            plan = TransportPlan(self.module, recipe, seed=seed)
            result = run(plan, data, self._autoencoder_digest, sorted(control.items()))
        self._note_trained(*self.trained_stages_, "transport")
        return result

    def _due_stages(self) -> Sequence[str]:
        control = self.registry_["setup_args"]["control_values"]
        stages = ["prior"] if self._keeps_autoencoder else ["autoencoder", "prior"]
        return [*stages, "transport"] if control and self._perturbation_groups(control) else stages

    def _why_left_out(self, stage: str) -> str:
        if stage == "transport":
            return (
                "It needs `control_values`, told to `setup_anndata`, and perturbed cells that have control cells with the same "
                "values of the other keys; `train_transport` trains it alone."
            )
        return AUTOENCODER_STAYS if stage == "autoencoder" and self._keeps_autoencoder else super()._why_left_out(stage)

    def _recipe(self, stage: str) -> Recipe:
        return getattr(RECIPES[self._recipe_name], stage)

    def _encode_cells(self) -> LatentCache:
        in_files = self._file_cells is not None
        limit = LATENTS_IN_MEMORY_WITH_FILES if in_files else LATENTS_IN_MEMORY
        return encode_cells(self.module, self._cells, limit)

    def _describe_cells_of(self, cache: LatentCache) -> None:
        """Keep what generating needs to know of the cells: library sizes and the latents' scale."""
        self.module.library_size.fit(cache.arrays["log_total"], cache.arrays["condition"])
        if not self._keeps_scale:
            standardise_latents(self.module, cache)

    def _perturbation_groups(self, control: Mapping[str, Any]) -> list[Any]:
        """Group the training cells by perturbation. Numbers that do not perturb, such as an age, tell no groups apart: hardly two cells share one."""
        rows = self.train_indices_
        codes = self._registered_codes[rows]
        discrete = [key.name for key in self.conditions.by_key if not isinstance(key, ContinuousKey)]
        others = self._columns_of([name for name in discrete if name not in control])
        return perturbation_groups(
            rows, self._are_control(control), codes[:, self._columns_of(control)], codes[:, others]
        )

    def _are_control(self, control: Mapping[str, Any]) -> np.ndarray:
        """Tell which training cells are unperturbed, ``(cells,)``."""
        columns = self._columns_of(control)
        asked = self.conditions.encode(control, 1)[:, columns]
        return np.isclose(self._registered_codes[self.train_indices_][:, columns], asked).all(1)

    def _columns_of(self, names: Iterable[str]) -> list[int]:
        slices = (self.conditions.columns(name) for name in names)
        return [column for found in slices for column in range(found.start, found.stop)]

    @property
    def _autoencoder_digest(self) -> str:
        """Tell the autoencoder's weights, by which the latents were computed, from others."""
        parts = (self.module.encoder, self.module.decoder, self.module.likelihood)
        return digest_of(*(tensor.cpu().numpy() for part in parts for tensor in part.state_dict().values()))

    def _build_module(self) -> SCLDMModule:
        return self._module_cls(
            self.summary_stats.n_vars,
            self._condition_specs,
            input_values=self._input_values,
            architecture=self.architecture,
            key_groups=self._key_groups,
        )

    @property
    def _outputs(self) -> tuple[InputValues, ...]:
        return ("log1p",) if self.architecture.likelihood == "gaussian" else ("counts",)

    def _check_ready_to_generate(self) -> None:
        if not self.is_trained_:
            missing = "train_prior()" if "autoencoder" in self.trained_stages_ else "train()"
            msg = f"The model cannot generate yet; call {missing} first."
            raise RuntimeError(msg)

    def _counterfactual_method(self, cells: ControlCells, method: str | None) -> str:
        own, codes = self.module.condition_tensor(cells.own), self.module.condition_tensor(cells.codes)
        has_transport = "transport" in self.trained_stages_
        if method == "transport" and not has_transport:
            msg = "The model has no transport yet; call train_transport() first, or choose method='inversion'."
            raise RuntimeError(msg)
        transport: Any = self.module.transport
        fits = has_transport and transport.explains(own, codes)
        if method == "transport" and not fits:
            msg = f"{NO_PERTURBATION} Choose method='inversion'."
            raise ValueError(msg)
        if method != "inversion" and fits:
            return "transport"
        self._check_ready_to_generate()
        if method is None and has_transport and (cells.own != cells.codes).any():
            warn_user(f"Predicted by inversion. {NO_PERTURBATION}")
        return "inversion"
