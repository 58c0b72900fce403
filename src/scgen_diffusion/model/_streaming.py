"""``generate_to`` and ``predict_perturbation_to``: cells streamed to a file, on any number of devices, with resumption.

A hidden folder beside the goal, named by the request, holds its seed and the finished parts. Lightning starts the
processes, each makes its own parts, and the first process joins all. Everything gets its name once it is complete, so a
process may be killed at any time: the same call makes only the parts that are missing.
"""

from __future__ import annotations

import errno
import glob
import os
import shutil
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from scvi import settings

from scgen_diffusion._arguments import check_count
from scgen_diffusion._compat import ending_by_signals, refusing_as_value_error
from scgen_diffusion._files import explain_failed_write, remove, write_atomically
from scgen_diffusion.data import digest_of, join_parts, part_of, read_record
from scgen_diffusion.train import RunOptions, quiet

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from lightning.pytorch.strategies import Strategy

    from ._jobs import Job

SUFFIXES = (".zarr", ".h5ad")
VALUES_PER_PART = 2**25  # entries of a part's matrix, zeros included: 128 MiB if it is dense
CELLS_PER_PART = 2**16  # limit for few genes
SEED = "seed"
N_DIGITS = 16  # of the names of folders
explain_failed_part = partial(explain_failed_write, advice="Run the same call again to resume.")


@dataclass(frozen=True)
class Stream:
    """The parts of a request that is written to a file.

    Parameters
    ----------
    goal
        Path of the file.
    identity
        What identifies the request.
    rows
        Rows of each part.
    overwrite
        Whether to replace a file of another request.
    """

    goal: Path
    identity: Mapping[str, Any]
    rows: Sequence[range]
    overwrite: bool

    @property
    def folder(self) -> Path:
        """Hidden folder of the finished parts and the seed; each request has its own."""
        digest = digest_of(sorted(self.identity.items()), len(self.rows[0]))
        return self.goal.with_name(f".{self.goal.name}.{digest[:N_DIGITS]}.parts")

    def path(self, number: int) -> Path:
        """Return the path of a part."""
        return self.folder / f"part-{number:06d}.h5ad"

    def is_joined(self) -> bool:
        """Return whether the finished file is at the goal.

        Raises
        ------
        FileExistsError
            If other cells are there and ``overwrite`` is False, or anything else is there.
        """
        if not self.goal.exists():
            return False
        record = read_record(self.goal)
        if record is None:
            msg = f"{self.goal} was not written by `generate_to`; such a file is never replaced. Choose another path."
            raise FileExistsError(msg)
        differing = [f"`{name}`" for name in {**record, **self.identity} if record.get(name) != self.identity.get(name)]
        if differing and not self.overwrite:
            msg = f"{self.goal} already exists. What differs: {', '.join(differing)}. To replace, set overwrite=True."
            raise FileExistsError(msg)
        return not differing

    def write(self, number: int, cells: AnnData) -> None:
        """Write a part."""
        content, what = part_of(cells), f"Writing part {number + 1} of {len(self.rows)}"
        with explain_failed_part(what, self.goal.parent), write_atomically(self.path(number)) as beside:
            beside.write_bytes(content)


