"""Cells on their way: noise becoming cells."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from scgen_diffusion.data import ValueSummary, is_whole_number, suggests_arguments
from scgen_diffusion.diffusion import TracingSampler
from scgen_diffusion.generation import OTHER_NAMES, GuidanceOptions

from ._generation import GenerationMixin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from torch import Tensor

    from scgen_diffusion.data import ConditionRequest
    from scgen_diffusion.diffusion import Sampler
    from scgen_diffusion.generation import CellGenerator, CellRequest, Composition, GuidanceScale

COLUMNS = ("cell", "frame", "time", "noise_level")


class Frames(NamedTuple):
    """Some cells on their way: times ``(frames,)``, profiles of states and of estimates ``(frames, cells, genes)``, and condition codes."""

    times: Tensor
    states: np.ndarray
    estimates: np.ndarray
    codes: np.ndarray


class SamplingPathMixin(GenerationMixin):
    """``get_sampling_path`` for models that generate by a sampler."""

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
        return self._sampling_path(
            n_cells,
            condition,
            n_frames=n_frames,
            guidance=GuidanceOptions(guidance_scale, composition, guidance_interval, guidance_rescale),
            sampler=sampler,
            n_steps=n_steps,
            seed=seed,
            show_progress=show_progress,
        )

    def _sampling_path(
        self,
        n_cells: int | None,
        condition: ConditionRequest,
        *,
        n_frames: int,
        guidance: GuidanceOptions,
        sampler: str | Sampler | None,
        n_steps: int | None,
        seed: int | None,
        show_progress: bool,
    ) -> AnnData:
        check_n_frames(n_frames)
        check_names_are_free(self.conditions.keys)
        request = self._request(
            n_cells,
            condition,
            guidance=guidance,
            sampler=sampler,
            n_steps=n_steps,
            library_size=None,
            seed=seed,
            output="log1p",
        )
        watched, engine, parts = watchable(request.options.sampler), self._engine, []
        watch = partial(frames_of_block, engine, request, sampler=watched, n_frames=n_frames)
        with tqdm(total=request.n_cells, desc="Generating", unit="cell", disable=not show_progress) as progress:
            for frames in engine.in_parallel(watch, range(0, request.n_cells, engine.block_size)):
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


def frames_of_block(
    engine: CellGenerator, request: CellRequest, first: int, *, sampler: TracingSampler, n_frames: int
) -> Frames:
    """Watch a block of cells, and read their states, and what the model takes the finished cells to be, as profiles."""
    block, module = engine.block(request, first, request.n_cells), engine.module
    denoiser, noise = module.denoiser(block.condition, request.options.guidance), module.draw_noise(block.generators)
    times, states = sampler.trace(
        denoiser, noise, n_frames=n_frames, n_steps=request.options.n_steps, generators=block.generators
    )
    estimates = [denoiser.estimate(x, t).data for t, x in zip(times[:-1], states[:-1], strict=True)]
    estimates.append(states[-1])  # nothing is left to be estimated

    def read(frames: Sequence[Tensor]) -> np.ndarray:
        return torch.stack([module.profiles_of(x)[: block.n_wanted].float().cpu() for x in frames]).numpy()

    return Frames(times, read(states), read(estimates), block.codes[: block.n_wanted])


def check_n_frames(n_frames: Any) -> None:
    """Raise unless there are at least two frames."""
    if not is_whole_number(n_frames) or n_frames < 2:
        msg = f"`n_frames` must be a whole number of at least 2, noise and cells, but found {n_frames!r}."
        raise ValueError(msg)


def check_names_are_free(keys: Sequence[str]) -> None:
    """Raise if a condition has the name of a column that tells about frames."""
    if taken := sorted(set(keys) & set(COLUMNS)):
        msg = f"`obs` of a sampling path has the columns {', '.join(COLUMNS)}, but {taken[0]!r} is a condition key of the model."
        raise ValueError(msg)


def watchable(sampler: Sampler) -> TracingSampler:
    """Return the sampler, unless it shows nothing of its way.

    Raises
    ------
    TypeError
        If it has no method ``trace``.
    """
    if not isinstance(sampler, TracingSampler):
        msg = (
            f"`sampler` {sampler!r} has no method `trace`, so that its way cannot be seen; derive it from "
            "scgen_diffusion.diffusion.SteppingSampler."
        )
        raise TypeError(msg)
    return sampler


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
