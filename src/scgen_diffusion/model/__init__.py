"""The models: ordinary scvi-tools model classes."""

from ._loading import load
from ._scldm import SCLDM
from ._scrdit import SCRDIT
from ._wbdit import WBDIT

__all__ = ["SCLDM", "SCRDIT", "WBDIT", "load"]
