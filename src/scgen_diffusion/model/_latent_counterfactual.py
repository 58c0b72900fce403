"""Counterfactuals of SCLDM: latents carried over by a trained transport, or to noise and back."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Literal, TypeAlias, cast, get_args

from scgen_diffusion.data import known_names, suggests_arguments, warn_user
from scgen_diffusion.generation import OTHER_NAMES, GuidanceOptions

from ._counterfactual import CounterfactualMixin
from ._docs import with_shared_texts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from scgen_diffusion.data import ConditionRequest
    from scgen_diffusion.diffusion import Sampler
    from scgen_diffusion.generation import Composition, GuidanceScale
    from scgen_diffusion.module import LibrarySizeKind

    from ._counterfactual import ControlCells

CounterfactualMethod: TypeAlias = Literal["transport", "inversion"]
Residuals: TypeAlias = Literal["own", "new"]


NO_PERTURBATION = (
    "The transport goes from unperturbed cells to perturbed ones, and changes nothing else; but some of these cells are perturbed already, "
    "or shall change in other keys too."
)


class LatentCounterfactualMixin(CounterfactualMixin):
    """``predict_perturbation`` by flows of latents."""

    trained_stages_: list[str]

    @property
    @abstractmethod
    def _generates_counts(self) -> bool:
        """Whether cells come out as counts."""

    @suggests_arguments(OTHER_NAMES)
    @with_shared_texts
    def predict_perturbation(
        self,
        adata_control: AnnData | None = None,
        condition: ConditionRequest = None,
        *,
        method: CounterfactualMethod | None = None,
        residuals: Residuals = "own",
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

        A cell's latent is carried over in one of two ways (``method``), and the cell is changed as the means of its genes change
        (``residuals``). Under its own condition a cell comes back as it is, or, with new residuals or expected values, as its
        reconstruction (:meth:`get_reconstruction`, of the same ``sample`` and ``seed``). See the user guide, "Perturbations".

        Parameters
        ----------
        %(control)s
        method
            - ``"transport"``: a flow that was trained to start at control cells (:meth:`train_transport`) goes from the cell's latent
              to the perturbed one. The cells must be unperturbed, and keep their values of all keys that do not perturb.
            - ``"inversion"``: the latent is carried back to noise along the probability flow under the cell's own condition, and from there to a
              latent under the new one, so that what the condition does not say of the cell is kept.

            Default: the transport if it is trained and that is what is asked for, else the inversion.
        residuals
            What the latent does not explain of a cell. ``"own"``: kept; molecules are taken away from the cell or added to it as the
            means of the genes fall or rise. ``"new"``: drawn anew with all counts.
        %(control_kept)s
        strength
            How far to go, from just above 0 (cells hardly change) to 1: on the way to the perturbed cells, or back to noise.
        guidance_scale, composition, guidance_interval, guidance_rescale
            Guidance on the way from noise to the new condition, as in :meth:`generate`. The way back has none, nor has the transport.
        sampler
            ``"euler"``, ``"midpoint"`` or ``"heun"``; of the transport also ``"dopri5"``.
        n_steps
            Steps of the sampler, each way.
        library_size
            Total counts of the predicted cells, as in :meth:`generate`; default: every cell keeps its own.
        sample
            True: start from a latent drawn from the cell's posterior, and draw counts. False: expected counts, starting from the
            posterior's mean.
        %(control_work)s

        Returns
        -------
        AnnData
            %(counterpart)s Counts (CSR) in ``X``, expected ones dense; with a Gaussian head,
            log-normalised values. How they were made is in ``uns["scgen_diffusion"]``.

        Raises
        ------
        %(control_refused)s
        """
        return self._predict_perturbation(
            adata_control,
            condition,
            method=method,
            residuals=_checked_residuals(residuals),
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

    def _method_for(self, cells: ControlCells, method: str | None) -> CounterfactualMethod:
        if method is not None and method not in get_args(CounterfactualMethod):
            msg = f"`method` {method!r} is not known. {known_names(method, get_args(CounterfactualMethod))}"
            raise ValueError(msg)
        if method == "transport":
            self._check_transport_fits(cells)
        elif method == "inversion" or not ("transport" in self.trained_stages_ and self._is_perturbation(cells)):
            self._check_ready_to_generate()
            if method is None and "transport" in self.trained_stages_ and (cells.own != cells.codes).any():
                warn_user(f"Predicted by inversion. {NO_PERTURBATION}")
            return "inversion"
        return "transport"

    def _check_transport_fits(self, cells: ControlCells) -> None:
        if "transport" not in self.trained_stages_:
            msg = "The model has no transport yet; call train_transport() first, or choose method='inversion'."
            raise RuntimeError(msg)
        if not self._is_perturbation(cells):
            msg = f"{NO_PERTURBATION} Choose method='inversion'."
            raise ValueError(msg)

    def _is_perturbation(self, cells: ControlCells) -> bool:
        """Tell whether all cells are unperturbed, and asked to change by a perturbation alone."""
        own, codes = self.module.condition_tensor(cells.own), self.module.condition_tensor(cells.codes)
        return self.module.transport.explains(own, codes)


def _checked_residuals(residuals: str) -> Residuals:
    if residuals not in get_args(Residuals):
        msg = f"`residuals` {residuals!r} is not known. {known_names(residuals, get_args(Residuals))}"
        raise ValueError(msg)
    return cast("Residuals", residuals)
