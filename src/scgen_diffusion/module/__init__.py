"""scvi-tools modules: tensors in, losses and samples out."""

from ._architecture import ARCHITECTURES, SCLDMArchitecture, build_architecture
from ._autoencoder import Posterior
from ._library_size import ANY, LIBRARY_SIZE_KINDS, LibrarySizeKind, LibrarySizeModel
from ._scldm import SCLDMModule, thin

__all__ = [
    "ANY",
    "ARCHITECTURES",
    "LIBRARY_SIZE_KINDS",
    "LibrarySizeKind",
    "LibrarySizeModel",
    "Posterior",
    "SCLDMArchitecture",
    "SCLDMModule",
    "build_architecture",
    "thin",
]
