"""The models: ordinary scvi-tools model classes."""

from scgen_diffusion._pretrained import pretrained_models

from ._loading import load
from ._multiscldm import MULTISCLDM
from ._scldm import SCLDM
from ._scrdit import SCRDIT, WBDIT

__all__ = ["MULTISCLDM", "SCLDM", "SCRDIT", "WBDIT", "load", "pretrained_models"]
