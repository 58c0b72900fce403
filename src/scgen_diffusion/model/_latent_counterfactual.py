"""Counterfactuals of SCLDM: latents carried to noise and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scgen_diffusion.diffusion import FixedStepSampler, FlowTransport

from ._counterfactual import CounterfactualMixin
from ._guidance import GuidanceOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from torch import Tensor

    from scgen_diffusion.data import ConditionRequest
    from scgen_diffusion.diffusion import Sampler, Transport
    from scgen_diffusion.module import LibrarySizeKind

    from ._counterfactual import ControlBlock, CounterfactualOptions
    from ._guidance import Composition, GuidanceScale


class LatentCounterfactualMixin(CounterfactualMixin):
    """``predict_perturbation`` by the probability flow of latents."""

    _generates_counts: bool

    def predict_perturbation(
        self,
        adata_control: AnnData | None = None,
        condition: ConditionRequest = None,
        *,
        indices: Sequence[int] | None = None,
        given_keys: Sequence[str] | None = None,
        strength: float = 1.0,
        guidance_scale: GuidanceScale = 1.0,
        composition: Composition | None = None,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float = 0.0,
        sampler: str | Sampler | None = None,
        n_steps: int | None = None,
        library_size: LibrarySizeKind | float | Sequence[float] | None = None,
        sample: bool = True,
        batch_size: int | None = None,
        seed: int | None = None,
        show_progress: bool = False,
    ) -> AnnData:
        """Predict what given cells would have been under another condition.

        A cell's latent is carried back to noise along the probability flow under the cell's own condition, and from there to a
        latent under the new one, so that what the condition does not say of the cell is kept. Under its own condition a cell
        comes back as its reconstruction (:meth:`get_reconstruction`, of the same ``sample`` and ``seed``). See the user guide,
        "Counterfactuals".

        Parameters
        ----------
        adata_control
            Cells with values of all condition keys in ``obs``; default: those of the model.
        condition
            What the cells shall become.

            - A mapping from key to a value for all cells, or to a list with one value per cell. Of keys left out every cell keeps
              its own value.
            - A table with one row per cell and keys as columns.
            - None: every cell's own condition.
        indices
            Which of the cells; default: all.
        given_keys
            Condition keys that the model is told of, both ways; default: all. A key that stays the same, such as the cell type, can
            be left out. What it says of a cell then stays in the noise, which helps where the asked combination was never seen. Only
            for models that learned these keys without the others, with
            ``condition_strategy="additive"``, or ``"mutually_exclusive"`` for one key.
        strength
            How far back to go, from just above 0 (cells hardly change) to 1 (all the way to noise).
        guidance_scale, composition, guidance_interval, guidance_rescale
            Guidance on the way to the new condition, as in :meth:`generate`. The way back has none.
        sampler
            ``"euler"``, ``"midpoint"`` or ``"heun"``.
        n_steps
            Steps of the sampler, each way.
        library_size
            Total counts of the predicted cells, as in :meth:`generate`; default: every cell keeps its own.
        sample
            True: start from a latent drawn from the cell's posterior, and draw counts. False: expected counts, starting from the
            posterior's mean.
        batch_size
            Cells read at a time, rounded up to whole blocks (of 128 on a CPU). Does not change the result.
        seed
            Seed of the draws; default ``scvi.settings.seed``, or else a random one. What is drawn for a cell depends on it and
            on the cell's row number alone.
        show_progress
            Whether to show a progress bar.

        Returns
        -------
        AnnData
            One cell per given cell, in the same order, with its name and ``obs``: the keys asked for have the new values, and
            ``obs["<key>_of_control"]`` those before. Counts (CSR) in ``X``, expected ones dense; with a Gaussian head,
            log-normalised values. How they were made is in ``uns["scgen_diffusion"]``.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        KeyError
            For cells without a column that the model has as a condition, or without the layer.
        ValueError
            For unknown keys and values, cells without a value, other genes or kinds of values, and lengths that do not fit.
        """
        return self._predict_perturbation(
            adata_control,
            condition,
            indices=indices,
            given_keys=given_keys,
            strength=strength,
            guidance=GuidanceOptions(guidance_scale, composition, guidance_interval, guidance_rescale),
            sampler=sampler,
            n_steps=n_steps,
            library_size=library_size,
            sample=sample,
            batch_size=batch_size,
            seed=seed,
            show_progress=show_progress,
            output="counts" if self._generates_counts else "log1p",
        )

    def _transport_of(self, sampler: Sampler) -> Transport:
        if not isinstance(sampler, FixedStepSampler):
            msg = f"`sampler` {sampler!r} cannot be run backwards; choose 'euler', 'midpoint' or 'heun'."
            raise ValueError(msg)
        return FlowTransport(sampler.step, sampler.default_n_steps)

    def _counterfactual_block(self, block: ControlBlock, options: CounterfactualOptions) -> Tensor:
        module, generators = self.module, block.generators
        posterior = module.inference(block.x)["posterior"]
        z = posterior.draw(generators.normal(*module.latent_shape)) if options.sample else posterior.mean
        z = module.unstandardise(self._transported(module.standardise(z), block, options))
        totals = self._counterfactual_totals(block, options, z)
        if options.sample:
            return module.draw_cells(z, totals, generators.first(block.n_wanted))
        return module.likelihood.mean(**module.generative(z, totals[:, None]))[: block.n_wanted]
