"""Diffusion models of single-cell data, as scvi-tools model classes."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import VERSION as __version__

if TYPE_CHECKING:
    from . import data, datasets, interpret, metrics, model, pl, report

__all__ = ["__version__", "data", "datasets", "interpret", "metrics", "model", "pl", "report"]

# Without ipywidgets, tqdm warns in every notebook that its bars are text.
warnings.filterwarnings("ignore", message="IProgress not found")

# Imported on first use: PyTorch and scvi-tools take seconds to import, and the command line's help needs neither.
_PARTS = (*__all__, "cli", "diffusion", "generation", "module", "nn", "perturbation", "train")


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return import_module(f".{name}", __name__)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted(__all__)
