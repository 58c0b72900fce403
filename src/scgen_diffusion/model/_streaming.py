"""``generate_to``: cells streamed to a file, part by part, by processes that may be killed at any moment."""

from __future__ import annotations

import logging
import warnings
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from scvi import settings
from tqdm.auto import tqdm

from scgen_diffusion.data import (
    DamagedPartError,
    Extent,
    Part,
    Piece,
    ValueSummary,
    check_writable,
    checked_goal,
    is_whole_number,
    mark_synthetic,
    put_in_place,
    remove,
    remove_parts,
    sync,
    told,
    with_categories,
    write_cells,
)
from scgen_diffusion.generation import checked_batch_size, stack

from ._stream import Share, Stream

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import pandas as pd

    from scgen_diffusion.data import ConditionRequest, PartFolder, Turn
    from scgen_diffusion.generation import CellRequest
    from scgen_diffusion.module import InputValues

logger = logging.getLogger(__name__)

SUFFIXES = (".zarr", ".h5ad")
VALUES_PER_PART = 2**25  # entries of a part's matrix, zeros included: 128 MiB if it is dense
CELLS_PER_PART = 2**16  # at most
KEPT = "What is finished is kept there: make room, and call again with the same arguments to go on."


class StreamingMixin:
    """``generate_to`` for models that generate."""

    def _generate_to(
        self,
        path: str | os.PathLike[str],
        n_cells: int | None,
        condition: ConditionRequest,
        *,
        shard_size: int | None,
        rank: int,
        n_ranks: int,
        overwrite: bool,
        batch_size: int | None,
        show_progress: bool,
        **options: Any,
    ) -> Path:
        """Make this process' share of a request, and put all together if no other share is missing."""
        share, goal = Share(rank, n_ranks), checked_goal(path, SUFFIXES)
        batch_size = checked_batch_size(batch_size)
        cells_per_part = self._cells_per_part(shard_size)
        request = self._request(n_cells, condition, **options)
        seed = settings.seed if options["seed"] is None else options["seed"]
        identity = {
            **request.identity,
            "n_cells": request.n_cells,
            "seed": None if seed is None else int(seed),
            "shard_size": cells_per_part,
        }
        stream = Stream(goal, request, identity, cells_per_part, overwrite)
        if stream.is_finished():
            remove_parts(stream.folder)
            return goal
        check_writable(goal)
        with told("Making a folder for finished cells", goal.parent, lambda: 0, "Choose another folder."):
            stream, folder = stream.begin(alone=n_ranks == 1)
        if stream.is_finished():  # by now
            remove_parts(stream.folder)
            return goal
        try:
            self._make_parts(stream, folder, share, batch_size, show_progress=show_progress)
            values = self._put_together(stream, folder, share)
        except OSError:
            if not stream.is_finished():
                raise
            remove_parts(stream.folder)  # others have finished, and removed what this process was working on
            return goal
        if values is not None:
            self._check_result(values, request.output)
        return goal

    def _cells_per_part(self, shard_size: int | None) -> int:
        """Return how many cells are finished at once: whole blocks."""
        if shard_size is None:
            shard_size = min(max(VALUES_PER_PART // len(self.var_), 1), CELLS_PER_PART)
        elif not is_whole_number(shard_size) or shard_size < 1:
            msg = f"`shard_size` must be a whole number of at least 1, but found {shard_size!r}."
            raise ValueError(msg)
        return self._engine.round_to_blocks(int(shard_size))

    def _make_parts(
        self, stream: Stream, folder: PartFolder, share: Share, batch_size: int, *, show_progress: bool
    ) -> None:
        """Make the parts of a share that are not there yet."""
        numbers, finished = share.of(stream.n_parts), folder.finished
        n_cells = {number: len(stream.rows(number)) for number in numbers}
        with tqdm(
            total=sum(n_cells.values()),
            initial=sum(n for number, n in n_cells.items() if number in finished),
            desc="Generating",
            unit="cell",
            disable=not show_progress,
        ) as progress:
            for number in numbers:
                if number not in finished:
                    self._make_part(stream, folder, number, batch_size, progress)

    def _make_part(self, stream: Stream, folder: PartFolder, number: int, batch_size: int, progress: Any) -> None:
        rows, pieces = stream.rows(number), []
        for cells in self._engine.cells(stream.request, rows.start, rows.stop, batch_size=batch_size):
            pieces.append(cells)
            progress.update(len(cells.codes))
        part = Part(stack([piece.x for piece in pieces]), np.concatenate([piece.codes for piece in pieces]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what all cells together may not have
            self._check_result(ValueSummary.of(part.x), stream.request.output)
        n_parts_left = stream.n_parts - number
        with told(
            f"Writing part {number + 1} of {stream.n_parts}",
            folder.path,
            lambda: 2 * part.n_bytes * n_parts_left,
            KEPT,
        ):
            folder.write(number, part)

    def _put_together(self, stream: Stream, folder: PartFolder, share: Share) -> ValueSummary | None:
        """Make the file of all parts, if they are there and nobody else is at it, and say what values it holds."""
        missing = stream.n_parts - len(folder.finished)
        if missing:
            logger.info("%d of %d parts of %s are still to be made.", missing, stream.n_parts, stream.goal)
            return None
        while (turn := folder.take_turn(wait=share.rank == 0)) is not None:
            try:
                with turn.kept():
                    values = None if stream.is_finished() else self._write_whole(stream, folder, turn)
            except BaseException as error:
                turn.give_up()
                if not isinstance(error, Exception) or not (stream.is_finished() or turn.is_taken_over()):
                    raise
                logger.warning("Another process has taken over putting %s together.", stream.goal)
            else:
                folder.remove()
                return values
        return None

    def _write_whole(self, stream: Stream, folder: PartFolder, turn: Turn) -> ValueSummary:
        """Write the file beside its goal and give it the goal's name; make parts anew that turn out to be damaged."""
        place = folder.place_for_whole(stream.goal.suffix)
        try:
            with told(
                f"Writing {stream.goal.name}",
                stream.goal.parent,
                lambda: sum(folder.size(number) for number in folder.finished),
                KEPT,
            ):
                values = self._write_parts(stream, folder, place)
                sync(place)
                turn.insist()
                put_in_place(place, stream.goal, folder.path / f"{place.name}-replaced")
        except DamagedPartError as damage:
            remove(place)
            folder.discard(damage.number)
            self._make_part(stream, folder, damage.number, 1, tqdm(disable=True))
            return self._write_whole(stream, folder, turn)
        except BaseException:
            remove(place)
            raise
        return values

    def _write_parts(self, stream: Stream, folder: PartFolder, place: Path) -> ValueSummary:
        seen, summaries = self.conditions.seen(), []
        for number in range(stream.n_parts):
            values, codes = folder.summary(number)
            summaries.append(values)
            seen.add(codes)
        values = reduce(ValueSummary.together, summaries)
        request, dtypes = stream.request, seen.dtypes
        none = Part(self._no_cells(request.output), codes[:0])
        form = self._assemble(
            none.x, self._obs(request, none, range(0), dtypes), request.provenance, is_log1p=request.output == "log1p"
        )
        extent = Extent(request.n_cells, values.n_stored, stream.cells_per_part)
        write_cells(place, form, self._pieces(stream, folder, dtypes), extent, stream.identity)
        return values

    def _no_cells(self, output: InputValues) -> sp.csr_matrix | np.ndarray:
        x = np.zeros((0, len(self.var_)), dtype=np.float32)
        return sp.csr_matrix(x) if self.module.has_zeros(output) else x

    def _pieces(self, stream: Stream, folder: PartFolder, dtypes: Mapping[str, pd.CategoricalDtype]) -> Iterator[Piece]:
        for number in range(stream.n_parts):
            part = folder.read(number)
            yield Piece(part.x, self._obs(stream.request, part, stream.rows(number), dtypes))

    def _obs(
        self, request: CellRequest, part: Part, rows: range, dtypes: Mapping[str, pd.CategoricalDtype]
    ) -> pd.DataFrame:
        obs = self.conditions.to_obs(part.codes, request.names(rows.start, rows.stop))
        return mark_synthetic(with_categories(obs, dtypes), request.provenance)
