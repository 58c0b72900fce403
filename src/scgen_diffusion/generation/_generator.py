"""From a request to cells: the engine that all generating methods use."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from scgen_diffusion._arguments import check_count, known_names, list_first, warn_user
from scgen_diffusion._version import VERSION
from scgen_diffusion.data import FEWEST_TRAINING_CELLS, OPEN, check_order_of_totals
from scgen_diffusion.diffusion import (
    DIFFUSION_SAMPLERS,
    Generators,
    Guidance,
    Masking,
    block_size,
    check_sampler,
    samplers_for,
)

from ._counterfactual import Counterfactual, blocks_of, predict_block
from ._request import (
    CellRequest,
    SamplingOptions,
    check_batch_size,
    describe_condition,
    describe_library_size,
    describe_sampler,
    identity_of,
)
from ._rows import check_finite, rows_of
from ._support import LackingChanges, combination_codes, judge, limit_combinations, support_columns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

    from torch import Tensor

    from scgen_diffusion.data import ConditionRequest, Conditions, Rows
    from scgen_diffusion.diffusion import GuidanceScale, Sampler
    from scgen_diffusion.module import GeneSpaceModule, SCLDMModule
    from scgen_diffusion.nn import InputValues
    from scgen_diffusion.perturbation import ProfileSums

    from ._library_sizes import LibrarySizes
    from ._support import PerturbedGroups

Item = TypeVar("Item")
Result = TypeVar("Result")

N_GPU_WORKERS = 2
"""The host assembles one block while the GPU computes the next."""
VALUES_AT_ONCE = {"cuda": 1 << 24}
"""Cells times genes for which a device needs no more of Python's time than of its own."""
MOST_BLOCKS = 8  # of random numbers in a block of cells
N_JUDGED = 64  # generated control cells that the support on a new combination looks at
LARGE_TOTAL = 2.0  # times the largest total of the training cells: then cells are extrapolated
N_UNSEEN = 20  # combinations listed in provenance
N_NAMED = 3  # combinations named in a warning


@dataclass(frozen=True)
class Block:
    """Cells that the network sees together.

    Parameters
    ----------
    rows
        Row of each cell in the request. The last block is padded with extra cells.
    n_wanted
        Number of requested cells, from the start of the block.
    codes
        Condition codes, ``(block, columns)``.
    condition
        The codes as a tensor for the module, other ones in keys that guidance ignores.
    start_condition
        Conditions to generate under before the perturbation flow moves cells, as a tensor; None: the codes themselves.
    lacking
        Changes that the decoder lacks, ``(block, genes)``; None: none.
    generators
        One random generator per cell.
    """

    rows: np.ndarray
    n_wanted: int
    codes: np.ndarray
    condition: Tensor
    start_condition: Tensor | None
    lacking: Tensor | None
    generators: Generators


