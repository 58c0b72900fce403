"""From a request to cells: the engine that all generating methods use."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from scgen_diffusion._arguments import check_count, known_names, warn_user
from scgen_diffusion._version import VERSION
from scgen_diffusion.data import LARGEST_COUNT, OPEN, digest_of, to_plain
from scgen_diffusion.diffusion import Generators, Guidance, block_size, samplers_for

from ._request import SamplingOptions, check_batch_size
from ._rows import rows_of
from ._support import Corrections, PerturbedGroups, combination_codes, judge, sum_profiles, support_columns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

    from torch import Tensor

    from scgen_diffusion.data import Conditions, RequestedCodes, Rows
    from scgen_diffusion.diffusion import GuidanceScale, Sampler
    from scgen_diffusion.module import GeneSpaceModule, SCLDMModule
    from scgen_diffusion.nn import InputValues
    from scgen_diffusion.perturbation import ProfileSums

    from ._request import CellRequest, PredictionRequest

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


@dataclass(frozen=True)
class CellGenerator:
    """Turns requests into cells, block by block. Blocks are at fixed positions, so any range gives the same cells.

    Parameters
    ----------
    module
        The trained module.
    conditions
        Condition keys, their classes, and their joint distribution in the training cells.
    name
        Name of the model.
    n_genes
        Size of the panel.
    largest
        With several modalities: the limit of totals, by the name of the modality.
    """

    module: SCLDMModule | GeneSpaceModule
    conditions: Conditions
    name: str
    n_genes: int
    largest: Mapping[str, float] = field(default_factory=dict)

    # --- options of a request --------------------------------------------------------------------------------------

    def sampling(
        self,
        sampler: str | Sampler,
        n_steps: int | None,
        guidance_scale: GuidanceScale,
        output: InputValues,
    ) -> SamplingOptions:
        """Check and resolve the sampling options."""
        guidance = Guidance.resolve(guidance_scale, self.module.strategy, self.conditions.keys)
        samplers = samplers_for(self.module.path)
        if isinstance(sampler, str):
            if sampler not in samplers:
                msg = f"`sampler` {sampler!r} is not known. {known_names(sampler, list(samplers))}"
                raise ValueError(msg)
            name, chosen = sampler, samplers[sampler]
        elif callable(sampler) and not isinstance(sampler, type):
            name, chosen = repr(sampler), sampler
        else:
            msg = f"`sampler` must be a name or a sampler of scgen_diffusion.diffusion, but found {sampler!r}."
            raise TypeError(msg)
        if n_steps is not None:
            n_steps = check_count("n_steps", n_steps)
        usual: Any = getattr(chosen, "default_n_steps", "unknown")
        scales: Any = guidance_scale
        record = {
            "sampler": name,
            "n_steps": n_steps or usual,
            "guidance_scale": {k: float(v) for k, v in scales.items()}
            if isinstance(scales, Mapping)
            else float(scales),
            "composition": self.module.architecture.condition_strategy,
            "values": output,
        }
        return SamplingOptions(chosen, n_steps, guidance, output, record)

    def totals(self, library_size: Any, n_cells: int, output: InputValues) -> np.ndarray | None:
        """Check a user's library size; ones for log values.

        Returns
        -------
        numpy.ndarray or None
            Totals ``(cells,)``; of several modalities ``(cells, modalities)``, NaN for those to draw. None: draw all.
        """
        if output != "counts":
            if library_size is not None:
                msg = "Log values have no `library_size`; leave it out, or set `counts=True` (SCRDIT and WBDIT)."
                raise ValueError(msg)
            return np.broadcast_to(np.float32(1), n_cells)
        if library_size is None:
            if not self.module.library_size.is_fitted:
                msg = "This model knows no total counts; give `library_size`, one number or one per cell."
                raise ValueError(msg)
            return None
        if not self.largest:
            return _check_totals(library_size, n_cells)
        if not isinstance(library_size, Mapping):
            names = ", ".join(self.largest)
            msg = f"`library_size` must map modalities ({names}) to numbers, but found {library_size!r:.60}."
            raise TypeError(msg)
        totals = np.full((n_cells, len(self.largest)), np.nan, dtype=np.float32)
        for name, sizes in library_size.items():
            if name not in self.largest:
                msg = f"`library_size` names the modality {name!r}. {known_names(name, list(self.largest))}"
                raise ValueError(msg)
            most = min(self.largest[name] - 1, LARGEST_COUNT)  # of features that are 0 or 1, some must be 0
            totals[:, list(self.largest).index(name)] = _check_totals(sizes, n_cells, f"library_size[{name!r}]", most)
        return totals

    def warn_outside_training(self, codes: np.ndarray, are_judged: np.ndarray, totals: np.ndarray | None) -> list[str]:
        """Warn about conditions ``(n, columns)`` and totals beyond the training cells; list them for the provenance.

        Conditions that get a support, ``are_judged (n,)``, are only listed: the support says more than a warning.
        """
        unseen, warned = self.conditions.unseen(codes), self.conditions.unseen(codes[~are_judged])
        found = [self.conditions.describe(combination) for combination in unseen[:N_UNSEEN]]
        if len(warned):
            first = self.conditions.describe(warned[0])
            warn_user(f"{first} does not occur in the training cells; this holds for {len(warned)} combinations.")
        if totals is not None and self.module.library_size.is_fitted:
            largest = self.module.library_size.limits()[:, 1].cpu().numpy()
            if (totals.reshape(len(totals), -1) > LARGE_TOTAL * largest).any():  # NaN, a total to draw, is not
                most = np.nanmax(totals)
                warn_user(
                    f"`library_size` asks for up to {most:,.0f} counts, far more than training cells have. Such cells "
                    "are extrapolated: their zeros and the spread of their counts may be wrong."
                )
                found.append(f"library_size {most:.0f}")
        return found

    def record(self, sampling: SamplingOptions, library_size: str, seed: int) -> dict[str, Any]:
        """Return the record of a request for ``uns``; ``library_size`` says where total counts are from."""
        return {
            "model": self.name,
            "version": VERSION,
            **sampling.record,
            "library_size": library_size if sampling.output == "counts" else "none",
            "seed": seed,
        }

    def identity(self, sampling: SamplingOptions, codes: RequestedCodes, totals: Any) -> dict[str, Any]:
        """Return what cells depend on but their number and the seed, by argument, in values that JSON has.

        Two requests of equal identities make the same cells.
        """
        module = self.module
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(module.state_dict().items())}
        weights = digest_of(
            [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()],
            *(tensor.reshape(-1).view(torch.uint8).numpy() for tensor in state.values()),
            to_plain(asdict(module.architecture)),  # NumPy's numbers are Python's after loading
            *(self.conditions.by_key, self.conditions.combinations, self.conditions.n_cells),
        )
        if totals is not None:
            are_equal = np.array_equal(totals, np.broadcast_to(totals[:1], totals.shape), equal_nan=True)
            totals = digest_of(totals[:1] if are_equal else totals)
        return {
            "model": self.name,
            "version": VERSION,
            "weights": weights,
            "device": torch.device(module.device).type,
            "sampler": sampling.record["sampler"],
            "n_steps": sampling.record["n_steps"],
            "guidance_scale": digest_of(sorted(sampling.guidance.terms.items())),
            "condition": codes.digest,
            "library_size": totals,
            "counts": sampling.output == "counts",
        }

    # --- cells of new combinations, which the perturbation flow makes of control cells ------------------------------

    def start_conditions(self, codes: np.ndarray, guidance: Guidance) -> np.ndarray:
        """Return the conditions to generate before the perturbation flow moves cells to ``codes``, ``(n, columns)``.

        Cells of perturbed combinations that training never saw start as control cells, if training saw these. Numbers
        that do not perturb, such as positions, are no part of a combination: else they would decide cell by cell which
        of them the flow makes.
        """
        flow: Any = self.module.perturbation_flow
        if flow is None or not any(flow.perturbing_keys[key] for key in guidance.keys):
            return codes
        perturbs, control = flow.perturbs.cpu().numpy(), flow.control.cpu().numpy()
        combined = combination_codes(self.conditions, perturbs, codes)
        are_new = self.conditions.are_unseen(combined) & (codes != OPEN)[:, perturbs].all(1)
        are_new &= ~self.conditions.are_unseen(np.where(perturbs, control, combined))
        return np.where(are_new[:, None] & perturbs, control, codes)

    def supports(self, request: CellRequest) -> tuple[dict[str, Any], Corrections | None] | None:
        """Judge the combinations that the flow makes of generated control cells, from some of these, if any.

        With the columns of a table come the changes that the decoder lacks. The control cells of a combination are
        spread over those that were asked for.
        """
        (codes, sizes), sampling = request.codes.runs(), request.sampling
        starts = self.start_conditions(codes, sampling.guidance)
        if (starts == codes).all():
            return None
        groups = PerturbedGroups(self.module, self.conditions, starts, codes)
        rows = [np.flatnonzero(groups.group == one) for one in range(len(groups.codes))]
        spread = [starts[own[np.arange(N_JUDGED) * len(own) // N_JUDGED]] for own in rows]
        firsts, number = np.unique(spread, axis=0, return_inverse=True)

        def generate(start: np.ndarray) -> tuple[Tensor, Tensor]:
            generators = Generators(request.seed, range(N_JUDGED), self.module.device)
            filled = self.conditions.fill(start, generators.uniform().cpu().numpy())
            condition, noise = self.module.condition_tensor(filled), self.module.draw_noise(generators)
            denoiser = self.module.denoiser(condition, sampling.guidance)
            states = sampling.sampler(denoiser, noise, n_steps=sampling.n_steps, generators=generators)
            return states.flatten(1), condition

        made = list(self._over_blocks(generate, firsts))
        cells, given = zip(*(made[n] for n in number.ravel()), strict=True)
        supports = judge(self.module, self.conditions, cells, groups.codes, starts=given)
        n_cells = np.array([sizes[own].sum() for own in rows])
        columns = support_columns(self.conditions, groups.codes, n_cells, supports)
        return columns, Corrections.of_supports(groups.codes, supports)

    # --- blocks of cells --------------------------------------------------------------------------------------------

    @property
    def block_size(self) -> int:
        """Number of cells that the network sees together.

        With few genes, a GPU takes several blocks of random numbers together.
        """
        size, device = block_size(self.module.device), self.module.device.type
        row = max(self.n_genes, len(self.conditions.combinations))  # a cell looks its combination up among all
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
        return self._over_blocks(partial(self._make_block, request, stop=rows.stop), firsts, batch_size)

    def predictions(
        self, request: PredictionRequest, batches: Iterable[Tensor], first: int, batch_size: int | None
    ) -> Iterator[tuple[Rows, ProfileSums | None]]:
        """Predict given cells under other conditions.

        Parameters
        ----------
        request
            The request.
        batches
            Expression ``(cells, genes)`` of consecutive cells, in whole blocks; the last batch may be smaller.
        first
            Number of the first of these cells in the request; it begins a block.
        batch_size
            As in :meth:`cells`.

        Yields
        ------
        tuple
            Values ``(cells, genes)`` of a block, in order, and sums of profiles if they are wanted.
        """

        def blocks() -> Iterator[tuple[Tensor, np.ndarray, int]]:
            """Cut the batches into whole blocks, the last one padded with repeated cells."""
            size, start = self.block_size, first
            for x in batches:
                for begin in range(0, len(x), size):
                    picked = np.minimum(np.arange(begin, begin + size), len(x) - 1)
                    yield x[picked], start + picked, min(len(x) - begin, size)
                start += len(x)

        return self._over_blocks(partial(self._predict_block, request), blocks(), batch_size)

    def _over_blocks(
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

    def _make_block(self, request: CellRequest, first: int, *, stop: int) -> tuple[Rows, np.ndarray]:
        """Make a whole block of cells, and return those before ``stop`` with their codes."""
        module, sampling = self.module, request.sampling
        cells = np.arange(first, first + self.block_size)
        generators = Generators(request.seed, cells.tolist(), module.device)
        rows = np.minimum(cells, len(request.codes) - 1)
        asked = request.codes[rows]
        starts = self.start_conditions(asked, sampling.guidance)
        # what is left open is that of control cells, where these are moved: no cell has the combination itself
        drawn = self.conditions.fill(starts, generators.uniform().cpu().numpy())
        codes = np.where(asked == OPEN, drawn, asked)
        start, condition = module.condition_tensor(drawn), module.condition_tensor(codes)
        known, shown = (module.condition_columns.keep(given, sampling.guidance.keys) for given in (start, condition))
        denoiser = module.denoiser(start, sampling.guidance)
        totals = None if request.library_size is None else request.library_size[rows]
        corrections = None if request.corrections is None else request.corrections.of(asked)

        def draw(generators: Generators) -> Tensor:
            options: dict[str, Any] = {"n_steps": sampling.n_steps, "generators": generators}
            noise = module.initial_states(known, generators, totals)
            states = sampling.sampler(denoiser, noise, **options)
            if (starts != asked).any():
                states = module.perturbed_latents(states, start, condition, sampling.sampler, **options)
            draw_totals = partial(module.draw_totals, totals, generators, shown)
            return module.cells_of(states, draw_totals, generators, shown, sampling.output, corrections=corrections)

        x, n_wanted = module.redraw_empty(draw, generators), stop - first
        return rows_of(x[:n_wanted], sparse=module.has_zeros(sampling.output)), codes[:n_wanted]

    def _predict_block(
        self, request: PredictionRequest, block: tuple[Tensor, np.ndarray, int]
    ) -> tuple[Rows, ProfileSums | None]:
        """Predict a whole block of given cells: their expression, positions in the request, and how many are wanted."""
        (x, positions, n_wanted), sampling, sizes = block, request.sampling, request.library_size
        module: Any = self.module
        sampler: Any = sampling.sampler
        generators = Generators(request.seed, positions.tolist(), module.device)
        own, codes = module.condition_tensor(request.own[positions]), request.codes[positions]
        new = module.condition_tensor(codes)
        perturbed = None
        if request.by_flow:
            perturbed = own, new, None if request.corrections is None else request.corrections.of(codes)

        def predict(generators: Generators) -> Tensor:
            def move(states: Tensor) -> Tensor:
                options: dict[str, Any] = {"n_steps": sampling.n_steps, "generators": generators}
                if request.by_flow:  # moves the cells that become perturbed
                    return module.perturbed_latents(states, own, new, sampling.sampler, **options)
                to_noise, to_cells = module.denoiser(own, module.unguided), module.denoiser(new, sampling.guidance)
                return sampler.invert(to_noise, to_cells, states, **options)

            def draw_totals(features: Tensor) -> Tensor:
                measured = module.decoding_totals(x, features, generators)
                measured = measured.view(len(measured), *module.library_size.shape)
                if sizes is None:
                    return measured
                wanted = torch.from_numpy(sizes[positions]).to(measured)
                return torch.where(wanted.isnan(), measured, wanted)

            how = {"output": sampling.output, "keep_residuals": request.keep_residuals, "perturbed": perturbed}
            return module.predict_cells(x, move, draw_totals, generators, **how)

        values = module.redraw_empty(predict, generators)[:n_wanted]
        rows = rows_of(values, sparse=module.has_zeros(sampling.output))
        if request.groups is None:
            return rows, None
        group = request.groups.group[positions[:n_wanted]]
        return rows, sum_profiles(module, group, x[:n_wanted], values, sampling.output)


def _check_totals(
    library_size: Any, n_cells: int, name: str = "library_size", most: float = LARGEST_COUNT
) -> np.ndarray:
    """Return one total per cell."""
    try:
        totals = np.asarray(library_size, dtype=float)
    except (OverflowError, TypeError, ValueError) as error:
        msg = f"`{name}` must be one number or one per cell, but found {library_size!r:.60}."
        raise TypeError(msg) from error
    if totals.shape not in ((), (n_cells,)):
        msg = f"`{name}` must be one number or one per cell ({n_cells}), but found shape {totals.shape}."
        raise ValueError(msg)
    is_allowed = (totals >= 1) & (totals <= most)
    if not is_allowed.all():
        msg = f"`{name}` must be at least 1 and at most {most:,}, but found {totals[~is_allowed][0]}."
        raise ValueError(msg)
    return np.broadcast_to(totals.astype(np.float32), n_cells)


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
