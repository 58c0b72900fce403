"""Generating cells: what every model of the package has in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
import torch
from scvi import settings
from scvi.model.base import BaseModelClass
from torch import Tensor
from tqdm.auto import tqdm

from scgen_diffusion.data import (
    ConditionRequest,
    Conditions,
    build_anndata,
    is_whole_number,
    known_names,
    synthetic_names,
)
from scgen_diffusion.diffusion import FLOW_SAMPLERS, FlowSampler, SampleGenerators

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

DEFAULT_BATCH_SIZE = 2048

BLOCK_SIZES = {"cpu": 128, "cuda": 1024}
"""Cells that one network evaluation sees. Fixed per device, since the last bits of a matrix product depend on its shape."""


@dataclass(frozen=True)
class SamplingOptions:
    """How a request is sampled, checked and resolved.

    Parameters
    ----------
    sampler_name, sampler
        Integrator of the flow.
    n_steps
        Its number of steps, None for its default.
    guidance_scales
        One scale per condition key.
    """

    sampler_name: str
    sampler: FlowSampler
    n_steps: int | None
    guidance_scales: tuple[float, ...]


class GenerationMixin(BaseModelClass):
    """``generate`` for models whose cells come out of noise, block by block.

    A subclass says how one block of cells is made (:meth:`_generate_block`), and which condition classes there are.
    """

    var_: pd.DataFrame
    default_sampler = "midpoint"

    @property
    @abstractmethod
    def conditions(self) -> Conditions:
        """Condition keys, their classes, and their joint distribution in the training cells."""

    @abstractmethod
    def _generate_block(
        self, codes: Tensor, generators: SampleGenerators, options: SamplingOptions, library_size: Any, n_wanted: int
    ) -> Tensor:
        """Make the first cells ``(n_wanted, genes)`` of a block with condition codes ``(block, keys)``."""

    @abstractmethod
    def _check_ready_to_generate(self) -> None:
        """Raise unless the model can generate."""

    def _check_request(self, codes: np.ndarray) -> None:
        """Warn of what a request asks for that the training cells tell little about."""

    @abstractmethod
    def _checked_library_size(self, library_size: Any, n_cells: int) -> str | np.ndarray:
        """Resolve a user's library size: the name of a distribution, or one total per cell."""

    @property
    def _block_size(self) -> int:
        return BLOCK_SIZES.get(torch.device(self.device).type, BLOCK_SIZES["cpu"])

    def _round_to_blocks(self, batch_size: int) -> int:
        return self._block_size * -(-batch_size // self._block_size)

    @property
    def _generates_log1p(self) -> bool:
        return False

    def _generate(
        self,
        n_cells: int | None,
        condition: ConditionRequest,
        *,
        guidance_scale: float | Mapping[str, float],
        sampler: str | None,
        n_steps: int | None,
        library_size: Any,
        batch_size: int | None,
        seed: int | None,
        show_progress: bool,
    ) -> AnnData:
        self._check_ready_to_generate()
        codes = self.conditions.encode(condition, n_cells)
        self._check_request(codes)
        library_size = self._checked_library_size(library_size, len(codes))
        options = self._sampling_options(sampler, n_steps, guidance_scale)
        seed = resolve_seed(seed)
        chunk = self._round_to_blocks(_checked_batch_size(batch_size))
        parts: list[sp.csr_matrix | np.ndarray] = []
        with tqdm(total=len(codes), desc="Generating", unit="cell", disable=not show_progress) as progress:
            for start in range(0, len(codes), chunk):
                stop = min(start + chunk, len(codes))
                x, codes[start:stop] = self._generate_rows(codes, start, stop, options, library_size, seed)
                parts.append(x)
                progress.update(stop - start)
        x = np.concatenate(parts) if self._generates_log1p else sp.vstack(parts, format="csr")
        names = synthetic_names(len(codes))
        provenance = self._provenance(condition, options, guidance_scale, library_size, seed)
        obs = self.conditions.to_obs(codes, names)
        return build_anndata(x, obs, self.var_, provenance, is_log1p=self._generates_log1p)

    @torch.inference_mode()
    def _generate_rows(
        self, codes: np.ndarray, start: int, stop: int, options: SamplingOptions, library_size: Any, seed: int
    ) -> tuple[sp.csr_matrix | np.ndarray, np.ndarray]:
        """Generate the cells of a range, and say which classes they got."""
        self.module.eval()
        rows, filled = [], []
        for cells in _blocks(start, stop, self._block_size):
            generators = SampleGenerators(seed, cells.tolist(), self.device)
            uniform = generators.uniform().cpu().numpy()
            within = np.minimum(cells, len(codes) - 1)  # the last block is filled up with cells that nobody asked for
            block_codes = self.conditions.fill(codes[within], uniform)
            sizes = library_size[within] if isinstance(library_size, np.ndarray) else library_size
            n_wanted = min(stop - cells[0], len(cells))
            block = torch.from_numpy(block_codes).to(self.device)
            values = self._generate_block(block, generators, options, sizes, n_wanted).float().cpu().numpy()
            rows.append(values if self._generates_log1p else sp.csr_matrix(values))
            filled.append(block_codes[:n_wanted])
        x = np.concatenate(rows) if self._generates_log1p else sp.vstack(rows, format="csr")
        return x, np.concatenate(filled)

    def _sampling_options(
        self, sampler: str | None, n_steps: int | None, guidance_scale: float | Mapping[str, float]
    ) -> SamplingOptions:
        name = sampler or self.default_sampler
        if name not in FLOW_SAMPLERS:
            msg = f"`sampler` {name!r} is not known. {known_names(name, list(FLOW_SAMPLERS))}"
            raise ValueError(msg)
        if n_steps is not None and (not is_whole_number(n_steps) or n_steps < 1):
            msg = f"`n_steps` must be a whole number of at least 1, but found {n_steps!r}."
            raise ValueError(msg)
        scales = _resolve_guidance(guidance_scale, self.conditions.keys)
        return SamplingOptions(name, FLOW_SAMPLERS[name], n_steps, scales)

    def _provenance(
        self,
        condition: ConditionRequest,
        options: SamplingOptions,
        guidance_scale: float | Mapping[str, float],
        library_size: Any,
        seed: int,
    ) -> dict[str, Any]:
        scales = dict(guidance_scale) if isinstance(guidance_scale, Mapping) else guidance_scale
        default_steps = getattr(options.sampler, "default_n_steps", "adaptive")
        return {
            "model": type(self).__name__,
            "version": version("scgen-diffusion"),
            "sampler": options.sampler_name,
            "n_steps": options.n_steps or default_steps,
            "guidance_scale": scales,
            "library_size": library_size if isinstance(library_size, str) else "given",
            "condition": _describe_request(condition),
            "seed": seed,
        }


def _blocks(start: int, stop: int, size: int) -> Iterator[np.ndarray]:
    """Yield the cell numbers of whole blocks that cover a range; ``start`` is the first of a block."""
    for first in range(start, stop, size):
        yield np.arange(first, first + size)


def resolve_seed(seed: int | None) -> int:
    """Take scvi-tools' seed if none is given, or else a fresh one, which provenance records."""
    if seed is None:
        seed = settings.seed
    if seed is None:
        return int(np.random.default_rng().integers(2**31))
    if not is_whole_number(seed) or seed < 0:
        msg = f"`seed` must be a whole number of at least 0, but found {seed!r}."
        raise ValueError(msg)
    return int(seed)


def _checked_batch_size(batch_size: int | None) -> int:
    if batch_size is None:
        return DEFAULT_BATCH_SIZE
    if not is_whole_number(batch_size) or batch_size < 1:
        msg = f"`batch_size` must be a whole number of at least 1, but found {batch_size!r}."
        raise ValueError(msg)
    return int(batch_size)


def _resolve_guidance(scale: float | Mapping[str, float], keys: list[str]) -> tuple[float, ...]:
    if not isinstance(scale, Mapping):
        if not keys and scale != 1:
            msg = f"`guidance_scale` is {scale}, but the model has no conditions to guide by."
            raise ValueError(msg)
        scale = dict.fromkeys(keys, scale)
    for key, value in scale.items():
        if key not in keys:
            msg = f"`guidance_scale` has the unknown key {key!r}. {known_names(key, keys)}"
            raise ValueError(msg)
        if not np.isfinite(value):
            msg = f"`guidance_scale` must be finite, but found {value!r}."
            raise ValueError(msg)
    return tuple(float(scale.get(key, 1.0)) for key in keys)


def _describe_request(condition: ConditionRequest) -> Any:
    if condition is None:
        return "drawn from the training distribution"
    if isinstance(condition, Mapping):
        return {key: value if np.isscalar(value) else [str(v) for v in value] for key, value in condition.items()}
    return f"a table with the columns {', '.join(condition.columns)}"
