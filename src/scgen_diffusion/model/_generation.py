"""Generating cells: what every model of the package has in common."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scvi.model.base import BaseModelClass
from torch import Tensor
from tqdm.auto import tqdm

from scgen_diffusion.data import (
    ConditionRequest,
    Conditions,
    ValueSummary,
    is_whole_number,
    known_names,
    resolve_seed,
    warn_user,
)
from scgen_diffusion.diffusion import Generators, Sampler, block_size

from ._blocks import in_parallel, rows_of, stack
from ._diagnostics import check_finite, check_summary_finite
from ._request import (
    CellRequest,
    SamplingOptions,
    checked_batch_size,
    default_steps,
    describe_condition,
    describe_library_size,
)
from ._request_identity import identity_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pandas as pd
    from anndata import AnnData

    from scgen_diffusion.data import RequestedCodes
    from scgen_diffusion.module import InputValues

    from ._blocks import Rows
    from ._guidance import GuidanceOptions

N_UNSEEN = 20  # combinations that provenance names at most


@dataclass(frozen=True)
class Block:
    """Cells that the network sees together.

    Parameters
    ----------
    rows
        Row of each cell in the request. The last block is filled up with cells that nobody asked for.
    n_wanted
        How many cells, the first of the block, were asked for.
    codes
        Condition codes, ``(block, columns)``.
    generators
        Random numbers of the cells.
    """

    rows: np.ndarray
    n_wanted: int
    codes: np.ndarray
    generators: Generators


class GenerationMixin(BaseModelClass):
    """``generate`` for models whose cells come out of noise, block by block.

    A subclass says how one block of cells is made (:meth:`_generate_block`), and which condition classes there are.
    """

    var_: pd.DataFrame
    default_sampler: str | Sampler = "midpoint"

    @property
    def _default_output(self) -> InputValues:
        """What the cells of ``generate`` hold unless something else is asked for."""
        return "log1p"

    @property
    @abstractmethod
    def conditions(self) -> Conditions:
        """Condition keys, their classes, and their joint distribution in the training cells."""

    @abstractmethod
    def _generate_block(
        self,
        condition: Tensor,
        generators: Generators,
        options: SamplingOptions,
        library_size: Any,
        n_wanted: int,
    ) -> Tensor:
        """Make the first cells ``(n_wanted, genes)`` of a block under ``condition (block, columns)``."""

    @abstractmethod
    def _condition_tensor(self, codes: np.ndarray) -> Tensor:
        """Turn condition codes ``(n, columns)`` into what the module takes."""

    @abstractmethod
    def _assemble(
        self,
        x: Rows,
        obs: pd.DataFrame,
        provenance: Mapping[str, Any],
        *,
        is_log1p: bool,
        layers: Mapping[str, np.ndarray] | None = None,
    ) -> AnnData:
        """Put cells ``(cells, genes)`` into the form in which the model returns them."""

    @abstractmethod
    def _check_ready_to_generate(self) -> None:
        """Raise unless the model can generate."""

    def _check_request(self, codes: np.ndarray) -> list[str]:
        """Warn of what lies outside the training cells, and name it for the provenance."""
        unseen, extrapolated = self.conditions.unseen(codes), self.conditions.extrapolated(codes)
        if unseen:
            combinations = (
                f"The combination {unseen[0]} does"
                if len(unseen) == 1
                else f"{len(unseen)} requested combinations, for example {unseen[0]}, do"
            )
            warn_user(
                f"{combinations} not occur in the training cells. Library sizes are extrapolated from single conditions, "
                "and conditions that were not given are drawn regardless of those that were."
            )
        if extrapolated:
            warn_user(f"Numbers outside the range of the training cells were asked for: {', '.join(extrapolated)}.")
        return [*unseen[:N_UNSEEN], *extrapolated]

    @abstractmethod
    def _checked_library_size(self, library_size: Any, n_cells: int, output: InputValues) -> str | np.ndarray:
        """Resolve a user's library size: the name of a distribution, or one total per cell."""

    def _check_result(self, values: ValueSummary, output: InputValues) -> None:
        """Raise, or warn, if generated cells cannot be right."""
        check_summary_finite(values)

    @property
    def _block_size(self) -> int:
        return block_size(self.device)

    def _round_to_blocks(self, batch_size: int) -> int:
        return self._block_size * -(-batch_size // self._block_size)

    @property
    @abstractmethod
    def _samplers(self) -> Mapping[str, Sampler]:
        """Samplers that the model's path admits, by name."""

    def _is_sparse(self, output: InputValues) -> bool:
        """Tell whether cells hold so many zeros that they are kept sparse."""
        return output == "counts"

    def _generate(
        self,
        n_cells: int | None,
        condition: ConditionRequest,
        *,
        batch_size: int | None,
        show_progress: bool,
        **options: Any,
    ) -> AnnData:
        """Make the cells of a request (``options`` are those of :meth:`_request`) and put them together."""
        request = self._request(n_cells, condition, **options)
        step = self._round_to_blocks(checked_batch_size(batch_size))
        parts: list[tuple[Rows, np.ndarray]] = []
        with tqdm(total=request.n_cells, desc="Generating", unit="cell", disable=not show_progress) as progress:
            for start in range(0, request.n_cells, step):
                for part in self._parts_of(request, start, min(start + step, request.n_cells)):
                    parts.append(part)
                    progress.update(len(part[1]))
        x, codes = stack([x for x, _ in parts]), np.concatenate([codes for _, codes in parts])
        self._check_result(ValueSummary.of(x), request.output)
        obs = self.conditions.to_obs(codes, request.names(0, request.n_cells))
        return self._assemble(x, obs, request.provenance, is_log1p=request.output == "log1p")

    def _request(
        self,
        n_cells: int | None,
        condition: ConditionRequest,
        *,
        guidance: GuidanceOptions,
        sampler: str | Sampler | None,
        n_steps: int | None,
        library_size: Any,
        seed: int | None,
        output: InputValues,
    ) -> CellRequest:
        """Check what a user asks for, and resolve it."""
        self._check_ready_to_generate()
        codes = self.conditions.request(condition, n_cells)
        outside = self._check_request(codes.distinct())
        sizes = self._checked_library_size(library_size, len(codes), output)
        options = self._sampling_options(sampler, n_steps, guidance, output)
        seed = resolve_seed(seed)
        provenance = self._provenance(condition, options, sizes, seed) | {"outside_training": outside}
        identity = identity_of(self, codes, options, sizes, provenance)
        return CellRequest(codes, options, sizes, seed, identity, provenance)

    def _rows_of(self, request: CellRequest, start: int, stop: int) -> tuple[Rows, np.ndarray]:
        """Make the cells of a range, which starts with a block, and say which codes they got."""
        rows, codes = zip(*self._parts_of(request, start, stop), strict=True)
        return stack(list(rows)), np.concatenate(codes)

    def _parts_of(self, request: CellRequest, start: int, stop: int) -> Iterator[tuple[Rows, np.ndarray]]:
        """Make the cells of a range, which starts with a block, block by block, several at a time."""
        self.module.eval()
        make = partial(self._rows_of_block, request, stop=stop)
        return in_parallel(make, range(start, stop, self._block_size), self.module.device)

    @torch.inference_mode()
    def _rows_of_block(self, request: CellRequest, first: int, *, stop: int) -> tuple[Rows, np.ndarray]:
        """Make the cells of a block that lie before ``stop``, and say which codes they got."""
        block = self._block(request.codes, first, stop, request.seed)
        sizes = request.library_size
        totals = sizes[block.rows] if isinstance(sizes, np.ndarray) else sizes
        condition = self._condition_tensor(block.codes)
        values = self._generate_block(condition, block.generators, request.options, totals, block.n_wanted)
        rows = rows_of(values, sparse=self._is_sparse(request.output))
        check_finite(rows)  # here, for the device has been waited for, and later blocks would be made in vain
        return rows, block.codes[: block.n_wanted]

    def _block(self, codes: RequestedCodes, first: int, stop: int, seed: int) -> Block:
        """Return a whole block of cells, of which those before ``stop`` are wanted, and draw the conditions left open."""
        cells = np.arange(first, first + self._block_size)
        generators = Generators(seed, range(first, first + len(cells)), self.module.device)
        rows = np.minimum(cells, len(codes) - 1)
        filled = self.conditions.fill(codes[rows], generators.uniform().cpu().numpy())
        return Block(rows, min(stop - first, len(cells)), filled, generators)

    def _blocks(self, codes: RequestedCodes, start: int, stop: int, seed: int) -> Iterator[Block]:
        """Yield the blocks of a range, which starts with a block."""
        self.module.eval()
        for first in range(start, stop, self._block_size):
            yield self._block(codes, first, stop, seed)

    def _resolve_sampler(self, sampler: str | Sampler | None) -> tuple[str, Sampler]:
        """Return a sampler and its name."""
        chosen = self.default_sampler if sampler is None else sampler
        if isinstance(chosen, str) and chosen in self._samplers:
            return chosen, self._samplers[chosen]
        known = known_names(chosen, list(self._samplers))
        if isinstance(chosen, str):
            msg = f"`sampler` {chosen!r} is not known. {known}"
            raise ValueError(msg)
        if not callable(chosen) or isinstance(chosen, type):
            msg = f"`sampler` must be a name or a sampler of scgen_diffusion.diffusion, but found {chosen!r}. {known}"
            raise TypeError(msg)
        return repr(chosen), chosen

    def _sampling_options(
        self,
        sampler: str | Sampler | None,
        n_steps: int | None,
        guidance: GuidanceOptions,
        output: InputValues,
    ) -> SamplingOptions:
        name, way = self._resolve_sampler(sampler)
        if n_steps is not None and (not is_whole_number(n_steps) or n_steps < 1):
            msg = f"`n_steps` must be a whole number of at least 1, but found {n_steps!r}."
            raise ValueError(msg)
        trained = self.module.strategy
        resolved = guidance.resolve(trained, self.conditions.keys)
        n_steps = None if n_steps is None else int(n_steps)  # numpy's cannot be written as JSON
        return SamplingOptions(name, way, n_steps, resolved, guidance.describe(trained), output)

    def _provenance(
        self,
        condition: ConditionRequest,
        options: SamplingOptions,
        library_size: Any,
        seed: int,
    ) -> dict[str, Any]:
        return {
            "model": type(self).__name__,
            "version": version("scgen-diffusion"),
            "sampler": options.sampler_name,
            "n_steps": options.n_steps or default_steps(options.sampler),
            **options.guidance_record,
            "values": options.output,
            "library_size": describe_library_size(library_size, options.output),
            "condition": describe_condition(condition),
            "seed": seed,
        }
