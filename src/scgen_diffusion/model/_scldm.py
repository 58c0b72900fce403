"""SCLDM: the latent diffusion model of single cells."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch

from scgen_diffusion._arguments import warn_user
from scgen_diffusion.data import digest_of
from scgen_diffusion.diffusion import FLOW_SAMPLERS
from scgen_diffusion.module import SCLDM_ARCHITECTURES, SCLDMModule
from scgen_diffusion.nn import Number
from scgen_diffusion.train import (
    RECIPES,
    AutoencoderPlan,
    LatentData,
    PairData,
    PerturbationFlowPlan,
    PriorPlan,
    add_absent_effects,
    correct_effects,
    fit_changes,
    fit_shift,
    latents_of,
    learn_later_effects,
    standardise_latents,
    start_autoencoder,
    start_effects,
)

from ._encoding import AutoencoderModel
from ._reference import load_reference
from ._training_pairs import TrainingPairs

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from scgen_diffusion.module import SCLDMArchitecture
    from scgen_diffusion.nn import InputValues
    from scgen_diffusion.train import (
        Recipe,
        StagePlan,
        TensorTable,
    )

    from ._training import StageRun

AUTOENCODER_STAYS = "The reference's autoencoder is kept; load_query_data(..., trainable='all') trains it too."


class SCLDM(AutoencoderModel):
    """Latent diffusion model of single cells.

    An autoencoder compresses a cell's expressed genes into a few latent tokens, and decodes them into the parameters of
    a count distribution. A diffusion transformer learns the distribution of the latents under any conditions by flow
    matching. To make new cells, it carries noise to latents, and the decoder draws counts.

    Parameters
    ----------
    adata
        Cells registered with :meth:`setup_anndata`. For several modalities see :class:`MULTISCLDM`.
    registry
        Registry of such cells, to build the model without them.
    size
        ``"default"``: the recommended architecture, see the user guide. ``"published"``: the architecture of the paper.
    **architecture
        Single parts and sizes; :class:`~scgen_diffusion.module.SCLDMArchitecture` has them all. The main ones:

        - ``n_latent_tokens=4``, ``n_latent=8``: a cell's latent has 4 times 8 numbers.
        - ``likelihood="negative_binomial"``, of counts; ``"gaussian"`` of log-normalised values.
        - ``dispersion="gene"``; ``"gene-cell"``: one for each gene and cell.
        - ``outliers=True``: a few counts may be far larger than expected.
        - ``n_factors=64``, ``decoder_width=128``, ``pooling_width=256``: sizes of the autoencoder.
        - ``prior_width=64``, ``prior_n_layers=4``: sizes of the diffusion transformer.
        - ``condition_strategy="joint"``; ``"additive"`` allows guidance by single keys.

    Raises
    ------
    TypeError
        For an unknown option.
    ValueError
        For a value that is not allowed.

    References
    ----------
    scLDM: arXiv 2511.02986. The user guide lists the differences.

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

    _architectures = SCLDM_ARCHITECTURES
    _prediction_methods: ClassVar = ("perturbation_flow", "inversion")
    default_sampler = "midpoint"
    architecture: SCLDMArchitecture
    _stages = ("autoencoder", "prior", "perturbation_flow")
    _stages_to_generate = frozenset({"autoencoder", "prior"})

    def train_autoencoder(
        self,
        max_epochs: int | None = None,
        *,
        train_size: float | None = None,
        validation_size: float | None = None,
        **options: Any,
    ) -> None:
        """Train only the autoencoder, after which the other stages must be retrained.

        Parameters and options as in :meth:`train`.
        """
        if self._keeps_autoencoder:
            raise ValueError(AUTOENCODER_STAYS)
        self._train(["autoencoder"], max_epochs, (train_size, validation_size), **options)

    def train_prior(self, max_epochs: int | None = None, **options: Any) -> None:
        """Train only the prior, with the autoencoder's split of the cells. Options as in :meth:`train`."""
        self._check_has_autoencoder()
        self._train(["prior"], max_epochs, **options)

    def train_perturbation_flow(
        self,
        max_epochs: int | None = None,
        *,
        control_values: Mapping[str, Any] | None = None,
        match_keys: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        """Train only the flow, the way from control to perturbed cells that :meth:`predict_perturbation` uses.

        Both of its parts learn from control and perturbed cells that have the same classes and sets in all other keys.
        Four flows learn to go from one to the other, paired by optimal transport. A Gaussian process learns the shift
        between their means. The more the flows agree on a cell, the more they count. The autoencoder must be trained.
        At the start, each group of cells (at most 100) is predicted from all others, to learn how wrong predictions
        are. At the end, predicted and measured groups (at most 500) are compared, to learn which mean changes the
        decoder misses. See the user guide, "Predicting perturbations".

        Parameters
        ----------
        max_epochs
            Number of epochs. Default: depends on the number of cells.
        control_values
            The value of unperturbed cells for each key that perturbs: ``{"condition": "control"}``, or
            ``{"drug": "none", "dose": 0.0}``. Default: the ``control_values`` of ``setup_anndata``.
        match_keys
            Columns of ``obs`` within which cells are paired, such as ``["donor"]``: a perturbed cell is then paired
            with control cells of its own donor. They need not be conditions, and new cells for
            :meth:`predict_perturbation` need not have them.
        **options
            As in :meth:`train`; ``plan_kwargs`` are those of the
            :class:`~scgen_diffusion.train.PerturbationFlowRecipe`.

        Raises
        ------
        TypeError
            If ``control_values`` is no mapping.
        RuntimeError
            If the autoencoder is not trained, or cells of MULTISCLDM lack a modality and the prior is not trained.
        KeyError
            If a match key is not a column of ``obs``.
        ValueError
            If ``control_values`` are missing or unknown, a match key perturbs or lacks labels, or no group has both
            control and perturbed cells.

        Warns
        -----
        UserWarning
            If perturbed cells have no control cells to be paired with; it names their groups.
        """
        self._check_has_autoencoder()
        of_stage = {"control_values": control_values, "match_keys": match_keys}
        self._train(["perturbation_flow"], max_epochs, of_stage=of_stage, **options)

    @classmethod
    def from_reference_checkpoint(
        cls,
        path: str | os.PathLike[str],
        *,
        var_names: Sequence[str],
        categories: Mapping[str, Sequence[str]],
        ema: bool = False,
        **architecture: Any,
    ) -> Self:
        """Build a model from weights of the published scLDM code. Nothing in the file is executed.

        The weights do not tell total counts: :meth:`generate` needs ``library_size``.

        Parameters
        ----------
        path
            A Lightning ``.ckpt`` or a ``.safetensors`` file.
        var_names
            Genes in the order of the weights.
        categories
            Classes of each condition key, in the order of the weights.
        ema
            Whether to generate with the averaged weights; the file must have them.
        **architecture
            What cannot be read from the weights: ``condition_strategy`` (default ``"joint"``), the numbers of attention
            heads ``n_heads`` (8), ``n_heads_cross`` (4) and ``prior_n_heads`` (8), and ``padded_length``, the number of
            gene tokens in training. In the published encoder padding takes part in the attention, so latents depend on
            it. Default: the length of the longest cell of a batch.

        Raises
        ------
        ValueError
            If the file is damaged or unsafe, or genes or categories do not fit the weights.
        """
        model = load_reference(cls, path, var_names=var_names, categories=categories, ema=ema, **architecture)
        model._record_trained("autoencoder", "prior")
        return model

    def _train_autoencoder(self, run: StageRun) -> StagePlan:
        if "autoencoder" not in self.trained_stages_:
            start_autoencoder(self.module, self._cells, self.train_indices_)
            start_effects(self.module, self._cells, self.train_indices_)
        self._record_trained(*self.trained_stages_[:1])  # the other stages need the old latents
        self.module.perturbation_flow = self.module.absent_effects = None
        plan = self._fit(run, AutoencoderPlan, self._cell_data())
        correct_effects(self.module, self._cells, self.train_indices_)
        self._record_trained("autoencoder")
        return plan

    def _train_prior(self, run: StageRun) -> StagePlan:
        if self.reference_ is None or self.reference_["trainable"] != "new_conditions":
            self.module.absent_effects = None  # those of the prior before
        latents = latents_of(self.module, self._cells)
        self._fit_to_latents(latents)
        data = LatentData(latents, self.train_indices_, self.validation_indices_)
        plan = self._fit(run, PriorPlan, data, self._autoencoder_digest)
        if self.reference_ is None:  # else the cells of the reference, which have other combinations, are gone
            sampler = FLOW_SAMPLERS[self.default_sampler]
            add_absent_effects(self.module, self._cells, self._seen_indices, sampler, run.bar)
        elif self.reference_["trainable"] != "all":  # else they learn with the autoencoder
            learn_later_effects(self.module, self._cells, self.train_indices_, self._new_values, run.bar)
        self._record_trained(*self.trained_stages_, "prior")
        return plan

    def _train_perturbation_flow(
        self,
        run: StageRun,
        *,
        control_values: Mapping[str, Any] | None = None,
        match_keys: Sequence[str] | None = None,
    ) -> StagePlan:
        control = self.registry_["setup_args"]["control_values"] if control_values is None else control_values
        if not control:
            msg = "Give `control_values`, here or in `setup_anndata`, such as {'condition': 'control'}."
            raise ValueError(msg)
        pairs = TrainingPairs(self.conditions, self._cells, self.train_indices_, control, match_keys)
        pairs.check()
        latents = latents_of(self.module, self._cells)
        if "prior" not in self.trained_stages_:
            self._fit_to_latents(latents)
        with torch.random.fork_rng(devices=[]):  # a resumed run has drawn fewer global random numbers so far
            torch.set_rng_state(torch.Generator().manual_seed(run.seed).get_state())
            flow = self.module.add_perturbation_flow()
        flow.start_from(torch.from_numpy(pairs.code).to(self.device))
        fit_shift(self.module, latents, pairs.groups)
        data = PairData(latents, pairs.groups, run.recipe.steps_per_epoch(len(self.train_indices_)))
        matches = [list(pairs.labels), pairs.matched] if len(pairs.labels.columns) else []
        parts = [(key, pairs.code[None, own]) for key, own in self.conditions.parts if key.name in control]
        values = {key.name: key.decode(code)[0] for key, code in parts}
        depends_on = self._autoencoder_digest, sorted(control.items()), *matches
        how = {"control_values": values, "match_keys": list(pairs.labels)}
        plan = self._fit(run, PerturbationFlowPlan, data, *depends_on, **how)
        fit_changes(self.module, self._cells, pairs.groups, run.bar)
        self._record_trained(*self.trained_stages_, "perturbation_flow")
        return plan

    @property
    def _keeps_autoencoder(self) -> bool:
        return self.reference_ is not None and self.reference_["trainable"] != "all"

    def _due_stages(self) -> Sequence[str]:
        control = self.registry_["setup_args"]["control_values"]
        stages = ["prior"] if self._keeps_autoencoder else ["autoencoder", "prior"]
        if not control:
            return stages
        pairs = TrainingPairs(self.conditions, self._cells, self.train_indices_, control)
        of_reference = {*self.trained_stages_} - {*self.cut_short_} if self._keeps_autoencoder else set()
        if "perturbation_flow" in of_reference:
            parts = zip(self.conditions.by_key, self._new_values, strict=True)
            if not pairs.groups or not any(new.any() for key, new in parts if key.name in control):
                return stages
            warn_user(
                "The perturbation flow is trained again, as the reference's does not know all perturbations of the new "
                "cells. It forgets the others: predict them with the reference. `train_prior` keeps the reference's."
            )
        if pairs.fault:
            warn_user(f"The perturbation flow is not trained. {pairs.fault}")
            return stages
        return [*stages, "perturbation_flow"]

    def _recipe(self, stage: str) -> Recipe:
        recipe = RECIPES[self._recipe_name][stage]
        if stage == "autoencoder" and self._recipe_name == "default":
            recipe = recipe.for_cells(len(self.train_indices_), self.module.n_features)
        if stage == "autoencoder" and self.reference_ is not None:  # keep its KL weight
            return replace(recipe, kl_weight=self.recipes_.get("autoencoder", {}).get("kl_weight", recipe.kl_weight))
        is_first = self._recipe_name == "default" and self.reference_ is None
        if stage == "prior" and is_first and set(self._condition_encodings) == {Number()}:
            return recipe.for_numbers()
        return recipe

    def _fit_to_latents(self, latents: TensorTable) -> None:
        """Store library sizes and the scale of the latents, which ``generate`` needs."""
        rows = torch.from_numpy(self._seen_indices)
        self.module.library_size.fit(latents.arrays["log_total"][rows])
        # after fine-tuning began, or with a perturbation flow, networks have learned in this scale
        if self.reference_ is None and "perturbation_flow" not in self.trained_stages_:
            standardise_latents(self.module, latents, self._seen_indices)

    @property
    def _autoencoder_digest(self) -> str:
        """Digest of the autoencoder's weights, which the latents depend on."""
        parts = (self.module.encoder, self.module.decoder, self.module.likelihood)
        return digest_of(*(tensor.cpu().numpy() for part in parts for tensor in part.state_dict().values()))

    def _build_module(self) -> SCLDMModule:
        if self._input_values == "log1p" and self.architecture.likelihood != "gaussian":
            msg = (
                "Log-normalised values (`values='log1p'`) need `likelihood='gaussian'`; other likelihoods need counts. "
                "SCRDIT and WBDIT take such values as they are."
            )
            raise ValueError(msg)
        n_genes, encodings, values = self.summary_stats.n_vars, self._condition_encodings, self._input_values
        return SCLDMModule(n_genes, encodings, input_values=values, architecture=self.architecture)

    @property
    def _outputs(self) -> tuple[InputValues, ...]:
        return (self.module.output_values,)

    def _prediction_method(self, own: np.ndarray, new: np.ndarray, names: pd.Index, method: str | None) -> str:
        has_flow, unfit = "perturbation_flow" in self.trained_stages_, ""
        if method == "perturbation_flow" and not has_flow:
            msg = "`method` is 'perturbation_flow', but the model has none; call train_perturbation_flow() first."
            raise RuntimeError(msg)
        if has_flow and method != "inversion":
            if not (unfit := self._unfit_for_perturbation_flow(own, new, names)):
                return "perturbation_flow"
            if method == "perturbation_flow":
                msg = f"{unfit} Give only cells that fit, or choose method='inversion'."
                raise ValueError(msg)
        self._check_ready_to_generate()
        if not has_flow and method is None and self.conditions.are_unseen(new).any():
            unfit = "The model has no perturbation flow: call `train_perturbation_flow(control_values=...)`."
        if unfit and (own != new).any():
            warn_user(f"Predicted by inversion, which is less accurate and has no support. {unfit}")
        return "inversion"

    def _unfit_for_perturbation_flow(self, own: np.ndarray, new: np.ndarray, names: pd.Index) -> str:
        """Say which of the cells the perturbation flow cannot predict, and why; empty if it can predict all."""
        flow: Any = self.module.perturbation_flow
        unfit = flow.unfit(self.module.condition_tensor(own), self.module.condition_tensor(new))
        rows = np.flatnonzero(unfit.cpu().numpy())
        if not len(rows):
            return ""
        return (
            "The perturbation flow starts from cells with the `control_values` and changes no other key, which "
            f"does not fit {len(rows):,} of {len(own):,} cells (such as {names[rows[0]]!r})."
        )
