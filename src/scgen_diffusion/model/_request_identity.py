"""What tells a request of cells from others, so that another process, or a later one, goes on with the same."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scgen_diffusion.data import to_plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scvi.model.base import BaseModelClass

    from scgen_diffusion.data import RequestedCodes
    from scgen_diffusion.diffusion import Guidance

    from ._request import SamplingOptions

DIGEST = "sha256:"
ARGUMENTS = ("n_cells", "seed", "shard_size", "sampler", "n_steps", "condition", "library_size", "guidance", "values")
N_DIGITS = 10  # of names: two of ten thousand requests share one with a probability of 1 in 20 000
ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of a function, which differs from process to process


def identity_of(
    model: BaseModelClass,
    codes: RequestedCodes,
    options: SamplingOptions,
    library_size: Any,
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    """Return all that cells depend on, apart from the seed and how many they are, in plain values; what is long as a digest.

    Parameters
    ----------
    model
        The model.
    codes
        Conditions that were asked for.
    options
        How the cells are sampled.
    library_size
        Name of a distribution, totals ``(cells, ...)``, or None for those of given cells.
    provenance
        What is told of the request.
    """
    return {
        "model": provenance["model"],
        "weights": _digest_of_model(model),
        "version": provenance["version"],
        "torch": str(torch.__version__),
        "device": torch.device(model.device).type,
        "sampler": ADDRESS.sub("", options.sampler_name),
        "n_steps": provenance["n_steps"],
        "condition": DIGEST + codes.digest,
        "library_size": DIGEST + _digest_of_array(library_size)
        if isinstance(library_size, np.ndarray)
        else library_size,
        "guidance": json.loads(json.dumps(options.guidance_record, default=str)),
        "values": options.output,
    }


def name_of(identity: Mapping[str, Any], guidance: Guidance, seed: int, n_cells: int | None) -> str:
    """Name a request by its model and by a digest of what its cells depend on: the number of cells too, unless it is None."""
    depends_on = {**identity, "guidance": repr(guidance), "seed": seed, "n_cells": n_cells}
    told = json.dumps(depends_on, sort_keys=True, default=str)
    return f"{identity['model']}-{hashlib.sha256(told.encode()).hexdigest()[:N_DIGITS]}"


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Say in what the first request differs from the second."""
    return [
        _difference(name, one.get(name), other.get(name))
        for name in dict.fromkeys([*one, *other])
        if one.get(name) != other.get(name)
    ]


def _difference(name: str, one: Any, other: Any) -> str:
    shown = f"`{name}`" if name in ARGUMENTS else f"the {name}"
    if any(str(value).startswith(DIGEST) for value in (one, other)):
        return shown
    return f"{shown} ({one} there, {other} now)"


def _digest_of_model(model: BaseModelClass) -> str:
    """Tell weights, genes and conditions from others."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.module.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    conditions = model.conditions
    architecture = to_plain(asdict(model.architecture))  # NumPy's numbers are Python's after loading
    for known in (conditions.by_key, conditions.combinations.tolist(), conditions.n_cells.tolist(), architecture):
        digest.update(repr(known).encode())
    return DIGEST + digest.hexdigest()


def _digest_of_array(values: np.ndarray) -> str:
    """Tell totals from others; one for all is looked at once."""
    distinct = values[:1] if values.strides[0] == 0 else values
    digest = hashlib.sha256(str(distinct.shape).encode())
    digest.update(np.ascontiguousarray(distinct).tobytes())
    return digest.hexdigest()
