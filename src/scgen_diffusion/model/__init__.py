"""The models: ordinary scvi-tools model classes."""

from scgen_diffusion._pretrained import pretrained_models

from ._loading import load
from ._multiscldm import MULTISCLDM
from ._scldm import SCLDM
from ._scmdm import SCMDM
from ._scrdit import SCRDIT
from ._wbdit import WBDIT

__all__ = ["MULTISCLDM", "SCLDM", "SCMDM", "SCRDIT", "WBDIT", "load", "pretrained_models"]