class PartMaker(pl.LightningModule):
    """Makes the parts of a stream; each batch of Lightning is the number of a part.

    Parameters
    ----------
    stream
        Where the parts go.
    job
        The request, whose module Lightning moves to its device.
    show_progress
        Whether to show a progress bar.
    """

    def __init__(self, stream: Stream, job: Job, *, show_progress: bool) -> None:
        super().__init__()
        self.module = job.engine.module
        self.stream, self.job, self.show_progress = stream, job, show_progress

    def predict_dataloader(self) -> range:
        """Return the numbers of this process's parts; at least one, as otherwise Lightning would call no hook."""
        rank, n_processes = self.trainer.global_rank, self.trainer.world_size
        return range(rank, max(len(self.stream.rows), n_processes), n_processes)

    def on_predict_start(self) -> None:
        """Take the folder of parts, the seed and the names of cells from the first process."""
        is_first, job = self.trainer.is_global_zero, self.job
        self.stream, *begun = self.trainer.strategy.broadcast((self.stream, job.request.seed, job.identity))
        rows = self.stream.rows
        if not is_first:
            job.resume(*begun)
            with warnings.catch_warnings(action="ignore"):  # the first process warns
                job.judge()
        own = [number for number in self.predict_dataloader() if number < len(rows)]
        n_done = sum(len(rows[number]) for number in own if self.stream.path(number).exists())
        n_cells, shows = sum(len(rows[number]) for number in own), self.show_progress and is_first
        self.bar = job.bar(n_cells, show_progress=shows, n_done=n_done)

    def predict_step(self, number: int) -> int:
        """Make and write a part that is missing."""
        if number < len(self.stream.rows) and not self.stream.path(number).exists():
            cells = self.job.build(*self.job.cells(self.stream.rows[number], self.bar))
            self.stream.write(number, cells)
        return number

    def on_predict_end(self) -> None:
        """Let the first process join the parts once all are there."""
        self.bar.close()
        self.trainer.strategy.barrier()
        goal, paths = self.stream.goal, [self.stream.path(number) for number in range(len(self.stream.rows))]
        if self.trainer.is_global_zero and not self.stream.is_joined():
            n_bytes = sum(path.stat().st_size for path in paths)  # at most, as the file is compressed
            with explain_failed_part(f"Writing {goal.name}", goal.parent), write_atomically(goal) as beside:
                if shutil.disk_usage(goal.parent).free < n_bytes:  # HDF5 would crash
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                join_parts(paths, beside, self.stream.identity, self.job.merge)
        self.trainer.strategy.barrier()


def write_stream(
    path: str | os.PathLike[str],
    job: Job,
    shard_size: int | None,
    seed: int | None,
    show_progress: bool,
    overwrite: bool,
    accelerator: str,
    devices: int | list[int] | str,
    strategy: str | Strategy,
    num_nodes: int,
) -> Path:
    """Make the cells of a job part by part, write them to a file, and return its path."""
    module, n_cells, goal = job.engine.module, job.n_cells, Path(path).expanduser()
    if job.engine.largest:
        msg = "Cells of several modalities are made in memory: write what `generate` returns by `write_h5mu`."
        raise NotImplementedError(msg)
    if goal.suffix not in SUFFIXES:
        msg = f"`path` must end in {' or '.join(SUFFIXES)}, but found {str(goal)!r}."
        raise ValueError(msg)
    if shard_size is None:
        shard_size = min(max(VALUES_PER_PART // job.engine.n_genes, 1), CELLS_PER_PART)
    size = job.engine.round_to_blocks(check_count("shard_size", shard_size))
    rows = [range(start, min(start + size, n_cells)) for start in range(0, n_cells, size)]
    seed = settings.seed if seed is None else seed
    identity = {**job.identify(), "n_cells": n_cells, "seed": None if seed is None else int(seed)}
    stream = Stream(goal, identity, rows, overwrite)
    if not stream.is_joined():
        place = module.device
        if accelerator == devices == "auto":
            accelerator, devices = place.type, 1 if place.index is None else [place.index]
        options = RunOptions(accelerator, devices, strategy, enable_progress_bar=False)
        with refusing_as_value_error(), quiet():
            trainer = options.build_trainer(
                num_nodes=num_nodes, enable_checkpointing=False, inference_mode=False, benchmark=None
            )
        if trainer.is_global_zero:
            module.to(trainer.strategy.root_device)
            if not stream.folder.exists():
                with write_atomically(stream.folder) as beside:
                    beside.mkdir()
                    (beside / SEED).write_text(str(job.request.seed))
            job.resume(int((stream.folder / SEED).read_text()), job.identity)
            job.judge()
        maker = PartMaker(stream, job, show_progress=show_progress)
        try:
            with quiet(), ending_by_signals(trainer):
                trainer.predict(maker, return_predictions=False)
        finally:
            module.to(place)
    for parts in goal.parent.glob(f".{glob.escape(goal.name)}.{'?' * N_DIGITS}.parts"):  # of all requests for this file
        remove(parts)
    return goal
