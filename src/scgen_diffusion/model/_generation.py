"""Requests of ``generate`` and of sampling paths: checking them, judging them, and making their cells."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from scgen_diffusion._compat import respect_thread_limit
from scgen_diffusion.data import ValueSummary, resolve_seed, stack_rows
from scgen_diffusion.diffusion import Guidance

from ._end_of_training import record_of_short

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from anndata import AnnData
    from tqdm import tqdm

    from scgen_diffusion.data import ConditionRequest
    from scgen_diffusion.diffusion import GuidanceScale
    from scgen_diffusion.generation import CellRequest
    from scgen_diffusion.module import InputValues

    from ._base import DiffusionModel

FRAME_COLUMNS = ("cell", "frame", "time", "noise_level")  # columns of a sampling path's `obs`


@dataclass(frozen=True)
class Generation:
    """A checked request of ``generate``.

    Parameters
    ----------
    model
        The model that generates.
    request
        The request for the engine.
    """

    task: ClassVar[str] = "Generating"
    model: DiffusionModel
    request: CellRequest

    @classmethod
    def of(
        cls,
        model: DiffusionModel,
        n_cells: int | None,
        condition: ConditionRequest,
        *,
        guidance_scale: GuidanceScale | Guidance,
        output: InputValues,
        seed: int | None,
        **options: Any,
    ) -> Generation:
        """Check and resolve the arguments of ``generate``; ``options`` are those of :meth:`CellGenerator.request`."""
        options |= {"guidance": Guidance.of(guidance_scale), "output": output}
        model._check_ready_to_generate()
        respect_thread_limit()
        return cls(model, model._engine.request(n_cells, condition, seed=resolve_seed(seed), **options))

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self.request.n_cells

    def identify(self, _suffix: str) -> Mapping[str, Any]:
        """Return what the cells depend on, but for their number and the seed; any file can have them."""
        return self.request.identity

    def with_seed(self, seed: int) -> Generation:
        """Return the same request with another seed."""
        provenance = {**self.request.provenance, "seed": seed}
        return replace(self, request=replace(self.request, seed=seed, provenance=provenance))

    def judged(self) -> Generation:
        """Record how far combinations that training never saw can be trusted.

        Warns
        -----
        UserWarning
            Unless all are supported, and if the training of a stage was short.
        """
        model, judged = self.model, self.model._engine.verdicts(self.request)
        stages = sorted(model._stages_to_generate) if judged is None else model._stages
        provenance = {**self.request.provenance, **record_of_short(model, stages)}
        if judged is None:
            return replace(self, request=replace(self.request, provenance=provenance))
        provenance["verdict"], lacking = judged
        return replace(self, request=replace(self.request, provenance=provenance, lacking=lacking))

    def make(self, rows: range, batch_size: int | None, progress: tqdm, assemble: Callable[..., Any]) -> Any:
        """Make the cells of some rows, and build them by ``assemble``; the first row must begin a block."""
        model, request, output, parts = self.model, self.request, self.request.sampling.output, []
        for x, codes in model._engine.cells(request, rows, batch_size):
            parts.append((x, codes))
            progress.update(len(codes))
        x, codes = stack_rows([x for x, _ in parts]), np.concatenate([codes for _, codes in parts])
        model._warn_of_odd_values(ValueSummary.of(x), output)
        numbers = request.codes.numbers_of(np.arange(rows.start, rows.stop))
        obs = model.conditions.to_obs(codes, request.names(rows.start, rows.stop), numbers)
        obsm = model.conditions.to_obsm(codes, obs.index)
        return assemble(x, obs, request.provenance, is_log1p=output == "log1p", obsm=obsm)

    def make_path(self, n_frames: int, progress: tqdm) -> Any:
        """Make the states of all cells on their way from noise, frame by frame."""
        model, request, parts = self.model, self.request, []
        for frames in model._engine.frames(request, n_frames):
            parts.append(frames)
            progress.update(len(frames.codes))
        times, codes = parts[0].times, np.concatenate([part.codes for part in parts])
        states = np.concatenate([part.states for part in parts], axis=1)
        estimates = np.concatenate([part.estimates for part in parts], axis=1)
        model._warn_of_odd_values(ValueSummary.of(states[-1]), "log1p")
        identity = {**request.identity, "values": model._outputs[0]}
        if model._outputs[0] == "counts":
            identity["library_size"] = model.architecture.library_size
        names = replace(request, identity=identity).names(0, request.n_cells)  # the same names as in `generate`
        cells = model.conditions.to_obs(codes, names, request.codes.numbers_of(np.arange(request.n_cells)))
        obs = pd.concat([cells] * len(times))
        obs["cell"] = pd.Categorical(obs.index, categories=cells.index)
        obs["frame"] = np.repeat(np.arange(len(times)), len(cells))
        obs["time"] = np.repeat(times.float().cpu().numpy(), len(cells))
        levels = model.module.path.sigma(times.double().cpu()).abs()  # zero at the end, and not its negative
        obs["noise_level"] = np.repeat(levels.float().numpy(), len(cells))
        obs.index = obs["cell"].astype(str) + "_frame_" + obs["frame"].astype(str)
        layers = {"estimate": np.concatenate(estimates)}  # frame by frame
        provenance = {**request.provenance, "n_frames": int(n_frames)}
        obsm = model.conditions.to_obsm(np.tile(codes, (len(times), 1)), obs.index)
        return model._assemble(np.concatenate(states), obs, provenance, is_log1p=True, layers=layers, obsm=obsm)

    def make_part(self, rows: range, batch_size: int | None, progress: tqdm) -> AnnData:
        """Make a part of a stream."""
        return self.make(rows, batch_size, progress, self.model._assemble_part)

    def merge(self, parts: Iterator[dict[str, Any]]) -> Mapping[str, Any]:
        """Return the ``uns`` of the file: that of any part."""
        return next(parts)
