"""The models: ordinary scvi-tools model classes."""

from ._scldm import SCLDM

__all__ = ["SCLDM"]
