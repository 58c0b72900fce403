"""Looking at what a network sees while cells are generated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scgen_diffusion.diffusion import Denoiser, DormandPrinceSampler, GuidedField, Sampler

from ._white_box_cells import place_time
from ._white_box_measures import GroupMoments

if TYPE_CHECKING:
    from torch import Tensor

    from scgen_diffusion.diffusion import Field, Generators, Path

    from ._white_box_measures import Label

    Measure = Callable[[Tensor, Tensor, Tensor], dict[Label, Tensor]]

Watch = Callable[["Tensor", "Tensor", "Tensor", int], None]


@dataclass(frozen=True)
class WatchedSampler:
    """A sampler that tells what it asks the network for, and changes nothing.

    Parameters
    ----------
    sampler
        The sampler.
    watch
        Called as ``watch(x_t, network_time, condition, step)`` before every evaluation, numbered from 0 in each block of
        cells.
    """

    sampler: Sampler
    watch: Watch

    def __call__(
        self, field: Field, x: Tensor, *, n_steps: int | None = None, generators: Generators | None = None
    ) -> Tensor:
        """Carry noise ``x (n, ...)`` to data as the sampler does."""
        if not isinstance(field, Denoiser) or not isinstance(field.field, GuidedField):
            msg = f"`field` must be a Denoiser around a GuidedField, but found {type(field).__name__}."
            raise TypeError(msg)
        guided = field.field
        steps = count()

        def watched(x_t: Tensor, t: Tensor) -> Tensor:
            self.watch(x_t, t, guided.condition, next(steps))
            return guided(x_t, t)

        return self.sampler(replace(field, field=watched), x, n_steps=n_steps, generators=generators)


@dataclass
class SamplingRecord:
    """Statistics at each evaluation of the network, over all blocks of cells.

    Parameters
    ----------
    measure
        ``(x_t, t, condition) ->`` one number per cell and label.
    names
        Names of the groups.
    key
        Which condition key the groups are of; None: there is one group.
    n_cells
        Cells that were asked for. The last block is filled up with others, which come last and do not count.
    """

    measure: Measure
    names: Sequence[str]
    key: int | None
    n_cells: int
    times: list[float] = field(init=False, default_factory=list)
    steps: list[GroupMoments] = field(init=False, default_factory=list)

    def add(self, x_t: Tensor, t: Tensor, condition: Tensor, step: int) -> None:
        """Add what the network is asked for, for a block of cells."""
        if step == len(self.steps):
            self.times.append(float(t.flatten()[0]))
            self.steps.append(GroupMoments(len(self.names)))
        n = min(self.n_cells - int(self.steps[step].n.sum()), len(x_t))
        measured = self.measure(x_t[:n], t.expand(len(x_t))[:n], condition[:n])
        groups = np.zeros(n, dtype=int) if self.key is None else condition[:n, self.key].cpu().numpy()
        self.steps[step].add(measured, groups)

    def to_frame(self, path: Path) -> pd.DataFrame:
        """Return one row per step, group and label."""
        levels = [place_time(path, time).noise_level for time in self.times]
        rows = zip(self.steps, self.times, levels, strict=True)
        tables = [
            moments.to_frame(self.names, step=step, time=time, noise_level=level)
            for step, (moments, time, level) in enumerate(rows)
        ]
        return pd.concat(tables, ignore_index=True)


def check_steps_are_shared(sampler: Sampler) -> None:
    """Raise for a sampler whose steps differ from one block of cells to the next."""
    if isinstance(sampler, DormandPrinceSampler):
        msg = (
            "The steps of 'dopri5' differ from block to block of cells, so that they cannot be averaged; choose a sampler with "
            "fixed steps."
        )
        raise ValueError(msg)
