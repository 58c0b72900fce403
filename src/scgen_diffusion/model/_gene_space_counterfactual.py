"""Counterfactuals of the gene-space models: profiles led by the noise of given cells."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from scgen_diffusion.data import suggests_arguments
from scgen_diffusion.diffusion import DDIMSampler, DDPMSampler, FixedStepSampler, FlowTransport, NoiseTransport
from scgen_diffusion.generation import OTHER_NAMES, GuidanceOptions
from scgen_diffusion.module import library_features, to_counts

from ._counterfactual import CounterfactualMixin
from ._docs import with_shared_texts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from torch import Tensor

    from scgen_diffusion.data import ConditionRequest
    from scgen_diffusion.diffusion import Sampler, Transport
    from scgen_diffusion.generation import Composition, GuidanceScale
    from scgen_diffusion.module import LibrarySizeKind

    from ._counterfactual import ControlBlock, CounterfactualOptions

DEFAULT_WAY = DDIMSampler(eta=1.0, default_n_steps=50)


class GeneSpaceCounterfactualMixin(CounterfactualMixin):
    """``predict_perturbation`` by the noise that leads to given profiles."""

    @suggests_arguments(OTHER_NAMES)
    @with_shared_texts
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
        counts: bool = False,
        library_size: LibrarySizeKind | float | Sequence[float] | None = None,
        batch_size: int | None = None,
        seed: int | None = None,
        show_progress: bool = False,
    ) -> AnnData:
        """Predict what given cells would have been under another condition.

        Noise is drawn that leads to the cell in ancestral sampling under the cell's own condition, step by step, and sampling is
        done anew under the new condition with the same noise, so that what the condition does not say of the cell is kept. Under
        its own condition a cell comes back as it is. The probability flow itself has no way back from exact zeros, which all
        noises of a wide range lead to. See the user guide, "Counterfactuals".

        Parameters
        ----------
        %(control)s
        %(control_kept)s
        strength
            How far back to go, from just above 0 (cells hardly change) to 1 (all the way to noise).
        guidance_scale, composition, guidance_interval, guidance_rescale
            Guidance on the way to the new condition, as in :meth:`generate`. The way that leads to the cell has none.
        sampler
            ``"ddpm"`` (default) draws fresh noise at every step, ``"ddim"`` one noise for all; ``DDIMSampler(eta=...)`` is
            between. For flow matching also ``"euler"``, ``"midpoint"`` and ``"heun"``, which follow the probability flow.
        n_steps
            Steps of the sampler; default: 50.
        counts
            Whether to turn the profiles into whole counts.
        library_size
            Total counts of the predicted cells, if ``counts`` are asked for, as in :meth:`generate`; default: every cell keeps
            its own.
        %(control_work)s

        Returns
        -------
        AnnData
            %(counterpart)s Values in ``X`` as :meth:`generate` gives them. How they were made is in
            ``uns["scgen_diffusion"]``.

        Raises
        ------
        %(control_refused)s
        """
        return self._predict_perturbation(
            adata_control,
            condition,
            indices=indices,
            given_keys=given_keys,
            strength=strength,
            guidance=GuidanceOptions(guidance_scale, composition, guidance_interval, guidance_rescale),
            sampler=DEFAULT_WAY if sampler is None else sampler,
            n_steps=n_steps,
            library_size=self._library_size_for(library_size, counts=counts),
            sample=True,
            batch_size=batch_size,
            seed=seed,
            show_progress=show_progress,
            output="counts" if counts else "log1p",
        )

    @abstractmethod
    def _library_size_for(self, library_size: Any, *, counts: bool) -> Any:
        """Raise unless a library size fits what is asked for."""

    def _transport_of(self, sampler: Sampler) -> Transport:
        if isinstance(sampler, FixedStepSampler):
            return FlowTransport(sampler.step, sampler.default_n_steps)
        if not isinstance(sampler, DDIMSampler | DDPMSampler):
            msg = f"`sampler` {sampler!r} cannot be led by given cells; choose 'ddpm', 'ddim' or DDIMSampler(eta=...)."
            raise ValueError(msg)
        eta = sampler.eta if isinstance(sampler, DDIMSampler) else 1.0
        return NoiseTransport(eta, sampler.default_n_steps)

    def _counterfactual_block(self, block: ControlBlock, options: CounterfactualOptions) -> Tensor:
        module = self.module
        data = module.inference(block.x)["data"]
        profile = module.decode(self._transported(data, block, options))
        if options.sampling.output == "log1p":
            return profile[: block.n_wanted]
        profile = module.cut_zeros(profile)
        totals = self._counterfactual_totals(block, options, library_features(profile))
        return to_counts(profile, totals)[: block.n_wanted]
