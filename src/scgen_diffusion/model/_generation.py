"""Generating cells: what every model of the package has in common."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from scgen_diffusion.data import ValueSummary, resolve_seed, suggests_arguments
from scgen_diffusion.generation import (
    OTHER_NAMES,
    CellGenerator,
    GuidanceOptions,
    LibrarySizes,
    checked_batch_size,
    stack,
)

from ._diagnostics import check_summary_finite
from ._registration import RegistrationMixin

if TYPE_CHECKING:
    from anndata import AnnData

    from scgen_diffusion.data import ConditionRequest
    from scgen_diffusion.diffusion import Sampler
    from scgen_diffusion.generation import CellRequest, Composition, GuidanceScale
    from scgen_diffusion.module import InputValues

COLUMNS = ("cell", "frame", "time", "noise_level")  # in `obs` of a sampling path


class GenerationMixin(RegistrationMixin):
    """``generate`` and ``get_sampling_path`` for models whose cells come out of noise, block by block."""

    architecture: Any
    library_head_is_trained_: bool
    default_sampler: str = "midpoint"

    @property
    def _default_output(self) -> InputValues:
        """What the cells of ``generate`` hold unless something else is asked for."""
        return "log1p"

    @abstractmethod
    def _check_ready_to_generate(self) -> None:
        """Raise unless the model can generate."""

    def _check_result(self, values: ValueSummary, output: InputValues) -> None:
        """Raise, or warn, if generated cells cannot be right."""
        check_summary_finite(values)

    @property
    def _library_sizes(self) -> LibrarySizes:
        is_fitted = self.module.library_size.is_fitted
        return LibrarySizes(self.architecture.library_size, is_fitted, self.library_head_is_trained_)

    @property
    def _engine(self) -> CellGenerator:
        """What turns requests into cells; it sees no AnnData."""
        name = type(self).__name__
        return CellGenerator(self.module, self.conditions, self._library_sizes, name, self.default_sampler)

    def _request(
        self, n_cells: int | None, condition: ConditionRequest, *, seed: int | None, **options: Any
    ) -> CellRequest:
        """Check what a user asks for, and resolve it; ``options`` are those of :meth:`CellGenerator.request`."""
        self._check_ready_to_generate()
        return self._engine.request(n_cells, condition, seed=resolve_seed(seed), **options)

    def _generate(
        self,
        n_cells: int | None,
        condition: ConditionRequest,
        *,
        batch_size: int | None,
        show_progress: bool,
        **options: Any,
    ) -> AnnData:
        """Make all cells of a request."""
        request, batch_size = self._request(n_cells, condition, **options), checked_batch_size(batch_size)
        with tqdm(total=request.n_cells, desc="Generating", unit="cell", disable=not show_progress) as progress:
            return self._make_cells(request, 0, request.n_cells, batch_size, progress)

    def _make_cells(self, request: CellRequest, start: int, stop: int, batch_size: int, progress: tqdm) -> AnnData:
        """Make the cells of a range, which starts with a block, and put them together."""
        parts = []
        for cells in self._engine.cells(request, start, stop, batch_size=batch_size):
            parts.append(cells)
            progress.update(len(cells.codes))
        x, codes = stack([part.x for part in parts]), np.concatenate([part.codes for part in parts])
        self._check_result(ValueSummary.of(x), request.output)
        obs = self.conditions.to_obs(codes, request.names(start, stop))
        return self._assemble(x, obs, request.provenance, is_log1p=request.output == "log1p")

    @suggests_arguments(OTHER_NAMES)
    def get_sampling_path(
        self,
        n_cells: int | None = None,
        condition: ConditionRequest = None,
        *,
        n_frames: int = 11,
        guidance_scale: GuidanceScale = 1.0,
        composition: Composition | None = None,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float = 0.0,
        sampler: str | Sampler | None = None,
        n_steps: int | None = None,
        seed: int | None = None,
        show_progress: bool = False,
    ) -> AnnData:
        r"""Return cells on their way from noise, as :func:`scgen_diffusion.pl.sampling_path` draws it.

        The cells are those that :meth:`generate` makes of the same arguments.

        Parameters
        ----------
        n_cells, condition, guidance_scale, composition, guidance_interval, guidance_rescale, sampler, n_steps, seed, show_progress
            See :meth:`generate`.
        n_frames
            How many moments of the way to keep, noise and cells included: at most one more than the sampler's steps, of
            which they are chosen evenly. An adaptive sampler has any number, equally spaced in time. For a film take more
            steps than for cells, for example ``n_steps=40, n_frames=41``.

        Returns
        -------
        AnnData
            ``n_frames`` times the cells, dense: all cells of frame 0, which is noise, then all of frame 1, up to the
            finished cells.

            - ``X``: each cell's state as a log-normalised profile. A latent is decoded to the profile of its expected
              counts, from which :meth:`generate` draws. A state in gene space is read as the finished one is; the last
              frame is what :meth:`generate` returns.
            - ``layers["estimate"]``: what the model takes the finished cell to be at that moment, read alike.
            - ``obs``: the conditions, and ``cell`` (its name in the result of :meth:`generate`), ``frame``, ``time`` from 0
              (noise) to 1 (cells), and ``noise_level`` :math:`\sigma_t`.
            - ``uns["scgen_diffusion"]``: as of :meth:`generate`.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        TypeError
            For a sampler of one's own that cannot be watched.
        ValueError
            For numbers of frames that do not fit the steps, and for what :meth:`generate` refuses.
        """
        if taken := sorted(set(self.conditions.keys) & set(COLUMNS)):
            msg = f"`obs` of a sampling path has the columns {', '.join(COLUMNS)}, but {taken[0]!r} is a condition key of the model."
            raise ValueError(msg)
        request = self._request(
            n_cells,
            condition,
            guidance=GuidanceOptions(guidance_scale, composition, guidance_interval, guidance_rescale),
            sampler=sampler,
            n_steps=n_steps,
            library_size=None,
            seed=seed,
            output="log1p",
        )
        parts = []
        with tqdm(total=request.n_cells, desc="Generating", unit="cell", disable=not show_progress) as progress:
            for frames in self._engine.frames(request, n_frames):
                parts.append(frames)
                progress.update(len(frames.codes))
        times, codes = parts[0].times, np.concatenate([part.codes for part in parts])
        states = np.concatenate([part.states for part in parts], axis=1)
        estimates = np.concatenate([part.estimates for part in parts], axis=1)
        self._check_result(ValueSummary.of(states[-1]), "log1p")
        identity = {**request.identity, "values": self._default_output}
        if self._default_output == "counts":
            identity["library_size"] = self.architecture.library_size
        generated = replace(request, identity=identity)  # what `generate` makes of the same arguments
        cells = self.conditions.to_obs(codes, generated.names(0, request.n_cells))
        levels = self.module.path.sigma(times.double()).abs()  # no negative zero
        obs = obs_of_frames(cells, times.float().cpu().numpy(), levels.float().cpu().numpy())
        layers = {"estimate": np.concatenate(estimates)}  # frame by frame, below each other
        provenance = {**request.provenance, "n_frames": int(n_frames)}
        return self._assemble(np.concatenate(states), obs, provenance, is_log1p=True, layers=layers)


def obs_of_frames(cells: pd.DataFrame, times: np.ndarray, noise_levels: np.ndarray) -> pd.DataFrame:
    """Repeat the cells' table frame by frame, and say which cell, frame and time each row is."""
    n_frames = len(times)
    obs = pd.concat([cells] * n_frames)
    obs["cell"] = pd.Categorical(obs.index, categories=cells.index)
    obs["frame"] = np.repeat(np.arange(n_frames), len(cells))
    obs["time"] = np.repeat(times, len(cells))
    obs["noise_level"] = np.repeat(noise_levels, len(cells))
    obs.index = obs["cell"].astype(str) + "_frame_" + obs["frame"].astype(str)
    return obs.rename_axis(None)
