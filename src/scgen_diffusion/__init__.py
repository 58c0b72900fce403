"""Diffusion models of single-cell data, as scvi-tools model classes."""

from importlib.metadata import PackageNotFoundError, version

from . import data, datasets, metrics, model, pl
from .reporting import report

try:
    __version__ = version("scgen-diffusion")
except PackageNotFoundError:  # the source folder is on the path, but nothing is installed
    __version__ = "unknown"

__all__ = ["__version__", "data", "datasets", "metrics", "model", "pl", "report"]
