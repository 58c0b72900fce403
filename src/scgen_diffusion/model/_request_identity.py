"""What tells a request of cells from others, so that another process, or a later one, goes on with the same."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scvi.model.base import BaseModelClass

    from ._request import CellRequest

DIGEST = "sha256:"
ARGUMENTS = ("n_cells", "seed", "shard_size", "sampler", "n_steps", "condition", "library_size", "guidance", "values")
ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of a function, which differs from process to process


def identity_of(model: BaseModelClass, request: CellRequest, seed: int | None, shard_size: int) -> dict[str, Any]:
    """Return all that the cells depend on, in plain values; what is long as a digest.

    Parameters
    ----------
    model
        The model.
    request
        The cells.
    seed
        Seed that the user gave, None for any.
    shard_size
        Cells that are finished together.
    """
    provenance = request.provenance
    size = request.library_size
    return {
        "model": provenance["model"],
        "weights": _digest_of_model(model),
        "version": provenance["version"],
        "torch": str(torch.__version__),
        "device": torch.device(model.device).type,
        "n_cells": request.n_cells,
        "seed": None if seed is None else int(seed),
        "shard_size": shard_size,
        "sampler": ADDRESS.sub("", request.options.sampler_name),
        "n_steps": provenance["n_steps"],
        "condition": DIGEST + request.codes.digest,
        "library_size": DIGEST + _digest_of_array(size) if isinstance(size, np.ndarray) else size,
        "guidance": json.loads(json.dumps(request.options.guidance_record, default=str)),
        "values": request.output,
    }


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
    for known in (conditions.by_key, conditions.combinations.tolist(), conditions.n_cells.tolist(), model.architecture):
        digest.update(repr(known).encode())
    return DIGEST + digest.hexdigest()


def _digest_of_array(values: np.ndarray) -> str:
    """Tell totals from others; one for all is looked at once."""
    distinct = values[:1] if values.strides[0] == 0 else values
    digest = hashlib.sha256(str(values.shape).encode())
    digest.update(np.ascontiguousarray(distinct).tobytes())
    return digest.hexdigest()
