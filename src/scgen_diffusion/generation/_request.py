"""Requests for cells: checked options, their record in provenance, and their identity."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scgen_diffusion._arguments import check_count
from scgen_diffusion.data import ConditionRequest, to_plain

if TYPE_CHECKING:
    from torch import nn

    from scgen_diffusion.data import Conditions, RequestedCodes
    from scgen_diffusion.diffusion import Guidance, Sampler
    from scgen_diffusion.nn import InputValues

    from ._support import LackingChanges

DEFAULT_BATCH_SIZE = 2048
LONGEST_LIST = 1000  # largest length of a list in provenance
DIGEST = "sha256:"
"""Prefix of digests, whose values messages do not show."""
ARGUMENTS = (
    *("n_cells", "seed", "shard_size", "sampler", "n_steps", "condition", "library_size", "guidance_scale", "counts"),
    *("method", "strength", "keep_residuals"),
)
OF_OTHER_NAMES = {"guidance": "guidance_scale", "values": "counts"}  # arguments that set these entries of identities
N_DIGITS = 10  # of names; among ten thousand requests, two share a name with probability 1 in 20 000


@dataclass(frozen=True)
class SamplingOptions:
    """Checked sampling options of a request.

    Parameters
    ----------
    sampler_name, sampler
        The sampler.
    n_steps
        Its number of steps; None for its default.
    guidance
        Guidance.
    guidance_record
        Guidance as recorded in provenance.
    output
        Kind of values, ``"counts"`` or ``"log1p"``.
    """

    sampler_name: str
    sampler: Sampler
    n_steps: int | None
    guidance: Guidance
    guidance_record: Mapping[str, Any]
    output: InputValues


@dataclass(frozen=True)
class CellRequest:
    """A request for cells. Any range of its cells can be made alone, and gives the same cells.

    Parameters
    ----------
    codes
        Condition codes ``(cells, columns)``, open for keys left out.
    sampling
        Sampling options.
    library_size
        Name of a distribution, or totals ``(cells, ...)``.
    seed
        Seed of all draws.
    identity
        Everything that the cells depend on, see :func:`identity_of`.
    provenance
        Record of the request in ``uns``.
    lacking
        Changes that the decoder lacks where the perturbation flow moves cells; None: none.
    """

    codes: RequestedCodes
    sampling: SamplingOptions
    library_size: Any
    seed: int
    identity: Mapping[str, Any]
    provenance: Mapping[str, Any]
    lacking: LackingChanges | None = None

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.codes)

    def names(self, start: int, stop: int) -> list[str]:
        """Name the cells of a range; names differ between requests.

        They do not depend on the number of cells if all have the same condition.
        """
        n_cells = None if self.codes.is_uniform else self.n_cells
        name = name_of(self.identity, self.seed, n_cells)
        return [f"{name}-{number}" for number in range(start, stop)]


def check_batch_size(batch_size: int | None) -> int:
    """Return the batch size or its default; raise unless it is a number of cells."""
    return DEFAULT_BATCH_SIZE if batch_size is None else check_count("batch_size", batch_size)


def describe_sampler(sampler: Sampler) -> str:
    """Identify a sampler by its text; one whose text has an address in memory is new in every call."""
    text = repr(sampler)
    return f"{text} {uuid.uuid4().hex[:N_DIGITS]}" if " at 0x" in text else text


def describe_library_size(library_size: Any, output: InputValues) -> str:
    """Return the source of total counts in a word."""
    if output == "log1p":
        return "none"
    return library_size if isinstance(library_size, str) else "given"


def describe_condition(condition: ConditionRequest) -> Any:
    """Return the requested conditions in a form that can be written to files."""
    if condition is None:
        return "drawn from the training distribution"
    if isinstance(condition, Mapping):
        return {key: _describe_values(values) for key, values in condition.items()}
    return f"a table with the columns {', '.join(condition.columns)}"


def _describe_values(values: Any) -> Any:
    """Return one value as it is, a set as text, and numbers as an array; of a table and of a long list the length."""
    if isinstance(values, AbstractSet):
        return ", ".join(sorted(map(str, values)))
    if hasattr(values, "columns"):
        return f"{len(values)} values"
    if np.ndim(values) == 0:
        plain = values.item() if hasattr(values, "item") else values
        return plain if isinstance(plain, str | bool | int | float) else float(plain)  # such as a Decimal
    if len(values) > LONGEST_LIST:
        return f"{len(values)} values"  # `obs` has them
    described = [_describe_values(value) for value in values]
    array = np.array(described)
    return array if array.dtype.kind in "biuf" else [str(value) for value in described]


# --- identity of a request, which lets other processes resume it ------------------------------------------------------


def identity_of(
    module: nn.Module,
    conditions: Conditions,
    codes: RequestedCodes,
    options: SamplingOptions,
    library_size: Any,
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    """Return everything that cells depend on but their number and the seed, as plain values and digests.

    Parameters
    ----------
    module, conditions
        The trained module and its conditions.
    codes
        Requested conditions.
    options
        Sampling options.
    library_size
        Name of a distribution, totals ``(cells, ...)``, or None for those of given cells.
    provenance
        Record of the request.
    """
    return {
        "model": provenance["model"],
        "weights": _digest_of_model(module, conditions),
        "version": provenance["version"],
        "torch": str(torch.__version__),
        "device": torch.device(module.device).type,
        "sampler": options.sampler_name,
        "n_steps": provenance["n_steps"],
        "condition": DIGEST + codes.digest,
        "library_size": DIGEST + _digest_of_array(library_size)
        if isinstance(library_size, np.ndarray)
        else library_size,
        "guidance": DIGEST + _digest_of_guidance(options.guidance),
        "values": options.output,
    }


def name_of(identity: Mapping[str, Any], seed: int, n_cells: int | None) -> str:
    """Name a request by its model and a digest of all that its cells depend on (and of ``n_cells`` unless None)."""
    text = json.dumps({**identity, "seed": seed, "n_cells": n_cells}, sort_keys=True, default=str)
    return f"{identity['model']}-{hashlib.sha256(text.encode()).hexdigest()[:N_DIGITS]}"


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """List the differences between two identities: ``one`` is that of a file, ``other`` that of the call."""
    return [
        _difference(name, one.get(name), other.get(name))
        for name in dict.fromkeys([*one, *other])
        if one.get(name) != other.get(name)
    ]


def _difference(name: str, one: Any, other: Any) -> str:
    name = OF_OTHER_NAMES.get(name, name)
    shown = f"`{name}`" if name in ARGUMENTS else f"the {name}"
    if any(str(value).startswith(DIGEST) for value in (one, other)):
        return shown
    return f"{shown} ({one} there, {other} now)"


def _digest_of_model(module: nn.Module, conditions: Conditions) -> str:
    """Return a digest of weights, conditions and architecture."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    architecture = to_plain(asdict(module.architecture))  # NumPy's numbers are Python's after loading
    for array in (conditions.combinations, conditions.n_cells):
        digest.update(_digest_of_array(array).encode())
    for known in (conditions.by_key, architecture):
        digest.update(repr(known).encode())
    return DIGEST + digest.hexdigest()


def _digest_of_guidance(guidance: Guidance) -> str:
    """Return a digest of what guidance computes: scales that mean the same give the same cells."""
    text = json.dumps(sorted(guidance.terms.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def _digest_of_array(values: np.ndarray) -> str:
    """Return a digest of shape, type and values; a row that all others repeat counts once."""
    is_one = np.array_equal(values, np.broadcast_to(values[:1], values.shape), equal_nan=values.dtype.kind == "f")
    distinct = values[:1] if is_one else values
    digest = hashlib.sha256(f"{distinct.shape}{distinct.dtype}".encode())
    digest.update(np.ascontiguousarray(distinct).tobytes())
    return digest.hexdigest()