@dataclass(frozen=True)
class CellGenerator:
    """Turns requests into cells, block by block. Blocks are at fixed positions, so any range gives the same cells.

    Parameters
    ----------
    module
        The trained module.
    conditions
        Condition keys, their classes, and their joint distribution in the training cells.
    library_sizes
        The library sizes that the model supports.
    name
        Name of the model.
    default_sampler
        Name of the default sampler.
    learned
        Codes of the combinations that the autoencoder was trained on, ``(combinations, columns)``: those of
        ``conditions``, unless fine-tuning kept it.
    n_genes
        Size of the panel.
    knows_n_cells
        Whether the numbers of training cells of ``conditions`` are known.
    """

    module: SCLDMModule | GeneSpaceModule
    conditions: Conditions
    library_sizes: LibrarySizes
    name: str
    default_sampler: str
    learned: np.ndarray
    n_genes: int
    knows_n_cells: bool

    # --- requests --------------------------------------------------------------------------------------------------

    def request(
        self,
        n_cells: int | None,
        condition: ConditionRequest,
        *,
        guidance_scale: GuidanceScale,
        sampler: str | Sampler | None,
        n_steps: int | None,
        library_size: Any,
        seed: int,
        output: InputValues,
    ) -> CellRequest:
        """Check and resolve a user's request; warn about conditions outside the training cells."""
        check_order_of_totals(condition, library_size)
        condition = self.conditions.as_table(condition)
        codes = self.conditions.request(condition, n_cells)
        distinct, _ = codes.runs()
        sizes = self.totals(library_size, len(codes), output)
        options = self.sampling(sampler, n_steps, guidance_scale, output)
        self._check_is_whole(distinct, options.guidance)
        check_sampler(options.sampler, self.module.path, options.n_steps)
        draws_totals = isinstance(sizes, str) or bool(np.isnan(sizes[:1]).any())  # NaN for all cells or none
        starts = self._start_conditions(distinct, options.guidance)
        outside = self.warn_outside_training(distinct, draws_totals=draws_totals, unjudged=starts)
        if output == "counts":
            outside += self.warn_of_large_totals(sizes)
        few = self._warn_of_few_cells(distinct if starts is None else starts)
        provenance = self.provenance(condition, options, sizes, seed)
        provenance |= {"outside_training": outside, "few_training_cells": few}
        if starts is not None:
            provenance["method"] = "perturbation flow of generated control cells, where the combination is new"
        identity = identity_of(self.module, self.conditions, codes, options, sizes, provenance)
        return CellRequest(codes, options, sizes, seed, identity, provenance)

    def counterfactual(
        self,
        own: np.ndarray,
        codes: np.ndarray,
        sampling: SamplingOptions,
        method: str,
        keep_residuals: bool,
        library_size: Any,
        seed: int,
        groups: PerturbedGroups | None,
    ) -> Counterfactual:
        """Check and resolve a request to predict cells with conditions ``own`` under ``codes``, ``(cells, columns)``.

        Raises
        ------
        ValueError
            For guidance of the perturbation flow, a sampler that does not fit, and totals that the model cannot set.
        """
        inversion = None
        if method == "inversion":  # in any number of steps, on any path
            inversion = self.module.inversion_by(sampling.sampler)
        else:
            check_sampler(sampling.sampler, self.module.path, sampling.n_steps)
            if sampling.guidance != Guidance.of(self.module.strategy, [1.0] * len(self.conditions.keys)):
                msg = "The perturbation flow has no guidance; leave `guidance_scale` out, or choose method='inversion'."
                raise ValueError(msg)
        if library_size is not None and self.module.keeps_totals:
            msg = "A model with `path='masking'` keeps the totals of the given cells; leave `library_size` out."
            raise ValueError(msg)
        totals = None if library_size is None else self.totals(library_size, len(own), sampling.output)
        group = None if groups is None else groups.group
        return Counterfactual(np.arange(len(own)), own, codes, sampling, inversion, keep_residuals, totals, seed, group)

    def supports(self, request: CellRequest) -> tuple[dict[str, Any], LackingChanges | None] | None:
        """Judge the combinations that the flow makes of generated control cells, from some of these, if any.

        With the columns of a table come the changes that the decoder lacks. Numbers that do not perturb, such as
        positions, are left out of a combination, as for given cells: its control cells are spread over those that were
        asked for.
        """
        (codes, sizes), sampling, seed = request.codes.runs(), request.sampling, request.seed
        starts = self._start_conditions(codes, sampling.guidance)
        if starts is None:
            return None
        is_new = (starts != codes).any(1)
        starts, (perturbs, _) = starts[is_new], self._perturbing
        combined = combination_codes(self.conditions, perturbs, codes[is_new])
        codes, which = np.unique(combined, axis=0, return_inverse=True)
        codes, n_cells = limit_combinations(codes), np.bincount(which.ravel(), sizes[is_new]).astype(int)
        rows = [np.flatnonzero(which.ravel() == one) for one in range(len(codes))]
        spread = [starts[own[np.arange(N_JUDGED) * len(own) // N_JUDGED]] for own in rows]
        firsts, number = np.unique(spread, axis=0, return_inverse=True)

        def generate(start: np.ndarray) -> tuple[Tensor, Tensor]:
            generators = Generators(seed, range(N_JUDGED), self.module.device)
            filled = self.conditions.fill(start, generators.uniform().cpu().numpy())
            condition, noise = self.module.condition_tensor(filled), self.module.draw_noise(generators)
            denoiser = self.module.denoiser(condition, sampling.guidance)
            states = sampling.sampler(denoiser, noise, n_steps=sampling.n_steps, generators=generators)
            return states.flatten(1), condition

        made = list(self.in_parallel(generate, firsts))
        cells, given = zip(*(made[n] for n in number.ravel()), strict=True)
        supports = judge(self.module, self.conditions, cells, codes, starts=given, learned=self.learned)
        columns = support_columns(self.conditions, codes, n_cells[: len(codes)], supports)
        return columns, LackingChanges.of_supports(codes, supports)

    def warn_outside_training(
        self, codes: np.ndarray, *, draws_totals: bool, unjudged: np.ndarray | None = None
    ) -> list[str]:
        """Warn about conditions ``(n, columns)`` outside the training cells, and describe them for the provenance.

        They are those of a request, or those of given cells and of their predictions. Control cells that only the
        perturbation flow needs are told from these.
        ``draws_totals`` says that cells get totals by their conditions. ``unjudged (m, columns)`` are those without a
        support, and the control cells that the model generates for one; the support says more than such a warning.
        """
        unseen, extrapolated = self.conditions.unseen(codes), self.conditions.extrapolated(codes)
        described = [self.conditions.describe(combination) for combination in unseen[:N_UNSEEN]]
        warned = unseen if unjudged is None or not len(unseen) else self.conditions.unseen(unjudged)
        asked = {combination.tobytes() for combination in unseen}
        starts = [combination for combination in warned if combination.tobytes() not in asked]
        described += [f"{self.conditions.describe(combination)} (control cells)" for combination in starts[:N_UNSEEN]]
        if len(warned):
            first = self.conditions.describe(warned[0])
            are = (
                f"The combination {first} does" if len(warned) == 1 else f"{len(warned)} combinations ({first} ...) do"
            )
            totals = " Library sizes are extrapolated from single conditions." if draws_totals else ""
            warn_user(f"{are} not occur in the training cells.{totals}")
        if extrapolated:
            warn_user(f"Some numbers are far from those of the training cells: {', '.join(extrapolated)}.")
        return [*described, *extrapolated]

    def warn_of_large_totals(self, sizes: str | np.ndarray) -> list[str]:
        """Warn about given totals far above those of the training cells, and describe them for the provenance."""
        if isinstance(sizes, str) or not self.library_sizes.is_fitted:
            return []
        names = [f"library_size[{name!r}]" for name in self.library_sizes.largest] or ["library_size"]
        columns, largest = sizes.reshape(len(sizes), -1).max(0), self.module.library_size.limits()[:, 1].tolist()
        described = list[str]()
        for name, asked, seen in zip(names, columns, largest, strict=True):
            if asked > seen * LARGE_TOTAL:  # NaN, a total to draw, is not
                described.append(f"{name} {asked:.0f}")
                most = f"{float(f'{seen:.2g}'):,.0f}"  # the exact one is a training cell's own
                warn_user(
                    f"`{name}` asks for up to {asked:,.0f} counts, but training cells have up to about {most}. Such "
                    "cells are extrapolated: their zeros and the spread of their counts may be wrong."
                )
        return described

    def _warn_of_few_cells(self, codes: np.ndarray) -> list[str]:
        """Warn about conditions ``(n, columns)`` that few training cells have, and describe them for the provenance."""
        if not self.knows_n_cells:
            return []
        found, n_cells = self.conditions.rare(codes, FEWEST_TRAINING_CELLS)
        rarest = zip(found[:N_UNSEEN], n_cells, strict=False)
        described = [f"{self.conditions.describe(combination)} ({n})" for combination, n in rarest]
        if described:
            warn_user(
                f"Few training cells (under {FEWEST_TRAINING_CELLS}, those of validation included) have "
                f"{list_first(described, N_NAMED)}. Cells generated for these conditions may look like others."
            )
        return described

    def sampling(
        self, sampler: str | Sampler | None, n_steps: int | None, guidance_scale: GuidanceScale, output: InputValues
    ) -> SamplingOptions:
        """Check and resolve the sampling options."""
        name, chosen = self.sampler(sampler)
        n_steps = None if n_steps is None else check_count("n_steps", n_steps)
        trained = self.module.strategy
        guidance = Guidance.resolve(guidance_scale, trained, self.conditions.keys)
        if isinstance(guidance_scale, Mapping):
            scales: Any = {key: float(scale) for key, scale in guidance_scale.items()}
        else:
            scales = float(guidance_scale)
        record = {"guidance_scale": scales, "composition": trained.name}
        return SamplingOptions(name, chosen, n_steps, guidance, record, output)

    def sampler(self, sampler: str | Sampler | None) -> tuple[str, Sampler]:
        """Return name and object of a sampler that fits the module's path."""
        chosen, samplers = self.default_sampler if sampler is None else sampler, samplers_for(self.module.path)
        if isinstance(chosen, str) and chosen in samplers:
            return chosen, samplers[chosen]
        known = known_names(chosen, list(samplers))
        if isinstance(chosen, str):
            msg = f"`sampler` {chosen!r} is not known. {known}"
            if isinstance(self.module.path, Masking) and chosen in DIFFUSION_SAMPLERS:
                msg = (
                    f"`sampler` {chosen!r} removes noise from profiles, but this model unmasks molecules. {known} "
                    f"For {chosen!r}, build the model with `path='vp_linear'`."
                )
            raise ValueError(msg)
        if not callable(chosen) or isinstance(chosen, type):
            msg = f"`sampler` must be a name or a sampler of scgen_diffusion.diffusion, but found {chosen!r}. {known}"
            raise TypeError(msg)
        return describe_sampler(chosen), chosen

    def totals(self, library_size: Any, n_cells: int, output: InputValues) -> str | np.ndarray:
        """Resolve a library size to the name of a distribution or totals ``(cells, ...)``; ones for log values."""
        if output == "counts":
            return self.library_sizes.check(library_size, n_cells)
        if library_size is not None:
            msg = "Log-normalised values have no `library_size`; leave it out, or set `counts=True` (SCRDIT and WBDIT)."
            raise ValueError(msg)
        return np.broadcast_to(np.float32(1), n_cells)

    def provenance(
        self, condition: ConditionRequest, options: SamplingOptions, library_size: Any, seed: int
    ) -> dict[str, Any]:
        """Return the record of a request for ``uns``."""
        return {
            "model": self.name,
            "version": VERSION,
            "sampler": options.sampler_name,
            "n_steps": options.n_steps or getattr(options.sampler, "default_n_steps", "unknown"),
            **options.guidance_record,
            "values": options.output,
            "library_size": describe_library_size(library_size, options.output),
            "condition": describe_condition(condition),
            "seed": seed,
        }

    # --- cells -----------------------------------------------------------------------------------------------------

    @property
    def block_size(self) -> int:
        """Number of cells that the network sees together.

        With few genes, a GPU takes several blocks of random numbers together.
        """
        size, device = block_size(self.module.device), self.module.device.type
        row = max(self.n_genes, len(self.learned))  # a cell looks its combination up among all
        return size * min(max(VALUES_AT_ONCE.get(device, 0) // (size * row), 1), MOST_BLOCKS)

    def round_to_blocks(self, n_cells: int) -> int:
        """Round a number of cells up to whole blocks."""
        return self.block_size * -(-n_cells // self.block_size)

    def cells(self, request: CellRequest, rows: range, batch_size: int | None) -> Iterator[tuple[Rows, np.ndarray]]:
        """Make the cells of some rows, of which the first begins a block.

        Parameters
        ----------
        request
            The request.
        rows
            Row numbers in the request.
        batch_size
            Largest number of cells made at a time, rounded up to whole blocks.

        Yields
        ------
        tuple
            Values ``(cells, genes)`` and condition codes ``(cells, columns)`` of a block, in order.
        """
        firsts = rows[:: self.block_size]
        return self.in_parallel(partial(self._cells_of_block, request, stop=rows.stop), firsts, batch_size)

    def predictions(
        self, request: Counterfactual, batches: Iterable[Tensor], batch_size: int | None
    ) -> Iterator[tuple[Rows, ProfileSums | None]]:
        """Predict given cells under other conditions.

        Parameters
        ----------
        request
            The request.
        batches
            Their expression ``(cells, genes)`` in order, in whole blocks; the last batch may be smaller.
        batch_size
            As in :meth:`cells`.

        Yields
        ------
        tuple
            Values ``(cells, genes)`` of a block, in order, and sums of profiles if they are wanted.
        """
        blocks = blocks_of(batches, self.block_size)
        return self.in_parallel(partial(predict_block, self.module, request, self.without_ignored), blocks, batch_size)

    def in_parallel(
        self, make: Callable[[Item], Result], items: Iterable[Item], batch_size: int | None = None
    ) -> Iterator[Result]:
        """Yield ``make(item)`` of every item, one block each; up to ``batch_size`` cells are made at a time.

        By default, they are at least two blocks.
        """
        self.module.eval()
        n_at_once = self.round_to_blocks(check_batch_size(batch_size)) // self.block_size
        if batch_size is None:
            n_at_once = max(n_at_once, N_GPU_WORKERS)
        return in_parallel(torch.inference_mode()(make), items, self.module.device, n_at_once)

    def block(self, request: CellRequest, first: int, stop: int) -> Block:
        """Return a whole block, whose cells before ``stop`` are wanted, with open conditions drawn."""
        cells = np.arange(first, first + self.block_size)
        generators = Generators(request.seed, range(first, first + len(cells)), self.module.device)
        rows = np.minimum(cells, request.n_cells - 1)
        asked, guidance = request.codes[rows], request.sampling.guidance
        starts = self._start_conditions(asked, guidance)
        # what is left open is that of control cells, where these are moved: no cell has the combination itself
        drawn = self.conditions.fill(asked if starts is None else starts, generators.uniform().cpu().numpy())
        codes, moved = np.where(asked == OPEN, drawn, asked), False if starts is None else starts != asked
        condition = self.without_ignored(codes, guidance, request.library_size, generators, moved)
        start_condition = None
        if starts is not None:
            starts_elsewhere = torch.from_numpy(moved).to(condition.device)
            start_condition = torch.where(starts_elsewhere, self.module.condition_tensor(drawn), condition)
        lacking = None if request.lacking is None else request.lacking.of(asked)
        return Block(rows, min(stop - first, len(cells)), codes, condition, start_condition, lacking, generators)

    def without_ignored(
        self,
        codes: np.ndarray,
        guidance: Guidance,
        library_size: Any,
        generators: Generators,
        moved: np.ndarray | bool = False,
    ) -> Tensor:
        """Turn codes ``(n, columns)`` into conditions that do not tell the keys without weight in guidance.

        Networks do not see these keys, but totals would follow them. They are left out where the latent tells the
        total, and else drawn anew, given the others: also of cells that the flow moves, whose latents tell their
        totals from before. Codes that it changes, ``moved (n, columns)``, stay.
        """
        key_of_column = self.module.key_of_column.cpu().numpy()
        moved = np.broadcast_to(moved, codes.shape)
        ignored = ~np.isin(key_of_column, guidance.keys) & ~moved
        is_latent = (library_size if isinstance(library_size, str) else self.library_sizes.default) == "latent"
        left_out = ignored & ~moved.any(1, keepdims=True) & is_latent
        if (ignored & ~left_out).any():
            codes = np.where(ignored & ~left_out, OPEN, codes)
            codes = self.conditions.fill(codes, generators.apart().uniform().cpu().numpy())
        condition = self.module.condition_tensor(codes)
        return torch.where(torch.from_numpy(left_out).to(condition.device), self.module.null_condition, condition)

    def _moves_cells(self, guidance: Guidance) -> bool:
        """Return whether there is a flow, and guidance does not ignore all keys that perturb."""
        flow = self.module.perturbation_flow
        return flow is not None and any(flow.perturbing_keys[key] for key in guidance.keys)

    @cached_property
    def _perturbing(self) -> tuple[np.ndarray, np.ndarray]:
        """Which columns perturb, and their codes of control cells, each ``(columns,)``; every block asks for them."""
        flow: Any = self.module.perturbation_flow
        return flow.perturbs.cpu().numpy(), self.conditions.exact(flow.control.cpu().numpy())

    def _check_is_whole(self, codes: np.ndarray, guidance: Guidance) -> None:
        """Raise if a perturbation is asked for in part, and no training cell of this kind can say the rest."""
        if not self._moves_cells(guidance):
            return
        perturbs, control = self._perturbing
        is_given = (codes != OPEN)[:, perturbs]
        is_part = is_given.any(1) & ~is_given.all(1) & ((codes != control)[:, perturbs] & is_given).any(1)
        is_part &= self._only_controls_are_seen(codes)
        if is_part.any():
            row, parts = codes[is_part][0], self.conditions.parts
            left_out = [key.name for key, own in parts if perturbs[own].any() and row[own.start] == OPEN]
            msg = (
                f"`condition` asks for {self.conditions.describe(row)}, which no training cell has. Also give "
                f"{left_out}: these keys perturb too, and without them no control cells can be moved there."
            )
            raise ValueError(msg)

    def _start_conditions(self, codes: np.ndarray, guidance: Guidance) -> np.ndarray | None:
        """Return the conditions ``(n, columns)`` to generate before the flow moves cells; None: the given ones.

        Cells of perturbed combinations that training never saw start as control cells, if training saw these.
        """
        if not self._moves_cells(guidance):
            return None
        perturbs, control = self._perturbing
        controls = np.where(perturbs, control, codes)
        are_new = self._only_controls_are_seen(codes) & (codes != OPEN)[:, perturbs].all(1)
        return np.where(are_new[:, None], controls, codes) if are_new.any() else None

    def _only_controls_are_seen(self, codes: np.ndarray) -> np.ndarray:
        """Mark combinations ``codes (n, columns)`` that training never saw, but whose control cells it saw, ``(n,)``.

        Numbers that do not perturb, such as positions, are no part of a combination: else they would decide cell by
        cell which of them the perturbation flow makes.
        """
        perturbs, control = self._perturbing
        codes = combination_codes(self.conditions, perturbs, codes)
        return self.conditions.are_unseen(codes) & ~self.conditions.are_unseen(np.where(perturbs, control, codes))

    def _cells_of_block(self, request: CellRequest, first: int, *, stop: int) -> tuple[Rows, np.ndarray]:
        block, sampling, sizes = self.block(request, first, stop), request.sampling, request.library_size
        values = self.module.sample_cells(
            block.condition,
            block.generators,
            guidance=sampling.guidance,
            sampler=sampling.sampler,
            n_steps=sampling.n_steps,
            library_size=sizes[block.rows] if isinstance(sizes, np.ndarray) else sizes,
            output=sampling.output,
            n_wanted=block.n_wanted,
            start_condition=block.start_condition,
            lacking=block.lacking,
        )
        x = rows_of(values, sparse=self.module.has_zeros(sampling.output))
        check_finite(x)  # here, because the values are on the host now, and later blocks would be wasted
        return x, block.codes[: block.n_wanted]


def in_parallel(
    make: Callable[[Item], Result], items: Iterable[Item], device: torch.device, n_at_once: int
) -> Iterator[Result]:
    """Yield ``make(item)`` of every item in order; up to ``n_at_once`` are made at a time, each with one torch thread.

    On a CPU, at most as many as torch has threads. Results then do not depend on the number of threads, as sums split
    over threads would, and threads do not wait for each other.
    """
    n_threads = torch.get_num_threads()
    workers = {"cpu": n_threads, "cuda": N_GPU_WORKERS}.get(device.type, 1)
    if workers == 1:
        yield from map(make, items)
        return
    n_at_once = min(n_at_once, workers + 1)
    with ThreadPoolExecutor(workers, initializer=partial(torch.set_num_threads, 1)) as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(make, item))
                if len(pending) >= n_at_once:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
            torch.set_num_threads(n_threads)
